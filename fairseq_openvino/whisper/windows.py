"""Windows of one clip: what has been decoded so far, and where the next window begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fairseq_openvino.model import Hypothesis
from fairseq_openvino.speech.features import FRAMES_PER_SECOND
from fairseq_openvino.whisper.rules import Rules


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
        self.no_speech_probability: float | None = None
        """Of the first window."""
        self.segments: list[TimedTokens] = []
        self.random = np.random.default_rng(seed)
        self._windows: list[list[Hypothesis]] = []

    def detected(self, no_speech: float, languages: np.ndarray, codes: Sequence[str]) -> None:
        """Log-probabilities of the language tokens, shape (languages,), after the first token."""
        if self.no_speech_probability is None:
            self.no_speech_probability = no_speech
        if self.language is None:
            share = np.exp(languages - languages.max())
            share /= share.sum()
            order = np.argsort(-share, kind="stable")
            self.language_probabilities = {codes[i]: float(share[i]) for i in order}
            self.language = codes[order[0]]

    @property
    def done(self) -> bool:
        """Whether the clip is decoded to its end."""
        return self.seek >= self.frames

    def add(self, found: list[Hypothesis], rules: Rules) -> None:
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
                replace(each, start=min(each.start, seconds), end=min(each.end, seconds))
                for each in segments
            ]
        used = sum(len(each.tokens) for each in segments)
        self._windows.append(found if used == len(tokens) else [_first(best, used)])
        self.seek += max(advanced, 1)

    def hypotheses(self, eos: int) -> list[Hypothesis]:
        """The n best of the clip; several windows are joined, with <|endoftext|> at the end only."""
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
