"""When somebody speaks: spans of speech out of the probabilities that a voice detector gives.

Source: silero-vad 6.2.3 `utils_vad.py:get_speech_timestamps_from_probs`, whose spans these are, found
while the probabilities arrive.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from fairseq_openvino.errors import invalid
from fairseq_openvino.model import Segment

RATE_HZ = 16_000
FRAME_SAMPLES = 512
"""A probability is that of 32 ms."""
SPLIT_SAMPLES = RATE_HZ * 98 // 1000
"""A span that is too long is split at a pause longer than this."""
SYLLABLE_FRAMES, MIN_SYLLABLE = 8, 0.3
"""The mean probability of 0.26 s: in speech at least 0.8 somewhere, also at 0 dB in noise or music and
whispered, 0.38 at -5 dB; in noise, hum, tones and played notes at most 0.28."""


class Listener(Protocol):
    """Hears one recording; the samples arrive in blocks of any size."""

    def hear(self, samples: np.ndarray) -> np.ndarray:
        """Probabilities (n,) of speech in the frames that are known by now; samples (m,), float32."""
        ...

    def end(self) -> np.ndarray:
        """Those of the other frames, the last one zero-padded."""
        ...


class Voice(Protocol):
    """A voice detector; may be shared between threads."""

    def listen(self) -> Listener:
        """To a recording of its own, at `RATE_HZ`."""
        ...


class Span(NamedTuple):
    """A stretch of a recording."""

    start: int
    """Its first sample, at `RATE_HZ`."""
    end: int
    """The first one behind it."""

    @property
    def samples(self) -> int:
        """How many it has."""
        return self.end - self.start


@dataclass(frozen=True)
class ActivityOptions:
    """What counts as a span of speech; faster-whisper's values for batches."""

    threshold: float = 0.5
    """Probability from which on somebody starts to speak; who speaks goes on until it is 0.15 lower."""
    min_speech_ms: int = 0
    """Shorter spans are dropped."""
    min_silence_ms: int = 160
    """Shorter pauses do not end a span."""
    pad_ms: int = 400
    """Added at both ends; spans that would then overlap share what is between them in halves."""


