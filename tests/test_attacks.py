"""Hostile audio by name (R4b): each has one error and its words, or the samples that are there.

Each is decoded in a child and in this process, within 5 s and 64 MiB and four times what it holds.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from growth import Cost
from media_files import encoded, flac_silence, numbered, ogg_pages, opus_silence
from test_damage import speech

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech import audio
from fairseq_openvino.speech.isolation import Pool

RATE_HZ = 16_000
MALFORMED = Path(__file__).parent / "malformed" / "audio"
"""Mutants that once were worse than an error."""
MAX_SECONDS, MAX_BYTES = 5.0, 64 << 20
SPEECH = speech(0.5)
PCM = (SPEECH * 32767).astype("<i2").tobytes()
FULL = b"\xff" * 4
"""2^32 - 1, as the size or the count of something."""


@dataclass(frozen=True)
class Heard:
    """What is decoded."""

    samples: int = 0
    """0: as many as the decoder makes of it."""
    rate_hz: int = RATE_HZ
    damage: str = ""
    """What is said of it, as a pattern."""


WHOLE = Heard(8000)
UNKNOWN = "audio that libsndfile or FFmpeg can read, got "
NONE = "samples, got none that can be decoded"
RATE = "a sample rate of 1000 to 384000 Hz, got "
CODEC = "a codec that FFmpeg decodes, got another"
LONG = "at most 3600 s, got more"
UNREADABLE = "a readable file, got "


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content


def fmt(
    rate: int = RATE_HZ, channels: int = 1, bits: int = 16, codec: int = 1,
    align: int | None = None, more: bytes = b"",
) -> bytes:  # fmt: skip
    """The description in a WAV file."""
    align = channels * bits // 8 if align is None else align
    numbers = codec, channels, rate, rate * align & 0xFFFF_FFFF, align & 0xFFFF, bits
    return chunk(b"fmt ", struct.pack("<HHIIHH", *numbers) + more)


def wav(form: bytes = fmt(), data: bytes = PCM, size: int | None = None) -> bytes:
    declared = struct.pack("<I", len(data) if size is None else size)
    body = b"WAVE" + form + b"data" + declared + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def adpcm(codec: int, align: int, *numbers: int, channels: int = 1) -> bytes:
    more = struct.pack(f"<{len(numbers) + 1}H", 2 * len(numbers), *numbers)
    return wav(fmt(codec=codec, bits=4, channels=channels, align=align, more=more))


def floats(value: float, kind: str = "<f4") -> bytes:
    array = np.full(99, value, kind)
    return wav(fmt(bits=8 * array.itemsize, codec=3), array.tobytes())


@cache
def sound(form: str, subtype: str | None = None, rate_hz: int = RATE_HZ) -> bytes:
    file = BytesIO()
    soundfile.write(file, SPEECH, rate_hz, subtype, format=form)
    return numbered(file.getvalue(), rate_hz) if form == "OGG" else file.getvalue()


@cache
def media(container: str, codec: str) -> bytes:
    return encoded(SPEECH, container, codec)


def patched(content: bytes, name: bytes, offset: int, new: bytes) -> bytes:
    """With other bytes so far behind a name."""
    at = content.index(name) + len(name) + offset
    return content[:at] + new + content[at + len(new) :]


def m4a(name: bytes, offset: int, new: bytes) -> bytes:
    return patched(media("mp4", "aac"), name, offset, new)


def atom(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content) + 8) + name + content


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = atom(b"moov", content)
    return atom(b"ftyp", b"M4A \0\0\0\0M4A ") + content


def xing(frames: int) -> bytes:
    content = sound("MP3")
    at = content.index(b"Xing") + 8
    return content[:at] + struct.pack(">I", frames) + content[at + 4 :]


def two_streams(*, in_turns: bool) -> bytes:
    first, second = sound("OGG", "VORBIS"), sound("OGG", "VORBIS", 44_100)
    if not in_turns:
        return first + second
    both = zip(ogg_pages(first), ogg_pages(second), strict=False)
    return b"".join(page for pair in both for page in pair)


def ogg_page_lost() -> bytes:
    found = ogg_pages(sound("OGG", "VORBIS"))
    return b"".join([*found[:-1], found[-1][:22] + b"lies" + found[-1][26:]])


ATTACKS: dict[str, tuple[Callable[[], bytes], Heard | str]] = {
    "1 Hz": (lambda: wav(fmt(1)), RATE + r"1\."),
    "10 MHz": (lambda: wav(fmt(10_000_000)), RATE + "10000000"),
    "0 Hz": (lambda: wav(fmt(0)), UNKNOWN + "Internal error : SF_INFO struct incomplete"),
    "2^32 - 1 Hz": (lambda: wav(fmt(2**32 - 1)), UNKNOWN + "Internal error : SF_INFO"),
    "no channel": (lambda: wav(fmt(channels=0, align=2)), NONE),
    "255 channels": (lambda: wav(fmt(channels=255), PCM * 255), "1 to 8 channels, got 255"),
    "65,535 channels": (lambda: wav(fmt(channels=65_535, align=2)), NONE),
    "0 bits": (lambda: wav(fmt(bits=0, align=2)), CODEC),
    "65,535 bits": (lambda: wav(fmt(bits=65_535, align=2)), CODEC),
    "frames of 0 bytes": (lambda: wav(fmt(align=0)), WHOLE),
    "frames of 65,535 bytes": (lambda: wav(fmt(align=65_535)), WHOLE),
    "no codec": (lambda: wav(fmt(codec=0x1234)), CODEC),
    "2^32 - 1 bytes declared": (lambda: wav(size=2**32 - 1), WHOLE),
    "2^31 - 8 bytes declared": (lambda: wav(size=2**31 - 8), WHOLE),
    "twice the bytes declared": (lambda: wav(size=32_000), Heard(8000, damage=r"0\.50 s of 1\.00 s")),
    "description of 2^32 - 1 bytes": (lambda: patched(wav(), b"fmt ", 0, FULL), UNKNOWN + ".*Short"),
    "description of 4 bytes": (lambda: patched(wav(), b"fmt ", 0, b"\4\0\0\0"), UNKNOWN + ".*Short"),
    "two descriptions": (lambda: wav(fmt() + fmt(8000, 8, 32, 3)), WHOLE),
    "RF64 with two descriptions": (
        lambda: sound("RF64").replace(b"data", fmt(48_000, 2) + b"data", 1), Heard(4000, 48_000),
    ),
    "RF64 of 2^64 - 1 samples": (lambda: patched(sound("RF64"), b"ds64", 12, FULL * 2), WHOLE),
    "no samples": (lambda: wav(data=b""), "samples, got an empty file"),
    "half a sample": (lambda: wav(data=b"\1"), "samples, got an empty file"),
    "a header alone": (lambda: wav()[:44], NONE + r" \(16000 bytes of samples are declared"),
    "twelve bytes": (lambda: wav()[:12], UNKNOWN + "Error in WAV file. No 'data' chunk"),
    "nothing": (lambda: b"", UNKNOWN + "Format not recognised"),
    "NaN": (lambda: floats(float("nan")), "finite samples, got NaN or infinity"),
    "infinity": (lambda: floats(float("-inf")), "finite samples, got NaN or infinity"),
    "doubles beyond floats": (lambda: floats(1e300, "<f8"), "finite samples, got NaN or infinity"),
    "loud floats": (lambda: floats(1e30), r"samples in about \[-1, 1\], got 1e\+30"),
    "IMA-ADPCM, 65,535 samples a block": (lambda: adpcm(17, 36, 65_535), Heard(damage="packets are")),
    "IMA-ADPCM, blocks of 0 bytes": (lambda: adpcm(17, 0, 65), Heard(damage="packets are damaged")),
    "IMA-ADPCM, blocks of 65,535 bytes": (lambda: adpcm(17, 65_535, 65_535), Heard()),
    "IMA-ADPCM, 8 channels": (lambda: adpcm(17, 36, 505, channels=8), NONE),
    "MS-ADPCM, 65,535 coefficients": (
        lambda: adpcm(2, 256, 500, 65_535), Heard(damage="packets are damaged"),
    ),
    "WAV and ZIP": (lambda: wav() + b"PK\5\6" + bytes(18), WHOLE),
    "ZIP and WAV": (lambda: b"PK\3\4" + bytes(26) + wav(), UNKNOWN + "Format not recognised"),
    "AVI of 2^32 - 1 bytes": (lambda: b"RIFF" + FULL + b"AVI LIST" + FULL, UNKNOWN + "Format not"),
    "AIFF of 2^32 - 1 frames": (lambda: patched(sound("AIFF"), b"COMM", 6, FULL), WHOLE),
    "AIFF, rate not a number": (
        lambda: patched(sound("AIFF"), b"COMM", 12, b"\x7f\xff" + FULL * 2), RATE + "67108864",
    ),
    "AU, samples behind its end": (
        lambda: patched(sound("AU"), b".snd", 0, FULL), Heard(8000, damage="an unknown part"),
    ),
    "AU, 2^32 - 1 channels": (lambda: patched(sound("AU"), b".snd", 16, FULL), UNKNOWN + "Channel"),
    "CAF, 2^32 - 1 frames a packet": (
        lambda: patched(sound("CAF"), b"desc", 24, FULL * 3), UNKNOWN + ".*malformed",
    ),
    "CAF, a chunk of -1 bytes": (
        lambda: patched(sound("CAF"), b"desc", 0, FULL * 2), UNKNOWN + ".*malformed",
    ),
    "CAF, 1e300 Hz": (
        lambda: patched(sound("CAF"), b"desc", 8, struct.pack(">d", 1e300)), RATE + "2147483647",
    ),
    "W64, a chunk of 2^64 - 1 bytes": (
        lambda: sound("W64")[:56] + FULL * 2 + sound("W64")[64:], UNKNOWN + ".*Short 'fmt ' chunk",
    ),
    "FLAC, cut": (lambda: sound("FLAC")[:-500], Heard(4096, damage=r"0\.24 s of")),
    "FLAC of 2^36 - 1 samples": (
        lambda: sound("FLAC")[:21] + b"\xff" * 5 + sound("FLAC")[26:],
        Heard(8000, damage="68719476735 samples are declared"),
    ),
    "FLAC, a block of 2^24 - 1 bytes": (
        lambda: sound("FLAC")[:4] + b"\4\xff\xff\xff" + sound("FLAC")[8:], UNKNOWN + "unknown error",
    ),
    "FLAC, silence of a day": (lambda: flac_silence(1), LONG),
    "OGG, two streams in a row": (
        lambda: two_streams(in_turns=False), Heard(8000, damage="only the first of 2 streams"),
    ),
    "OGG, two streams in turns": (lambda: two_streams(in_turns=True), WHOLE),
    "OGG, a wrong checksum": (ogg_page_lost, NONE + r" \(1 pages|it does not end"),
    "OGG, 20,000 beginnings": (lambda: b"OggS" * 20_000, UNKNOWN),
    "Opus, no channel": (
        lambda: patched(sound("OGG", "OPUS", 48_000), b"OpusHead", 1, b"\0"), UNKNOWN + ".*malformed",
    ),
    "Opus, 255 channels": (
        lambda: patched(sound("OGG", "OPUS", 48_000), b"OpusHead", 1, b"\xff"), UNKNOWN + ".*malformed",
    ),
    "MP3, 2^32 - 2 frames": (lambda: xing(0xFFFF_FFFE), Heard(damage="of 4294967294 frames")),
    "MP3, a tag of 2^28 bytes": (
        lambda: b"ID3\4\0\0\x7f\x7f\x7f\x7f" + sound("MP3"), UNKNOWN + "Format not recognised",
    ),
    "MP3, a tag of 2^32 bytes at its end": (
        lambda: sound("MP3") + b"APETAGEX" + struct.pack("<4I", 2000, 2**32 - 1, 9, 1 << 31) + bytes(8),
        Heard(),
    ),
    "MP3, nothing but beginnings": (lambda: b"\xff" * 300_000, UNKNOWN + "Format not recognised"),
    "m4a, 2^32 - 1 packets": (lambda: m4a(b"stsz", 8, FULL), UNKNOWN + "MP4 .*: Invalid data"),
    "m4a, packets of 2 GiB": (lambda: m4a(b"stsz", 4, b"\x7f" + FULL[:3]), NONE),
    "m4a, 2^32 - 1 times": (lambda: m4a(b"stts", 4, FULL), UNKNOWN + "MP4 .*: Cannot allocate"),
    "m4a, packets of 2^31 - 1 ticks": (lambda: m4a(b"stts", 12, b"\x7f" + FULL[:3]), NONE),
    "m4a, packets behind its end": (lambda: m4a(b"stco", 8, FULL), NONE),
    "m4a, 2^32 - 1 packets a chunk": (lambda: m4a(b"stsc", 8, FULL * 3), NONE),
    "m4a, no ticks a second": (lambda: m4a(b"mvhd", 12, bytes(4) + FULL), Heard(8192)),
    "m4a, of 2^32 - 1 ticks": (lambda: m4a(b"mdhd", 16, FULL), Heard(8192)),
    "m4a, 65,535 channels": (lambda: m4a(b"mp4a", 16, FULL[:2]), Heard(8192)),
    "m4a, a description without end": (lambda: m4a(b"esds", 4, b"\3" + FULL + FULL), Heard(8192)),
    "m4a, 10,000 atoms in each other": (lambda: nested(10_000), UNKNOWN + "MP4 .*: Invalid data"),
    "m4a, an atom of 2^63 - 1 bytes": (
        lambda: atom(b"ftyp", b"M4A \0\0\0\0") + b"\0\0\0\1moov\x7f" + FULL + FULL[:3],
        "a file with audio, got one with nothing only",
    ),
    "Matroska of 2^56 - 2 bytes": (
        lambda: patched(media("matroska", "flac"), b"\x18\x53\x80\x67", 0, b"\1" + FULL + b"\xff\xff\xfe"),
        Heard(8000, damage="72057594037927934 bytes are declared"),
    ),
    "Matroska, 1e308 Hz": (
        lambda: patched(media("matroska", "pcm_s16le"), b"\xb5\x88", 0, struct.pack(">d", 1e308)),
        Heard(8000, 8000),
    ),
    "EBML without a size": (lambda: b"\x1a\x45\xdf\xa3\1" + b"\xff" * 7, UNKNOWN + "Matroska .*: End of"),
    "Matroska, a size without end": (
        lambda: b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x40", UNKNOWN + "Matroska .*: ",
    ),
    "Matroska, a header of 2^56 - 2 bytes": (
        lambda: patched(media("matroska", "flac"), b"\x1a\x45\xdf\xa3", 0, b"\1" + FULL + b"\xff\xff\xfe"),
        UNKNOWN + "Matroska .*: Invalid data",
    ),
    "AVI, a clock of an hour in 16 kB": (
        (MALFORMED / "clock.avi").read_bytes, Heard(8_395_392, damage="and are silent here"),
    ),
    "AMR, a magic alone": (lambda: b"#!AMR\n", NONE + r" \(no packets\)"),
    "AMR, frames of no kind": (lambda: b"#!AMR\n" + b"\x7c" * 1000, NONE + r" \(1000 packets"),
    "a list of others": (lambda: b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n", UNKNOWN + "Format not"),
    "a list of files": (lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", UNKNOWN + "Format not"),
    "a session of others": (
        lambda: b"v=0\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n", UNKNOWN + "Format not",
    ),
    "gzip": (lambda: zlib.compress(wav()), UNKNOWN + "Format not recognised"),
    "a program": (lambda: b"\x7fELF" + bytes(500), UNKNOWN + "Format not recognised"),
    "a page": (lambda: b"<!DOCTYPE html><html>" * 50, UNKNOWN + "Format not recognised"),
}  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    found = Pool(timeout_seconds=60.0, children=1)
    found.decode(wav())
    yield found
    found.close()


def check(
    pool: Pool,
    source: str | bytes,
    expected: Heard | str,
    spare_bytes: int = 0,
    spare_seconds: float = 0.0,
) -> None:
    """Both ways, within the limits; 4 times what is given or heard may be held."""
    words = []
    for decode in (pool.decode, audio.decode):
        costs, size = [Cost("self"), *(Cost(child.pid) for child in pool._idle)], len(source)
        try:
            heard = decode(source, name="attack" if isinstance(source, bytes) else None)
        except AudioError as error:
            words.append(str(error))
            assert isinstance(expected, str), error
            assert re.search(f"in .*: expected {expected}", str(error)), error
        else:
            size += heard.waveforms.nbytes
            assert isinstance(expected, Heard), heard
            assert heard.stored_hz == expected.rate_hz
            assert heard.waveforms.size == (expected.samples or heard.waveforms.size) > 0
            assert re.search(expected.damage or "^$", heard.damage or ""), heard.damage
        assert sum(cost.seconds() for cost in costs) < MAX_SECONDS + spare_seconds
        extra_bytes = max(cost.extra_bytes() for cost in costs)
        assert extra_bytes <= MAX_BYTES + 4 * size + spare_bytes
    assert not words or words[0] == words[1]


@pytest.mark.parametrize("name", ATTACKS)
def test_named_attacks(pool: Pool, name: str) -> None:
    make, expected = ATTACKS[name]
    check(pool, make(), expected)


def sparse(path: Path, content: bytes) -> str:
    """A file of 1 TiB that takes none."""
    with path.open("wb") as file:
        file.write(content)
        file.truncate(1 << 40)
    return str(path)


def listening(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))
    return str(path)


def in_circles(path: Path) -> str:
    path.symlink_to(path)
    return str(path)


def dangling(path: Path) -> str:
    path.symlink_to(f"{path}-nothing")
    return str(path)


PLACES: dict[str, tuple[Callable[[Path], str], str]] = {
    "a directory": (lambda path: str(path.parent), UNREADABLE + "Is a directory"),
    "a socket": (listening, UNREADABLE + "No such device or address"),
    "links in circles": (in_circles, UNREADABLE + "Too many levels of symbolic links"),
    "a link to nothing": (dangling, UNREADABLE + "No such file or directory"),
    "a name without end": (lambda path: f"{path}{'x' * 5000}", UNREADABLE + "File name too long"),
    "a name with a null": (lambda path: f"{path}\0", UNREADABLE + "embedded null byte"),
    "zeros without end": (lambda _: "/dev/zero", UNKNOWN + "Format not recognised"),
    "nothing": (lambda _: os.devnull, UNKNOWN + "Format not recognised"),
    "memory": (lambda _: "/proc/self/mem", UNREADABLE + "Invalid argument"),
    "1 TiB of zeros": (lambda path: sparse(path, b""), UNKNOWN + "Format not recognised"),
    "1 TiB of silence": (lambda path: sparse(path, wav(fmt(1000), size=2**32 - 1)), LONG),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_are_no_files(pool: Pool, name: str, tmp_path: Path) -> None:
    make, expected = PLACES[name]
    check(pool, make(tmp_path / "a.wav"), expected)


@pytest.mark.parametrize("isolated", [False, True])
def test_a_pipe_is_read_to_its_end(pool: Pool, isolated: bool, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "a.wav")
    decode = pool.decode if isolated else audio.decode
    for content in (wav(), b""):
        writer = threading.Thread(target=pipe.write_bytes, args=(content,))
        writer.start()
        if content:
            assert decode(pipe).waveforms.shape == (1, 8000)
        else:
            with pytest.raises(AudioError, match=UNKNOWN + "Format not recognised"):
                decode(pipe)
        writer.join()


@pytest.mark.fault
def test_silence_of_hours_in_kilobytes(pool: Pool) -> None:
    content = opus_silence(3)
    assert len(content) < 300_000
    check(pool, content, LONG, spare_bytes=48_000 * 3600 * 4, spare_seconds=10.0)
