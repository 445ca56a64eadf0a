"""62 containers and codecs, made by ffmpeg and SoX: decoded, or refused with a line that says why.

`pytest tests/test_media_formats.py -m soak -s` prints the table. FAIRSEQ_OPENVINO_SPEECH names a TSV of
real clips, of which the first is taken; without it a shipped clip is.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import MINI, Shared
from media_files import encoded

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech.audio import damage_collected, read_audio

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        not (shutil.which("ffmpeg") and shutil.which("sox")), reason="needs ffmpeg and SoX"
    ),
]
RATE_HZ = 16_000
SECONDS = 8.0
EXACT = 2.0
"""In place of a correlation: the same samples."""
VIDEO = "-f lavfi -i testsrc=s=64x64:r=5 -shortest"


@dataclass(frozen=True)
class Made:
    """A file and how it is made."""

    name: str
    flags: str = ""
    least: float = 0.98
    """Correlation with the original, 0 to 1, or EXACT."""
    tool: str = "ffmpeg"
    refused: str = ""
    """What the error says, of a file that is not decoded."""


TABLE = [
    # read by libsndfile
    Made("u8.wav", "-c:a pcm_u8"),
    Made("s16.wav", "-c:a pcm_s16le", EXACT),
    Made("s24.wav", "-c:a pcm_s24le", EXACT),
    Made("s32.wav", "-c:a pcm_s32le", EXACT),
    Made("f32.wav", "-c:a pcm_f32le", EXACT),
    Made("f64.wav", "-c:a pcm_f64le", EXACT),
    Made("alaw.wav", "-c:a pcm_alaw"),
    Made("mulaw.wav", "-c:a pcm_mulaw"),
    Made("adpcm-ms.wav", "-c:a adpcm_ms"),
    Made("adpcm-ima.wav", "-c:a adpcm_ima_wav"),
    Made("gsm.wav", "-ar 8000 -c:a libgsm_ms", 0.85),
    Made("mp3-in.wav", "-c:a libmp3lame -b:a 64k"),
    Made("rf64.wav", "-rf64 always", EXACT),
    Made("8-channels.wav", "-ac 8"),
    Made("s16.w64", "", EXACT),
    Made("s16.aiff", "", EXACT),
    Made("f32.aifc", "-c:a pcm_f32be -f aiff", EXACT),
    Made("mulaw.aifc", "-e mu-law", tool="sox"),
    Made("s16.au", "", EXACT),
    Made("mulaw.au", "-c:a pcm_mulaw"),
    Made("s16.caf", "-c:a pcm_s16be", EXACT),
    Made("alac.caf", "-c:a alac", EXACT),
    Made("s16.flac", "", EXACT),
    Made("s24.flac", "-sample_fmt s32", EXACT),
    Made("flac.oga", "-c:a flac", EXACT),
    Made("vorbis.ogg", "-c:a libvorbis"),
    Made("opus.opus", "-c:a libopus -b:a 32k"),
    Made("cbr.mp3", "-b:a 64k"),
    Made("vbr.mp3", "-q:a 4"),
    Made("joint-stereo.mp3", "-ac 2 -ar 44100 -b:a 128k"),
    Made("mpeg2.mp3", "-ar 22050 -b:a 48k"),
    Made("mpeg2.5.mp3", "-ar 8000 -b:a 24k", 0.85),
    Made("layer2.mp2", "-ar 16000 -c:a mp2 -b:a 64k"),
    # read by FFmpeg
    Made("mp3.caf", "-c:a libmp3lame -b:a 64k"),
    Made("g726.wav", "-ar 8000 -c:a g726", 0.85),
    Made("speex.ogg", "-c:a libspeex", 0.7),
    Made("aac.m4a", "-c:a aac"),
    Made("alac.m4a", "-c:a alac", EXACT),
    Made("stereo.m4a", "-ac 2 -ar 44100 -c:a aac"),
    Made("5.1.m4a", "-ac 6 -c:a aac -b:a 256k"),
    Made("7.1.m4a", "-ac 8 -c:a aac -b:a 384k"),
    Made("faststart.m4b", "-c:a aac -movflags faststart -f ipod"),
    Made("fragmented.mp4", "-c:a aac -movflags frag_keyframe+empty_moov"),
    Made("video.mp4", f"{VIDEO} -c:v mpeg4 -c:a aac"),
    Made("video.mov", f"{VIDEO} -c:v mjpeg -pix_fmt yuvj420p -c:a pcm_s16le", EXACT),
    Made("opus.mp4", "-c:a libopus -b:a 32k"),
    Made("opus.webm", "-c:a libopus -b:a 32k"),
    Made("live-opus.webm", "-c:a libopus -b:a 32k -live 1"),
    Made("vorbis.webm", "-c:a libvorbis"),
    Made("video.webm", f"{VIDEO} -c:v libvpx -c:a libopus"),
    Made("flac.mkv", "-c:a flac", EXACT),
    Made("pcm.mkv", "-c:a pcm_s16le", EXACT),
    Made("ac3.mkv", "-ar 48000 -c:a ac3 -b:a 192k"),
    Made("mp3.mka", "-c:a libmp3lame -b:a 64k"),
    Made("dts.mka", "-ar 48000 -c:a dca -strict -2 -b:a 768k"),
    Made("v2.wma", "-c:a wmav2 -b:a 64k"),
    Made("v1.wma", "-c:a wmav1 -b:a 64k", 0.9),
    Made("video.asf", f"{VIDEO} -c:v msmpeg4 -c:a wmav2 -b:a 64k"),
    Made("adts.aac", "-c:a aac"),
    Made("aac.3gp", "-c:a aac"),
    Made("raw.ac3", "-ar 48000 -b:a 192k"),
    Made("raw.eac3", "-ar 48000 -b:a 192k"),
    Made("aac.ts", f"{VIDEO} -c:v mpeg2video -r 25 -c:a aac"),
    Made("mp2.mpg", f"{VIDEO} -c:v mpeg1video -r 25 -ar 44100 -c:a mp2 -f mpeg", 0.97),
    Made("mp3.avi", f"{VIDEO} -c:v mpeg4 -c:a libmp3lame -b:a 64k"),
    Made("pcm.avi", f"{VIDEO} -c:v mpeg4 -c:a pcm_s16le", EXACT),
    Made("aac.flv", f"{VIDEO} -c:v flv -c:a aac"),
    Made("s16.tta", "", EXACT),
    Made("s16.wv", "-c:a wavpack", EXACT),
    Made("narrow.amr", "libopencore_amrnb", 0.6, "PyAV"),
    # refused
    Made("16-channels.wav", "-ac 16", refused="expected 1 to 8 channels, got 16"),
    Made("silent-video.mp4", f"{VIDEO} -c:v mpeg4 -an -t 1", refused="got one with video only"),
    Made("s16.voc", "", refused="VOC"),
    Made("picture.png", "-f lavfi -i testsrc=s=64x64:r=1 -frames:v 1 -an", refused="a whole audio"),
    Made("captions.srt", "captions", tool="text", refused="a whole audio"),
]
PARITY = ("aac.m4a", "faststart.m4b", "video.mp4", "vorbis.webm", "ac3.mkv", "dts.mka", "mp3.mka",
          "v2.wma", "adts.aac", "aac.3gp", "raw.eac3", "aac.ts", "mp2.mpg", "mp3.avi", "aac.flv")  # fmt: skip
"""Of one channel, read by FFmpeg."""


@pytest.fixture(scope="module")
def original(shared: Shared) -> Path:
    """16-bit mono at 16 kHz."""

    def make(directory: Path) -> None:
        source = min((MINI / "clips").glob("*.mp3"))
        if table := os.environ.get("FAIRSEQ_OPENVINO_SPEECH"):
            with open(table, encoding="utf-8", newline="") as file:
                row = next(csv.DictReader(file, delimiter="\t"))
            source = Path(table).parent / row["path"]
        samples, _ = read_audio(source, RATE_HZ)
        soundfile.write(directory / "original.wav", samples[: int(SECONDS * RATE_HZ)], RATE_HZ)

    return shared("media-original", make) / "original.wav"


def make(made: Made, original: Path, directory: Path) -> Path:
    path = directory / made.name
    if made.tool == "text":
        path.write_text("1\n00:00:00,000 --> 00:00:01,000\ncaptions\n")
    elif made.tool == "PyAV":
        samples, _ = read_audio(original, 8000)
        path.write_bytes(encoded(samples, path.suffix[1:], made.flags, 8000))
    elif made.tool == "sox":
        subprocess.run(["sox", original, *made.flags.split(), path], check=True)
    else:
        words = ["ffmpeg", "-v", "error", "-y", "-i", original, *made.flags.split(), path]
        subprocess.run(words, check=True)
    return path


def likeness(samples: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Best correlation within 100 ms, and its delay in ms."""
    length = len(reference)
    found = np.zeros(length, np.float32)
    found[: min(length, len(samples))] = samples[:length]
    size = 2 * length
    spectrum = np.fft.rfft(found, size) * np.conj(np.fft.rfft(reference, size))
    near = RATE_HZ // 10
    values = np.roll(np.fft.irfft(spectrum, size), near)[: 2 * near]
    best = int(values.argmax())
    norm = float(np.linalg.norm(found) * np.linalg.norm(reference))
    return float(values[best]) / norm, (best - near) / RATE_HZ * 1000


