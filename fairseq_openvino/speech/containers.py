"""What a file should hold, against what it holds: libsndfile reads what is there and says nothing.

Sources: EBU Tech 3306 (RF64), RFC 3533 (Ogg), RFC 7845 4 and Vorbis I A.2 (granule positions), RFC 8794
4 to 6 and RFC 9559 (Matroska).
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

from fairseq_openvino.speech import mp3 as audio_mp3
from fairseq_openvino.speech.content import Content, spliced

UNKNOWN_BYTES = 2_000_000_000
"""Whoever writes to a pipe declares 0, -1, or a number from here on."""
MAX_CHUNKS = 1000
OGG_MAGIC, OGG_HEADER_BYTES, OGG_BEGIN, OGG_END = b"OggS", 27, 2, 4
OGG_PAGE = re.compile(OGG_MAGIC)
MAX_FALSE_PAGES = 1 << 12
"""Places that look like a page and are none, or a damaged one. What follows is not inspected."""
EBML_MAGIC, EBML_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
OPUS_RATE_HZ = 48_000
BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Inspection:
    """What a container tells about its completeness."""

    problem: str | None = None
    """What is wrong."""
    seconds: float | None = None
    """Duration the audio should have, if that is known."""
    share: float | None = None
    """Part of the audio that is there, 0 to 1, if that is known."""
    content: BinaryIO | None = None
    """To be decoded in the place of the file."""

    def damage(self, seconds: float) -> str | None:
        """What is missing of audio of which there are so many seconds, in words."""
        if self.problem is None:
            return None
        whole = seconds / self.share if self.share else self.seconds or 0.0
        if whole - seconds < 0.01:  # noqa: PLR2004  nothing to speak of, or not known
            return f"an unknown part is missing behind or within {seconds:.2f} s ({self.problem})"
        return f"{whole - seconds:.2f} s of {whole:.2f} s are missing ({self.problem})"


@dataclass(frozen=True)
class Layout:
    """A container of named chunks."""

    first: int
    """Where the first chunk begins, bytes."""
    name_bytes: int
    size: str
    """`struct` format of a chunk's size."""
    counted: int
    """Bytes of a chunk's header that its size counts."""
    alignment: int
    data: bytes
    """How the name of the chunk with the samples begins."""


LAYOUTS = {
    b"RIFF": Layout(12, 4, "<I", 0, 2, b"data"),
    b"RF64": Layout(12, 4, "<I", 0, 2, b"data"),
    b"RIFX": Layout(12, 4, ">I", 0, 2, b"data"),
    b"FORM": Layout(12, 4, ">I", 0, 2, b"SSND"),
    b"riff": Layout(40, 16, "<Q", 24, 8, b"data"),
    b"caff": Layout(8, 4, ">q", 0, 1, b"data"),
}
"""By the first bytes: WAV in three forms, AIFF, W64, CAF."""


@dataclass(frozen=True)
class _Samples:
    """Where the samples are declared and begin."""

    declared: int
    """Bytes."""
    begin: int
    place: int
    """Of the declaration."""
    format: str
    """`struct` format of the declaration."""


def inspect(file: BinaryIO) -> Inspection:
    """Compare what a file declares with what is there."""
    head = _at(file, 0, 12)
    if head[:4] == OGG_MAGIC:
        return _inspect_ogg(Content(file))
    if head[:3] == b"ID3" or audio_mp3.SYNC.match(head):
        frames = audio_mp3.scan(content := Content(file))
        if frames is None:
            return Inspection()
        stream = spliced(file, frames.stream(content)) if frames.misleads else None
        return Inspection(frames.problem, frames.seconds, content=stream)
    if head[:4] == b".snd" and len(head) == 12:  # noqa: PLR2004  AU, a header and samples
        begin, declared = struct.unpack(">4xII", head)
        return _inspect_samples(file, head[:4], _Samples(declared, begin, 8, ">I"))
    if head[:4] == EBML_MAGIC:
        return _inspect_matroska(file)
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        return _inspect_avi(file, head)
    if head[:4] in LAYOUTS:
        samples = _find_samples(file, LAYOUTS[head[:4]])
        return Inspection() if samples is None else _inspect_samples(file, head[:4], samples)
    return Inspection()


