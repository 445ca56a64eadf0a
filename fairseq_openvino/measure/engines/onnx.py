"""Two other ways to run our ONNX graphs, behind Fairseq's interface and the contract of `model.py`.

Both are driven by our own search, so that only the engine differs: onnxruntime with the caches
passed in and out of every call, and OpenVINO without state, which computes the whole prefix anew
in every step as the first exports of Fairseq models did.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any

import numpy as np

from fairseq_openvino.bundle import Bundle, open_bundle
from fairseq_openvino.errors import ModelError
from fairseq_openvino.export.onnx import (
    DECODER_ONNX,
    ENCODER_ONNX,
    cache_names,
    cross_names,
)
from fairseq_openvino.measure.engines.fairseq import FairseqEngine
from fairseq_openvino.model import Candidates, EncoderOutput
from fairseq_openvino.s2t.vocabulary import Vocabulary, load_dictionary

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
    """A model over two functions; `stateless` names the way its sessions decode."""

    def __init__(self, bundle: Bundle, encoder: Run, decoder: Run, stateless: bool) -> None:
        self.manifest = bundle.manifest
        text = bundle.manifest.text
        self.vocabulary = Vocabulary.of(load_dictionary(bundle.path(text.dictionary)), text)
        self.encoder, self.decoder, self.stateless = encoder, decoder, stateless

    def features(self, waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Not needed: batches come from Fairseq's dataset."""
        raise ModelError(
            "Computing features failed in the benchmark: expected features from Fairseq's dataset, "
            f"got a waveform {waveform.shape} at {sample_rate_hz} Hz. Use load_model."
        )

    def streams(self, utterances: int) -> int:
        """One: these engines run a batch as it is."""
        return 1

    def prepare(self, beam: int, candidates: int = 0, utterances: Collection[int] = (1,)) -> None:
        """Nothing: both graphs are ready."""

    def encode(self, features: np.ndarray, lengths: np.ndarray, streams: int = 1) -> EncoderOutput:
        """(N, T, F), (N,) -> cross-attention tensors."""
        outputs = self.encoder({"features": features, "lengths": lengths.astype(np.int64)})
        names = ["encoder_lengths", "cross_bias", *cross_names(self.manifest.dimensions.layers)]
        tensors = dict(zip(names, outputs, strict=True))
        return EncoderOutput(tensors.pop("encoder_lengths"), tensors)

    def open(self, encoded: EncoderOutput, beam: int, candidates: int = 0) -> GraphSession:
        """A session with `beam` rows an utterance."""
        kind = StatelessSession if self.stateless else CachedSession
        return kind(self, encoded, beam, candidates)


class GraphSession:
    """What both sessions share: log-probabilities, the C best, dropping utterances."""

    def __init__(
        self, model: GraphModel, encoded: EncoderOutput, beam: int, candidates: int
    ) -> None:
        self.model, self.cross, self.count = model, dict(encoded.tensors), candidates
        self.rows = encoded.utterances * beam

    def logits(self, tokens: np.ndarray, beam_idx: np.ndarray) -> np.ndarray:
        """tokens (R, l) after reordering -> (R, l or more, V)."""
        raise NotImplementedError

    def step(self, tokens: np.ndarray, beam_idx: np.ndarray) -> np.ndarray:
        """See `model.DecoderSession.step`."""
        return _log_softmax(self.logits(tokens, beam_idx)[:, -tokens.shape[1] :])

    def candidates(
        self,
        tokens: np.ndarray,
        beam_idx: np.ndarray,
        bias: np.ndarray,
        bounds: np.ndarray | None = None,
    ) -> Candidates:
        """See `model.DecoderSession.candidates`; there are no bounds in this family."""
        scores = _log_softmax(self.logits(tokens, beam_idx)[:, -1]) + bias
        last = scores.shape[1] - self.count
        best = np.argpartition(scores, last, axis=1)[:, last:] if last else _all(scores)
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, 1)
        return Candidates(np.take_along_axis(scores, best, 1), best)

    def keep(self, utterances: np.ndarray) -> None:
        """Drop all others; their rows leave with the next `beam_idx`."""
        self.cross = {name: tensor[utterances] for name, tensor in self.cross.items()}

    def __enter__(self) -> GraphSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cross = {}


class CachedSession(GraphSession):
    """Keys and values of earlier tokens go in and come out of every call."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        sizes = self.model.manifest.dimensions
        empty = np.zeros((self.rows, sizes.heads, 0, sizes.head_width), np.float32)
        self.past = dict.fromkeys(cache_names("past", sizes.layers), empty)
        self.length = 0

    def logits(self, tokens: np.ndarray, beam_idx: np.ndarray) -> np.ndarray:
        """See the class."""
        past = self.past
        if not np.array_equal(beam_idx, np.arange(len(past["past_key.0"]))):
            past = {name: value[beam_idx] for name, value in past.items()}
        inputs = {"tokens": np.ascontiguousarray(tokens), "offset": np.array(self.length)}
        logits, *present = self.model.decoder(inputs | self.cross | past)
        self.past = dict(zip(past, present, strict=True))
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
        return self.model.decoder({"tokens": self.prefix, **self.cross})[0]


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
    """Both graphs under OpenVINO, f32, the decoder with an empty past and no cache outputs."""
    import openvino as ov

    from fairseq_openvino.runtime.engine import compile_properties

    core, properties = ov.Core(), compile_properties("f32", "CPU", threads)
    sizes = bundle.manifest.dimensions
    encoder = core.compile_model(ov.convert_model(bundle.path(ENCODER_ONNX)), "CPU", properties)
    graph = ov.convert_model(bundle.path(DECODER_ONNX))
    for result in graph.get_results()[1:]:
        graph.remove_result(result)
    decoder = core.compile_model(graph, "CPU", properties)
    names = cache_names("past", sizes.layers)

    def run(compiled: ov.CompiledModel) -> Run:
        request = compiled.create_infer_request()

        def infer(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            outputs = request.infer(inputs, share_inputs=True, share_outputs=True)
            return [outputs[output] for output in compiled.outputs]

        return infer

    encode, decode = run(encoder), run(decoder)

    def whole_prefix(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        empty = np.zeros((len(inputs["tokens"]), sizes.heads, 0, sizes.head_width), np.float32)
        return decode({**inputs, "offset": np.array(0), **dict.fromkeys(names, empty)})

    return GraphModel(bundle, encode, whole_prefix, stateless=True)


BUILD = {"onnxruntime": onnxruntime_model, "stateless": stateless_model}


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.asarray(shifted)


def _all(scores: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
