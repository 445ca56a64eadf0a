"""Paths of a corpus to filter banks: audio files, stored features, and parts of audio and ZIP files."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import soundfile

from fairseq_openvino.atomic import open_regular, read_whole
from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech import audio, isolation
from fairseq_openvino.speech.audio import Audio
from fairseq_openvino.speech.features import FRAME_LENGTH_MS, FRAME_SHIFT_MS, array_of, fbank
from fairseq_openvino.speech.options import AudioOptions
from fairseq_openvino.speech.slices import NUMBER, Slice
from fairseq_openvino.speech.sources import Source, source_name
from fairseq_openvino.speech.waveform import unusable

FEATURES = ".npy"
NPY_MAGIC = b"\x93NUMPY"
SLICE_SEPARATOR = ":"
FRAME_RANK = 2
MAX_FEATURES_BYTES = 1 << 30


@dataclass(frozen=True)
class Frames:
    """Filter banks before any transform."""

    values: np.ndarray
    """Shape (T, F), float32."""
    seconds: float
    """Duration of the audio; of stored features, T times 10 ms."""


def read(
    source: Source, sample_rate_hz: int | None, options: AudioOptions | None = None
) -> Audio | None:
    """Decoded audio, what is wrong with it reported; None if a path holds features.

    Raises:
        AudioError: the audio cannot be used.
    """
    options = options or AudioOptions()
    name, content = source_name(source), content_of(source, options.isolate_audio)
    if content is not None and content.startswith(NPY_MAGIC):
        return None
    decode = isolation.pool().decode if options.isolate_audio else audio.decode
    found = decode(source if content is None else content, sample_rate_hz, options.channel, name)
    check_damage(found, options)
    return found.report()


def holds_features(source: Source) -> bool:
    """Whether it is stored features, not audio."""
    content = None if _part_of(source) else content_of(source)
    return content is not None and content.startswith(NPY_MAGIC)


def check_damage(audio: Audio, options: AudioOptions) -> None:
    """Raise AudioError if it is damaged and must not be."""
    if options.strict_audio and audio.damage:
        raise unusable(audio.name, "undamaged audio", audio.damage, "Repair it, or allow damage")


def waveform(path: str, sample_rate_hz: int | None) -> tuple[np.ndarray, int] | None:
    """Decoded audio (samples,) and its rate in Hz; None if the path holds features.

    Raises:
        AudioError: the audio cannot be used.
    """
    found = read(path, sample_rate_hz)
    return None if found is None else (found.waveforms[0], found.rate_hz)


def frames(path: str, sample_rate_hz: int | None, bins: int) -> Frames:
    """Filter banks of audio, computed, or of features, as they are stored.

    Args:
        path: as in `corpus.Utterance`.
        sample_rate_hz: audio of another rate is resampled; None: never.
        bins: F; 1 of a model that reads samples, which has no features.

    Raises:
        AudioError: the file cannot be used.
    """
    decoded = waveform(path, sample_rate_hz)
    if decoded is not None:
        samples, rate_hz = decoded
        found = Frames(fbank(samples, rate_hz, bins), len(samples) / rate_hz)
    else:
        stored = _array(path)
        found = Frames(stored, len(stored) * FRAME_SHIFT_MS / 1000 if stored.ndim else 0.0)
    shape = found.values.shape
    wanted = f"frames of {bins} filter banks" if bins > 1 else "audio, as the model reads samples"
    if bins == 1 or len(shape) != FRAME_RANK or shape[0] == 0 or shape[1] != bins:
        raise AudioError(
            f"Reading speech failed in {path!r}: expected {wanted}, "
            f"got the shape {shape}. Drop the utterance or compute its features again."
        )
    return found


def frame_count(path: str, waveform_hz: int | None = None) -> int | None:
    """T of a path as its header states it, without decoding; None if it does not.

    Args:
        path: as in `corpus.Utterance`.
        waveform_hz: of a model that reads samples: their rate; None: T counts filter banks.
    """
    try:
        part = _part_of(path)
        content = content_of(path) if part is None else None
        if content is not None and content.startswith(NPY_MAGIC):
            return len(_array(path))
        if content is not None:
            about = soundfile.info(io.BytesIO(content))
        else:
            with open_regular(path if part is None else part.file) as file:
                about = soundfile.SoundFile(file.fileno(), closefd=False)
    except (soundfile.LibsndfileError, OSError, RuntimeError, AudioError, TypeError):
        return None
    samples = about.frames if part is None else part.samples
    if waveform_hz is not None:
        return int(samples * waveform_hz / about.samplerate)
    return max(0, int((1000 * samples / about.samplerate - FRAME_LENGTH_MS) / FRAME_SHIFT_MS) + 1)


def _array(path: str) -> np.ndarray:
    """Stored features, float32, of whatever shape."""
    content = content_of(path)
    try:
        return array_of(content or b"").astype(np.float32)
    except Exception as error:  # NumPy's parser of headers raises many kinds
        raise AudioError(
            f"Reading speech failed in {path!r}: expected an array of features, got {error}. "
            "Compute the features again."
        ) from error


def _part_of(source: Source) -> Slice | None:
    """The part of an audio file that it names; a file may be called like one."""
    if not isinstance(source, (str, PathLike)) or os.path.exists(source):
        return None
    return Slice.parse(source_name(source))


def content_of(source: Source, isolated: bool = False) -> bytes | None:
    """Bytes of a slice or of a `.npy` file; None for an audio file, which is decoded in place.

    Args:
        source: as in `corpus.Utterance`.
        isolated: a slice of audio is decoded in a child.

    Raises:
        AudioError: they cannot be read.
    """
    part = _part_of(source)
    if part is not None:
        return isolation.pool().part_wav(part) if isolated else part.wav()
    if not isinstance(source, (str, PathLike)):
        return None
    path = source_name(source)
    try:
        if path.endswith(FEATURES):
            return read_whole(Path(path), MAX_FEATURES_BYTES)
        if os.path.exists(path):
            return None
        parts = path.rsplit(SLICE_SEPARATOR, 2)
        if len(parts) < 3 or not all(map(NUMBER.fullmatch, parts[1:])):  # noqa: PLR2004
            return None
        with open_regular(parts[0]) as stored:
            stored.seek(int(parts[1]))
            return stored.read(min(int(parts[2]), os.fstat(stored.fileno()).st_size))
    except OSError as error:
        raise AudioError(
            f"Reading speech failed in {path!r}: expected a readable file, got {error}. "
            "Check the file."
        ) from error
