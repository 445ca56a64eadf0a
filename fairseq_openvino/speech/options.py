"""How files are read."""

from __future__ import annotations

from dataclasses import dataclass, field
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