class Activity:
    """Spans of speech of one recording, each as soon as nothing that follows can change it.

    Args:
        options: of spans.
        max_samples: longer spans, padding included, are split at their longest pause, or where they
            become too long.

    Raises:
        OptionError: `max_samples` is shorter than the padding.
    """

    def __init__(self, options: ActivityOptions, max_samples: int | None = None) -> None:
        self._options = options
        self._quiet = max(options.threshold - 0.15, 0.01)
        self._min_speech, self._min_silence, self._pad = (
            RATE_HZ * each // 1000
            for each in (options.min_speech_ms, options.min_silence_ms, options.pad_ms)
        )
        self._longest = None if max_samples is None else max_samples - FRAME_SAMPLES - 2 * self._pad
        if self._longest is not None and self._longest < FRAME_SAMPLES:
            expected = f"at least {2 * (self._pad + FRAME_SAMPLES)} samples"
            advice = "The model must take more at once"
            raise invalid("Finding speech", "max_samples", expected, max_samples, advice)
        self._now = 0
        self._start: int | None = None
        self._silence: int | None = None
        """Where the pause in the span under way starts, if it is in one."""
        self._pauses: list[Span] = []
        self._held: Span | None = None
        """The last span; its end depends on what follows."""
        self._spans: list[Span] = []

    def hear(self, probabilities: np.ndarray) -> list[Span]:
        """The spans decided by the next frames' probabilities (n,)."""
        for probability in probabilities.tolist():
            self._hear(probability)
            self._now += FRAME_SAMPLES
        gap_end = self._now - FRAME_SAMPLES if self._start is None else self._start
        if self._held is not None and gap_end - self._held.end >= 2 * self._pad:
            self._release(self._pad)
        return self._decided()

    def end(self, samples: int) -> list[Span]:
        """The other spans of a recording of so many samples."""
        if self._start is not None and samples - self._start > self._min_speech:
            self._found(self._start, samples)
        self._start = None
        if self._held is not None:
            self._release(min(self._pad, samples - self._held.end))
        return self._decided()

    @property
    def earliest(self) -> int:
        """No span to come has a sample before this one."""
        if self._held is not None:
            return self._held.start
        return max((self._now if self._start is None else self._start) - self._pad, 0)

    def _hear(self, probability: float) -> None:
        """Of the frame that starts now."""
        now, is_voice = self._now, probability >= self._options.threshold
        if is_voice and self._silence is not None:
            if now - self._silence > SPLIT_SAMPLES:
                self._pauses.append(Span(self._silence, now))
            self._silence = None
        if self._start is None:
            if is_voice:
                self._begin(now)
            return
        if self._longest is not None and now - self._start > self._longest:
            if not self._pauses:
                self._found(self._start, now)
                self._begin(None)
                return
            pause = max(self._pauses, key=lambda pause: pause.samples)
            self._found(self._start, pause.start)
            self._begin(pause.end)
        if probability < self._quiet:
            if self._silence is None:
                self._silence = now
            if now - self._silence >= self._min_silence:
                if self._silence - self._start > self._min_speech:
                    self._found(self._start, self._silence)
                self._begin(None)

    def _begin(self, start: int | None) -> None:
        """A span, or the silence between two."""
        self._start, self._silence, self._pauses = start, None, []

    def _found(self, start: int, end: int) -> None:
        """A span without padding: it decides how much the one before gets."""
        pad = self._pad
        if self._held is not None:
            pad = min((start - self._held.end) // 2, pad)
            self._release(pad)
        self._held = Span(max(start - pad, 0), end)

    def _release(self, pad: int) -> None:
        assert self._held is not None
        self._spans.append(self._held._replace(end=self._held.end + pad))
        self._held = None

    def _decided(self) -> list[Span]:
        spans, self._spans = self._spans, []
        return spans


def spans(
    probabilities: np.ndarray,
    samples: int,
    options: ActivityOptions | None = None,
    max_samples: int | None = None,
) -> list[Span]:
    """Of a whole recording; see `Activity`."""
    activity = Activity(options or ActivityOptions(), max_samples)
    return [*activity.hear(probabilities), *activity.end(samples)]


def is_speech(probabilities: np.ndarray) -> bool:
    """Whether anybody may be speaking in a stretch of a recording; who sings does not.

    Args:
        probabilities: of its frames, (n,); a few on both sides do no harm.
    """
    if len(probabilities) < SYLLABLE_FRAMES:
        return bool(probabilities.max(initial=0.0) >= MIN_SYLLABLE)
    windows = np.lib.stride_tricks.sliding_window_view(probabilities, SYLLABLE_FRAMES)
    return bool(windows.mean(axis=1).max() >= MIN_SYLLABLE)


def uncovered(
    spans: Iterable[Span], segments: Iterable[Segment], least_seconds: float = 2.0
) -> list[tuple[float, float]]:
    """Stretches of speech that no segment covers, as pairs of seconds from the start of the recording.

    Args:
        spans: of speech, in order; those that touch are one.
        segments: of a transcript; those without text cover nothing.
        least_seconds: shorter stretches are left out.
    """
    texts = sorted((each.start, each.end) for each in segments if each.text.strip())
    found = []
    for start, end in _merged((span.start / RATE_HZ, span.end / RATE_HZ) for span in spans):
        position = start
        for text_start, text_end in [*texts, (end, end)]:
            if min(text_start, end) - position >= least_seconds:
                found.append((position, min(text_start, end)))
            position = max(position, text_end)
    return found


def _merged(stretches: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Stretches in order, those that touch as one."""
    merged: list[tuple[float, float]] = []
    for start, end in stretches:
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged
