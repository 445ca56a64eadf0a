"""Which rows of a session somebody still waits for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fairseq_openvino.model import Ask, Memory, Step

LARGE_MEMORY_BYTES = 10_000_000
"""Of an utterance, Whisper's: to drop another one costs more to copy than some steps of its rows."""


class Rows:
    """Rows of the utterances that were kept among those that the graph computes.

    To drop utterances is to copy the memory of the others. Where that is large, the dropped ones go on
    unseen, as copies of a row that is kept, until half of them are dropped.
    """

    def __init__(self, memory: Memory) -> None:
        sizes = (tensor.nbytes for tensor in memory.tensors.values())
        self._share = 2 if sum(sizes) > LARGE_MEMORY_BYTES * memory.utterances else 1
        self._count = memory.utterances
        self._kept = np.arange(memory.utterances)
        """Of the utterances that are computed."""
        self._before: np.ndarray | None = None
        """Rows of the last step, if not all were seen."""

    def keep(self, utterances: np.ndarray) -> np.ndarray | None:
        """Drop all but these; returns those that the graph is to keep, None: as they are."""
        self._kept = self._kept[utterances]
        if self._share * len(self._kept) > self._count and self._share > 1:
            return None
        chosen, self._kept = self._kept, np.arange(len(utterances))
        self._count = len(utterances)
        return chosen

    def spread(self, ask: Ask) -> Ask:
        """As the graph computes it."""
        beam = len(ask.tokens) // len(self._kept)
        rows = (self._kept[:, None] * beam + np.arange(beam)).reshape(-1)
        before, self._before = self._before, None
        beam_idx = ask.beam_idx if before is None else before[ask.beam_idx]
        if len(self._kept) == self._count:
            return replace(ask, beam_idx=beam_idx)
        self._before = rows
        source = np.zeros(self._count * beam, np.int64)
        source[rows] = np.arange(len(rows))
        every = np.arange(len(source), dtype=np.int32)
        every[rows] = beam_idx
        bias = ask.bias if ask.bias is None or len(ask.bias) == 1 else ask.bias[source]
        bounds = None if ask.bounds is None else ask.bounds[source]
        return Ask(ask.tokens[source], every, bias, bounds)

    def seen(self, step: Step) -> Step:
        """What came of the rows that are kept."""
        rows = self._before
        if rows is None:
            return step

        def seen(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[rows]

        return Step(
            step.scores[rows], seen(step.tokens), seen(step.watched), seen(step.left),
            seen(step.attention),
        )  # fmt: skip
