"""Cues of subtitles, as segments come in, and the formats SRT, VTT and TSV.

What is written is byte for byte what openai-whisper's writers make of the same segments, with these
exceptions: a cue lasts at least 1 ms and never begins before the one in front of it; a segment whose
words have no times is a cue of its own (openai-whisper loses its text). As there, neither `&` nor `<` is
escaped, and `-->` becomes `->` only where cues are not made of words.

Source: openai-whisper `utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import ClassVar, NamedTuple

from fairseq_openvino.errors import invalid
from fairseq_openvino.model import Segment, Transcript, Word
from fairseq_openvino.speech.options import SubtitleOptions

UNLIMITED = 1000
"""Characters of a line and words of a cue where nothing else is said."""
PAUSE_SECONDS = 3.0
"""Between the starts of two words; a longer one ends a cue that runs across segments."""
WORD = re.compile(r"^(\s*)(.*)$")


class Cue(NamedTuple):
    """A text, and when it is shown."""

    start: int
    """Milliseconds."""
    end: int
    text: str


def milliseconds(seconds: float) -> int:
    """To the nearest one."""
    return round(seconds * 1000.0)


class Cues:
    """Segments to cues.

    Source: openai-whisper `utils.py:SubtitlesWriter.iterate_result`.
    """

    def __init__(self, layout: SubtitleOptions) -> None:
        self._layout = layout
        self._width = layout.max_line_width or UNLIMITED
        self._keeps_segments = layout.max_line_count is None or layout.max_line_width is None
        self._words: list[Word] = []
        """Of the cue that is not finished."""
        self._length, self._lines = 0, 1
        """Characters of its last line, and lines."""
        self._last: float | None = None
        """Start of the word before, in seconds."""

    def add(self, segment: Segment) -> Iterator[Cue]:
        """The cues that are finished with this segment.

        Raises:
            OptionError: the layout needs times of words, which the segment does not have.
        """
        if segment.words:
            yield from self._add_words(segment.words)
            return
        if segment.words is None and (field := self._layout.needs_words):
            got, advice = "segments without", "Transcribe with word_timestamps, or leave it out"
            raise invalid("Writing subtitles", field, "the times of words", got, advice)
        if segment.words is None or segment.text.strip():
            yield from self.end()
            text = segment.text.strip().replace("-->", "->")
            yield Cue(milliseconds(segment.start), milliseconds(segment.end), text)

    def _add_words(self, words: tuple[Word, ...]) -> Iterator[Cue]:
        size = self._layout.max_words_per_line or UNLIMITED
        for first in range(0, len(words), size):
            for word in words[first : first + size]:
                yield from self._add_word(word)
            if self._keeps_segments:
                yield from self.end()

    def _add_word(self, word: Word) -> Iterator[Cue]:
        pause = self._last is not None and word.start - self._last > PAUSE_SECONDS
        ends_cue = pause and not self._keeps_segments
        text, most = word.word, self._layout.max_line_count
        if 0 < self._length <= self._width - len(text) and not ends_cue:
            self._length += len(text)
        else:
            text = text.strip()
            length = len(text)
            if self._words and most is not None and (ends_cue or self._lines >= most):
                yield from self.end()
            elif self._length > 0:
                self._lines += 1
                text = "\n" + text
            self._length = length
        self._words.append(replace(word, word=text))
        self._last = word.start

    def end(self) -> Iterator[Cue]:
        """What is not finished yet."""
        words, self._words = self._words, []
        self._length, self._lines = 0, 1
        if words and self._layout.highlight_words:
            yield from _highlighted(words)
        elif words:
            text = "".join(word.word for word in words)
            yield Cue(milliseconds(words[0].start), milliseconds(words[-1].end), text)


def _highlighted(words: list[Word]) -> Iterator[Cue]:
    """A cue for each word, in which it is underlined, and for each gap between two."""
    texts = [word.word for word in words]
    last = milliseconds(words[0].start)
    for i, word in enumerate(words):
        start, end = milliseconds(word.start), milliseconds(word.end)
        if last != start:
            yield Cue(last, start, "".join(texts))
        marked = WORD.sub(r"\1<u>\2</u>", texts[i])
        yield Cue(start, end, "".join([*texts[:i], marked, *texts[i + 1 :]]))
        last = end


def timestamp(time: int, decimal_marker: str, has_hours: bool) -> str:
    """As `01:02:03,456`.

    Source: openai-whisper `utils.py:format_timestamp`.
    """
    seconds, time = divmod(time, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours:02d}:" if has_hours or hours else ""
    return f"{start}{minutes:02d}:{seconds:02d}{decimal_marker}{time:03d}"


class Srt:
    """SubRip; a `writers.Writer`."""

    extension: ClassVar[str] = "srt"
    header: ClassVar[str] = ""

    def __init__(self, _: str, layout: SubtitleOptions) -> None:
        self._cues = Cues(layout)
        self._head = self.header
        self._count, self._earliest = 0, 0
        """Of cues, and where the next one may begin, in milliseconds."""

    def add(self, segment: Segment) -> str:
        """The cues that are finished."""
        return self._written(self._cues.add(segment))

    def end(self, transcript: Transcript) -> str:
        """The others; of a transcript without segments the only one."""
        parts = "" if transcript.segments else "".join(map(self.add, transcript.parts))
        return parts + self._written(self._cues.end())

    def _written(self, cues: Iterable[Cue]) -> str:
        head, self._head = self._head, ""
        return head + "".join(self.cue(self._placed(cue)) for cue in cues)

    def _placed(self, cue: Cue) -> Cue:
        """In time, and not for none."""
        self._count += 1
        start = max(cue.start, self._earliest)
        end = max(cue.end, start + 1)
        self._earliest = start if end == cue.end else end
        return Cue(start, end, cue.text)

    def cue(self, cue: Cue) -> str:
        """With its number."""
        start, end = (timestamp(time, ",", has_hours=True) for time in cue[:2])
        return f"{self._count}\n{start} --> {end}\n{cue.text}\n\n"


class Vtt(Srt):
    """WebVTT."""

    extension = "vtt"
    header = "WEBVTT\n\n"

    def cue(self, cue: Cue) -> str:
        """Hours only where there are any."""
        start, end = (timestamp(time, ".", has_hours=False) for time in cue[:2])
        return f"{start} --> {end}\n{cue.text}\n\n"


class Tsv:
    """A line a segment: milliseconds of start and end, and its text; a `writers.Writer`."""

    extension: ClassVar[str] = "tsv"

    def __init__(self, _: str, __: SubtitleOptions) -> None:
        self._head = "start\tend\ttext\n"

    def add(self, segment: Segment) -> str:
        """Its line."""
        head, self._head = self._head, ""
        text = segment.text.strip().replace("\t", " ")
        return f"{head}{milliseconds(segment.start)}\t{milliseconds(segment.end)}\t{text}\n"

    def end(self, transcript: Transcript) -> str:
        """Of a transcript without segments its only line."""
        if not transcript.segments:
            parts = "".join(map(self.add, transcript.parts))
            return parts or self._head
        return ""
