"""Audio files to mono float32 waveforms, with bounds on what a header may claim.

Decoding is libsndfile's (WAV, FLAC, OGG, MP3), resampling is soxr's (the resampler behind SoX's
`rate` effect, which Fairseq uses in `data/audio/audio_utils.py:convert_waveform`).
"""

from __future__ import annotations

from os import PathLike
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from fairseq_openvino.errors import AudioError

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")
AUDIO_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "MPEG")
MIN_SAMPLE_RATE_HZ = 1_000
MAX_SAMPLE_RATE_HZ = 384_000
MAX_CHANNELS = 8
MAX_AUDIO_SECONDS = 3_600.0
BLOCK_SAMPLES = 1 << 18


def read_audio(
    source: str | PathLike[str] | BinaryIO, sample_rate_hz: int | None = None
) -> tuple[np.ndarray, int]:
    """Decode one audio file to mono.

    Args:
        source: a path or an open binary file.
        sample_rate_hz: resample to this rate; `None` keeps the file's own.

    Returns:
        The waveform, shape (samples,), float32 in [-1, 1], and its rate in Hz. Channels are averaged.

    Raises:
        AudioError: the file is missing, not decodable, empty, outside the limits above or not finite.
    """
    name = str(source if isinstance(source, (str, PathLike)) else getattr(source, "name", source))
    try:
        with soundfile.SoundFile(source) as file:
            _check_header(name, file)
            waveform = _read_blocks(name, file)
            rate_hz = int(file.samplerate)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(
            f"Decoding audio failed in {name!r}: expected one of {', '.join(AUDIO_FORMATS)}, "
            f"got {error}. Check that the file exists and is a complete audio file."
        ) from error
    if not np.isfinite(waveform).all():
        raise AudioError(
            f"Decoding audio failed in {name!r}: expected finite samples, got NaN or infinity. "
            "Re-encode the file."
        )
    if sample_rate_hz is not None and sample_rate_hz != rate_hz:
        waveform = soxr.resample(waveform, rate_hz, sample_rate_hz).astype(np.float32)
        rate_hz = sample_rate_hz
    return waveform, rate_hz


def _check_header(name: str, file: soundfile.SoundFile) -> None:
    if file.format not in AUDIO_FORMATS:
        raise AudioError(
            f"Decoding audio failed in {name!r}: expected one of {', '.join(AUDIO_FORMATS)}, "
            f"got {file.format}. Convert the file, for instance to FLAC."
        )
    if not MIN_SAMPLE_RATE_HZ <= file.samplerate <= MAX_SAMPLE_RATE_HZ:
        raise AudioError(
            f"Decoding audio failed in {name!r}: expected a sample rate of {MIN_SAMPLE_RATE_HZ} to "
            f"{MAX_SAMPLE_RATE_HZ} Hz, got {file.samplerate}. Re-encode the file."
        )
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise AudioError(
            f"Decoding audio failed in {name!r}: expected 1 to {MAX_CHANNELS} channels, "
            f"got {file.channels}. Mix the file down."
        )


def _read_blocks(name: str, file: soundfile.SoundFile) -> np.ndarray:
    """Read until the data ends, whatever length the header declares; shape (samples,) float32."""
    limit_samples = int(MAX_AUDIO_SECONDS * file.samplerate)
    blocks: list[np.ndarray] = []
    samples = 0
    while True:
        block = file.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)  # (samples, channels)
        if not len(block):
            break
        blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
        samples += len(block)
        if samples > limit_samples:
            raise AudioError(
                f"Decoding audio failed in {name!r}: expected at most {MAX_AUDIO_SECONDS:.0f} s, "
                "got more. Split the file."
            )
    if not samples:
        raise AudioError(
            f"Decoding audio failed in {name!r}: expected samples, got an empty file. Drop the file."
        )
    return np.ascontiguousarray(np.concatenate(blocks), dtype=np.float32)
