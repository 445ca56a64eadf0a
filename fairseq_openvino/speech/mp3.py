"""MP3 as a sequence of frames: what is missing, and a stream that libsndfile reads to its end.

libsndfile stops where the Xing frame says, or, without one, where the size of the first frames says:
it loses the end of joined files and of variable bit rates. It refuses what is followed by junk.
Sources: ISO 11172-3 2.4.1.3; gabriel.mp3-tech.org/mp3infotag.html (Xing, Info and LAME tags).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from fairseq_openvino.speech.content import Content

SYNC = re.compile(rb"\xff[\xe2-\xff]")
HEADER = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef]")
"""With a version, a layer and a bit rate that exist."""
BITRATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # fmt: skip
"""kbit/s by MPEG version (2.5 is as 2) and layer; index 0 is the header's 1."""
RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""By the header's version bits: MPEG 1, 2 and 2.5."""
SYNC_FRAMES = 3
"""Frames in a row that prove a place to be the beginning of one."""
MAX_FALSE_SYNCS = 1 << 17
"""Places that look like one and are none: so many are in 80 MB of noise. What follows is given up."""
MPEG_1, MONO, LAYER_3 = 3, 3, 3
HEADER_BYTES, XING_BYTES, ID3V1_BYTES = 4, 12, 128


@dataclass(frozen=True)
class Frame:
    """One frame by its header."""

    kind: tuple[int, int, int]
    """Version bits, layer and rate in Hz: the same in a whole stream."""
    size: int
    """Bytes."""
    samples: int
    side_bytes: int
    """Side information between the header and a Xing tag."""

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.samples / self.kind[2]


@dataclass(frozen=True)
class Frames:
    """The frames of a file."""

    count: int
    """How many there are, without those that hold a Xing or VBRI tag."""
    runs: list[tuple[int, int]]
    """Begin and end of frames behind each other, in bytes."""
    first: Frame
    tag: bytes
    """The first frame, if it holds a Xing or VBRI tag."""
    declared: int | None
    """How many frames there should be, where the tag tells it."""
    lost_bytes: int
    """Bytes between frames that are none."""
    is_cut: bool
    """The file ends inside a frame."""
    is_clean: bool
    """Nothing but tags lies around the frames."""
    varies: bool
    """Frames differ in size by more than padding."""

    @property
    def problem(self) -> str | None:
        """What is wrong."""
        if self.lost_bytes:
            return f"{self.lost_bytes} bytes between its frames are none"
        if self.is_cut:
            return "it ends inside a frame"
        missing = (self.declared or 0) - self.count
        if missing > 1:  # some encoders count the Xing frame too
            return f"it has {self.count} of {self.declared} frames"
        return None

    @property
    def seconds(self) -> float | None:
        """Duration it should have, where that is known."""
        if self.declared is not None:
            return max(self.declared, self.count) * self.first.seconds
        if not self.lost_bytes:
            return None
        kept = sum(end - begin for begin, end in self.runs)
        return self.count * (1 + self.lost_bytes / kept) * self.first.seconds

    @property
    def misleads(self) -> bool:
        """Whether libsndfile would not decode all of them."""
        if self.lost_bytes or not self.is_clean:
            return True
        return self.varies if self.declared is None else self.declared < self.count

    def stream(self, content: Content) -> list[tuple[int, int] | bytes]:
        """Parts of the file: the frames alone, behind a tag that counts them if their sizes do not."""
        if self.declared == self.count:
            return [self.tag, *self.runs]
        begin, _ = self.runs[0]
        frame = content[begin : begin + HEADER_BYTES]
        return [_xing(frame, self.first, self.count) if self.varies else b"", *self.runs]


def scan(content: Content) -> Frames | None:
    """The frames of a file; None if there are none, or of a free format."""
    runs: list[tuple[int, int]] = []
    count, sizes = 0, set[int]()
    first: Frame | None = None
    syncs = iter(range(MAX_FALSE_SYNCS))
    declared, tag_frame, lost, is_cut, is_clean, position = None, b"", 0, False, True, 0
    while position < len(content):
        tag = _tag_bytes(content, position)
        frame = None if tag or first is None else _frame(content, position, first.kind)
        if tag:
            position += tag
        elif frame is not None and position + frame.size > len(content):
            is_cut = True
            break
        elif frame is not None:
            end = position + frame.size
            counted = _declared(content[position:end], frame)
            if counted is None:
                follows = bool(runs) and runs[-1][1] == position
                runs[-1:] = [(runs[-1][0], end)] if follows else [*runs[-1:], (position, end)]
                count += 1
                sizes.add(frame.size)
            elif not tag_frame and not runs:
                tag_frame, declared = content[position:end], counted or None
            position = end
        else:
            found = _synchronise(content, position, first, syncs)
            if found is None:
                if next(syncs, None) is None:
                    lost += len(content) - position
                is_cut = first is not None and _begins_frame(content[position:])
                is_clean = is_cut
                break
            if runs:
                lost += found - position
            else:
                is_clean = found == position
                first = _frame(content, found)
            position = found
    if first is None or not runs:
        return None
    varies = max(sizes) - min(sizes) > HEADER_BYTES
    return Frames(count, runs, first, tag_frame, declared, lost, is_cut, is_clean, varies)


