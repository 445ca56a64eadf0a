"""A bundle's encoder and decoder, compiled: the one implementation of the contract."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable

import numpy as np
import openvino as ov

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import AudioError, ModelError, failure
from fairseq_openvino.model import Head, Memory
from fairseq_openvino.runtime.engine import Engine, Variant, read_back
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.runtime.precision import Plan, plan_batch
from fairseq_openvino.runtime.session import Session
from fairseq_openvino.tensors import features_layout


class CompiledModel:
    """A `model.Model`. Graphs are compiled at their first use.

    Args:
        bundle: a verified bundle.
        options: where and how it is compiled.
        splits: whether a batch may be decoded in parallel parts: each reads all decoder weights at
            every step, which is what large vocabularies cost.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions, splits: bool = True) -> None:
        self.bundle, self.manifest = bundle, bundle.manifest
        self.engine = Engine(bundle, options)
        self._splits = splits

    def plan(self, utterances: int) -> Plan:
        """Precisions and streams for a batch of N."""
        reads_text = not self.manifest.dimensions.feature_bins
        return plan_batch(self.engine.options, utterances, self._splits, reads_text=reads_text)

    def streams(self, utterances: int) -> int:
        """See `model.Model.streams`."""
        return self.plan(utterances).streams

    def encode(
        self, features: np.ndarray, lengths: np.ndarray, streams: int = 1, together: int = 0
    ) -> Memory:
        """See `model.Model.encode`.

        The tensors stay in the request's own memory: the request returns to its pool when the result
        is no longer referenced.
        """
        shape, kind = features_layout(self.manifest.dimensions.feature_bins)
        if features.shape[2:] != shape:
            raise failure(
                ModelError, "Encoding", self.bundle.directory,
                f"features ({', '.join(('N', 'T', *map(str, shape)))})",
                features.shape, "Use the feature configuration the model was trained with",
            )  # fmt: skip
        shortest = self.manifest.limits.min_source_frames
        if features.shape[1] < shortest:
            raise AudioError(
                f"Encoding failed: expected at least {shortest} samples, which make a frame, got "
                f"{features.shape[1]}. Drop the clip."
            )
        precision = self.plan(together or len(features) * streams).encoder
        lease = self.engine.lease(Variant("encoder", precision, streams))
        request = lease.request
        features = np.ascontiguousarray(features, kind)  # the request reads this memory
        lengths = np.ascontiguousarray(lengths, np.int64)
        request.set_tensor("features", ov.Tensor(features, shared_memory=True))
        request.set_tensor("lengths", ov.Tensor(lengths, shared_memory=True))
        lease.infer()
        tensors = {
            spec.name: _array(request.get_tensor(spec.name)) for spec in self.manifest.memory
        }
        lengths = request.get_tensor("encoder_lengths").data.copy()
        memory = Memory(lengths, tensors, streams, together)
        weakref.finalize(memory, lease.release)
        return memory

    def open(self, memory: Memory, beam: int, head: Head) -> Session:
        """See `model.Model.open`."""
        variant = self._decoder(memory.utterances, memory.streams, beam, head, memory.together)
        return Session(self.engine, variant, memory)

    def prepare(self, sizes: Collection[int], beam: int, head: Head) -> None:
        """See `model.Model.prepare`."""
        for utterances in sizes:
            plan = self.plan(utterances)
            streams = plan.streams if head.candidates else 1  # all log-probabilities: one at a time
            part = -(-utterances // streams)
            self.engine.lease(Variant("encoder", plan.encoder, streams)).release()
            if self.manifest.has_decoder:
                self.engine.lease(self._decoder(part, streams, beam, head)).release()

    def properties(self, names: Iterable[str]) -> dict[str, str]:
        """What OpenVINO says of the compiled decoder, or of an encoder without one; {} before that."""
        graph = "decoder" if self.manifest.has_decoder else "encoder"
        for variant, compiled in self.engine.compiled.items():
            if variant.graph == graph:
                return read_back(compiled, names)
        return {}

    def _decoder(
        self, utterances: int, streams: int, beam: int, head: Head, together: int = 0
    ) -> Variant:
        plan = self.plan(together or utterances * streams)
        precision = "f32" if head.following else plan.decoder
        static = beam if head.candidates and utterances == 1 and self.engine.on_cpu else 0
        return Variant("decoder", precision, streams, static, head)


def _array(tensor: ov.Tensor) -> np.ndarray:
    """Its memory; of bf16, which numpy has not, the bits."""
    data: np.ndarray = tensor.data
    return data.view(np.uint16) if tensor.get_element_type() == ov.Type.bf16 else data
