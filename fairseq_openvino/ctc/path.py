"""The best path through the log-probabilities of frames: its tokens, and when each is said.

Source: Fairseq `criterions/ctc.py` (validation), `examples/speech_recognition/w2l_decoder.py:get_tokens`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fairseq_openvino.model import Hypothesis, Word


@dataclass(frozen=True)
class Path:
    """The most probable token of every frame, equal neighbours as one and without blanks."""

    tokens: np.ndarray
    """Ids, (n,) int64."""
    starts: np.ndarray
    """First frame of each, (n,)."""
    ends: np.ndarray
    """The frame behind its last one, (n,)."""
    frames: np.ndarray
    """Log-probability of the path at each frame, (S,) float32."""

    @classmethod
    def of(cls, log_probs: np.ndarray, blank: int) -> Path:
        """Through (S, V)."""
        best = log_probs.argmax(axis=1)
        starts = np.flatnonzero(np.diff(best, prepend=-1))
        ends = np.append(starts[1:], len(best))
        said = best[starts] != blank
        tokens = best[starts[said]].astype(np.int64)
        return cls(tokens, starts[said], ends[said], log_probs.max(axis=1))

    def hypothesis(self, eos: int) -> Hypothesis:
        """Its tokens, with eos behind them unless the path itself ends with it.

        A token has the log-probability of its frames and the blanks before them, eos that of what is
        left: their sum is that of the path, and the score is their mean.
        """
        tokens, ends = self.tokens, self.ends
        if eos in tokens[-1:]:
            ends = np.append(ends[:-1], len(self.frames))
        else:
            tokens, ends = np.append(tokens, eos), np.append(ends, len(self.frames))
        sums = np.append(0.0, np.cumsum(self.frames, dtype=np.float64))
        positional = np.diff(sums[ends], prepend=0.0).astype(np.float32)
        return Hypothesis(tokens, float(positional.mean()), positional)

    def words(
        self, text: Callable[[Iterable[int]], str], frame_seconds: float, seconds: float
    ) -> Iterator[Word]:
        """The words of its text; each lasts from its first token to its last.

        Args:
            text: of token ids.
            frame_seconds: from one frame to the next.
            seconds: no word ends later.
        """
        written, places = list[str](), defaultdict[int, list[int]](list)
        for i in range(len(self.tokens)):
            before, written = written, text(self.tokens[: i + 1]).split()
            if written and written != before:  # else a mark between words: part of neither
                for place in range(len(before), len(written)) or (len(written) - 1,):
                    places[place].append(i)
        for place, word in enumerate(written):
            tokens = places[place]
            start, end = self.starts[tokens[0]], self.ends[tokens[-1]]
            said = [np.exp(self.frames[self.starts[i] : self.ends[i]]).mean() for i in tokens]
            times = start * frame_seconds, min(end * frame_seconds, seconds)
            yield Word(float(times[0]), float(times[1]), f" {word}", float(np.mean(said)))
