"""Whole files pass silently in every dress; damaged ones are decoded as far as they go, and said so."""

from __future__ import annotations

import io
import logging
import struct
from typing import Any

import numpy as np
import pytest
import soundfile
from media_files import numbered, ogg_pages

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech import containers, sndfile
from fairseq_openvino.speech import mp3 as audio_mp3
from fairseq_openvino.speech.audio import damage_collected, read_audio
from fairseq_openvino.speech.content import Content
from fairseq_openvino.speech.waveform import as_waveform

RATE_HZ = 16_000
ENCODINGS: dict[str, dict[str, str]] = {
    "wav": {"format": "WAV", "subtype": "PCM_16"}, "float": {"format": "WAV", "subtype": "FLOAT"},
    "ulaw": {"format": "WAV", "subtype": "ULAW"}, "adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "wavex": {"format": "WAVEX", "subtype": "PCM_24"}, "rf64": {"format": "RF64"},
    "w64": {"format": "W64"}, "aiff": {"format": "AIFF"}, "au": {"format": "AU"},
    "caf": {"format": "CAF"}, "flac": {"format": "FLAC"}, "vorbis": {"format": "OGG"},
    "opus": {"format": "OGG", "subtype": "OPUS"}, "mp3": {"format": "MP3"},
    "cbr": {"format": "MP3", "bitrate_mode": "CONSTANT"},
}  # fmt: skip


