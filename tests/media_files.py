"""Files of FFmpeg's containers and codecs, made by PyAV; and much silence in little room."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import av
import numpy as np

from fairseq_openvino.speech.containers import BITS_REVERSED


def encoded(
    samples: np.ndarray, container: str, codec: str, rate_hz: int = 16_000,
    pause: tuple[int, float] | None = None, video: bool = False, begin: float = 0.0, **options: str,
) -> bytes:  # fmt: skip
    """A file in memory, the same whenever it is made.

    Args:
        samples: shape (samples,) or (samples, channels), float32.
        container: FFmpeg's name.
        codec: FFmpeg's name.
        rate_hz: of the samples.
        pause: from which sample on time jumps, and by how many seconds.
        video: with a black picture in front.
        begin: time of the first sample, s.
        options: of the container.
    """
    file = io.BytesIO()
    packed = samples.reshape(len(samples), -1)
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[packed.shape[1]]
    options = {"fflags": "+bitexact"} | options  # or Matroska has random ids
    with av.open(file, "w", format=container, options=options) as output:
        picture = output.add_stream("mpeg4", rate=25) if video else None
        stream: Any = output.add_stream(codec, rate=rate_hz, layout=layout)
        if picture is not None:
            picture.width = picture.height = 64
            black = np.zeros((64, 64, 3), np.uint8)
            output.mux(picture.encode(av.VideoFrame.from_ndarray(black)))
            output.mux(picture.encode(None))
        kind = stream.codec_context.format.name if stream.codec_context.format else "fltp"
        resampler = av.AudioResampler(kind, layout, rate_hz)
        cuts = [0, len(packed)] if pause is None else [0, pause[0], len(packed)]
        for i, (first, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
            for at in range(first, end, 1024):
                part = np.ascontiguousarray(packed[at : min(at + 1024, end)], np.float32)
                frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), "flt", layout)
                frame.sample_rate = rate_hz
                frame.pts = at + int((begin + (i * pause[1] if pause else 0.0)) * rate_hz)
                for converted in resampler.resample(frame):
                    output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return file.getvalue()


def checksum(content: bytes, polynomial: int, bits: int) -> bytes:
    """CRC of FLAC."""
    found, top = 0, 1 << (bits - 1)
    for byte in content:
        found ^= byte << (bits - 8)
        for _ in range(8):
            found = (found << 1 ^ (polynomial if found & top else 0)) & (1 << bits) - 1
    return found.to_bytes(bits // 8, "big")


def flac_silence(days: int) -> bytes:
    """19 kB a day, at 1 kHz: frames of one constant."""
    block, rate_hz = 65_535, 1000
    count = days * 86_400 * rate_hz // block
    about = (rate_hz << 44 | 15 << 36 | count * block).to_bytes(8, "big")
    frames = [b"fLaC\x80\0\0\x22" + struct.pack(">HH", block, block) + bytes(6) + about + bytes(16)]
    for number in range(count):
        head = b"\xff\xf8\x70\x08" + chr(number).encode() + struct.pack(">H", block - 1)
        body = head + checksum(head, 7, 8) + bytes(3)
        frames.append(body + checksum(body, 0x8005, 16))
    return b"".join(frames)


def ogg_page(number: int, granule: int, flags: int, packets: list[bytes]) -> bytes:
    """A page of packets that are shorter than 255 bytes."""
    sizes = bytes(map(len, packets))
    head = struct.pack("<4sBBqII", b"OggS", 0, flags, granule, 1, number)
    return ogg_checked(head + bytes(4) + bytes([len(sizes)]) + sizes + b"".join(packets))


def ogg_checked(page: bytes) -> bytes:
    """A page whose checksum holds."""
    page = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(page.translate(BITS_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return page[:22] + crc.to_bytes(4, "big").translate(BITS_REVERSED) + page[26:]


def ogg_pages(content: bytes) -> list[bytes]:
    """An Ogg file in its pages."""
    found, at = [], 0
    while at < len(content):
        body = at + 27 + content[at + 26]
        end = body + sum(content[at + 27 : body])
        found.append(content[at:end])
        at = end
    return found


def numbered(content: bytes, serial: int = 1) -> bytes:
    """An Ogg file whose stream has this number; libsndfile takes another in every call."""
    number = serial.to_bytes(4, "little")
    return b"".join(ogg_checked(page[:14] + number + page[18:]) for page in ogg_pages(content))


def dateless(content: bytes) -> bytes:
    """A WAV file of libsndfile's whose chunk PEAK has no date."""
    at = content.index(b"PEAK") + 12
    return content[:at] + bytes(4) + content[at + 4 :]


def opus_silence(hours: int) -> bytes:
    """93 kB an hour: packets of two empty frames of 60 ms."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48_000, 0, 0)
    tags = b"OpusTags" + bytes(8)
    made, count = [ogg_page(0, 0, 2, [head]), ogg_page(1, 0, 0, [tags])], hours * 3600 * 100 // 3060
    for number in range(1, count + 1):
        is_last = 4 * (number == count)
        made.append(ogg_page(number + 1, number * 255 * 5760, is_last, [b"\x1b\x02"] * 255))
    return b"".join(made)
