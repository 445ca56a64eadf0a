"""Paths of a corpus to filter banks: audio files, stored features, and parts of audio and ZIP files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.features import FRAME_LENGTH_MS, FRAME_SHIFT_MS, fbank
from fairseq_openvino.speech.slices import Slice

FEATURES = ".npy"
NPY_MAGIC = b"\x93NUMPY"
SLICE_SEPARATOR = ":"
FRAME_RANK = 2


@dataclass(frozen=True)
class Frames:
    """Filter banks before any transform."""

    values: np.ndarray
    """Shape (T, F), float32."""
    seconds: float
    """Duration of the audio; of stored features, T times 10 ms."""


def waveform(path: str, sample_rate_hz: int | None) -> tuple[np.ndarray, int] | None:
    """Decoded audio (samples,) and its rate in Hz; None if the path holds features.

    Raises:
        AudioError: the audio cannot be used.
    """
    content = _content(path)
    if content is None:
        return read_audio(path, sample_rate_hz)
    if content.startswith(NPY_MAGIC):
        return None
    try:
        return read_audio(io.BytesIO(content), sample_rate_hz)
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from error


def frames(path: str, sample_rate_hz: int | None, bins: int) -> Frames:
    """Filter banks of audio, computed, or of features, as they are stored.

    Args:
        path: as in `corpus.Utterance`.
        sample_rate_hz: audio of another rate is resampled; None: never.
        bins: F.

    Raises:
        AudioError: the file cannot be used.
    """
    audio = waveform(path, sample_rate_hz)
    if audio is not None:
        samples, rate_hz = audio
        found = Frames(fbank(samples, rate_hz, bins), len(samples) / rate_hz)
    else:
        stored = _array(path)
        found = Frames(stored, len(stored) * FRAME_SHIFT_MS / 1000 if stored.ndim else 0.0)
    shape = found.values.shape
    if len(shape) != FRAME_RANK or shape[0] == 0 or shape[1] != bins:
        raise AudioError(
            f"Reading speech failed in {path!r}: expected frames of {bins} filter banks, "
            f"got the shape {shape}. Drop the utterance or compute its features again."
        )
    return found


def frame_count(path: str) -> int | None:
    """T of a path as its header states it, without decoding; None if it does not."""
    try:
        part = Slice.parse(path)
        content = _content(path) if part is None else None
        if content is not None and content.startswith(NPY_MAGIC):
            return len(_array(path))
        source = io.BytesIO(content) if content is not None else path
        about = soundfile.info(source if part is None else part.file)
    except (soundfile.LibsndfileError, OSError, RuntimeError, AudioError, TypeError):
        return None
    samples = about.frames if part is None else part.samples
    return max(0, int((1000 * samples / about.samplerate - FRAME_LENGTH_MS) / FRAME_SHIFT_MS) + 1)


def _array(path: str) -> np.ndarray:
    """Stored features, float32, of whatever shape."""
    content = _content(path)
    try:
        array = np.load(io.BytesIO(content or b""), allow_pickle=False)
        return np.asarray(array, np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise AudioError(
            f"Reading speech failed in {path!r}: expected an array of features, got {error}. "
            "Compute the features again."
        ) from error


def _content(path: str) -> bytes | None:
    """Bytes of a slice or of a `.npy` file; None for an audio file, which is decoded in place."""
    part = Slice.parse(path)
    if part is not None:
        return part.wav()
    try:
        if path.endswith(FEATURES):
            return Path(path).read_bytes()
        parts = path.rsplit(SLICE_SEPARATOR, 2)
        if len(parts) < 3 or not (parts[1].isdigit() and parts[2].isdigit()):  # noqa: PLR2004
            return None
        with open(parts[0], "rb") as file:
            file.seek(int(parts[1]))
            return file.read(int(parts[2]))
    except OSError as error:
        raise AudioError(
            f"Reading speech failed in {path!r}: expected a readable file, got {error}. "
            "Check the file."
        ) from error
