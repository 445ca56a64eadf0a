"""Encoder and decoder calls over an `Engine`: shared by all families."""

from __future__ import annotations

import weakref
from dataclasses import replace
from types import TracebackType

import numpy as np
import openvino as ov

from fairseq_openvino.errors import NumericsError
from fairseq_openvino.model import Candidates, EncoderOutput
from fairseq_openvino.runtime.engine import Engine, Variant

MASKED = -65504.0
"""Bias of a masked encoder frame, as `export/graphs.py` has it."""


def encode(
    engine: Engine, variant: Variant, features: np.ndarray, lengths: np.ndarray
) -> EncoderOutput:
    """Run the encoder once; (N, T, F), (N,) -> cross-attention tensors.

    The tensors stay in the request's own memory: the request returns to its pool when the result
    is no longer referenced.
    """
    lease = engine.lease(variant)
    request = lease.request
    request.set_tensor("features", _tensor(features, np.float32))
    request.set_tensor("lengths", _tensor(lengths, np.int64))
    request.infer(share_outputs=True)
    names = [output.get_any_name() for output in request.model_outputs]
    tensors = {name: request.get_tensor(name) for name in names if name != "encoder_lengths"}
    lengths = request.get_tensor("encoder_lengths").data.copy()
    encoded = EncoderOutput(lengths, tensors, variant.streams)
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
        joined = np.full(shape, MASKED if bias else 0.0, np.float32)
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

    def __init__(self, engine: Engine, variant: Variant, encoded: EncoderOutput) -> None:
        lease = engine.lease(variant)
        self._request = lease.request
        self._request.reset_state()
        self._release = weakref.finalize(self, lease.release)
        self._encoded = encoded  # keeps the memory of the tensors alive
        self._probing, self.has_bounds = bool(variant.probed), bool(variant.first_timestamp)
        self._length = 0  # L
        self._inputs: dict[str, np.ndarray] = {}  # the request reads this memory
        for name, tensor in encoded.tensors.items():
            self._request.set_tensor(name, tensor)

    def step(self, tokens: np.ndarray, beam_idx: np.ndarray) -> np.ndarray:
        """tokens (R, l), beam_idx (R,) -> log-probabilities (R, l, V), valid until the next call."""
        self._infer(tokens, beam_idx)
        log_probs: np.ndarray = self._request.get_tensor("log_probs").data
        return log_probs

    def candidates(
        self,
        tokens: np.ndarray,
        beam_idx: np.ndarray,
        bias: np.ndarray,
        bounds: np.ndarray | None = None,
    ) -> Candidates:
        """tokens (R, l), beam_idx (R,), bias (1 or R, V), bounds (R, 3) -> the C best of each row."""
        self._set("bias", bias, np.float32)
        if bounds is not None:
            self._set("bounds", bounds, np.int32)
        self._infer(tokens, beam_idx)
        scores = self._request.get_tensor("scores").data
        if np.isnan(scores).any():
            rows = np.flatnonzero(np.isnan(scores).any(axis=1)).tolist()
            raise NumericsError(
                f"Decoding failed at token {self._length - 1}: expected log-probabilities, got NaN. "
                "Check the features and weights; f32 is the most robust precision.",
                tuple(rows),
            )
        probed = self._request.get_tensor("probed").data if self._probing else None
        return Candidates(scores, self._request.get_tensor("best").data, probed)

    def keep(self, utterances: np.ndarray) -> None:
        """Keep these utterances, indices into the current batch; their rows follow by beam_idx."""
        kept = {
            name: ov.Tensor(np.ascontiguousarray(tensor.data[utterances]), shared_memory=True)
            for name, tensor in self._encoded.tensors.items()
        }
        self._encoded = replace(
            self._encoded, lengths=self._encoded.lengths[utterances], tensors=kept
        )
        for name, tensor in kept.items():
            self._request.set_tensor(name, tensor)
        if self._length:  # a variant that holds cross-attention as state reads the inputs only once
            for state in self._request.query_state():
                if state.name in kept:
                    state.state = kept[state.name]

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
        self._set("tokens", tokens, np.int64)
        self._set("offset", np.int64(self._length), np.int64)
        self._set("beam_idx", beam_idx, np.int32)
        try:
            self._request.infer(share_outputs=True)
        except BaseException:
            self._release.detach()  # the request is in an unknown state: never use it again
            raise
        self._length += tokens.shape[1]

    def _set(self, name: str, array: np.ndarray | np.generic, dtype: type[np.generic]) -> None:
        """Write an input in place, or bind new memory when its shape changes."""
        bound = self._inputs.get(name)
        if bound is None or bound.shape != array.shape:
            self._inputs[name] = np.array(array, dtype, order="C")
            self._request.set_tensor(name, ov.Tensor(self._inputs[name], shared_memory=True))
        else:
            bound[...] = array


def _tensor(array: np.ndarray | np.generic, dtype: type[np.generic]) -> ov.Tensor:
    return ov.Tensor(np.asarray(array, dtype, order="C"), shared_memory=True)
