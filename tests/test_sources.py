"""What can be named as audio, which of its channels is heard, and reading it block by block."""

from __future__ import annotations

import io
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import soxr
from media_files import encoded
from test_recordings import RATE_HZ, file, speech

from fairseq_openvino.errors import AudioError, OptionError
from fairseq_openvino.speech import audio
from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.files import audio_files
from fairseq_openvino.speech.options import AudioOptions
from fairseq_openvino.speech.stored import read
from fairseq_openvino.speech.waveform import as_waveform, resampled

# --- sources ------------------------------------------------------------------------------------


def test_content_and_files_are_read_like_paths(tmp_path: Path) -> None:
    path = tmp_path / "a 12:30:15"  # as a slice of a ZIP would be named
    path.write_bytes(content := file(speech()))
    expected, _ = read_audio(path)
    for source in (content, bytearray(content), memoryview(content), io.BytesIO(content)):
        np.testing.assert_array_equal(read_audio(source)[0], expected)
    found = read(str(path), None)
    assert found is not None and found.name == str(path)
    np.testing.assert_array_equal(found.waveforms, expected[np.newaxis])


@pytest.mark.parametrize("form", ["WAV", "FLAC", "m4a"])
def test_pipes_are_read_to_their_end(form: str, tmp_path: Path) -> None:
    content = encoded(speech(), "mp4", "aac") if form == "m4a" else file(speech(), form=form)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[content])
    writer.start()
    found, _ = read_audio(tmp_path / "pipe")
    writer.join()
    np.testing.assert_array_equal(found, read_audio(content)[0])


def test_a_pipe_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairseq_openvino.speech.sources.MAX_PIPED_BYTES", 1 << 20)
    endless = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    assert endless.stdout is not None
    with endless.stdout, pytest.raises(AudioError, match="at most 1048576 bytes of a pipe"):
        read_audio(endless.stdout)
    endless.kill()
    endless.wait()


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    closed = io.BytesIO()
    closed.close()
    for source, message in {
        "https://host/a.m4a": "expected a readable file, got a URL. Download it first.",
        "absent.wav": "got No such file or directory. Check the path.",
        str(tmp_path): "got Is a directory. Check the path.",
        "a\0b": "got embedded null byte. Check the path.",
        closed: "got I/O operation on closed file. Check the path.",
        io.StringIO("text"): "expected a binary file, got one of text. Open it with the mode 'rb'.",
    }.items():
        with pytest.raises(AudioError) as caught:
            read_audio(source)  # type: ignore[arg-type]
        assert str(caught.value).endswith(message)


def test_directories_and_patterns_are_replaced_by_their_files(tmp_path: Path) -> None:
    for name in ("b.wav", "a.M4A", "notes.txt", ".hidden.wav", "c[1].wav", "below/d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    named = [str(tmp_path / name) for name in ("a.M4A", "b.wav", "c[1].wav", "below/d.wav")]
    assert audio_files([str(tmp_path)]) == named[:3]
    assert audio_files([f"{tmp_path}/**/*.wav"]) == sorted(named[1:])
    assert audio_files(["-", named[2], f"{tmp_path}/*.ogg"]) == ["-", named[2], f"{tmp_path}/*.ogg"]
    (tmp_path / "empty" / "not-a-file.wav").mkdir(parents=True)
    with pytest.raises(OptionError, match=r"expected files that end in \.wav, .*, got none"):
        audio_files([str(tmp_path / "empty")])


# --- channels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted_hz", [None, RATE_HZ])
@pytest.mark.parametrize("kind", ["flac", "m4a"])
def test_a_channel_alone_is_what_split_gives(kind: str, wanted_hz: int | None) -> None:
    samples = speech(44_100, 3)[:66_000]
    content = (
        encoded(samples[:, :2], "mp4", "aac", 44_100) if kind == "m4a" else file(samples, 44_100)
    )
    together = audio.decode(content, wanted_hz, "split").waveforms
    assert len(together) == (2 if kind == "m4a" else 3)
    for channel, waveform in enumerate(together):
        np.testing.assert_array_equal(
            audio.decode(content, wanted_hz, channel).waveforms[0], waveform
        )
        assert waveform.flags.c_contiguous
    with pytest.raises(AudioError, match=r"expected a channel below \d, counted from 0, got 3\."):
        audio.decode(content, wanted_hz, 3)


def test_strict_refuses_what_is_damaged() -> None:
    content = file(speech(), form="WAV")
    assert read(content, None, AudioOptions(strict_audio=True)) is not None
    with pytest.raises(AudioError, match=r"expected undamaged audio, got 0\.\d\d s of"):
        read(content[:-8000], None, AudioOptions(strict_audio=True))


@pytest.mark.parametrize("channel", ["left", -1, True, 1.5, None])
def test_other_channels_are_wrong_usage(channel: object) -> None:
    with pytest.raises(OptionError, match="in channel: expected mix, split, or the number of a"):
        AudioOptions(channel=channel)  # type: ignore[arg-type]


# --- resampling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_resampling_in_pieces_gives_the_same_samples(rate_hz: int) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (50_003, 2)).astype(np.float32)
    expected = soxr.resample(samples, rate_hz, RATE_HZ)
    for size in (1000, 1024, 7777, 50_003):
        pieces = (samples[i : i + size] for i in range(0, len(samples), size))
        found = np.concatenate(list(resampled(pieces, rate_hz, RATE_HZ, 2)))
        np.testing.assert_array_equal(found, expected)
    for channel in (0, 1):
        alone, _ = as_waveform(samples[:, channel], rate_hz, RATE_HZ)
        np.testing.assert_array_equal(alone, expected[:, channel])
