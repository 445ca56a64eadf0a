"""Encoder and decoder calls over an `Engine`: shared by all families."""

from __future__ import annotations

import weakref
from types import TracebackType

import numpy as np
import openvino as ov

from fairseq_openvino.errors import NumericsError
from fairseq_openvino.model import Candidates, EncoderOutput
from fairseq_openvino.runtime.engine import Engine


def encode(engine: Engine, features: np.ndarray, lengths: np.ndarray) -> EncoderOutput:
    """Run the encoder once; (N, T, F), (N,) -> cross-attention tensors.

    The tensors stay in the request's own memory: the request returns to its pool when the result
    is no longer referenced.
    """
    lease = engine.encoder()
    request = lease.request
    request.set_tensor("features", _tensor(features, np.float32))
    request.set_tensor("lengths", _tensor(lengths, np.int64))
    request.infer(share_outputs=True)
    names = [output.get_any_name() for output in request.model_outputs]
    tensors = {name: request.get_tensor(name) for name in names if name != "encoder_lengths"}
    encoded = EncoderOutput(request.get_tensor("encoder_lengths").data.copy(), tensors)
    weakref.finalize(encoded, lease.release)
    return encoded


def concatenate(outputs: list[EncoderOutput]) -> EncoderOutput:
    """One batch out of several encoder outputs, padded to the longest and masked."""
    if len(outputs) == 1:
        return outputs[0]
    frames = max(int(output.tensors["cross_bias"].shape[3]) for output in outputs)
    utterances = sum(output.utterances for output in outputs)
    tensors: dict[str, ov.Tensor] = {}
    for name, first in outputs[0].tensors.items():
        bias = name == "cross_bias"
        axis = 3 if bias else 2
        shape = [utterances, *first.shape[1:]]
        shape[axis] = frames
        joined = np.full(shape, -65504.0 if bias else 0.0, np.float32)
        row = 0
        for output in outputs:
            part = output.tensors[name].data
            valid = part.shape[axis]
            target = joined[row : row + len(part)]
            (target[..., :valid] if bias else target[:, :, :valid])[...] = part
            row += len(part)
        tensors[name] = ov.Tensor(joined, shared_memory=True)
    return EncoderOutput(np.concatenate([output.lengths for output in outputs]), tensors)


class Session:
    """A `DecoderSession` over the stateful decoder of an engine.

    Its request returns to the pool when the session is closed or no longer referenced.
    """

    def __init__(self, engine: Engine, encoded: EncoderOutput, candidates: int = 0) -> None:
        lease = engine.decoder(candidates)
        self._request = lease.request
        self._request.reset_state()
        self._release = weakref.finalize(self, lease.release)
        self._encoded = encoded  # keeps the memory of the tensors alive
        self._length = 0  # L
        for name, tensor in encoded.tensors.items():
            self._request.set_tensor(name, tensor)

    def step(self, tokens: np.ndarray, beam_idx: np.ndarray) -> np.ndarray:
        """tokens (R, l), beam_idx (R,) -> log-probabilities (R, l, V), valid until the next call."""
        self._infer(tokens, beam_idx)
        log_probs: np.ndarray = self._request.get_tensor("log_probs").data
        return log_probs

    def candidates(self, tokens: np.ndarray, beam_idx: np.ndarray, bias: np.ndarray) -> Candidates:
        """tokens (R, 1), beam_idx (R,), bias (1 or R, V) -> the C best of each row."""
        self._request.set_tensor("bias", _tensor(bias, np.float32))
        self._infer(tokens, beam_idx)
        scores = self._request.get_tensor("scores").data
        if np.isnan(scores).any():
            rows = np.flatnonzero(np.isnan(scores).any(axis=1))
            raise NumericsError(
                f"Decoding failed at token {self._length - 1}: expected finite log-probabilities, "
                f"got NaN in rows {rows[:8].tolist()}. Use --ov-precision f32 or check the weights."
            )
        return Candidates(scores, self._request.get_tensor("best").data)

    def keep(self, utterances: np.ndarray) -> None:
        """Keep these utterances, indices into the current batch; their rows follow by beam_idx."""
        kept = {
            name: ov.Tensor(np.ascontiguousarray(tensor.data[utterances]), shared_memory=True)
            for name, tensor in self._encoded.tensors.items()
        }
        self._encoded = EncoderOutput(self._encoded.lengths[utterances], kept)
        for name, tensor in kept.items():
            self._request.set_tensor(name, tensor)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release()  # does nothing if the request raised

    def _infer(self, tokens: np.ndarray, beam_idx: np.ndarray) -> None:
        request = self._request
        self._inputs = (  # alive until the next call: the request reads this memory
            _tensor(tokens, np.int64),
            _tensor(np.int64(self._length), np.int64),
            _tensor(beam_idx, np.int32),
        )
        request.set_tensor("tokens", self._inputs[0])
        request.set_tensor("offset", self._inputs[1])
        request.set_tensor("beam_idx", self._inputs[2])
        try:
            request.infer(share_outputs=True)
        except BaseException:
            self._release.detach()  # the request is in an unknown state: never use it again
            raise
        self._length += tokens.shape[1]


def _tensor(array: np.ndarray | np.generic, dtype: type[np.generic]) -> ov.Tensor:
    return ov.Tensor(np.asarray(array, dtype, order="C"), shared_memory=True)
