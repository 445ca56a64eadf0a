"""One batch in a compiled decoder."""

from __future__ import annotations

import weakref

import numpy as np
import openvino as ov

from fairseq_openvino.errors import NumericsError
from fairseq_openvino.model import Ask, Memory, Step
from fairseq_openvino.runtime.bfloat import narrowed, widened
from fairseq_openvino.runtime.engine import Engine, Variant
from fairseq_openvino.tensors import TensorSpec, is_recurrent


class Session:
    """A `model.Session` over the stateful decoder of an engine.

    Its request returns to the pool when the session is closed or no longer referenced.
    """

    def __init__(self, engine: Engine, variant: Variant, memory: Memory) -> None:
        self._lease = lease = engine.lease(variant)
        self._request = lease.request
        self._request.reset_state()
        self._release = weakref.finalize(self, lease.release)
        self._head = variant.head
        specs = engine.bundle.manifest.state
        self._one_by_one = is_recurrent(specs)
        self._recurrent = {spec.name: spec for spec in specs if "L" not in spec.dims}
        self._length = 0  # L
        self._inputs: dict[str, np.ndarray] = {}  # the request reads this memory
        self._bound: dict[str, np.ndarray] = {}
        self._bind(memory)

    def step(self, ask: Ask) -> Step:
        """See `model.Session.step`; a recurrent decoder is given one token a call."""
        head = self._head
        if head.candidates:
            self._set("bias", np.asarray(ask.bias), np.float32)
        if head.mask is not None:
            self._set("bounds", np.asarray(ask.bounds), np.int32)
        count, beam_idx = ask.tokens.shape[1], ask.beam_idx
        width = 1 if self._one_by_one else count
        each: list[np.ndarray] = []
        for start in range(0, count, width):
            self._infer(ask.tokens[:, start : start + width], beam_idx)
            beam_idx = np.arange(len(ask.tokens), dtype=np.int32)
            if not head.candidates and width < count:
                each.append(self._output("log_probs").copy())
        attention = self._output("attention") if head.attention else None
        if not head.candidates:
            scores = np.concatenate(each, 1) if each else self._output("log_probs")
            return Step(scores, attention=attention)
        return self._candidates(attention)

    def keep(self, utterances: np.ndarray) -> None:
        """Keep these utterances, indices into the current batch; their rows follow by beam_idx."""
        self._bind(self._memory.take(utterances))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()  # does nothing if the request raised

    def _candidates(self, attention: np.ndarray | None) -> Step:
        scores = self._output("scores")
        if np.isnan(scores).any():
            rows = np.flatnonzero(np.isnan(scores).any(axis=1)).tolist()
            raise NumericsError(
                f"Decoding failed at token {self._length - 1}: expected log-probabilities, got NaN. "
                "Check the features and weights; f32 is the most robust precision.",
                tuple(rows),
            )
        watched = self._output("watched") if self._head.watched else None
        left = self._output("left") if self._head.renormalised else None
        return Step(scores, self._output("best"), watched, left, attention)

    def _output(self, name: str) -> np.ndarray:
        data: np.ndarray = self._request.get_tensor(name).data
        return data

    def _bind(self, memory: Memory) -> None:
        self._memory = memory
        for name, tensor in memory.tensors.items():
            wanted = self._request.get_compiled_model().input(name).get_element_type()
            if wanted == ov.Type.bf16:
                bits = tensor if tensor.dtype == np.uint16 else narrowed(tensor)
                bound = ov.Tensor(bits, list(bits.shape), ov.Type.bf16)
            else:
                bits = widened(tensor) if tensor.dtype == np.uint16 else tensor
                bound = ov.Tensor(bits, shared_memory=True)
            self._bound[name] = bits  # the request reads this memory
            self._request.set_tensor(name, bound)

    def _begin(self, rows: int) -> None:
        """Set the recurrent states, (R, ...) each.

        The graph would do so itself, but with 2026.4 not behind a call of the request with fewer rows.
        """
        states = self._request.query_state() if self._recurrent else ()
        for state in states:
            spec = self._recurrent.get(state.name.partition("present_")[2])
            if spec is not None:
                state.state = ov.Tensor(self._start(spec, rows))

    def _start(self, spec: TensorSpec, rows: int) -> np.ndarray:
        """What a state begins with, see `TensorSpec.start`."""
        if spec.start is None:
            return np.zeros((rows, *map(int, spec.dims[1:])), np.float32)
        memory = self._bound[spec.start]
        wide = widened(memory) if memory.dtype == np.uint16 else memory
        return np.repeat(wide, rows // len(wide), axis=0)

    def _infer(self, tokens: np.ndarray, beam_idx: np.ndarray) -> None:
        if self._length == 0:
            self._begin(len(tokens))
        self._set("tokens", tokens, np.int64)
        self._set("offset", np.int64(self._length), np.int64)
        self._set("beam_idx", beam_idx, np.int32)
        try:
            self._lease.infer()
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
