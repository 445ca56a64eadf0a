"""Recordings of any length: the samples of the whole file, several times, whatever the source."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import MINI, child_environment
from media_files import encoded

from fairseq_openvino.errors import AudioError, StorageError
from fairseq_openvino.speech import audio, isolation, sndfile
from fairseq_openvino.speech import recordings as module
from fairseq_openvino.speech.audio import damage_collected, read_audio
from fairseq_openvino.speech.options import AudioOptions
from fairseq_openvino.speech.recordings import Recording, recordings
from fairseq_openvino.speech.waveform import as_waveform

RATE_HZ = 16_000


def speech(rate_hz: int = RATE_HZ, channels: int = 1) -> np.ndarray:
    """Two clips of speech, shape (samples, channels), each channel another moment of it."""
    clips = sorted((MINI / "clips").glob("*.mp3"))[:2]
    samples = np.concatenate([read_audio(clip, rate_hz)[0] for clip in clips])
    return np.stack([np.roll(samples, i * rate_hz // 5) for i in range(channels)], axis=1)


def file(samples: np.ndarray, rate_hz: int = RATE_HZ, form: str = "FLAC") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate_hz, format=form)
    return content.getvalue()


def whole(recording: Recording) -> np.ndarray:
    return np.concatenate(list(recording.blocks()))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a clip, of which the first tells whether channels cancel each other out."""
    monkeypatch.setattr(audio, "JUDGED_SECONDS", 0.1)
    for each in (module, sndfile):
        monkeypatch.setattr(each, "BLOCK_SAMPLES", 3000)


@pytest.mark.parametrize("kind", ["FLAC", "WAV", "MP3", "m4a"])
@pytest.mark.parametrize("channels", [1, 2, "opposite"])
def test_blocks_are_the_samples_of_the_whole(
    kind: str, channels: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    rate_hz = 22_050
    samples = speech(rate_hz, 2 if channels == 2 else 1)
    if channels == "opposite":
        samples = np.concatenate([samples, -samples], axis=1)
    is_m4a = kind == "m4a"
    content = encoded(samples, "mp4", "aac", rate_hz) if is_m4a else file(samples, rate_hz, kind)
    expected, _ = read_audio(content, RATE_HZ)
    caplog.clear()
    (recording,) = recordings(content, RATE_HZ)
    for _ in range(2):
        found = list(recording.blocks())
        assert {len(block) for block in found[:-1]} == {3000} and 0 < len(found[-1]) <= 3000
        assert all(block.dtype == np.float32 and block.ndim == 1 for block in found)
        np.testing.assert_array_equal(np.concatenate(found), expected)
    assert (recording.rate_hz, recording.stored_hz) == (RATE_HZ, rate_hz)
    assert len(caplog.records) == (channels == "opposite")


def test_every_source_can_be_heard_twice_at_the_same_time(tmp_path: Path) -> None:
    content = file(speech(channels=2))
    path = tmp_path / "a.flac"
    path.write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[content])
    writer.start()
    expected, _ = read_audio(content)
    with path.open("rb") as handle, path.open("rb", buffering=0) as raw:
        sources: list[Any] = [path, str(path), content, handle, raw, io.BytesIO(content), expected]
        for source in [*sources, tmp_path / "pipe"]:
            (recording,) = recordings(source, RATE_HZ)
            pairs = list(zip(recording.blocks(), recording.blocks(), strict=True))
            for found in zip(*pairs, strict=True):
                np.testing.assert_array_equal(np.concatenate(found), expected)
    writer.join()


def test_standard_input_is_stored_once() -> None:
    script = (
        "from fairseq_openvino.speech.recordings import recordings\n"
        "recording, = recordings('-', 16000)\n"
        "print(recording.name, *(sum(map(len, recording.blocks())) for _ in range(2)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=file(speech()), capture_output=True, check=True,
        env=child_environment(),
    )  # fmt: skip
    assert done.stdout.split() == [b"-", *[str(len(speech())).encode()] * 2]


@pytest.mark.parametrize("isolated", [False, True])
def test_split_gives_a_recording_of_each_channel(isolated: bool) -> None:
    content = file(speech(44_100, 3), 44_100)
    expected = audio.decode(content, RATE_HZ, "split").waveforms
    found = recordings(io.BytesIO(content), RATE_HZ, AudioOptions("split", isolate_audio=isolated))
    assert [recording.name.rpartition("#")[2] for recording in found] == ["0", "1", "2"]
    for (*blocks,) in zip(*(recording.blocks() for recording in found), strict=True):
        assert {len(block) for block in blocks[1:]} == {len(blocks[0])}
    for recording, waveform in zip(found, expected, strict=True):
        np.testing.assert_array_equal(whole(recording), waveform)
    (second,) = recordings(content, RATE_HZ, AudioOptions(1, isolate_audio=isolated))
    np.testing.assert_array_equal(whole(second), expected[1])


