"""Recordings as inputs of either graph, one recorded utterance in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino.model import Model
from fairseq_openvino.quantize import recording
from fairseq_openvino.quantize.recording import EncoderCall

MAX_CACHED_BYTES = 1 << 29
"""Cross-attention tensors kept in memory; those beyond are computed again at every pass."""

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Place:
    """A call, or a session on it, in the recordings."""

    path: Path
    call: int
    sequence: int = 0


class Samples(Sequence[Inputs]):
    """Inputs of one graph, made when they are asked for."""

    def __init__(self, places: Sequence[_Place]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        place = self._places[index]
        return self._inputs(recording.read(place.path)[place.call], place)

    def _inputs(self, call: EncoderCall, place: _Place) -> Inputs:
        raise NotImplementedError


class EncoderSamples(Samples):
    """One sample an encoder call: features (N, T, F), lengths (N,)."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__([_Place(path, i) for path, i, _ in _calls(paths)])

    def _inputs(self, call: EncoderCall, place: _Place) -> Inputs:
        return {"features": call.features, "lengths": call.lengths}


class DecoderSamples(Samples):
    """One sample a session: all its tokens (1, L) and the cross-attention tensors of its call.

    The state is empty before the call and full of the session's own keys and values within it.
    """

    def __init__(self, paths: Sequence[Path], model: Model) -> None:
        places = [
            _Place(path, i, j)
            for path, i, call in _calls(paths)
            for j in range(len(call.sequences))
        ]
        super().__init__(places)
        self._model = model
        self._cached: dict[_Place, Inputs] = {}
        self._cached_bytes = 0

    def _inputs(self, call: EncoderCall, place: _Place) -> Inputs:
        tokens = call.sequences[place.sequence]
        rows = np.zeros(1, np.int32)
        return {
            "tokens": tokens,
            "offset": np.array(0),
            "beam_idx": rows,
            **self._cross(call, place),
        }

    def _cross(self, call: EncoderCall, place: _Place) -> Inputs:
        key = _Place(place.path, place.call)
        if key in self._cached:
            return self._cached[key]
        memory = self._model.encode(call.features, call.lengths)
        tensors = {name: tensor.copy() for name, tensor in memory.tensors.items()}
        size = sum(array.nbytes for array in tensors.values())
        if self._cached_bytes + size <= MAX_CACHED_BYTES:
            self._cached[key], self._cached_bytes = tensors, self._cached_bytes + size
        return tensors


def _calls(paths: Sequence[Path]) -> Iterator[tuple[Path, int, EncoderCall]]:
    for path in paths:
        for index, call in enumerate(recording.read(path)):
            yield path, index, call