def _frame(
    content: Content, position: int, kind: tuple[int, int, int] | None = None
) -> Frame | None:
    """The frame whose header stands there, if it is one, and of this kind."""
    word = content[position : position + HEADER_BYTES]
    frame = _parsed(word) if len(word) == HEADER_BYTES else None
    return frame if frame is None or kind in (None, frame.kind) else None


@lru_cache(maxsize=4096)
def _parsed(word: bytes) -> Frame | None:
    bits = int.from_bytes(word, "big")
    version, layer = bits >> 19 & 3, 4 - (bits >> 17 & 3)
    bitrate, rate, padding = bits >> 12 & 15, bits >> 10 & 3, bits >> 9 & 1
    if bits >> 21 != 0x7FF or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:  # noqa: PLR2004
        return None
    rate_hz = RATES_HZ[version][rate]
    first = version == MPEG_1
    bits_per_second = 1000 * BITRATES[1 if first else 2, layer][bitrate - 1]
    samples = {1: 384, 2: 1152, 3: 1152 if first else 576}[layer]
    slot = 4 if layer == 1 else 1
    size = (samples // 8 // slot * bits_per_second // rate_hz + padding) * slot
    wide = 0 if bits >> 6 & 3 == MONO else 1
    side_bytes = ((17, 32) if first else (9, 17))[wide]
    return Frame((version, layer, rate_hz), size, samples, side_bytes)


def _synchronise(
    content: Content, position: int, first: Frame | None, syncs: Iterator[int]
) -> int | None:
    """The next place where SYNC_FRAMES frames follow each other, or frames up to the end.

    Each place that is looked at takes one of `syncs`.
    """
    for start, _ in zip(content.find(HEADER, position), syncs, strict=False):
        at, kind = start, None if first is None else first.kind
        for _ in range(SYNC_FRAMES):
            frame = _frame(content, at, kind)
            if frame is None:
                break
            at, kind = at + frame.size, frame.kind
            if at == len(content) or _tag_bytes(content, at):
                return start
        else:
            return start
    return None


def _begins_frame(rest: bytes) -> bool:
    """Whether the last bytes are those of a header that was cut."""
    return len(rest) < HEADER_BYTES and SYNC.match(rest + b"\xff") is not None


def _tag_bytes(content: Content, position: int) -> int:
    """Length of an ID3 or APE tag that begins there, else 0."""
    head = content[position : position + 32]
    if head.startswith(b"ID3") and len(head) > 10:  # noqa: PLR2004
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 0x7F
        return 10 + size + (10 if head[5] & 0x10 else 0)
    if head.startswith(b"APETAGEX") and len(head) == 32:  # noqa: PLR2004
        is_header = int.from_bytes(head[20:24], "little") >> 29 & 1
        return 32 + (int.from_bytes(head[12:16], "little") if is_header else 0)
    return ID3V1_BYTES if head.startswith(b"TAG") else 0


def _declared(content: bytes, frame: Frame) -> int | None:
    """Frames that a Xing, Info or VBRI frame counts, 0 if it does not; None for any other frame."""
    tag = HEADER_BYTES + frame.side_bytes
    if content[tag : tag + 4] in (b"Xing", b"Info"):
        counted = content[tag + 7] & 1
        return int.from_bytes(content[tag + 8 : tag + 12], "big") if counted else 0
    if content[36:40] == b"VBRI":
        return int.from_bytes(content[50:54], "big")
    return None


def _xing(frame: bytes, first: Frame, count: int) -> bytes:
    """A frame like this one, silent, that counts `count` frames; layer 3 only."""
    if first.kind[1] != LAYER_3:
        return b""
    needed = HEADER_BYTES + first.side_bytes + XING_BYTES
    for bitrate in range(1, 15):
        word = bytes([frame[0], frame[1] | 1, bitrate << 4 | frame[2] & 0x0C, frame[3]])
        parsed = _parsed(word)
        if parsed is not None and parsed.size >= needed:
            tag = b"Xing" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
            return (word + bytes(parsed.side_bytes) + tag).ljust(parsed.size, b"\0")
    return b""