def speech(seconds: float = 6.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Noise in syllables: bits vary as in speech."""
    random = np.random.default_rng(0)
    times = np.arange(int(seconds * rate_hz)) / rate_hz
    envelope = np.maximum(np.sin(2 * np.pi * 1.5 * times), 0) ** 2
    return (0.1 * envelope * random.standard_normal(len(times))).astype(np.float32)


def encoded(kind: str, samples: np.ndarray | None = None, rate_hz: int = RATE_HZ) -> bytes:
    options: dict[str, Any] = dict(ENCODINGS[kind])
    file = io.BytesIO()
    soundfile.write(file, speech() if samples is None else samples, rate_hz, **options)
    content = file.getvalue()
    return numbered(content) if options["format"] == "OGG" else content


def read(content: bytes) -> tuple[np.ndarray, str]:
    """The waveform, and what is said of its damage."""
    with damage_collected() as damage:
        waveform, _ = read_audio(io.BytesIO(content))
    return waveform, "; ".join(damage)


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_files_pass_silently(kind: str, channels: int) -> None:
    samples = np.repeat(speech(2.0)[:, None], channels, axis=1)[:-7]
    waveform, damage = read(encoded(kind, samples))
    assert not damage
    assert abs(len(waveform) - len(samples)) <= 1024


ID3V2 = b"ID3\x04\x00\x00\x00\x00\x02\x00" + b"\xff\xfb\x90\x64" * 64
APE = b"APETAGEX" + struct.pack("<4I", 2000, 32, 0, 0x80000000) + bytes(8)
JUNK = np.random.default_rng(1).integers(0, 256, 5000, np.uint8).tobytes()
DRESSES = {
    "id3v2": (ID3V2, b""), "id3v1": (b"", b"TAG" + bytes(125)), "ape": (b"", APE),
    "both": (ID3V2, APE + b"TAG" + bytes(125)), "padding": (b"", bytes(3000)), "junk": (b"", JUNK),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["mp3", "cbr"])
@pytest.mark.parametrize("dress", DRESSES)
def test_tags_padding_and_junk_around_mp3_change_nothing(kind: str, dress: str) -> None:
    before, after = DRESSES[dress]
    content = encoded(kind)
    waveform, damage = read(before + content + after)
    assert not damage
    assert np.array_equal(waveform, read(content)[0])


def with_size(content: bytes, size: int, riff: int | None = None) -> bytes:
    """A WAV file that declares so many bytes of samples."""
    at = content.index(b"data") + 4
    declared = struct.pack("<I", size)
    riff = size if riff is None else riff
    return content[:4] + struct.pack("<I", riff) + content[8:at] + declared + content[at + 4 :]


@pytest.mark.parametrize("size", [0, 2_000_000_000, 0x7FFF_F000, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_headers_of_streams_are_read_to_the_end(size: int) -> None:
    content = encoded("wav")
    waveform, damage = read(with_size(content, size))
    assert not damage
    assert np.array_equal(waveform, read(content)[0])


def test_other_headers_of_streams() -> None:
    samples = speech()
    rf64 = encoded("rf64")
    at = rf64.index(b"ds64") + 16
    caf = encoded("caf")
    place = caf.index(b"data") + 4
    streamed = rf64[:at] + bytes(8) + rf64[at + 8 :], caf[:place] + b"\xff" * 8 + caf[place + 8 :]
    for content in streamed:
        waveform, damage = read(content)
        assert not damage
        assert np.abs(waveform - samples).max() < 1e-4


def test_a_chunk_larger_than_any_file_is_no_audio() -> None:
    content = bytearray(encoded("caf"))
    content[12:20] = (2**63 - 1).to_bytes(8, "big")  # of the first chunk, which is a description
    with pytest.raises(AudioError):
        read(bytes(content))


def test_an_empty_file_with_a_description_stays_empty() -> None:
    content = with_size(encoded("wav")[:44], 0, 60) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(AudioError, match="got an empty file"):
        read(content)


def test_chunks_in_front_of_the_samples() -> None:
    content = encoded("wav")
    odd = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
    waveform, damage = read(content[:36] + odd + content[36:])
    assert not damage and np.array_equal(waveform, read(content)[0])
    assert "are missing" in read(content[:36] + odd + content[36:-5000])[1]


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("fraction", [0.35, 0.6, 0.93])
def test_a_cut_file_is_never_a_quiet_success(kind: str, fraction: float) -> None:
    content = encoded(kind)
    try:
        waveform, damage = read(content[: int(len(content) * fraction)])
    except AudioError:
        assert kind in (
            "caf",
            "w64",
            "vorbis",
        )  # libsndfile reads none of them, or no page is whole
        return
    assert damage
    assert 0 < len(waveform) < len(speech())
    if kind not in ("vorbis", "opus", "cbr"):
        missing = (len(speech()) - len(waveform)) / RATE_HZ
        assert float(damage.split()[0]) == pytest.approx(missing, abs=0.25)


@pytest.mark.parametrize("kind", ["mp3", "cbr"])
@pytest.mark.parametrize("fill", [bytes(700), JUNK[:700]], ids=["zeros", "junk"])
def test_a_hole_in_mp3_is_told_with_its_seconds(kind: str, fill: bytes) -> None:
    content = encoded(kind)
    at = len(content) // 2
    for damaged in (content[:at] + fill + content[at + 700 :], content[:at] + fill + content[at:]):
        waveform, damage = read(damaged)
        assert "bytes between its frames are none" in damage
        assert 0.5 < len(waveform) / len(speech()) < 1.03


def len_of_frame(content: bytes, place: int) -> int:
    frame = audio_mp3._parsed(content[place : place + 4])
    assert frame is not None
    return frame.size


def test_places_that_look_like_frames_are_given_up_after_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A megabyte of them would take seconds."""
    monkeypatch.setattr(audio_mp3, "MAX_FALSE_SYNCS", 100)
    content, false = encoded("mp3"), b"\xff\xfb\x90\x64"
    assert "360 bytes between its frames" in read(content + false * 90 + content)[1]
    waveform, damage = read(content + false * 200 + content)
    assert f"{800 + len(content)} bytes between its frames are none" in damage
    assert abs(len(waveform) - len(read(content)[0])) < 1200
    assert not read(content + b"\xff" * 800)[1]


def test_places_that_look_like_pages_are_given_up_after_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(containers, "MAX_FALSE_PAGES", 10)
    content = encoded("vorbis")
    _, damage = read(b"OggS" * 11 + content)
    assert "1 pages are damaged or missing" in damage


def test_mp3_cut_between_frames_lacks_frames() -> None:
    content = encoded("mp3")
    frames = audio_mp3.scan(Content(io.BytesIO(content)))
    assert frames is not None and frames.declared == frames.count
    ((place, end),) = frames.runs
    begins = [place]
    while (place := place + len_of_frame(content, place)) < end:
        begins.append(place)
    assert len(begins) == frames.count
    _, damage = read(content[: begins[-10]])
    assert damage.startswith("0.43 s of 6.08 s") and f"of {frames.declared} frames" in damage


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_pages_of_ogg_are_counted(kind: str) -> None:
    found = ogg_pages(encoded(kind, speech(30.0)))
    assert len(found) > 5
    middle = found[3][:-9] + bytes(9)
    for damaged in (
        [*found[:3], *found[4:]],
        [*found[:4], *found[3:]],
        [*found[:3], middle, *found[4:]],
    ):
        waveform, damage = read(b"".join(damaged))
        assert "pages are damaged or missing" in damage
        assert len(waveform) > 15 * RATE_HZ
    assert "does not end with a last page" in read(b"".join(found[:-1]))[1]


def test_only_the_first_of_joined_ogg_files_is_read_and_that_is_said() -> None:
    content = encoded("vorbis")
    waveform, damage = read(content + content)
    assert len(waveform) == len(speech())
    assert damage.startswith("6.00 s of 12.00 s are missing (only the first of 2 streams")


def test_flac_gives_the_part_before_the_damage() -> None:
    content = encoded("flac")
    at = len(content) // 2
    for damaged in (content[:at], content[:at] + bytes(900) + content[at + 900 :]):
        waveform, damage = read(damaged)
        kept = len(waveform)
        assert 0.3 < kept / len(speech()) < 0.7
        assert damage.startswith(f"{6 - kept / RATE_HZ:.2f} s of 6.00 s are missing")
        assert np.abs(waveform - speech()[:kept]).max() < 1e-4


def quiet_then_loud() -> np.ndarray:
    """Its first frames are smaller than the average."""
    return np.concatenate([np.zeros(RATE_HZ, np.float32), 5 * speech(8.0)])


def test_variable_mp3_without_a_count_is_read_to_its_end() -> None:
    """libsndfile estimates the length from the first frames and stops there."""
    content = encoded("mp3", quiet_then_loud()[::-1].copy())
    frames = audio_mp3.scan(Content(io.BytesIO(content)))
    assert frames is not None and frames.varies and frames.tag
    waveform, damage = read(content[frames.runs[0][0] :])
    assert not damage
    assert len(waveform) > 9 * RATE_HZ - 1200


def test_joined_mp3_is_read_to_its_end() -> None:
    content = encoded("mp3")
    waveform, damage = read(content + ID3V2 + content)
    assert not damage
    assert len(waveform) > 12 * RATE_HZ - 1200


def test_blocks_do_not_disturb_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """soundfile seeks after every read, and MP3 frames need those before them."""
    content = encoded("mp3")
    whole, _ = read(content)
    monkeypatch.setattr(sndfile, "BLOCK_SAMPLES", 5000)
    assert np.array_equal(read(content)[0], whole)


def test_layer_2_and_free_format_raise_no_alarm() -> None:
    layer_2 = b"\xff\xfd\x44\xc0"
    frame = audio_mp3._parsed(layer_2)
    assert frame is not None and frame.kind == (3, 2, 48_000) and frame.size == 192
    found = audio_mp3.scan(Content(io.BytesIO((layer_2 + bytes(frame.size - 4)) * 5)))
    assert found is not None and found.problem is None and found.count == 5
    assert audio_mp3.scan(Content(io.BytesIO(b"\xff\xfb\x00\xc4" + bytes(400)))) is None


@pytest.mark.parametrize("share", [1.0, 0.999, 0.9])
def test_channels_of_opposite_phase_do_not_cancel_out(
    share: float, caplog: pytest.LogCaptureFixture
) -> None:
    samples = speech()
    file = io.BytesIO()
    soundfile.write(file, np.stack([samples, -share * samples], 1), RATE_HZ, "FLOAT", format="WAV")
    with caplog.at_level(logging.WARNING):
        waveform, damage = read(file.getvalue())
    assert np.array_equal(waveform, samples) and not damage
    assert "cancel each other out" in caplog.text


@pytest.mark.parametrize("channels", [2, 6, 8])
def test_other_channels_are_averaged_as_ever(
    channels: int, caplog: pytest.LogCaptureFixture
) -> None:
    samples = speech()
    alone = np.zeros((len(samples), channels), np.float32)
    alone[:, 1] = samples
    random = np.random.default_rng(0).normal(0, 0.1, alone.shape).astype(np.float32)
    for parts in (np.repeat(samples[:, None], channels, 1), alone, random):
        file = io.BytesIO()
        soundfile.write(file, parts, RATE_HZ, "FLOAT", format="WAV")
        assert np.array_equal(read(file.getvalue())[0], parts.mean(axis=1))
    assert not caplog.text


# --- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "subtype"),
    [("int16", "PCM_16"), ("int32", "PCM_32"), ("uint8", "PCM_U8"), ("float64", "DOUBLE")],
)
def test_arrays_equal_files_of_the_same_samples(dtype: str, subtype: str) -> None:
    samples = speech(1.0)
    scales = {"int16": 2**15, "int32": 2**31, "uint8": 2**7}
    scaled = samples * scales.get(dtype, 1) + (128 if dtype == "uint8" else 0)
    array = scaled.astype(dtype)
    file = io.BytesIO()
    written = samples if dtype == "uint8" else array
    soundfile.write(file, written, 44_100, subtype, format="WAV")
    if dtype == "uint8":
        content = file.getvalue()
        file = io.BytesIO(content[:44] + array.tobytes())
    expected, _ = read_audio(file, RATE_HZ)
    found, rate_hz = as_waveform(array, 44_100, RATE_HZ)
    assert rate_hz == RATE_HZ and found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_lists_tensors_and_half_floats_are_arrays() -> None:
    import torch

    samples = speech(0.1)
    for given in (samples.tolist(), torch.from_numpy(samples), samples.astype(np.float16)):
        found, _ = as_waveform(given, RATE_HZ)
        assert np.abs(found - samples).max() < 1e-3


