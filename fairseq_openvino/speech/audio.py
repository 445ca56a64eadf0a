"""Audio files and arrays to mono float32 waveforms, with bounds on what a header may claim.

Decoding is libsndfile's, resampling is soxr's (the resampler behind SoX's `rate` effect, which
Fairseq uses in `data/audio/audio_utils.py:convert_waveform`). Damaged audio is decoded as far as it
goes, never silently: see `damage_collected`.
"""

from __future__ import annotations

import io
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from os import PathLike
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech.containers import MAX_SCANNED_BYTES, Inspection, inspect

logger = logging.getLogger(__name__)

AUDIO_EXTENSIONS = (
    ".wav", ".flac", ".ogg", ".mp3", ".oga", ".opus", ".aiff", ".aif", ".aifc", ".au", ".snd", ".w64",
    ".caf",
)  # fmt: skip
AUDIO_FORMATS = (
    "WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "MPEG", "AIFF", "AU", "CAF",
)  # fmt: skip
OTHER_FORMATS = {
    b"ftyp": "MP4 (m4a, mp4, mov)",
    b"\x1a\x45\xdf\xa3": "Matroska (webm, mkv)",
    b"\x30\x26\xb2\x75": "ASF (wma)",
}
"""By the first four bytes, or those from the fifth on."""
CONVERT = "Convert the file, for instance: ffmpeg -i FILE FILE.flac"
MIN_SAMPLE_RATE_HZ = 1_000
MAX_SAMPLE_RATE_HZ = 384_000
MAX_CHANNELS = 8
MAX_AUDIO_SECONDS = 3_600.0
MAX_AMPLITUDE = 16.0
"""Decoders overshoot 1, and some scale to unit variance; 16-bit integers as floats are far louder."""
BLOCK_SAMPLES = 1 << 18
CANCELLED_RMS = 0.1
"""Speech on one of 8 channels is 1/8 of it in their mean; below this share they cancel out."""
INTEGERS = ("int8", "uint8", "int16", "int32")
"""Integer types whose range is that of the amplitude."""

_damage: ContextVar[list[str] | None] = ContextVar("_damage", default=None)


@contextmanager
def damage_collected() -> Iterator[list[str]]:
    """What `read_audio` finds missing in the files it reads within this block, as texts."""
    found: list[str] = []
    outer = _damage.get()
    token = _damage.set(found)
    try:
        yield found
    finally:
        _damage.reset(token)
        if outer is not None:
            outer += found


def read_audio(
    source: str | PathLike[str] | BinaryIO, sample_rate_hz: int | None = None
) -> tuple[np.ndarray, int]:
    """Decode one audio file to mono.

    A file that is damaged or cut is decoded as far as it goes; what is missing is logged as a
    warning and reported to `damage_collected`. Channels are averaged; where that would silence
    them, being of opposite phase, the strongest is taken, with a warning.

    Args:
        source: a path, `-` for standard input, or an open binary file.
        sample_rate_hz: resample to this rate; `None` keeps the file's own.

    Returns:
        The waveform, shape (samples,), float32 in about [-1, 1], and its rate in Hz.

    Raises:
        AudioError: the file is missing, not decodable, empty, outside the limits above or not finite.
    """
    name = source_name(source)
    with _opened(name, source) as file:
        try:
            inspection = inspect(file)
            decoded = _decode(name, file, inspection)
        except (OSError, RuntimeError) as error:  # soundfile's are RuntimeErrors
            raise _undecodable(name, file, error) from error
    if decoded.is_cancelled:
        logger.warning(f"{name!r}: its channels cancel each other out; taking the strongest one")
    if damage := decoded.damage(inspection):
        logger.warning(f"{name!r} is damaged: {damage}")
        collected = _damage.get()
        if collected is not None:
            collected.append(damage)
    return as_waveform(decoded.waveform, decoded.rate_hz, sample_rate_hz, name)


def source_name(source: Any) -> str:
    """What to call a path or an open file."""
    return str(source if isinstance(source, (str, PathLike)) else getattr(source, "name", source))


