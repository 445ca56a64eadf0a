"""Two other ways to run our ONNX graphs, behind Fairseq's interface and the contract of `model.py`.

Both are driven by our own search, so that only the engine differs: onnxruntime with the states
passed in and out of every call, and OpenVINO without state, which computes the whole prefix anew
in every step as the first exports of Fairseq models did.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from fairseq_openvino.bundle import Bundle, open_bundle
from fairseq_openvino.export.onnx import DECODER_ONNX, ENCODER_ONNX, past
from fairseq_openvino.measure.engines.fairseq import FairseqEngine
from fairseq_openvino.model import Ask, Head, Memory, Step

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
"""Named inputs to all outputs, in graph order."""


class GraphEngine(FairseqEngine):
    """Fairseq's task and batches over `onnxruntime` or `stateless`, as `precision` says."""

    def load(self) -> tuple[Any, int]:
        """The graphs of a bundle that holds ONNX files."""
        from fairseq_openvino.plugin.model import S2TOpenVINOModel

        assert self.spec.bundle is not None  # `form` is one
        build = BUILD[str(self.spec.precision)]
        model = build(open_bundle(self.spec.bundle), self.spec.threads)
        wrapped = S2TOpenVINOModel(model, self.task.target_dictionary)
        return wrapped, model.manifest.limits.max_source_frames


class GraphModel:
    """A `model.Model` over two functions; `stateless` names the way its sessions decode."""

    def __init__(self, bundle: Bundle, encoder: Run, decoder: Run, stateless: bool) -> None:
        self.manifest = bundle.manifest
        self.encoder, self.decoder, self.stateless = encoder, decoder, stateless

    def streams(self, utterances: int) -> int:
        """One: these engines run a batch as it is."""
        return 1

    def prepare(self, sizes: Collection[int], beam: int, head: Head) -> None:
        """Nothing: both graphs are ready."""

    def encode(
        self, features: np.ndarray, lengths: np.ndarray, streams: int = 1, together: int = 0
    ) -> Memory:
        """(N, T, F), (N,) -> what the decoder attends to."""
        outputs = self.encoder({"features": features, "lengths": lengths.astype(np.int64)})
        names = (spec.name for spec in self.manifest.memory)
        return Memory(outputs[0], dict(zip(names, outputs[1:], strict=True)))

    def open(self, memory: Memory, beam: int, head: Head) -> GraphSession:
        """A session with `beam` rows an utterance."""
        kind = StatelessSession if self.stateless else CachedSession
        return kind(self, memory, beam, head)

    def empty(self, rows: int) -> dict[str, np.ndarray]:
        """States (R, ...) before the first token, as inputs of the decoder."""
        sizes = {"R": rows, "L": 0}
        return {
            past(spec): np.zeros(
                [sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims], np.float32
            )
            for spec in self.manifest.state
        }


class GraphSession:
    """What both sessions share: log-probabilities, the C best, dropping utterances."""

    def __init__(self, model: GraphModel, memory: Memory, beam: int, head: Head) -> None:
        self.model, self.memory, self.head = model, memory, head
        self.rows = memory.utterances * beam

    def logits(self, tokens: np.ndarray, beam_idx: np.ndarray) -> np.ndarray:
        """tokens (R, l) after reordering -> (R, l or more, V)."""
        raise NotImplementedError

    def step(self, ask: Ask) -> Step:
        """See `model.Session.step`; only candidates are reported, or everything."""
        logits = self.logits(ask.tokens, ask.beam_idx)
        if not self.head.candidates:
            return Step(_log_softmax(logits[:, -ask.tokens.shape[1] :]))
        scores = _log_softmax(logits[:, -1]) + ask.bias
        last = scores.shape[1] - self.head.candidates
        best = np.argpartition(scores, last, axis=1)[:, last:]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, 1)
        return Step(np.take_along_axis(scores, best, 1), best)

    def keep(self, utterances: np.ndarray) -> None:
        """Drop all others; their rows leave with the next `beam_idx`."""
        self.memory = self.memory.take(utterances)

    def __enter__(self) -> GraphSession:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held outside of Python."""


class CachedSession(GraphSession):
    """Keys and values of earlier tokens go in and come out of every call."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.past, self.length = self.model.empty(self.rows), 0

    def logits(self, tokens: np.ndarray, beam_idx: np.ndarray) -> np.ndarray:
        """See the class."""
        reordered = self.past
        if not np.array_equal(beam_idx, np.arange(self.rows)):
            reordered = {name: value[beam_idx] for name, value in self.past.items()}
        self.rows = len(beam_idx)
        inputs = {"tokens": np.ascontiguousarray(tokens), "offset": np.array(self.length)}
        logits, *present = self.model.decoder({**inputs, **self.memory.tensors, **reordered})
        self.past = dict(zip(self.past, present, strict=True))
        self.length += tokens.shape[1]
        return logits


class StatelessSession(GraphSession):
    """Only the tokens are kept; every step is a call with all of them and an empty past."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.prefix = np.zeros((self.rows, 0), np.int64)

    def logits(self, tokens: np.ndarray, beam_idx: np.ndarray) -> np.ndarray:
        """See the class."""
        self.prefix = np.concatenate([self.prefix[beam_idx], tokens], axis=1)
        inputs = {"tokens": self.prefix, "offset": np.array(0)}
        empty = self.model.empty(len(self.prefix))
        return self.model.decoder({**inputs, **self.memory.tensors, **empty})[0]


def onnxruntime_model(bundle: Bundle, threads: int) -> GraphModel:
    """Both graphs under onnxruntime, f32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1

    def load(name: str) -> Run:
        session = onnxruntime.InferenceSession(
            str(bundle.path(name)), options, providers=["CPUExecutionProvider"]
        )
        return lambda inputs: [np.asarray(output) for output in session.run(None, inputs)]

    return GraphModel(bundle, load(ENCODER_ONNX), load(DECODER_ONNX), stateless=False)


def stateless_model(bundle: Bundle, threads: int) -> GraphModel:
    """Both graphs under OpenVINO, f32, the decoder without its state outputs."""
    import openvino as ov

    from fairseq_openvino.runtime.engine import compile_properties

    core, properties = ov.Core(), compile_properties("f32", "CPU", threads)

    def load(name: str) -> Run:
        graph = ov.convert_model(bundle.path(name))
        for result in graph.get_results()[1:] if name == DECODER_ONNX else ():
            graph.remove_result(result)
        compiled = core.compile_model(graph, "CPU", properties)
        request = compiled.create_infer_request()

        def infer(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            outputs = request.infer(inputs, share_inputs=True, share_outputs=True)
            return [outputs[output] for output in compiled.outputs]

        return infer

    return GraphModel(bundle, load(ENCODER_ONNX), load(DECODER_ONNX), stateless=True)


BUILD = {"onnxruntime": onnxruntime_model, "stateless": stateless_model}


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.asarray(shifted)
