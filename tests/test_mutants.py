"""Mutated files end in audio or in an AudioError, soon and in little memory; FAIRSEQ_OPENVINO_SEED varies."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import MINI, child_environment
from growth import Cost
from media_files import dateless, encoded, numbered

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech import audio
from fairseq_openvino.speech.audio import Audio, read_audio
from fairseq_openvino.speech.isolation import Pool
from fairseq_openvino.speech.waveform import MAX_AMPLITUDE

SEED = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "1"))
RATE_HZ = 16_000
MAX_SECONDS = 5.0
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
SNDFILE = (
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610"),
    ("WAVEX", "PCM_24"), ("RF64", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_24"), ("AIFF", "IMA_ADPCM"), ("CAF", "ALAC_16"),
    ("W64", "PCM_16"), ("AU", "ULAW"), ("AU", "G721_32"),
)  # fmt: skip
MEDIA = (
    ("mp4", "aac"), ("ipod", "alac"), ("webm", "libopus"), ("matroska", "eac3"), ("matroska", "flac"),
    ("matroska", "ac3"), ("matroska", "pcm_s16le"), ("adts", "aac"), ("mpegts", "aac"), ("avi", "mp2"),
    ("flv", "aac"), ("tta", "tta"), ("asf", "mp2"), ("wv", "wavpack"), ("mov", "pcm_s16le"),
    ("amr", "libopencore_amrnb"),
)  # fmt: skip


@cache
def samples() -> np.ndarray:
    """Half a second of speech."""
    return read_audio(min((MINI / "clips").glob("*.mp3")), RATE_HZ)[0][: RATE_HZ // 2]


def sndfile_files() -> list[bytes]:
    files = []
    for form, subtype in SNDFILE:
        file = io.BytesIO()
        soundfile.write(file, samples(), RATE_HZ, subtype, format=form)
        content = file.getvalue()
        if form == "OGG":
            content = numbered(content)
        elif b"PEAK" in content[:64]:
            content = dateless(content)
        files.append(content)
    return files


def media_files() -> list[bytes]:
    rates = {
        "libopus": 48_000,
        "ac3": 48_000,
        "eac3": 48_000,
        "wmav2": 44_100,
        "libopencore_amrnb": 8000,
    }
    made = [encoded(samples(), form, codec, rates.get(codec, RATE_HZ)) for form, codec in MEDIA]
    return [*made, encoded(samples(), "mp4", "aac", video=True)]


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


Decode = Callable[[bytes], Audio]


class Watch:
    """What happens to mutants: each within the bounds of R4."""

    def __init__(self, seed: int) -> None:
        self.seed, self.found = seed, Counter[str]()
        self.slowest_seconds, self.largest_bytes = 0.0, 0

    def decode(self, number: int, content: bytes, decode: Decode, *children: int) -> None:
        """One of them."""
        costs = [Cost(pid) for pid in ("self", *children)]
        what, size = f"seed={self.seed} mutant {number}", len(content)
        try:
            heard = decode(content)
            assert 0 < np.abs(heard.waveforms).max(initial=1e-9) <= 2 * MAX_AMPLITUDE, what
            size += heard.waveforms.nbytes
            self.found["damaged" if heard.damage else "decoded"] += 1
        except AudioError as error:
            assert not re.search("report it|none within", str(error)), f"{what}: {error}"
            self.found["crashed" if "an answer of its decoder" in str(error) else "refused"] += 1
        seconds = sum(cost.seconds() for cost in costs)
        assert seconds < MAX_SECONDS, f"{what}: {seconds:.1f} s"
        self.slowest_seconds = max(self.slowest_seconds, seconds)
        extra_bytes = max(cost.extra_bytes() for cost in costs)
        assert extra_bytes <= (64 << 20) + 4 * size, f"{what}: {extra_bytes >> 20} MiB"
        self.largest_bytes = max(self.largest_bytes, extra_bytes)

    def __str__(self) -> str:
        return (
            f"seed={self.seed}: {dict(self.found)}; slowest {self.slowest_seconds:.2f} s, "
            f"most memory {self.largest_bytes / (1 << 20):.0f} MiB"
        )


def survive(count: int, seed: int) -> Watch:
    """Decode mutants in children of a pool."""
    pool, watch = Pool(timeout_seconds=60.0, children=1), Watch(seed)
    files = mutants([*sndfile_files(), *media_files()], seed)
    for number in range(count):
        decode = pool.decode if number % 4 else lambda content: pool.store(content, 48_000).audio
        watch.decode(number, next(files), decode, *(child.pid for child in pool._idle))
    pool.close()
    print(watch)
    return watch


def test_a_seed_names_the_same_mutants_in_every_run() -> None:
    first, second = ([*sndfile_files(), *media_files()] for _ in range(2))
    assert first == second


def test_mutants_end_in_audio_or_in_an_audio_error() -> None:
    found = survive(150, SEED).found
    assert found["decoded"] + found["damaged"] > 30 and found["refused"] > 30


@pytest.mark.fault
def test_twenty_thousand_mutants() -> None:
    assert survive(20_000, SEED).found["crashed"] < 20


def in_process(first: int, count: int, seed: int) -> None:
    """The same without isolation, in a process that says which mutant it is about to decode."""
    watch, files = Watch(seed), mutants(sndfile_files(), seed)
    for number, content in enumerate(islice(files, count)):
        if number >= first:
            print(number, flush=True)
            watch.decode(number, content, audio.decode)
    print(watch, file=sys.stderr)


@pytest.mark.fault
def test_ten_thousand_mutants_without_isolation(tmp_path: Path) -> None:
    """In a child of the test, which is begun anew behind a mutant that crashes it."""
    first, count, crashed = 0, 10_000, dict[int, int]()
    code = "import sys, test_mutants; test_mutants.in_process(*map(int, sys.argv[1:]))"
    while first < count:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, (first, count, SEED))],
            capture_output=True, text=True, cwd=Path(__file__).parent, env=child_environment(),
        )  # fmt: skip
        assert done.returncode <= 0, done.stderr
        first = int(done.stdout.split()[-1]) + 1
        if done.returncode:
            crashed[first - 1] = -done.returncode
    files = list(islice(mutants(sndfile_files(), SEED), max(crashed, default=-1) + 1))
    for number, code_ in crashed.items():
        (tmp_path / f"{SEED}-{number}-signal-{code_}").write_bytes(files[number])
    print(f"{done.stderr.splitlines()[-1]}; crashed: {crashed}, kept in {tmp_path}")
    assert not crashed