@pytest.mark.parametrize("made", TABLE, ids=lambda made: made.name)
def test_every_format_is_decoded_or_refused(made: Made, original: Path, tmp_path: Path) -> None:
    path = make(made, original, tmp_path)
    reference, _ = read_audio(original)
    if made.refused:
        with pytest.raises(AudioError, match=made.refused) as caught:
            read_audio(path, RATE_HZ)
        print(f"| {made.name} | refused: {str(caught.value).partition(': ')[2]} |")
        return
    with damage_collected() as damage:
        samples, _ = read_audio(path, RATE_HZ)
    same, delay_ms = likeness(samples, reference)
    is_exact = np.array_equal(samples, reference)
    shown = "the same samples" if is_exact else f"correlation {same:.4f}, {delay_ms:+.1f} ms"
    print(f"| {made.name} | {shown}, {len(samples) / RATE_HZ:.2f} s |")
    assert not damage
    assert is_exact if made.least == EXACT else same >= made.least


@pytest.mark.parametrize(
    "made", [each for each in TABLE if each.name in PARITY], ids=lambda made: made.name
)
def test_samples_are_those_of_ffmpeg(made: Made, original: Path, tmp_path: Path) -> None:
    """Where it begins and ends, too: what an encoder put in front is skipped."""
    path = make(made, original, tmp_path)
    words = ["ffmpeg", "-v", "error", "-i", path, "-f", "f32le", "-c:a", "pcm_f32le", "-"]
    done = subprocess.run(words, capture_output=True, check=True)
    expected = np.frombuffer(done.stdout, np.float32)
    found, _ = read_audio(path)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
