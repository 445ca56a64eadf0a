"""Windows of one clip: what has been decoded so far, and where the next window begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairseq_openvino.model import Hypothesis
from fairseq_openvino.whisper_search import Rules

FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class TimedTokens:
    """Tokens of one segment, timestamps included."""

    start: float
    """Seconds from the start of the clip."""
    end: float
    tokens: np.ndarray


class Progress:
    """State of one clip."""

    def __init__(self, language: str | None, seed: int) -> None:
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

    def add(self, found: list[Hypothesis], frames: int, rules: Rules, *, timestamps: bool) -> None:
        """The n best of a window of `frames` frames, of which those from `seek` on are the clip's.

        As in transformers, a pair of timestamps ends the window even where none were asked for.
        """
        best = found[0]
        ended = len(best.tokens) and best.tokens[-1] == rules.eos
        tokens = best.tokens[:-1] if ended else best.tokens
        segments, used, advanced = split(tokens, self.seek, frames - self.seek, rules)
        self.seek += advanced
        if timestamps:
            self.segments += segments
        if used < len(tokens):
            found = [Hypothesis(best.tokens[:used], best.score, best.positional_scores[:used])]
        self._windows.append(found)

    def hypotheses(self) -> list[Hypothesis]:
        """The n best of the clip; several windows are joined."""
        if len(self._windows) == 1:
            return self._windows[0]
        parts = [window[0] for window in self._windows]
        positional = np.concatenate([part.positional_scores for part in parts])
        tokens = np.concatenate([part.tokens for part in parts])
        return [Hypothesis(tokens, float(positional.mean()), positional)]


def split(
    tokens: np.ndarray, seek: int, frames: int, rules: Rules
) -> tuple[list[TimedTokens], int, int]:
    """Segments of a window whose clip part has `frames` frames, beginning at frame `seek`.

    Returns:
        The segments, the number of tokens in them, and the frames they cover: what follows the last
        complete segment is decoded again.

    Source: transformers `generation_whisper.py:_retrieve_segment`.
    """
    config = rules.config
    first, step = config.first_timestamp, config.timestamp_seconds
    offset = seek / FRAMES_PER_SECOND
    is_timestamp = tokens >= first
    ends = (np.flatnonzero(is_timestamp[:-1] & is_timestamp[1:]) + 1).tolist()
    if not ends:
        last = int(frames / FRAMES_PER_SECOND / step)
        marks = tokens[is_timestamp]
        if len(marks) and marks[-1] != first:
            last = int(marks[-1]) - first
        return [TimedTokens(offset, offset + last * step, tokens)], len(tokens), frames
    closed = is_timestamp[-2:].tolist() == [False, True]
    if closed:
        ends.append(len(tokens))
    else:
        ends[-1] += 1
    segments, begin = [], 0
    for end in ends:
        part = tokens[begin:end]
        final = -1 if end != ends[-1] or closed else -2
        start_index, end_index = int(part[0]) - first, int(part[final]) - first
        segments.append(TimedTokens(offset + start_index * step, offset + end_index * step, part))
        begin = end
    if closed:
        return segments, len(tokens), frames
    moment = int(tokens[begin - 2]) - first
    return segments, begin, round(moment * step * FRAMES_PER_SECOND)