def _at(file: BinaryIO, position: int, count: int) -> bytes:
    """Bytes of a file; none behind its end, where systems do not let everybody seek."""
    if position > file.seek(0, io.SEEK_END):
        return b""
    file.seek(position)
    return file.read(count)


def _find_samples(file: BinaryIO, layout: Layout) -> _Samples | None:
    """The chunk with the samples; RF64 declares its size in `ds64`."""
    position, large = layout.first, None
    header_bytes = layout.name_bytes + struct.calcsize(layout.size)
    last = file.seek(0, io.SEEK_END) - header_bytes
    for _ in range(MAX_CHUNKS):
        if position > last:
            return None
        header = _at(file, position, header_bytes)
        place, begin = position + layout.name_bytes, position + header_bytes
        (size,) = struct.unpack(layout.size, header[layout.name_bytes :])
        size -= layout.counted
        if header.startswith(b"ds64") and len(content := _at(file, begin + 8, 8)) == 8:  # noqa: PLR2004
            large = _Samples(int.from_bytes(content, "little"), 0, begin + 8, "<Q")
        if header.startswith(layout.data):
            if large is not None:
                return _Samples(large.declared, begin, large.place, large.format)
            return _Samples(size, begin, place, layout.size)
        size = max(size, 0)
        position = begin + size + -size % layout.alignment
    return None


def _inspect_samples(file: BinaryIO, magic: bytes, samples: _Samples) -> Inspection:
    present = file.seek(0, io.SEEK_END) - samples.begin
    if 0 < samples.declared < UNKNOWN_BYTES:
        return _compared(samples.declared, present, "bytes of samples")
    if present <= 0 or magic not in (b"RIFF", b"RIFX", b"RF64", b"caff"):
        return Inspection()  # libsndfile reads the others to their ends
    if samples.declared > 0 and magic != b"RF64":
        return Inspection()
    if samples.declared == 0 and _are_chunks(file, samples.begin, samples.begin + present):
        return Inspection()  # an empty file with a description
    largest = 256 ** struct.calcsize(samples.format) - 1
    declaration = struct.pack(samples.format, min(present, largest))
    behind = samples.place + len(declaration), samples.begin + present
    return Inspection(content=spliced(file, [(0, samples.place), declaration, behind]))


def _inspect_avi(file: BinaryIO, head: bytes) -> Inspection:
    size = int.from_bytes(head[4:8], "little")
    return _compared(size if size < UNKNOWN_BYTES else 0, file.seek(0, io.SEEK_END) - 8, "bytes")


def _inspect_matroska(file: BinaryIO) -> Inspection:
    """The segment, which holds everything, against the file; whoever streams leaves its size open."""
    begin, size = _ebml_size(file, len(EBML_MAGIC))
    if _at(file, begin + size, 4) != EBML_SEGMENT:
        return Inspection()
    begin, size = _ebml_size(file, begin + size + 4)
    return _compared(size, file.seek(0, io.SEEK_END) - begin, "bytes")


def _ebml_size(file: BinaryIO, position: int) -> tuple[int, int]:
    """Where an element's content begins, and its size; 0 if it is open or no size stands there."""
    stored = _at(file, position, 8)
    count = 9 - stored[0].bit_length() if stored else 9
    unknown = (1 << 7 * count) - 1
    size = int.from_bytes(stored[:count], "big") & unknown
    return position + count, 0 if size == unknown or count > len(stored) else size


def _compared(declared: int, present: int, what: str) -> Inspection:
    """What a size tells that is declared; 0 tells nothing."""
    present = max(present, 0)
    if present >= declared:
        return Inspection()
    problem = f"{declared} {what} are declared, {present} are there"
    return Inspection(problem, share=present / declared)


