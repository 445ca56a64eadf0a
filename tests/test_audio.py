"""Decoding: every format and every bound; damage is in `test_damage`, `test_attacks` and `test_mutants`."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech import audio, sndfile
from fairseq_openvino.speech.waveform import MAX_CHANNELS, MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ

RATE_HZ = 16_000


def tone(seconds: float = 0.5, rate_hz: int = RATE_HZ, frequency_hz: float = 440.0) -> np.ndarray:
    times = np.arange(int(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)


def wav_bytes(rate_hz: int, channels: int, data: bytes) -> bytes:
    """A 16-bit PCM file whose header says what the arguments say."""
    size = len(data)
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, channels, rate_hz,
        min(rate_hz * channels * 2, 2**32 - 1), channels * 2, 16, b"data", size,
    )  # fmt: skip
    return head + data


@pytest.mark.parametrize(
    ("extension", "options", "tolerance"),
    [
        ("wav", {"subtype": "FLOAT"}, 0.0),
        ("wav", {"subtype": "PCM_16"}, 1e-4),
        ("flac", {}, 1e-4),
        ("ogg", {}, 0.05),
        ("mp3", {}, 0.05),
    ],
)
def test_formats_decode_to_the_signal(tmp_path, extension, options, tolerance):
    path = tmp_path / f"tone.{extension}"
    soundfile.write(path, tone(), RATE_HZ, **options)
    waveform, rate_hz = audio.read_audio(path)
    assert rate_hz == RATE_HZ
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert np.abs(waveform[: len(tone())] - tone()).max() <= tolerance


def test_open_files_decode_like_paths(tmp_path):
    path = tmp_path / "tone.flac"
    soundfile.write(path, tone(), RATE_HZ)
    from_path, _ = audio.read_audio(path)
    from_bytes, _ = audio.read_audio(io.BytesIO(path.read_bytes()))
    with path.open("rb") as file:
        from_file, _ = audio.read_audio(file)
    assert np.array_equal(from_path, from_bytes)
    assert np.array_equal(from_path, from_file)


@pytest.mark.parametrize("channels", [2, 3, MAX_CHANNELS])
def test_channels_are_averaged(tmp_path, channels):
    path = tmp_path / "many.wav"
    parts = np.stack([tone() * (i + 1) / channels for i in range(channels)], axis=1)
    soundfile.write(path, parts, RATE_HZ, subtype="FLOAT")
    waveform, _ = audio.read_audio(path)
    np.testing.assert_allclose(waveform, parts.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(("stored_hz", "wanted_hz"), [(48_000, 16_000), (8_000, 16_000)])
def test_resampling_keeps_duration_and_pitch(tmp_path, stored_hz, wanted_hz):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(1.0, stored_hz), stored_hz, subtype="FLOAT")
    waveform, rate_hz = audio.read_audio(path, wanted_hz)
    assert rate_hz == wanted_hz
    assert len(waveform) == wanted_hz
    middle = slice(wanted_hz // 10, -wanted_hz // 10)
    assert np.abs(waveform - tone(1.0, wanted_hz))[middle].max() < 1e-2


def test_the_right_rate_is_not_resampled(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(), RATE_HZ, subtype="FLOAT")
    assert np.array_equal(audio.read_audio(path, RATE_HZ)[0], tone())


def test_files_longer_than_one_block_are_joined(tmp_path, monkeypatch):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(), RATE_HZ, subtype="FLOAT")
    monkeypatch.setattr(sndfile, "BLOCK_SAMPLES", 777)
    assert np.array_equal(audio.read_audio(path)[0], tone())


def refused(path: Path) -> str:
    with pytest.raises(AudioError) as caught:
        audio.read_audio(str(path))
    assert repr(str(path)) in str(caught.value)
    return str(caught.value)


def test_errors_name_the_whole_path_of_a_pathlib_path(tmp_path):
    with pytest.raises(AudioError) as caught:
        audio.read_audio(tmp_path / "absent.wav")
    assert str(caught.value).startswith(
        f"Decoding audio failed in {str(tmp_path / 'absent.wav')!r}"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF",
        b"hello world, this is text\n" * 50,
        b"fLaC" + b"\0" * 60,
        b"OggS" + b"\xff" * 60,
    ],
    ids=["empty", "four-bytes", "text", "hollow-flac", "hollow-ogg"],
)
def test_what_is_no_audio_is_refused(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    assert "Decoding audio failed" in refused(tmp_path / "a.wav")


def test_missing_files_and_directories_are_refused(tmp_path):
    refused(tmp_path / "absent.wav")
    refused(tmp_path)


def test_other_formats_of_libsndfile_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.voc", tone(), RATE_HZ)
    assert "VOC" in refused(tmp_path / "a.voc")


@pytest.mark.parametrize("rate_hz", [MIN_SAMPLE_RATE_HZ - 1, MAX_SAMPLE_RATE_HZ + 1])
def test_absurd_sample_rates_are_refused(tmp_path, rate_hz):
    (tmp_path / "a.wav").write_bytes(wav_bytes(rate_hz, 1, bytes(2000)))
    assert f"got {rate_hz}" in refused(tmp_path / "a.wav")


@pytest.mark.parametrize("rate_hz", [MIN_SAMPLE_RATE_HZ, MAX_SAMPLE_RATE_HZ])
def test_the_limits_themselves_are_accepted(tmp_path, rate_hz):
    (tmp_path / "a.wav").write_bytes(wav_bytes(rate_hz, 1, bytes(2000)))
    assert len(audio.read_audio(tmp_path / "a.wav")[0]) == 1000


def test_too_many_channels_are_refused(tmp_path):
    channels = MAX_CHANNELS + 1
    (tmp_path / "a.wav").write_bytes(wav_bytes(RATE_HZ, channels, bytes(channels * 200)))
    assert "channels" in refused(tmp_path / "a.wav")


def test_too_long_audio_is_refused_before_it_is_all_read(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(), RATE_HZ)
    monkeypatch.setattr(audio, "MAX_AUDIO_SECONDS", 0.25)
    monkeypatch.setattr(sndfile, "BLOCK_SAMPLES", 1000)
    assert "Split the file" in refused(tmp_path / "a.wav")
