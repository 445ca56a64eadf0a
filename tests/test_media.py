"""FFmpeg's half of decoding: the same samples as libsndfile's, and the same honesty about damage."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import MINI
from growth import Growth
from media_files import encoded

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech import audio
from fairseq_openvino.speech.audio import damage_collected, read_audio
from fairseq_openvino.speech.isolation import Pool

RATE_HZ = 16_000


def speech(channels: int = 1) -> np.ndarray:
    """Two seconds of a shipped clip, shape (samples, channels), each channel somewhat softer."""
    samples, _ = read_audio(min((MINI / "clips").glob("*.mp3")), RATE_HZ)
    samples = np.tile(samples, 2)[: 2 * RATE_HZ]
    return np.stack([samples * (1 - i / 10) for i in range(channels)], axis=1)


def read(content: bytes) -> tuple[np.ndarray, str]:
    """The waveform, and what is said of its damage."""
    with damage_collected() as damage:
        waveform, _ = read_audio(content)
    return waveform, "; ".join(damage)


SUBTYPES = {"WAV": ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"),
            "FLAC": ("PCM_S8", "PCM_16", "PCM_24"), "AIFF": ("PCM_S8", "PCM_16", "FLOAT"),
            "W64": ("PCM_24",), "CAF": ("PCM_16",)}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "subtype"), [(f, s) for f, all_ in SUBTYPES.items() for s in all_]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_both_decoders_give_the_same_samples(
    form: str, subtype: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    soundfile.write(file, speech(channels)[: RATE_HZ // 2], RATE_HZ, subtype, format=form)
    expected = audio.decode(file.getvalue(), 11_025, "split").waveforms
    mixed, _ = read_audio(file.getvalue())

    def refuse(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(audio, "SoundFileDecoder", refuse)
    np.testing.assert_array_equal(
        audio.decode(file.getvalue(), 11_025, "split").waveforms, expected
    )
    np.testing.assert_array_equal(read(file.getvalue())[0], mixed)


FORMATS = {
    ("mp4", "aac"): 0.98, ("mpegts", "aac"): 0.98, ("webm", "libopus"): 0.98,
    ("amr", "libopencore_amrnb"): 0.7, ("matroska", "flac"): 1.0,
    ("ipod", "alac"): 1.0, ("avi", "pcm_s16le"): 1.0,
}  # fmt: skip


@pytest.mark.parametrize(("container", "codec"), FORMATS)
def test_formats_that_libsndfile_refuses(container: str, codec: str) -> None:
    rate_hz = {"amr": 8000, "webm": 48_000}.get(container, RATE_HZ)
    samples = np.round(speech()[:, 0] * 32768) / 32768
    source = io.BytesIO()
    soundfile.write(source, samples, RATE_HZ, "PCM_16", format="WAV")
    given, _ = read_audio(source, rate_hz)
    content = encoded(given, container, codec, rate_hz)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(io.BytesIO(content))
    found, damage = read(content)
    assert not damage
    if FORMATS[container, codec] == 1.0:
        np.testing.assert_array_equal(found, given)
    else:
        length = len(given)
        spectrum = np.fft.rfft(found, 2 * length) * np.conj(np.fft.rfft(given, 2 * length))
        best = np.fft.irfft(spectrum, 2 * length).max()
        norm = np.linalg.norm(found) * np.linalg.norm(given)
        assert best / norm > FORMATS[container, codec]


@pytest.mark.parametrize("channels", [2, 6, 8])
def test_channels_are_mixed_by_us(channels: int) -> None:
    """Without FFmpeg's weights; a frame of 8 channels has a plane too many in PyAV."""
    samples = speech(channels)
    found, _ = read(encoded(samples, "matroska", "pcm_f32le"))
    np.testing.assert_array_equal(found, samples.mean(axis=1))
    opposite = np.concatenate([samples[:, :1], -samples[:, :1]], axis=1)
    found, _ = read(encoded(opposite, "matroska", "pcm_f32le"))
    np.testing.assert_array_equal(found, samples[:, 0])


