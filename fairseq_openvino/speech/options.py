"""How files are read, and subtitles are laid out."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final

from fairseq_openvino.errors import invalid
from fairseq_openvino.flags import flag

MIX: Final = "mix"
SPLIT: Final = "split"
CHANNELS = f"{MIX}, {SPLIT}, or the number of a channel, from 0"


def parse_channel(text: str) -> str | int:
    """`mix`, `split` or a number.

    Raises:
        ValueError: neither.
    """
    if text in (MIX, SPLIT):
        return text
    if text.isdecimal():
        return int(text)
    raise ValueError(f"expected {CHANNELS}")


@dataclass(frozen=True)
class AudioOptions:
    """Options of reading audio files, for every family; keywords of `Recognizer.transcribe`."""

    channel: str | int = field(default=MIX, metadata=flag(metavar="C", parse=parse_channel))
    """`mix`: the mean of all channels; N: this channel alone, from 0; `split`: a result for each
    channel, in order, as `FILE#N`."""
    strict_audio: bool = False
    """Refuse damaged files instead of transcribing what is left of them."""
    isolate_audio: bool = False
    """Decode in a process of its own, for files of strangers: what crashes a decoder costs only that
    file."""

    def __post_init__(self) -> None:
        is_number = isinstance(self.channel, int) and not isinstance(self.channel, bool)
        if self.channel not in (MIX, SPLIT) and not (is_number and int(self.channel) >= 0):
            raise invalid("Reading audio", "channel", CHANNELS, repr(self.channel))


@dataclass(frozen=True)
class SubtitleOptions:
    """Layout of SRT and VTT, as openai-whisper's; every option needs the times of words."""

    max_line_width: int | None = field(default=None, metadata=flag(metavar="CHARACTERS"))
    """Break lines before they are longer than this; words are never divided."""
    max_line_count: int | None = field(default=None, metadata=flag(metavar="LINES"))
    """Most lines of a cue, with `max_line_width`; cues then run across segments and end at pauses."""
    max_words_per_line: int | None = field(default=None, metadata=flag(metavar="WORDS"))
    """Most words of a cue; not with `max_line_count`."""
    highlight_words: bool = False
    """Underline each word while it is said."""

    def __post_init__(self) -> None:
        action = "Writing subtitles"
        for each in ("max_line_width", "max_line_count", "max_words_per_line"):
            value = getattr(self, each)
            if value is not None and value < 1:
                raise invalid(action, each, "at least 1", value)
        if self.max_line_count is not None and self.max_line_width is None:
            expected, got = "max_line_width too", "it alone"
            raise invalid(action, "max_line_count", expected, got, "Give both")
        if self.max_line_count is not None and self.max_words_per_line is not None:
            expected = "no max_line_count, beside which it has no effect"
            raise invalid(action, "max_words_per_line", expected, "both", "Give one of them")

    @property
    def needs_words(self) -> str | None:
        """The first option that is given, if any."""
        return next((each.name for each in fields(self) if getattr(self, each.name)), None)
