"""Words of a window: punctuation put to them, times repaired, segments made to fit; and made-up ones.

Source: openai-whisper `timing.py`, from the alignment on, and `transcribe.py:transcribe`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fairseq_openvino.model import Word
from fairseq_openvino.speech.features import FRAMES_PER_SECOND
from fairseq_openvino.whisper.questions import Timing, Window
from fairseq_openvino.whisper.windows import TimedTokens

SENTENCE_ENDS = ".。!！?？"
PUNCTUATION = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"
"""Not counted among the words that are judged."""
JUDGED_WORDS = 8
ODD = 3.0
"""So odd in all, words are made up."""
IMPROBABLE, SHORT_SECONDS, LONG_SECONDS = 0.15, 0.133, 2.0
"""What is odd about a word: a probability and a duration below these, a duration above."""
MARGIN_SECONDS = 2.0
"""At both ends of a window, which may cut words."""


def merge_punctuations(alignment: Sequence[Timing], prepended: str, appended: str) -> list[Timing]:
    """Punctuation joined to the word behind or before it; its own place stays, without a word.

    Source: openai-whisper `timing.py:merge_punctuations`.
    """
    words = [each.word for each in alignment]
    tokens = [each.tokens for each in alignment]
    following = len(words) - 1
    for i in range(len(words) - 2, -1, -1):
        if words[i].startswith(" ") and words[i].strip() in prepended:
            words[following] = words[i] + words[following]
            tokens[following] = tokens[i] + tokens[following]
            words[i], tokens[i] = "", ()
        else:
            following = i
    previous = 0
    for i in range(1, len(words)):
        if not words[previous].endswith(" ") and words[i] in appended:
            words[previous] += words[i]
            tokens[previous] += tokens[i]
            words[i], tokens[i] = "", ()
        else:
            previous = i
    return [
        replace(each, word=word, tokens=own)
        for each, word, own in zip(alignment, words, tokens, strict=True)
    ]


@dataclass(frozen=True)
class Pace:
    """How long words of a window take, in seconds."""

    median: float
    """At most 0.7."""

    @property
    def longest(self) -> float:
        """What a word next to a pause may take."""
        return self.median * 2

    @classmethod
    def of(cls, alignment: Sequence[Timing]) -> Pace:
        """Of words that take any time; 0 without one."""
        durations = [each.end - each.start for each in alignment if each.end != each.start]
        return cls(min(0.7, float(np.median(durations))) if durations else 0.0)


def place_words(
    segments: Sequence[TimedTokens],
    alignment: Sequence[Timing],
    seek: int,
    last_speech: float,
    eos: int,
    prepended: str,
    appended: str,
) -> list[TimedTokens]:
    """Segments of a window with their words; times of both are fitted to each other.

    Args:
        segments: of the window, in order.
        alignment: of all their text.
        seek: first frame of the window.
        last_speech: seconds from the start of the audio at which speech was last heard.
        eos: text tokens are those below it.
        prepended: punctuation that is part of the word behind it.
        appended: punctuation that is part of the word before it.

    Source: openai-whisper `timing.py:add_word_timestamps`.
    """
    pace = Pace.of(alignment)
    if pace.median > 0:
        alignment = _shortened_at_sentence_ends(alignment, pace)
    waiting = iter(merge_punctuations(alignment, prepended, appended))
    placed = []
    for segment in segments:
        count = int((segment.tokens < eos).sum())
        words = list(_taken(waiting, count, seek / FRAMES_PER_SECOND))
        fitted = _fitted(segment, words, pace, last_speech) if words else segment
        last_speech = fitted.end if words else last_speech
        placed.append(fitted)
    return placed


def _shortened_at_sentence_ends(alignment: Sequence[Timing], pace: Pace) -> list[Timing]:
    """Marks that end a sentence, and words behind them, last no longer than others."""
    found = list(alignment)
    for i in range(1, len(found)):
        mark, before = found[i], found[i - 1]
        if mark.end - mark.start > pace.longest:
            if mark.word in SENTENCE_ENDS:
                found[i] = replace(mark, end=mark.start + pace.longest)
            elif before.word in SENTENCE_ENDS:
                found[i] = replace(mark, start=mark.end - pace.longest)
    return found


def _taken(waiting: Iterator[Timing], count: int, offset: float) -> Iterator[Word]:
    """The next words, until they have so many tokens."""
    while count > 0 and (timing := next(waiting, None)) is not None:
        count -= len(timing.tokens)
        if timing.word:
            start, end = round(offset + timing.start, 2), round(offset + timing.end, 2)
            yield Word(start, end, timing.word, timing.probability)


def _fitted(segment: TimedTokens, words: list[Word], pace: Pace, last_speech: float) -> TimedTokens:
    """A segment with its words, of which there is one at least."""
    words = _shortened_after_pause(words, pace, last_speech)
    start, end = segment.start, segment.end
    first = words[0]
    if start < first.end and start - 0.5 > first.start:  # the word is too long
        words[0] = replace(first, start=max(0.0, min(first.end - pace.median, start)))
    else:
        start = first.start
    last = words[-1]
    if end > last.start and end + 0.5 < last.end:
        words[-1] = replace(last, end=max(last.start + pace.median, end))
    else:
        end = last.end
    return replace(segment, start=start, end=end, words=tuple(words))


def _shortened_after_pause(words: list[Word], pace: Pace, last_speech: float) -> list[Word]:
    """The first two words last no longer than others if a pause is before them."""
    first, *others = words
    if first.end - last_speech <= pace.median * 4:
        return words
    second = others[0] if others else None
    together = second is not None and second.end - first.start > pace.longest * 2
    if not (first.end - first.start > pace.longest or together):
        return words
    if second is not None and second.end - second.start > pace.longest:
        boundary = max(second.end / 2, second.end - pace.longest)
        first, others[0] = replace(first, end=boundary), replace(second, start=boundary)
    return [replace(first, start=max(0.0, first.end - pace.longest)), *others]


def end_of_speech(segments: Sequence[TimedTokens]) -> float | None:
    """End of the last word, or of the last segment if none has words; None without segments.

    Source: openai-whisper `utils.py:get_end`.
    """
    ends = [segment.words[-1].end for segment in segments if segment.words]
    ends = ends or [segment.end for segment in segments]
    return ends[-1] if ends else None


def is_made_up(segment: TimedTokens | None) -> bool:
    """Whether the words are too improbable, too short or too long to be true.

    Source: openai-whisper `transcribe.py:is_segment_anomaly, word_anomaly_score`.
    """
    if segment is None or not segment.words:
        return False
    words = [each for each in segment.words if each.word not in PUNCTUATION][:JUDGED_WORDS]
    score = sum(map(_oddness, words))
    return score >= ODD or score + 0.01 >= len(words)


def _oddness(word: Word) -> float:
    duration, score = word.end - word.start, 0.0
    if word.probability < IMPROBABLE:
        score += 1.0
    if duration < SHORT_SECONDS:
        score += (SHORT_SECONDS - duration) * 15
    if duration > LONG_SECONDS:
        score += duration - LONG_SECONDS
    return score


def first_made_up(
    segments: Sequence[TimedTokens], window: Window, full: int, last_speech: float, silence: float
) -> int | None:
    """Which segment was made up in silence, or among others that were; None: no one.

    Args:
        segments: of the window, with words.
        window: where they were heard.
        full: frames of a whole window.
        last_speech: seconds from the start of the audio at which speech was last heard before.
        silence: longer than this in seconds, speech is not expected.

    Source: openai-whisper `transcribe.py:transcribe` ("surrounded by silence or more hallucinations").
    """
    offset = window.seek / FRAMES_PER_SECOND
    for i, segment in enumerate(segments):
        if not segment.words:
            continue
        if is_made_up(segment):
            later = first_with_words(segments[i + 1 :])
            next_start = (
                offset + window.frames / FRAMES_PER_SECOND
                if later is None
                else later.words[0].start
            )
            silent_before = (
                segment.start - last_speech > silence
                or segment.start < silence
                or segment.start - offset < MARGIN_SECONDS
            )
            silent_after = (
                next_start - segment.end > silence
                or is_made_up(later)
                or (window.seek + full) / FRAMES_PER_SECOND - segment.end < MARGIN_SECONDS
            )
            if silent_before and silent_after:
                return i
        last_speech = segment.end
    return None


def first_with_words(segments: Sequence[TimedTokens]) -> TimedTokens | None:
    """The first segment that has any; None: no one has."""
    return next((segment for segment in segments if segment.words), None)
