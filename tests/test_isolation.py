"""Decoding in a child: the same results, and its death costs one file."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import MINI, child_environment
from media_files import encoded

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech import audio, isolation
from fairseq_openvino.speech.isolation import Decoder

CLIPS = sorted((MINI / "clips").glob("*.mp3"))[:3]
MEMORY_BYTES = 2 << 30


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    found = Decoder(MEMORY_BYTES, timeout_seconds=20.0, files_per_child=4)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _used(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """`isolation.decode` asks this one."""
    monkeypatch.setattr(isolation, "decoder", lambda: decoder)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What takes seconds to decode: half a minute of noise on eight channels."""
    path = tmp_path_factory.mktemp("endless") / "noise.flac"
    noise = np.random.default_rng(0).integers(-9, 9, (48_000, 8), np.int16)
    with soundfile.SoundFile(path, "w", 48_000, 8, "PCM_16") as file:
        for _ in range(30):
            file.write(noise)
    return path


def test_results_are_those_of_this_process() -> None:
    samples = np.stack([audio.read_audio(clip, 16_000)[0][:16_000] for clip in CLIPS], axis=1)
    stereo = io.BytesIO()
    soundfile.write(stereo, samples[:, :2], 16_000, format="WAV")
    damaged = encoded(samples[:, 0], "matroska", "flac")[:-5000]
    cases = [(str(CLIPS[0]), "mix"), (stereo, "split"), (stereo, 1), (damaged, "mix")]
    cases += [(io.BytesIO(damaged), "mix"), (memoryview(stereo.getvalue()), "mix")]
    for source, channel in cases:
        expected = audio.decode(source, 11_025, channel)
        found = isolation.decode(source, 11_025, channel)
        np.testing.assert_array_equal(found.waveforms, expected.waveforms)
        assert found.waveforms.flags.writeable
        assert vars(found) | {"waveforms": 0} == vars(expected) | {"waveforms": 0}
    assert found.damage is None and isolation.decode(damaged).damage


def test_errors_are_those_of_this_process(tmp_path: Path) -> None:
    for source, channel in ((b"nothing" * 99, "mix"), (str(tmp_path / "x"), "mix"), (CLIPS[0], 7)):
        with pytest.raises(AudioError) as expected:
            audio.decode(source, None, channel)
        with pytest.raises(AudioError) as found:
            isolation.decode(source, None, channel)
        assert str(found.value) == str(expected.value)


def test_a_child_is_exchanged_after_some_files(decoder: Decoder) -> None:
    children = []
    for _ in range(9):
        isolation.decode(CLIPS[0])
        children.append(decoder.pid)
    assert len(set(children)) == 3


def test_a_child_that_crashes_costs_one_file(decoder: Decoder, endless: Path) -> None:
    isolation.decode(CLIPS[0])
    child = decoder.pid

    def crash() -> None:
        os.kill(child, signal.SIGSEGV)
        os.kill(child, signal.SIGCONT)

    os.kill(child, signal.SIGSTOP)  # it crashes with the file in its hands, however fast it is
    threading.Timer(0.3, crash).start()
    with pytest.raises(
        AudioError, match=r"noise.flac': expected an answer .* got signal 11 \(Segm"
    ):
        isolation.decode(endless, None, "split")
    isolation.decode(CLIPS[0])
    os.kill(decoder.pid, signal.SIGKILL)  # idle
    time.sleep(0.1)
    isolation.decode(CLIPS[0])


@pytest.mark.soak
def test_memory_and_time_are_bounded(endless: Path) -> None:
    for memory_bytes, seconds, message in (
        (200 << 20, 20.0, "expected audio that is decoded in 200 MiB, got more. Split the file"),
        (MEMORY_BYTES, 0.1, "expected an answer of its decoder, got none within 0.1 s. Drop"),
    ):
        bounded = Decoder(memory_bytes, seconds)
        time.sleep(1.0)  # it is up
        with pytest.raises(AudioError, match=message):
            bounded.decode(endless, 96_000, "split")
        bounded.close()


@pytest.mark.soak
def test_children_end_with_their_parent() -> None:
    code = (
        "import sys\nfrom fairseq_openvino.speech import isolation\n"
        "assert isolation.decode(sys.argv[1]).waveforms.any()\n"
        "found = isolation.decoder()\nprint(found.pid, found._next.process.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, CLIPS[0]], capture_output=True, text=True, check=True,
        env=child_environment(),
    )  # fmt: skip
    assert not done.stderr
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in done.stdout.split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