def test_parts_of_files_are_recordings_too(tmp_path: Path) -> None:
    content = file(speech())
    (tmp_path / "a.flac").write_bytes(content)
    (recording,) = recordings(f"{tmp_path}/a.flac:4000:9000", RATE_HZ)
    np.testing.assert_array_equal(whole(recording), read_audio(content)[0][4000:13_000])
    (tmp_path / "a.zip").write_bytes(b"1234567" + content)
    (recording,) = recordings(f"{tmp_path}/a.zip:7:{len(content)}", RATE_HZ)
    np.testing.assert_array_equal(whole(recording), read_audio(content)[0])
    np.save(tmp_path / "a.npy", np.zeros((9, 80), np.float32))
    with pytest.raises(AudioError, match="expected audio, got stored features. Give audio files."):
        recordings(f"{tmp_path}/a.npy", RATE_HZ)


def test_arrays_are_resampled() -> None:
    samples = speech(44_100)[:, 0]
    (recording,) = recordings(samples, RATE_HZ, sample_rate_hz=44_100)
    np.testing.assert_array_equal(whole(recording), as_waveform(samples, 44_100, RATE_HZ)[0])


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("channel", ["mix", "split", 1])
def test_damage_is_told_once_at_the_end_of_the_first_pass(isolated: bool, channel: Any) -> None:
    content = file(speech(channels=2), form="WAV")[:-8000]
    with damage_collected() as expected:
        read_audio(content)
    assert len(expected) == 1
    with damage_collected() as damage:
        found = recordings(content, RATE_HZ, AudioOptions(channel, isolate_audio=isolated))
        for recording in found * 2:
            assert len(whole(recording)) == len(speech()) - 2000
            assert recording.damage == expected[0]
    assert damage == expected
    with pytest.raises(AudioError, match=r"expected undamaged audio, got 0\.\d\d s of"):
        for recording in recordings(content, RATE_HZ, AudioOptions(channel, True, isolated)):
            whole(recording)


def test_a_decoder_of_its_own_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    content, options = file(speech()), AudioOptions(isolate_audio=True)
    (recording,) = recordings(content, RATE_HZ, options)
    expected = whole(recording)
    monkeypatch.setattr(isolation, "MAX_STORED_BYTES", 4 * len(expected) - 1)
    with pytest.raises(AudioError, match=r"expected at most 0 GiB of samples, got more\. Split"):
        recordings(content, RATE_HZ, options)
    monkeypatch.undo()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(
            StorageError, match="expected free space, got File too large. Set TMPDIR"
        ):
            recordings(content, RATE_HZ, options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (recording,) = recordings(content, RATE_HZ, options)
    np.testing.assert_array_equal(whole(recording), expected)
    np.testing.assert_array_equal(expected, read_audio(content)[0])


MEASURE = """
import sys
from fairseq_openvino.machine import peak_megabytes, resident_megabytes
from fairseq_openvino.speech.recordings import recordings
begin = resident_megabytes()
(recording,) = recordings(sys.argv[1], 16000)
print(sum(map(len, recording.blocks())), peak_megabytes() - begin)
"""


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["wav", "streamed.wav", "flac", "mka"])
def test_blocks_of_hours_need_the_memory_of_one(kind: str, tmp_path: Path) -> None:
    """Two hours; a WAV without a length too, of which only the header is replaced."""
    path, hours = tmp_path / f"long.{kind}", 2
    if kind.endswith("wav"):
        head = bytearray(file(np.zeros(0), form="WAV")[:44])
        size = hours * 3600 * RATE_HZ * 2
        head[40:44] = (0 if kind == "streamed.wav" else size).to_bytes(4, "little")
        with path.open("wb") as written:
            written.write(head)
            written.truncate(44 + size)
    else:
        words = ["-i", "anullsrc=r=16000:cl=mono", "-t", str(hours * 3600), "-c:a", "flac", path]
        subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", *words], check=True)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True,
        env=child_environment(),
    )  # fmt: skip
    samples, grown = done.stdout.split()
    print(kind, done.stdout)
    assert int(samples) == hours * 3600 * RATE_HZ
    assert float(grown) < 40