@pytest.mark.parametrize(("codec", "is_loss"), [("flac", True), ("libopus", False)])
def test_a_pause_between_packets_is_silence(codec: str, is_loss: bool) -> None:
    """Times stay those of the recording; with a codec that never pauses, something was lost."""
    rate_hz = 48_000 if codec == "libopus" else RATE_HZ
    samples = np.tile(speech()[:, 0], 2)
    content = encoded(samples, "matroska", codec, rate_hz, pause=(RATE_HZ, 0.6))
    found, damage = read(content)
    assert len(found) / rate_hz == pytest.approx(len(samples) / rate_hz + 0.6, abs=0.03)
    begin = RATE_HZ + rate_hz // 20
    assert not found[begin : begin + rate_hz // 2].any()
    assert ("0.60 s have no packets" in damage) == is_loss


def test_a_stream_may_change_its_channels_but_not_its_rate() -> None:
    first, second = (encoded(speech(channels), "adts", "aac") for channels in (2, 1))
    parts = [read(content)[0] for content in (first, second)]
    for content, expected in ((first + second, parts), (second + first, parts[::-1])):
        found, damage = read(content)
        assert not damage and len(found) == sum(map(len, expected))
        near = slice(len(expected[0]) + 2048, None)  # the first frames overlap with those before
        np.testing.assert_allclose(found[near], expected[1][2048:], atol=1e-3)
    found, damage = read(second + encoded(speech(), "adts", "aac", 22_050))
    assert len(found) == len(parts[1]) and "it changes from 16000 to 22050 Hz" in damage


@pytest.mark.parametrize("container", ["matroska", "mpegts", "mp4"])
def test_a_clock_that_does_not_begin_at_0_is_no_damage(container: str) -> None:
    found, damage = read(encoded(speech(), container, "aac", begin=5.0))
    assert not damage and len(found) == pytest.approx(2 * RATE_HZ, abs=2100)


def test_a_jump_of_the_clock_is_no_silence() -> None:
    samples = speech()[:, 0]
    found, _ = read(encoded(samples, "matroska", "flac", pause=(RATE_HZ, 1e6)))
    assert len(found) == len(samples)


@pytest.mark.parametrize("container", ["matroska", "mp4", "adts"])
def test_what_is_cut_or_damaged_is_told(container: str) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if container == "mp4" else {}
    content = encoded(speech()[:, 0], container, "aac", **options)
    whole, damage = read(content)
    assert not damage
    cut, damage = read(content[: len(content) * 6 // 10])
    assert damage and 0.4 * len(whole) < len(cut) < 0.7 * len(whole)
    if container != "adts":
        assert float(damage.split()[0]) == pytest.approx((len(whole) - len(cut)) / RATE_HZ, abs=0.1)
    middle = len(content) // 2
    _, damage = read(content[:middle] + bytes(600) + content[middle + 600 :])
    assert damage


@pytest.mark.parametrize(("container", "codec"), [("matroska", "pcm_s16le"), ("avi", "pcm_s16le")])
def test_a_missing_end_is_told_by_the_size_of_the_file(container: str, codec: str) -> None:
    """Where nothing declares the duration, or too little is missing for it to tell."""
    content = encoded(speech(), container, codec)
    assert not read(content)[1]
    found, damage = read(content[:-5000])
    assert "bytes are declared" in damage and len(found) < 2 * RATE_HZ
    open_end = encoded(speech(), "webm", "libopus", 48_000, live="1")
    assert not read(open_end)[1]


def test_what_holds_no_audio_is_refused_in_one_line(tmp_path: Path) -> None:
    secret = tmp_path / "other.wav"
    soundfile.write(secret, speech()[:, 0], RATE_HZ)
    video = io.BytesIO(encoded(speech()[:, 0], "mp4", "aac", video=True))
    assert len(read(video.getvalue())[0]) == pytest.approx(2 * RATE_HZ, abs=1100)
    for content, message in {
        b"ffconcat version 1.0\nfile " + os.fsencode(secret): "got Format not recognised",
        b"#EXTM3U\n#EXTINF:10,\nfile://" + os.fsencode(secret) + b"\n": "got Format not recognised",
        encoded(speech()[:, 0], "mp4", "aac")[:-400]: r"got MP4 .*whole audio file\.$",
    }.items():
        with pytest.raises(AudioError, match=message):
            read_audio(content)


def test_without_ffmpeg_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for content, got in {
        b"\0\0\0\x20ftypM4A ": "MP4 .m4a, mp4, mov.", b"\x1a\x45\xdf\xa3\1": "Matroska",
        b"0&\xb2u\x8e": "ASF", b"text": "Format not recognised",
    }.items():  # fmt: skip
        advice = r'pip install "fairseq-openvino\[media\]".*: ffmpeg -i FILE FILE.flac\.$'
        with pytest.raises(AudioError, match=f"got {got}.*{advice}"):
            read_audio(content + bytes(500))


@pytest.fixture(params=["in this process", "isolated"])
def decode(request: pytest.FixtureRequest) -> Iterator[Callable[[Path | bytes], object]]:
    if request.param == "isolated":
        pool = Pool()
        yield pool.decode
        pool.close()
        return
    gc.disable()  # nothing may wait for it
    yield audio.decode
    gc.enable()


@pytest.mark.soak
def test_two_thousand_files_leave_nothing_behind(
    decode: Callable[[Path | bytes], object], tmp_path: Path
) -> None:
    """R8: memory, threads, descriptors and processes, those of children too."""
    path = tmp_path / "a.m4a"
    path.write_bytes(encoded(speech(2), "mp4", "aac"))
    cut, kept = path.read_bytes()[:-300], list[object]()

    def work(number: int) -> None:
        if number % 2:
            decode(path)
        else:
            with pytest.raises(AudioError):
                decode(cut)

    def leak(number: int) -> None:
        work(number)
        kept.append(bytearray(b"x" * 100_000))

    print(Growth(400, 400, with_children=True).run(work, 4000).check_flat())
    with pytest.raises(AssertionError, match="more memory"):
        Growth(400, 400, with_children=True).run(leak, 2000).check_flat()
