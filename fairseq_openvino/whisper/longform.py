"""A recording of any length, window after window: what is asked next, and what the answers become.

Differs from openai-whisper in this: a window always advances; ends of `clip_timestamps` are those of the
recording at most; if a window fails at every temperature, its best attempt that does not repeat itself
counts; segments without text or duration are left out; times lie within the recording.

Source: openai-whisper `transcribe.py:transcribe`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np

from fairseq_openvino.model import Hypothesis, Segment, Word
from fairseq_openvino.speech.features import FRAMES_PER_SECOND
from fairseq_openvino.whisper.options import Request
from fairseq_openvino.whisper.questions import Alignment, Heard, Timing, Window
from fairseq_openvino.whisper.rules import Rules
from fairseq_openvino.whisper.windows import (
    Outcome,
    TimedTokens,
    chosen,
    ends_closed,
    joined,
    split,
)
from fairseq_openvino.whisper.words import (
    end_of_speech,
    first_made_up,
    first_with_words,
    is_made_up,
    place_words,
)

Question = Window | Alignment
Answer = Heard | list[Timing] | None

Timed = TypeVar("Timed", TimedTokens, Word)

UNRELIABLE_TEMPERATURE = 0.5
"""Text of windows that needed more does not precede others."""


class Longform:
    """One recording under way; `run` yields questions and is sent their answers.

    Args:
        frames: of the recording, of 10 ms.
        full: frames of a whole window.
        rules: which tokens are timestamps.
        request: options and prompts.
        text: of tokens, without special ones, timestamps and surrounding blanks.
        one_window: nothing is decoded again: what follows the last complete segment of a window is kept
            as a last one, which ends with the window.
    """

    def __init__(
        self,
        frames: int,
        full: int,
        rules: Rules,
        request: Request,
        text: Callable[[Iterable[int]], str],
        one_window: bool = False,
    ) -> None:
        self.frames, self.full, self.rules, self.text = frames, full, rules, text
        self.options, self.one_window = request.options, one_window
        self.seek = 0
        """Frames that are done."""
        self.segments: list[Segment] = []
        """Found so far."""
        self.outcomes: list[Outcome] = []
        """Of all windows that were decoded."""
        self.stuck = 0
        """Windows that would not have advanced."""
        self._windows: list[Sequence[Hypothesis]] = []
        carried = request.prompt if self.options.carry_initial_prompt else ()
        self._carried = (*request.hotwords, *carried)
        self._room = request.room - len(self._carried)
        self._history = () if carried else request.prompt
        self._last_speech = 0.0
        seconds = frames / FRAMES_PER_SECOND
        self._segment_clock, self._word_clock = _Clock[TimedTokens](seconds), _Clock[Word](seconds)

    @property
    def skipped(self) -> bool:
        """Whether every window so far was left out."""
        return not self._windows

    def hypotheses(self) -> list[Hypothesis]:
        """The n best of the recording, see `windows.joined`."""
        return joined(self._windows, self.rules.eos)

    def run(self) -> Generator[Question, Answer, None]:
        """Questions in order: `Window` is answered by `Heard` or None, `Alignment` by its words."""
        for begin, end in self._clips():
            self.seek = begin
            while self.seek < end:
                size = min(self.full, end - self.seek)
                reached = yield from self._window(
                    Window(self.seek, size, self._carried + self._history)
                )
                if reached <= self.seek:
                    self.stuck += 1
                    reached = self.seek + size
                self.seek = min(reached, self.frames)

    def _clips(self) -> list[tuple[int, int]]:
        """First and last frame of each part."""
        frames = [round(each * FRAMES_PER_SECOND) for each in self.options.clip_timestamps or (0,)]
        bounds = [min(each, self.frames) for each in frames]
        if len(bounds) % 2:
            bounds.append(self.frames)
        return list(zip(bounds[::2], bounds[1::2], strict=True))

    def _window(self, window: Window) -> Generator[Question, Answer, int]:
        """One window; returns the frame at which the next one begins."""
        after = window.seek + window.frames
        heard, temperature = yield from self._listen(window)
        if heard is None:
            return after
        self.outcomes.append(heard.outcome)
        options, best = self.options, heard.hypotheses[0]
        if heard.outcome.is_silence(options.no_speech_threshold, options.logprob_threshold):
            return after
        ended = len(best.tokens) and best.tokens[-1] == self.rules.eos
        tokens = best.tokens[:-1] if ended else best.tokens
        segments, advanced = split(tokens, window.seek, window.frames, self.rules, self.one_window)
        reached = window.seek + advanced
        if options.word_timestamps:
            closed = self.one_window or ends_closed(tokens, self.rules.config.first_timestamp)
            segments = yield from self._with_words(window, segments)
            reached = self._after_words(window, segments, closed, reached)
            kept, reached = self._without_made_up(window, segments, reached)
            if kept is None:
                return reached
            segments = kept
            last = end_of_speech(segments)
            self._last_speech = self._last_speech if last is None else last
        said = [each for each in segments if each.start != each.end and self.text(each.tokens)]
        self._remember(said, temperature)
        reported = self._within(said)
        self._report(reported, window, heard.outcome)
        self._keep(heard.hypotheses, tokens, segments, reported)
        return reached

    def _listen(self, window: Window) -> Generator[Question, Answer, tuple[Heard | None, float]]:
        """Decode a window at rising temperatures until it succeeds.

        Returns:
            What counts, and the last temperature.

        Source: openai-whisper `transcribe.py:decode_with_fallback`; if all attempts fail, faster-whisper
        `transcribe.py:WhisperModel.generate_with_fallback`.
        """
        options = self.options
        limit = options.compression_ratio_threshold
        thresholds = limit, options.no_speech_threshold, options.logprob_threshold
        attempts: list[Heard] = []
        for temperature in options.temperatures:
            heard = yield replace(window, temperature=temperature, attempt=len(attempts))
            if heard is None:
                return None, temperature
            assert isinstance(heard, Heard)
            if not heard.outcome.failed(*thresholds):
                return heard, temperature
            attempts.append(heard)
        fitting = [each for each in attempts if each.outcome.fits(limit)]
        return max(fitting or attempts, key=lambda each: each.outcome.avg_logprob), temperature

    def _with_words(
        self, window: Window, segments: list[TimedTokens]
    ) -> Generator[Question, Answer, list[TimedTokens]]:
        """Segments with words, and their times."""
        options, eos = self.options, self.rules.eos
        spoken = tuple(token for each in segments for token in each.tokens.tolist() if token < eos)
        alignment: Answer = []
        if spoken:
            alignment = yield Alignment(window.seek, window.frames, spoken)
        assert isinstance(alignment, list)
        return place_words(
            segments, alignment, window.seek, self._last_speech, eos,
            options.prepend_punctuations, options.append_punctuations,
        )  # fmt: skip

    def _after_words(
        self, window: Window, segments: list[TimedTokens], closed: bool, reached: int
    ) -> int:
        """Where the next window begins: behind the last word, unless nothing is said after it."""
        last = end_of_speech(segments)
        if closed or last is None or last <= window.seek / FRAMES_PER_SECOND:
            return reached
        silence = self.options.hallucination_silence_threshold
        rest = (window.seek + self.full) / FRAMES_PER_SECOND - last
        if silence is not None and rest <= silence:
            return window.seek + window.frames
        return round(last * FRAMES_PER_SECOND)

    def _without_made_up(
        self, window: Window, segments: list[TimedTokens], reached: int
    ) -> tuple[list[TimedTokens] | None, int]:
        """Segments without those made up in silence; None: the window is decoded from another frame on.

        Source: openai-whisper `transcribe.py:transcribe` ("skip silence before possible hallucinations").
        """
        silence = self.options.hallucination_silence_threshold
        if silence is None:
            return segments, reached
        offset = window.seek / FRAMES_PER_SECOND
        first = first_with_words(segments)
        if first is not None and is_made_up(first) and first.start - offset > silence:
            return None, window.seek + round((first.start - offset) * FRAMES_PER_SECOND)
        place = first_made_up(segments, window, self.full, self._last_speech, silence)
        if place is None:
            return segments, reached
        made_up = segments[place]
        if self.frames / FRAMES_PER_SECOND - made_up.end < silence:
            return segments[:place], self.frames
        return segments[:place], round(max(offset + 1, made_up.start) * FRAMES_PER_SECOND)

    def _remember(self, said: list[TimedTokens], temperature: float) -> None:
        """What precedes the next window."""
        if not self.options.conditioned or temperature > UNRELIABLE_TEMPERATURE:
            self._history = ()
            return
        new = tuple(token for each in said for token in each.tokens.tolist())
        self._history = (*self._history, *new)[-self._room :]

    def _within(self, said: list[TimedTokens]) -> list[TimedTokens]:
        """Segments that begin within the recording; the first one if there are no others at all."""
        heard = [each for each in said if each.start < self.frames / FRAMES_PER_SECOND]
        return heard if heard or self.segments else said[:1]

    def _report(self, reported: list[TimedTokens], window: Window, outcome: Outcome) -> None:
        """Add to the segments found."""
        for each in map(self._segment_clock.moved, reported):
            words = tuple(map(self._word_clock.moved, each.words))
            segment = Segment(
                each.start, each.end, self.text(each.tokens), **vars(outcome), seek=window.seek,
                tokens=tuple(each.tokens.tolist()),
                words=words if self.options.word_timestamps else None,
            )  # fmt: skip
            self.segments.append(segment)

    def _keep(
        self,
        found: Sequence[Hypothesis],
        tokens: np.ndarray,
        segments: list[TimedTokens],
        reported: list[TimedTokens],
    ) -> None:
        """The n best of a window, or the part of the best one that was reported."""
        parts = [
            each in reported  # what has no text takes none away
            or (not self.text(each.tokens) and each.start < self.frames / FRAMES_PER_SECOND)
            or self.rules.mask is None
            for each in segments
        ]
        kept = np.flatnonzero(np.repeat(parts, [len(each.tokens) for each in segments]))
        whole = len(kept) == len(tokens)
        self._windows.append(found[: self.options.nbest] if whole else [chosen(found[0], kept)])


class _Clock(Generic[Timed]):
    """Moves times into a recording of so many seconds; none starts before one that was moved earlier."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.latest = seconds, 0.0

    def moved(self, timed: Timed) -> Timed:
        """The same at other times, if need be."""
        self.latest = min(max(timed.start, self.latest), self.seconds)
        return replace(timed, start=self.latest, end=min(max(timed.end, self.latest), self.seconds))
