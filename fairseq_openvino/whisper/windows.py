"""Windows of one clip: what has been decoded so far, and where the next window begins."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fairseq_openvino.model import Hypothesis, Word
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

    def failed(
        self,
        compression_ratio_threshold: float | None,
        no_speech_threshold: float | None,
        logprob_threshold: float | None,
    ) -> bool:
        """Whether the window is to be decoded again at the next temperature, see `WhisperOptions`.

        Source: openai-whisper `transcribe.py:decode_with_fallback`.
        """
        improbable = logprob_threshold is not None and self.avg_logprob < logprob_threshold
        if improbable and self.is_silence(no_speech_threshold, logprob_threshold):
            return False
        return improbable or not self.fits(compression_ratio_threshold)

    def fits(self, compression_ratio_threshold: float | None) -> bool:
        """Whether the text does not repeat itself."""
        limit = compression_ratio_threshold
        return limit is None or self.compression_ratio <= limit

    def is_doubtful(
        self, no_speech_threshold: float | None, logprob_threshold: float | None
    ) -> bool:
        """Whether text is made up where a voice detector hears nobody: one of both rules is enough.

        A singer is not heard by the detector, but passes both.
        """
        silent = no_speech_threshold is not None and self.no_speech_prob > no_speech_threshold
        return silent or (logprob_threshold is not None and self.avg_logprob < logprob_threshold)

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


@dataclass(frozen=True, eq=False)
class TimedTokens:
    """Tokens of one segment, timestamps included."""

    start: float
    """Seconds from the start of the clip."""
    end: float
    tokens: np.ndarray
    words: tuple[Word, ...] = ()


def joined(windows: Sequence[Sequence[Hypothesis]], eos: int) -> list[Hypothesis]:
    """The n best of a recording from those of its windows.

    Several windows are joined, with <|endoftext|> at the end only.
    """
    found = [window for window in windows if len(window[0].tokens)]
    if not found:
        return [nothing(eos)]
    if len(found) == 1:
        return list(found[0])
    *before, last = [best for best, *_ in found]
    parts = [*(chosen(best, np.flatnonzero(best.tokens != eos)) for best in before), last]
    tokens, positional, after = (
        np.concatenate(arrays)
        for arrays in zip(
            *((part.tokens, part.positional_scores, part.after_rules) for part in parts),
            strict=True,
        )
    )
    return [Hypothesis(tokens, float(positional.mean()), positional, after)]


def chosen(hypothesis: Hypothesis, places: np.ndarray) -> Hypothesis:
    """Some of its tokens, in the order of these indices."""
    after = hypothesis.after_rules
    return Hypothesis(
        hypothesis.tokens[places],
        hypothesis.score,
        hypothesis.positional_scores[places],
        None if after is None else after[places],
    )


def ends_closed(tokens: np.ndarray, first_timestamp: int) -> bool:
    """Whether text and one timestamp end the tokens: nothing is said after it."""
    return (tokens[-2:] >= first_timestamp).tolist() == [False, True]


def split(
    tokens: np.ndarray, seek: int, frames: int, rules: Rules, whole: bool = False
) -> tuple[list[TimedTokens], int]:
    """Segments of a window whose clip part has `frames` frames, beginning at frame `seek`.

    Args:
        tokens: without <|endoftext|>.
        seek: first frame of the window.
        frames: how many hold audio.
        rules: which tokens are timestamps.
        whole: nothing is decoded again: what follows the last complete segment is one that ends with
            the window.

    Returns:
        The segments, and the frames they cover: what follows the last complete segment is decoded
        again.

    Source: openai-whisper `transcribe.py:transcribe`.
    """
    config = rules.config
    first, step = config.first_timestamp, config.timestamp_seconds
    offset, length = seek / FRAMES_PER_SECOND, frames / FRAMES_PER_SECOND
    is_timestamp = tokens >= first
    ends = (np.flatnonzero(is_timestamp[:-1] & is_timestamp[1:]) + 1).tolist()
    if not ends:
        marks = tokens[is_timestamp]
        if len(marks) and marks[-1] != first:
            length = (int(marks[-1]) - first) * step
        return [TimedTokens(offset, offset + length, tokens)], frames
    closed = ends_closed(tokens, first)
    if closed:
        ends.append(len(tokens))
    segments = []
    for begin, end in pairwise([0, *ends]):
        start, stop = int(tokens[begin]) - first, int(tokens[end - 1]) - first
        segments.append(TimedTokens(offset + start * step, offset + stop * step, tokens[begin:end]))
    if closed:
        return segments, frames
    if whole:
        rest = tokens[ends[-1] :]
        start = int(rest[0]) - first
        return [*segments, TimedTokens(offset + start * step, offset + length, rest)], frames
    return segments, round(stop * step * FRAMES_PER_SECOND)