BAD_ARRAYS: dict[str, tuple[Any, Any, str]] = {
    "stereo": (np.zeros((9, 2)), RATE_HZ, r"\(samples,\), got \(9, 2\)"),
    "row": (np.zeros((1, 9)), RATE_HZ, r"got \(1, 9\)"),
    "scalar": (np.float32(1), RATE_HZ, r"got \(\)"),
    "ragged": ([[1.0], [1.0, 2.0]], RATE_HZ, "an array of samples"),
    "empty": ([], RATE_HZ, "expected samples, got none"),
    "nan": ([0.0, np.nan], RATE_HZ, "NaN or infinity"),
    "infinity": ([0.0, -np.inf], RATE_HZ, "NaN or infinity"),
    "too-large": ([0.0, 1e300], RATE_HZ, "NaN or infinity"),
    "unscaled": (np.array([0.0, -32768.0]), RATE_HZ, r"about \[-1, 1\], got 32768. Scale"),
    "int64": (np.array([1, 2]), RATE_HZ, "got int64"),
    "words": (["a", "b"], RATE_HZ, "got <U1|got str"),
    "object": (np.array([None, 1.0]), RATE_HZ, "got object"),
    "rate-0": ([0.0], 0, "a sample rate of .* got 0"),
    "rate-negative": ([0.0], -16_000, "got -16000"),
    "rate-nan": ([0.0], float("nan"), "got nan"),
    "rate-half": ([0.0], 16_000.5, "got 16000.5"),
    "no-rate": ([0.0], None, "got None"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_no_waveform_are_refused(case: str) -> None:
    samples, rate_hz, message = BAD_ARRAYS[case]
    with pytest.raises(AudioError, match=message):
        as_waveform(samples, rate_hz)


@pytest.mark.parametrize("amplitude", [1e30, 3e38, 32768.0])
def test_float_files_far_beyond_1_are_refused(amplitude: float) -> None:
    file = io.BytesIO()
    soundfile.write(file, speech() * np.float32(amplitude), RATE_HZ, "FLOAT", format="WAV")
    with pytest.raises(AudioError, match=r"expected samples in about \[-1, 1\], got"):
        read(file.getvalue())


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"text\n" * 90, b"fLaC" + bytes(60), b"RIFF"])
def test_messages_end_once(content: bytes) -> None:
    with pytest.raises(AudioError) as caught:
        read(content)
    assert ".." not in str(caught.value) and ". ." not in str(caught.value)
