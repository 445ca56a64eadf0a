"""Log-mel frames of whole recordings against openai-whisper's own, and what they need in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import MINI, child_environment

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech import spectrogram
from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.features import log_mel
from fairseq_openvino.speech.recordings import recordings
from fairseq_openvino.speech.spectrogram import Spectrogram

RATE_HZ = 16_000
LENGTHS = (1, 159, 160, 161, 201, 399, 400, 401, 479_999, 480_000, 480_001)
EXACT, IN_FLOAT32 = 1e-6, 1e-4
"""openai-whisper's own rounding in float32 reaches 4e-5 where a frame is quiet in a band only."""

Blocks = Callable[[], Iterator[np.ndarray]]


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Loud and quiet in turn, so that the maximum of the whole matters to its parts."""
    rng = np.random.default_rng(seed)
    loudness = np.repeat(10 ** rng.uniform(-5, 0, samples // 8000 + 1), 8000)[:samples]
    return (0.1 * loudness * rng.standard_normal(samples)).astype(np.float32)


def speech(seconds: int) -> np.ndarray:
    """Clips one after the other."""
    clips = [read_audio(clip, RATE_HZ)[0] for clip in sorted((MINI / "clips").glob("*.mp3"))[:60]]
    return np.concatenate(clips)[: seconds * RATE_HZ]


def in_blocks(samples: np.ndarray, most: int = 100_000) -> Blocks:
    """The samples in blocks of random sizes, others each time."""
    rng = np.random.default_rng(len(samples))

    def blocks() -> Iterator[np.ndarray]:
        begin = 0
        while begin < len(samples):
            size = int(rng.integers(1, most))
            yield samples[begin : begin + size]
            begin += size

    return blocks


def reference(samples: np.ndarray, bins: int, exact: bool = True) -> np.ndarray:
    """What openai-whisper computes, (T, F), in float64 or as it comes."""
    torch, audio = pytest.importorskip("torch"), pytest.importorskip("whisper.audio")
    dtype = torch.float64 if exact else torch.float32
    filters = audio.mel_filters("cpu", bins).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "mel_filters", lambda *_: filters)
        torch.set_default_dtype(dtype)
        try:
            found = audio.log_mel_spectrogram(samples.astype(dtype_name(exact)), bins, 480_000)
        finally:
            torch.set_default_dtype(torch.float32)
    return found.numpy().T[: len(samples) // 160]


def dtype_name(exact: bool) -> str:
    return "float64" if exact else "float32"


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("kind", ["noise", "speech"])
def test_frames_equal_those_of_openai_whisper(kind: str, bins: int) -> None:
    lengths = [*LENGTHS, 95 * RATE_HZ + 77] if kind == "noise" else [95 * RATE_HZ]
    for samples in lengths:
        waveform = noise(samples) if kind == "noise" else speech(95)
        found = Spectrogram(in_blocks(waveform), bins)
        assert (found.samples, found.seconds) == (samples, samples / RATE_HZ)
        frames = found.window(0, found.frames)
        assert frames.dtype == np.float32 and frames.shape == (samples // 160, bins)
        assert np.abs(frames - reference(waveform, bins)).max(initial=0) < EXACT
    assert np.abs(frames - reference(waveform, bins, False)).max() < IN_FLOAT32


def test_a_clip_has_the_frames_of_its_window() -> None:
    waveform = speech(20)
    found = Spectrogram(in_blocks(waveform), 80)
    expected = log_mel(waveform, 80, 3000)[: found.frames]
    np.testing.assert_allclose(found.window(0, 3000), expected, rtol=0, atol=1e-6)


def test_held_in_memory_or_heard_again_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = noise(95 * RATE_HZ + 77)
    heard: list[np.ndarray] = []
    held = Spectrogram(in_blocks(waveform), 80, heard.append)
    np.testing.assert_array_equal(np.concatenate(heard), waveform)
    whole, passes = held.window(0, held.frames), 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal passes
        passes += 1
        yield from in_blocks(waveform)()

    monkeypatch.setattr(spectrogram, "HELD_BYTES", 1 << 20)
    streamed = Spectrogram(counted, 80, heard.append)
    assert streamed.maximum == held.maximum
    seeks = [0, 0, 100, 2950, 2951, 5000, 9000, 9400, 9499, 9500, 12_000]
    for seek in seeks:
        np.testing.assert_array_equal(streamed.window(seek, 3000), whole[seek : seek + 3000])
    assert passes == 2
    np.testing.assert_array_equal(streamed.window(1234, 777), whole[1234:2011])
    assert passes == 3
    assert sum(map(len, heard)) == 2 * len(waveform)  # in the first pass alone


def test_an_empty_recording_has_no_frames() -> None:
    found = Spectrogram(lambda: iter(()), 80)
    assert (found.frames, found.window(0, 3000).shape) == (0, (0, 80))


def write(path: Path, samples: np.ndarray) -> None:
    soundfile.write(path, samples, RATE_HZ, format="WAV", subtype="FLOAT")


def test_a_file_may_grow_but_not_shrink_or_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrogram, "HELD_BYTES", 1 << 20)
    waveform, path = noise(60 * RATE_HZ), tmp_path / "live.wav"
    write(path, waveform)
    (recording,) = recordings(str(path), RATE_HZ)
    found = Spectrogram(recording.blocks, 80)
    before = [found.window(seek, 1000) for seek in (0, 4000, 5500)]
    write(path, np.concatenate([waveform, noise(RATE_HZ)]))
    for seek, expected in zip((0, 4000, 5500), before, strict=True):
        np.testing.assert_array_equal(found.window(seek, 1000), expected)
    write(path, waveform[: 50 * RATE_HZ])
    np.testing.assert_array_equal(found.window(0, 1000), before[0])
    message = "expected the 960000 samples of before, got 800000. Do not change"
    with pytest.raises(AudioError, match=message):
        found.window(5500, 1000)
    path.unlink()
    with pytest.raises(AudioError, match="No such file"):
        found.window(0, 1000)


MEASURE = """
import sys
from fairseq_openvino.machine import peak_megabytes
from fairseq_openvino.speech.recordings import recordings
from fairseq_openvino.speech.spectrogram import Spectrogram

(recording,) = recordings(sys.argv[1], 16000)
found = Spectrogram(recording.blocks, 80)
for seek in range(0, found.frames, 2900):
    found.window(seek, 3000)
print(found.seconds, peak_megabytes())
"""


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["wav", "m4a", "mp3"])
def test_hours_need_the_memory_of_minutes(kind: str, tmp_path: Path) -> None:
    """Six hours against ten minutes, of which all frames are held."""
    peaks = []
    minute = tmp_path / f"minute.{kind}"
    write(tmp_path / "speech.wav", speech(60))
    convert = ["ffmpeg", "-v", "error", "-i", tmp_path / "speech.wav", "-ac", "1", minute]
    subprocess.run(convert, check=True)
    for minutes in (10, 360):
        path = tmp_path / f"{minutes}.{kind}"
        words = ["-stream_loop", str(minutes - 1), "-i", minute, "-c", "copy", path]
        subprocess.run(["ffmpeg", "-v", "error", *words], check=True)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True,
            env=child_environment(),
        )  # fmt: skip
        seconds, peak = map(float, done.stdout.split())
        assert seconds == pytest.approx(60 * minutes, rel=0.01)
        print(f"{kind}, {minutes} min: {peak:.0f} MB")
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 60