def as_waveform(
    samples: Any, rate_hz: int, wanted_hz: int | None = None, name: str = "waveform"
) -> tuple[np.ndarray, int]:
    """An array of samples as `read_audio` returns those of a file.

    Args:
        samples: shape (samples,): floats in about [-1, 1], or 8-, 16- or 32-bit integers, whose
            range becomes [-1, 1]; a NumPy array, a torch tensor, a list.
        rate_hz: their rate.
        wanted_hz: resample to this rate; `None` keeps theirs.
        name: of the waveform, for messages.

    Raises:
        AudioError: another type or shape, no samples, too loud, not finite, or not a sample rate.
    """
    rate_hz = _checked_rate(name, rate_hz)
    array = _as_floats(name, samples)
    if not len(array):
        raise _unusable(name, "samples", "none", "Drop it")
    peak = float(np.abs(array).max())
    if not math.isfinite(peak):
        raise _unusable(name, "finite samples", "NaN or infinity", "Repair or drop it")
    if peak > MAX_AMPLITUDE:
        raise _unusable(name, "samples in about [-1, 1]", f"{peak:g}", "Scale them")
    if wanted_hz is not None and wanted_hz != rate_hz:
        array = soxr.resample(array, rate_hz, wanted_hz).astype(np.float32)
        rate_hz = wanted_hz
    return np.ascontiguousarray(array), rate_hz


def _checked_rate(name: str, rate_hz: Any) -> int:
    try:
        rate = int(rate_hz)
        if rate == rate_hz and MIN_SAMPLE_RATE_HZ <= rate <= MAX_SAMPLE_RATE_HZ:
            return rate
    except (TypeError, ValueError, OverflowError):
        pass
    limits = f"a sample rate of {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz"
    raise _unusable(name, limits, str(rate_hz), "Give the rate the samples were recorded with")


def _as_floats(name: str, samples: Any) -> np.ndarray:
    """Samples of any accepted type as float32, shape (samples,)."""
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unusable(name, "an array of samples", str(error), "Convert it to NumPy") from error
    if array.ndim != 1:
        advice = "Choose a channel, or mix them"
        raise _unusable(name, "the shape (samples,)", str(array.shape), advice)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            return array.astype(np.float32, copy=False)
    if array.dtype.name not in INTEGERS:
        expected = f"floats or one of {', '.join(INTEGERS)}"
        raise _unusable(name, expected, array.dtype.name, "Scale the samples to [-1, 1]")
    half = 2.0 ** (8 * array.dtype.itemsize - 1)
    centre = half if array.dtype.kind == "u" else 0.0
    return (array.astype(np.float32) - np.float32(centre)) / np.float32(half)


def _unusable(name: str, expected: str, got: str, advice: str) -> AudioError:
    return AudioError(
        f"Decoding audio failed in {name!r}: expected {expected}, got {got}. {advice}."
    )


@contextmanager
def _opened(name: str, source: str | PathLike[str] | BinaryIO) -> Iterator[BinaryIO]:
    """The source as a file that can be read twice."""
    file: Any = source
    try:
        if name == "-":
            file = sys.stdin.buffer
        elif isinstance(source, (str, PathLike)):
            file = open(source, "rb", buffering=0)  # noqa: SIM115  closed below
    except (OSError, ValueError) as error:
        raise _undecodable(name, io.BytesIO(), error) from error
    try:
        if not file.seekable():
            yield io.BytesIO(file.read(MAX_SCANNED_BYTES))
        else:
            yield file
    finally:
        if file is not source and name != "-":
            file.close()


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]
    """Without soundfile's seek to the present position after every read, which disturbs MP3."""

    def seekable(self) -> bool:
        """See above."""
        return False


@dataclass(frozen=True)
class _Decoded:
    """Samples and how they came about."""

    waveform: np.ndarray
    """Shape (samples,), float32."""
    rate_hz: int
    frames: int
    """Samples that libsndfile expected."""
    is_exact: bool
    """Whether that number is the encoder's, not an estimate."""
    error: str | None
    """What ended decoding early."""
    is_cancelled: bool = False
    """Channels had opposite phase."""

    def damage(self, inspection: Inspection) -> str | None:
        """What is missing, in words; None if nothing is."""
        seconds = len(self.waveform) / self.rate_hz
        short = self.is_exact and len(self.waveform) < self.frames
        problem = inspection.problem or self.error
        if problem is None and short:
            problem = f"{self.frames} samples are declared, {len(self.waveform)} are there"
        if problem is None:
            return None
        whole = inspection.seconds or (self.frames / self.rate_hz if short else 0.0)
        if inspection.share:
            whole = seconds / inspection.share
        if whole - seconds < 0.01:  # noqa: PLR2004  nothing to speak of, or not known
            return f"an unknown part is missing behind or within {seconds:.2f} s ({problem})"
        return f"{whole - seconds:.2f} s of {whole:.2f} s are missing ({problem})"


