"""Long recordings as pieces that a model takes at once: speech only, cut where nobody speaks.

Neighbouring spans of speech are put together up to a limit, and what lies between them is left out.
Source: faster-whisper 1.2.1 `vad.py:collect_chunks`, `vad.py:SpeechTimestampsMap` (times of the recording).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from fairseq_openvino.speech.activity import RATE_HZ, Activity, ActivityOptions, Span, Voice

MAX_PAUSE_SAMPLES = 2 * RATE_HZ
"""What is further apart seldom belongs together, and no segment should span it: Whisper base and tiny.en
make fewer errors in clips that are 6 to 15 s apart if each is a piece (13.1 in place of 13.9 %, 15.6 in
place of 17.9 %)."""


@dataclass(frozen=True)
class Piece:
    """Spans of speech behind each other, as one waveform."""

    waveform: np.ndarray
    """Shape (samples,), float32, at `activity.RATE_HZ`."""
    spans: tuple[Span, ...]
    """Where its parts are in the recording."""

    @property
    def seconds(self) -> float:
        """Of the waveform."""
        return len(self.waveform) / RATE_HZ

    @property
    def start(self) -> float:
        """Seconds from the start of the recording."""
        return self.spans[0].start / RATE_HZ

    @property
    def end(self) -> float:
        """The same of its end."""
        return self.spans[-1].end / RATE_HZ

    def restore(self, seconds: float, is_end: bool = False) -> float:
        """A time in the piece as one of the recording.

        Args:
            seconds: from the start of the piece; what lies outside becomes its start or end.
            is_end: something ends then: where two spans meet, that is the end of the first one,
                otherwise the start of the second one.

        Returns:
            Seconds from the start of the recording, inside one of the spans; later for what is later.
        """
        return self._restore(seconds, self._index(seconds, is_end))

    def restore_word(self, start: float, end: float) -> tuple[float, float]:
        """Both times of a word, inside the span in which its middle lies."""
        index = self._index((start + end) / 2, is_end=False)
        return self._restore(start, index), self._restore(end, index)

    def _restore(self, seconds: float, index: int) -> float:
        span, end = self.spans[index], self._ends[index]
        return min(max(span.end - end + seconds * RATE_HZ, span.start), span.end) / RATE_HZ

    def _index(self, seconds: float, is_end: bool) -> int:
        """Of the span in which a time of the piece lies."""
        find = bisect_left if is_end else bisect_right
        return min(find(self._ends, round(seconds * RATE_HZ)), len(self.spans) - 1)

    @cached_property
    def _ends(self) -> list[int]:
        """Samples of the piece up to the end of each span."""
        return [*accumulate(span.samples for span in self.spans)]


def pieces(
    blocks: Iterable[np.ndarray], voice: Voice, options: ActivityOptions, max_samples: int
) -> Iterator[Piece]:
    """Pieces of a recording of any length, in order; without speech there are none.

    Args:
        blocks: of the recording, (samples,) each, at `activity.RATE_HZ`; how it is cut into blocks makes
            no difference.
        voice: hears who speaks.
        options: what counts as speech.
        max_samples: of a piece; longer spans are split at their longest pause.

    Yields:
        Each piece as soon as it is known that the next span does not belong to it. Memory is that of a piece
        and of the speech that follows, whatever the length of the recording.
    """
    spans: list[Span] = []
    parts: list[np.ndarray] = []
    for span, part in speech(blocks, voice, options, max_samples):
        is_full = sum(map(len, parts)) + len(part) > max_samples
        if spans and (is_full or span.start - spans[-1].end > MAX_PAUSE_SAMPLES):
            yield Piece(np.concatenate(parts), tuple(spans))
            spans, parts = [], []
        spans.append(span)
        parts.append(part)
    if spans:
        yield Piece(np.concatenate(parts), tuple(spans))


def speech(
    blocks: Iterable[np.ndarray], voice: Voice, options: ActivityOptions, max_samples: int
) -> Iterator[tuple[Span, np.ndarray]]:
    """The spans of a recording and their samples."""
    activity, listener = Activity(options, max_samples), voice.listen()
    first, held = 0, np.empty(0, np.float32)
    """What spans to come may need, and where it starts."""
    for block in blocks:
        held = np.concatenate([held, block], dtype=np.float32)
        for span in activity.hear(listener.hear(block)):
            yield span, held[span.start - first : span.end - first].copy()
        held = held[activity.earliest - first :]
        first = activity.earliest
    total = first + len(held)
    for span in [*activity.hear(listener.end()), *activity.end(total)]:
        yield span, held[span.start - first : span.end - first]
