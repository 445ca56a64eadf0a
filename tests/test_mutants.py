"""Mutated files end in audio or in an AudioError, in bounded time; what crashes a decoder, in its child."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
from conftest import MINI
from media_files import encoded

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.isolation import Decoder
from fairseq_openvino.speech.waveform import MAX_AMPLITUDE

RATE_HZ = 16_000
MAX_SECONDS = 10.0
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)


def whole_files() -> list[bytes]:
    samples, _ = read_audio(min((MINI / "clips").glob("*.mp3")), RATE_HZ)
    samples = samples[:RATE_HZ]
    files = []
    for form, subtype in (
        ("WAV", "PCM_16"), ("WAV", "IMA_ADPCM"), ("WAV", "GSM610"), ("RF64", "FLOAT"), ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_24"),
        ("CAF", "ALAC_16"), ("W64", "PCM_16"), ("AU", "ULAW"),
    ):  # fmt: skip
        file = io.BytesIO()
        soundfile.write(file, samples, RATE_HZ, subtype, format=form)
        files.append(file.getvalue())
    media = (
        ("mp4", "aac"), ("ipod", "alac"), ("webm", "libopus"), ("matroska", "flac"), ("matroska", "ac3"),
        ("adts", "aac"), ("mpegts", "aac"), ("avi", "mp2"), ("flv", "aac"), ("tta", "tta"),
    )  # fmt: skip
    for container, codec in media:
        files.append(
            encoded(samples, container, codec, 48_000 if codec in ("libopus", "ac3") else RATE_HZ)
        )
    narrow = encoded(samples[:8000], "amr", "libopencore_amrnb", 8000)
    return [*files, narrow, encoded(samples, "mp4", "aac", video=True)]


def mutants(files: list[bytes], seed: int) -> Iterator[bytes]:
    """Files with some bytes changed, mostly of the header; cut, or with a piece lost or repeated."""
    random = np.random.default_rng(seed)
    while True:
        content = bytearray(files[random.integers(len(files))])
        for _ in range(random.integers(1, 9)):
            reach = len(content) if random.random() < 0.3 else min(400, len(content))
            at, kind = int(random.integers(max(reach, 1))), random.integers(6)
            if kind < 2 and content:
                content[at] = int(random.integers(256))
            elif kind < 4:
                number = int(random.choice(NUMBERS)) & 0xFFFF_FFFF
                content[at : at + 4] = number.to_bytes(
                    4, "little" if random.random() < 0.5 else "big"
                )
            elif kind == 4:
                del content[at : at + int(random.integers(1, 64))]
            else:
                content[at:at] = content[at : at + int(random.integers(1, 64))]
        if random.random() < 0.1 and len(content) > 1:
            del content[int(random.integers(1, len(content))) :]
        yield bytes(content)


def survive(count: int, seed: int) -> Counter[str]:
    """Decode mutants in a child; what happened, by kind."""
    decoder, found = Decoder(timeout_seconds=2 * MAX_SECONDS), Counter[str]()
    files = mutants(whole_files(), seed)
    for number in range(count):
        content = next(files)
        begin, what = time.monotonic(), f"seed={seed} mutant {number}"
        try:
            audio = decoder.decode(content)
            assert 0 < np.abs(audio.waveforms).max(initial=1e-9) <= 2 * MAX_AMPLITUDE, what
            found["damaged" if audio.damage else "decoded"] += 1
        except AudioError as error:
            assert "report it" not in str(error), f"{what}: {error}"
            found["crashed" if "an answer of its decoder" in str(error) else "refused"] += 1
        assert time.monotonic() - begin < MAX_SECONDS, what
    decoder.close()
    return found


def test_mutants_end_in_audio_or_in_an_audio_error() -> None:
    found = survive(300, seed=1)
    assert found["decoded"] + found["damaged"] > 50 and found["refused"] > 50


@pytest.mark.soak
def test_twenty_thousand_mutants() -> None:
    found = survive(20_000, seed=int(time.time()))
    print(dict(found))
    assert found["crashed"] < 20