def _decode(name: str, file: BinaryIO, inspection: Inspection) -> _Decoded:
    """All channels to their mean, or to the strongest if they cancel each other out."""
    decoded, energies = _decode_pass(name, file, inspection, None)
    mixed = float(np.square(decoded.waveform, dtype=np.float64).sum())
    strongest = int(energies.argmax())
    if mixed >= CANCELLED_RMS**2 * energies[strongest]:
        return decoded
    again, _ = _decode_pass(name, file, inspection, strongest)
    return again


def _decode_pass(
    name: str, file: BinaryIO, inspection: Inspection, channel: int | None
) -> tuple[_Decoded, np.ndarray]:
    """One channel, or the mean of all for None, and the energy of each channel."""
    with _SoundFile(_rewound(file, inspection), closefd=False) as sound:
        _check_header(name, sound)
        blocks, energies, error = _read_blocks(name, sound, channel)
        if not blocks:
            problem = inspection.problem or error
            got = f"none that can be decoded ({problem})" if problem else "an empty file"
            raise _unusable(name, "samples", got, "Drop the file")
        return _Decoded(
            np.concatenate(blocks),
            int(sound.samplerate),
            sound.frames,
            sound.format == "FLAC" and sound.frames < np.iinfo(np.int64).max,
            error,
            channel is not None,
        ), energies


def _rewound(file: BinaryIO, inspection: Inspection) -> Any:
    """What libsndfile reads; files by descriptor, as in Python a header's wild seeks print errors."""
    if inspection.content is not None:
        return io.BytesIO(inspection.content)
    file.seek(0)
    return file.fileno() if isinstance(file, io.FileIO) else file


def _check_header(name: str, file: soundfile.SoundFile) -> None:
    if file.format not in AUDIO_FORMATS:
        expected = f"one of {', '.join(AUDIO_FORMATS)}"
        raise _unusable(name, expected, file.format, CONVERT)
    _checked_rate(name, file.samplerate)
    if not 1 <= file.channels <= MAX_CHANNELS:
        expected = f"1 to {MAX_CHANNELS} channels"
        raise _unusable(name, expected, str(file.channels), "Mix the file down")


def _read_blocks(
    name: str, file: soundfile.SoundFile, channel: int | None
) -> tuple[list[np.ndarray], np.ndarray, str | None]:
    """Read until the data or the decoder end, whatever length the header declares.

    Returns:
        Blocks of shape (samples,), the energy of each channel, and what stopped the decoder.
    """
    limit_samples = int(MAX_AUDIO_SECONDS * file.samplerate)
    blocks: list[np.ndarray] = []
    energies, samples, error = np.zeros(file.channels), 0, None
    while error is None:
        # the decoder overwrites the NaN in front of the place where it fails
        block = np.full((BLOCK_SAMPLES, file.channels), np.nan, np.float32)
        try:
            block = file.read(out=block)
        except soundfile.LibsndfileError as failure:
            error = _reason(failure)
            block = block[: int(np.append(np.isnan(block[:, 0]), True).argmax())]
        if not len(block):
            break
        energies += np.square(block, dtype=np.float64).sum(axis=0)
        if file.channels == 1 or channel is not None:
            blocks.append(block[:, channel or 0])
        else:
            blocks.append(block.mean(axis=1))
        samples += len(block)
        if samples > limit_samples:
            limit = f"at most {MAX_AUDIO_SECONDS:.0f} s"
            raise _unusable(name, limit, "more", "Split the file")
    return blocks, energies, error


def _undecodable(name: str, file: BinaryIO, error: Exception) -> AudioError:
    """The error of a file that cannot be opened as audio."""
    if isinstance(error, OSError):
        return _unusable(name, "a readable file", error.strerror or str(error), "Check the path")
    file.seek(0)
    head = file.read(8)
    other = OTHER_FORMATS.get(head[:4]) or OTHER_FORMATS.get(head[4:])
    expected = f"one of {', '.join(AUDIO_FORMATS)}"
    advice = CONVERT if other else f"Check that it is a whole audio file. {CONVERT}"
    return _unusable(name, expected, other or _reason(error), advice)


def _reason(error: Exception) -> str:
    """libsndfile's words, without what soundfile puts around them."""
    text = str(getattr(error, "error_string", "") or error).strip()
    return text.removeprefix("Error : ").rstrip(".: ") or type(error).__name__