def _are_chunks(file: BinaryIO, position: int, end: int) -> bool:
    """Whether these bytes are chunks of a WAV file up to their end."""
    while position + 8 <= end:
        header = _at(file, position, 8)
        if not header[:4].strip().isalnum():
            return False
        size = int.from_bytes(header[4:], "little")
        position += 8 + size + size % 2
    return position == end


@dataclass
class _OggStream:
    """One logical stream, page by page."""

    sequence: int
    units_hz: int
    """Granules in a second; 0 if unknown."""
    skipped: int = 0
    """Opus: samples in front of the audio."""
    granule: int = 0
    is_ended: bool = False


@dataclass
class _Ogg:
    """What the pages tell."""

    streams: list[_OggStream] = field(default_factory=list)
    gaps: int = 0
    links: int = 0
    """Groups of streams one behind the other; libsndfile reads the first."""

    def inspection(self) -> Inspection:
        problems = [f"{self.gaps} pages are damaged or missing"] if self.gaps else []
        if not all(stream.is_ended for stream in self.streams):
            problems.append("it does not end with a last page")
        if self.links > 1:
            problems.append(f"only the first of {self.links} streams in a row is read")
        if not problems:
            return Inspection()
        seconds = sum(
            (stream.granule - stream.skipped) / stream.units_hz
            for stream in self.streams
            if stream.units_hz
        )
        return Inspection(" and ".join(problems), seconds if self.gaps or self.links > 1 else None)


def _inspect_ogg(content: Content) -> Inspection:
    """Every page in its place, and the last one marked as such; damaged pages count as missing."""
    found, open_streams = _Ogg(), dict[int, _OggStream]()
    position, was_begin, others = 0, False, iter(range(MAX_FALSE_PAGES))
    while (position := next(content.find(OGG_PAGE, position), -1)) >= 0:
        page = _ogg_page(content, position)
        if page is None:
            position += len(OGG_MAGIC)
            if next(others, None) is None:
                found.gaps += 1
                break
            continue
        _, _, flags, granule, serial, sequence = struct.unpack_from("<4sBBqII", page)
        stream = open_streams.get(serial)
        if stream is None or flags & OGG_BEGIN:
            body = page[OGG_HEADER_BYTES + page[26] :]
            stream = open_streams[serial] = _ogg_stream(body, sequence)
            found.streams.append(stream)
            found.links += not was_begin
        elif sequence != stream.sequence + 1:
            found.gaps += max(sequence - stream.sequence - 1, 1)
        was_begin = bool(flags & OGG_BEGIN)
        stream.sequence = sequence
        stream.granule = max(stream.granule, granule)
        stream.is_ended = stream.is_ended or bool(flags & OGG_END)
        position += len(page)
    return found.inspection()


def _ogg_page(content: Content, position: int) -> bytes | None:
    """The page that begins there; None if it is cut or its checksum is wrong."""
    header = content[position : position + OGG_HEADER_BYTES]
    if len(header) < OGG_HEADER_BYTES:
        return None
    body = position + OGG_HEADER_BYTES + header[26]
    end = body + sum(content[position + OGG_HEADER_BYTES : body])
    page = content[position:end]
    if len(page) < end - position:
        return None
    blank = page[:22] + bytes(4) + page[26:]
    # zlib's CRC-32 has the same polynomial with all bits in the opposite order
    crc = zlib.crc32(blank.translate(BITS_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    stated = page[22:26].translate(BITS_REVERSED)
    return page if crc == int.from_bytes(stated, "big") else None


def _ogg_stream(body: bytes, sequence: int) -> _OggStream:
    """A stream by its first packet."""
    if body.startswith(b"OpusHead"):
        return _OggStream(sequence, OPUS_RATE_HZ, int.from_bytes(body[10:12], "little"))
    if body.startswith(b"\x01vorbis"):
        return _OggStream(sequence, int.from_bytes(body[12:16], "little"))
    return _OggStream(sequence, 0)
