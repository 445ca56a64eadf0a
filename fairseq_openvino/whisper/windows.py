"""Windows of one clip: what has been decoded so far, and where the next window begins."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

from fairseq_openvino.model import Hypothesis
from fairseq_openvino.speech.features import FRAMES_PER_SECOND
from fairseq_openvino.whisper.rules import Rules


def compression_ratio(text: str) -> float:
    """Bytes of a text by bytes of it compressed; a loop has a high one.

    Source: openai-whisper `utils.py:compression_ratio`.
    """
    content = text.encode()
    return len(content) / len(zlib.compress(content))


@dataclass(frozen=True)
class Outcome:
    """How the decoding of one window went; see `model.Segment`."""

    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float

    @classmethod
    def of(
        cls, best: Hypothesis, text: str, eos: int, temperature: float, no_speech_prob: float
    ) -> Outcome:
        """Of the best hypothesis of a window and its text.

        Source: openai-whisper `decoding.py:DecodingTask.run`.
        """
        after = best.positional_scores if best.after_rules is None else best.after_rules
        average = float(after.sum()) / (int((best.tokens != eos).sum()) + 1)
        return cls(temperature, average, compression_ratio(text), no_speech_prob)

    def is_silence(
        self, no_speech_threshold: float | None, logprob_threshold: float | None
    ) -> bool:
        """Whether the window is left out, see `WhisperOptions`.

        Source: openai-whisper `transcribe.py:transcribe` ("no voice activity check").
        """
        if no_speech_threshold is None or self.no_speech_prob <= no_speech_threshold:
            return False
        return logprob_threshold is None or self.avg_logprob <= logprob_threshold


def nothing(eos: int) -> Hypothesis:
    """The hypothesis of a clip in which nobody speaks."""
    return Hypothesis(np.array([eos]), 0.0, np.zeros(1, np.float32))


@dataclass(frozen=True)
class TimedTokens:
    """Tokens of one segment, timestamps included."""

    start: float
    """Seconds from the start of the clip."""
    end: float
    tokens: np.ndarray


class Progress:
    """State of one clip; decoding stops where its audio stops.

    Source: openai-whisper `transcribe.py:transcribe` (`content_frames`, `seek`).
    """

    def __init__(self, frames: int, language: str | None, seed: int) -> None:
        self.frames = frames
        """Of the clip itself, without the padding of its window."""
        self.seek = 0
        """First frame that has not been decoded."""
        self.language = language
        self.language_probabilities: dict[str, float] = {}
        self.outcomes: list[Outcome] = []
        """Of all windows."""
        self.segments: list[tuple[TimedTokens, Outcome]] = []
        """With the outcome of their window."""
        self.random = np.random.default_rng(seed)
        self._windows: list[list[Hypothesis]] = []

    def detected(self, probabilities: dict[str, float]) -> None:
        """Languages by code, most probable first; what is known already stays."""
        if self.language is None:
            self.language_probabilities = probabilities
            self.language = next(iter(probabilities))

    @property
    def done(self) -> bool:
        """Whether the clip is decoded to its end."""
        return self.seek >= self.frames

    @property
    def skipped(self) -> bool:
        """Whether every window was left out."""
        return not self._windows

    def skip(self, outcome: Outcome) -> None:
        """Leave out the window that begins at `seek`."""
        self.outcomes.append(outcome)
        self.seek = self.frames

    def add(self, found: list[Hypothesis], rules: Rules, outcome: Outcome) -> None:
        """The n best of the window that begins at `seek`.

        A pair of timestamps ends the window even where none were asked for. Segments end with the
        clip at the latest; one that begins behind it was made up, unless it is all there is.
        """
        best, seconds = found[0], self.frames / FRAMES_PER_SECOND
        ended = len(best.tokens) and best.tokens[-1] == rules.eos
        tokens = best.tokens[:-1] if ended else best.tokens
        segments, advanced = split(tokens, self.seek, self.frames - self.seek, rules)
        if rules.mask is not None:
            heard = [each for each in segments if each.start < seconds]
            segments = heard if heard or self.segments else segments[:1]
            self.segments += [
                (replace(each, start=min(each.start, seconds), end=min(each.end, seconds)), outcome)
                for each in segments
            ]
        self.outcomes.append(outcome)
        used = sum(len(each.tokens) for each in segments)
        self._windows.append(found if used == len(tokens) else [_first(best, used)])
        self.seek += max(advanced, 1)

    def hypotheses(self, eos: int) -> list[Hypothesis]:
        """The n best of the clip; several windows are joined, with <|endoftext|> at the end only."""
        if self.skipped:
            return [nothing(eos)]
        *before, last = self._windows
        if not before:
            return last
        parts = [_first(best, int((best.tokens != eos).sum())) for best, *_ in before] + [last[0]]
        tokens, positional, after = (
            np.concatenate(arrays)
            for arrays in zip(
                *((part.tokens, part.positional_scores, part.after_rules) for part in parts),
                strict=True,
            )
        )
        return [Hypothesis(tokens, float(positional.mean()), positional, after)]


def _first(hypothesis: Hypothesis, count: int) -> Hypothesis:
    """Its first tokens."""
    parts = hypothesis.tokens, hypothesis.positional_scores, hypothesis.after_rules
    tokens, positional, after = (None if part is None else part[:count] for part in parts)
    assert tokens is not None and positional is not None
    return Hypothesis(tokens, hypothesis.score, positional, after)


def split(
    tokens: np.ndarray, seek: int, frames: int, rules: Rules
) -> tuple[list[TimedTokens], int]:
    """Segments of a window whose clip part has `frames` frames, beginning at frame `seek`.

    Returns:
        The segments, and the frames they cover: what follows the last complete segment is decoded
        again.

    Source: openai-whisper `transcribe.py:transcribe`.
    """
    config = rules.config
    first, step = config.first_timestamp, config.timestamp_seconds
    offset = seek / FRAMES_PER_SECOND
    is_timestamp = tokens >= first
    ends = (np.flatnonzero(is_timestamp[:-1] & is_timestamp[1:]) + 1).tolist()
    if not ends:
        marks, length = tokens[is_timestamp], frames / FRAMES_PER_SECOND
        if len(marks) and marks[-1] != first:
            length = (int(marks[-1]) - first) * step
        return [TimedTokens(offset, offset + length, tokens)], frames
    closed = is_timestamp[-2:].tolist() == [False, True]  # nothing is said after the last one
    if closed:
        ends.append(len(tokens))
    segments = []
    for begin, end in zip([0, *ends], ends, strict=False):
        start, stop = int(tokens[begin]) - first, int(tokens[end - 1]) - first
        segments.append(TimedTokens(offset + start * step, offset + stop * step, tokens[begin:end]))
    if closed:
        return segments, frames
    return segments, round(stop * step * FRAMES_PER_SECOND)
