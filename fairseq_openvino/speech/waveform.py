"""Samples: what can be used as a waveform, in which range and at which rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import soxr

from fairseq_openvino.errors import AudioError

MIN_SAMPLE_RATE_HZ = 1_000
MAX_SAMPLE_RATE_HZ = 384_000
MAX_CHANNELS = 8
MAX_AMPLITUDE = 16.0
"""Decoders overshoot 1, and some scale to unit variance; 16-bit integers as floats are far louder."""
INTEGERS = ("int8", "uint8", "int16", "int32")
"""Integer types whose range is that of the amplitude."""


def as_waveform(
    samples: Any, rate_hz: int, wanted_hz: int | None = None, name: str = "waveform"
) -> tuple[np.ndarray, int]:
    """An array of samples as `audio.read_audio` returns those of a file.

    Args:
        samples: shape (samples,): floats in about [-1, 1], or 8-, 16- or 32-bit integers, whose
            range becomes [-1, 1]; a NumPy array, a torch tensor, a list.
        rate_hz: their rate.
        wanted_hz: resample to this rate; `None` keeps theirs.
        name: of the waveform, for messages.

    Raises:
        AudioError: another type or shape, no samples, too loud, not finite, or not a sample rate.
    """
    rate_hz = check_rate(name, rate_hz)
    array = _as_array(name, samples)
    if not len(array):
        raise unusable(name, "samples", "none", "Drop it")
    check_loudness(name, array)
    if wanted_hz is not None and wanted_hz != rate_hz:
        array = soxr.resample(array, rate_hz, wanted_hz).astype(np.float32)
        rate_hz = wanted_hz
    return np.ascontiguousarray(array), rate_hz


def resampled(
    blocks: Iterable[np.ndarray], rate_hz: int, wanted_hz: int | None, channels: int
) -> Iterator[np.ndarray]:
    """Blocks of shape (samples, channels), float32, at another rate: the samples `as_waveform` gives."""
    if wanted_hz in (None, rate_hz):
        yield from blocks
        return
    stream = soxr.ResampleStream(rate_hz, wanted_hz, channels)
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty((0, channels), np.float32), last=True)


def of_equal_size(pieces: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """What all pieces hold along their first axis, `size` of it at a time; the last is what is left."""
    held: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= size:
            whole = np.concatenate(held)
            end = count - count % size
            yield from (whole[i : i + size] for i in range(0, end, size))
            held, count = [whole[end:]], count - end
    if count:
        yield np.concatenate(held)


def as_floats(array: np.ndarray) -> np.ndarray:
    """Floats as float32; the range of integers becomes [-1, 1]."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            return array.astype(np.float32, copy=False)
    half = 2.0 ** (8 * array.dtype.itemsize - 1)
    centre = half if array.dtype.kind == "u" else 0.0
    return (array.astype(np.float32) - np.float32(centre)) / np.float32(half)


def check_rate(name: str, rate_hz: Any) -> int:
    """A sample rate within the limits.

    Raises:
        AudioError: it is none.
    """
    try:
        rate = int(rate_hz)
        if rate == rate_hz and MIN_SAMPLE_RATE_HZ <= rate <= MAX_SAMPLE_RATE_HZ:
            return rate
    except (TypeError, ValueError, OverflowError):
        pass
    limits = f"a sample rate of {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz"
    raise unusable(name, limits, str(rate_hz), "Give the rate the samples were recorded with")


def check_channels(name: str, channels: int) -> None:
    """Raise AudioError if a file has none or too many."""
    if not 1 <= channels <= MAX_CHANNELS:
        raise unusable(name, f"1 to {MAX_CHANNELS} channels", str(channels), "Mix the file down")


def check_loudness(name: str, samples: np.ndarray) -> None:
    """Raise AudioError if samples are not finite or far beyond [-1, 1]."""
    peak = float(np.abs(samples).max(initial=0.0))
    if not math.isfinite(peak):
        raise unusable(name, "finite samples", "NaN or infinity", "Repair or drop it")
    if peak > MAX_AMPLITUDE:
        raise unusable(name, "samples in about [-1, 1]", f"{peak:g}", "Scale them")


def unusable(name: str, expected: str, got: str, advice: str) -> AudioError:
    """The error of a file or a waveform."""
    return AudioError(
        f"Decoding audio failed in {name!r}: expected {expected}, got {got}. {advice}."
    )


def _as_array(name: str, samples: Any) -> np.ndarray:
    """Samples of any accepted type as float32, shape (samples,)."""
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise unusable(name, "an array of samples", str(error), "Convert it to NumPy") from error
    if array.ndim != 1:
        advice = "Choose a channel, or mix them"
        raise unusable(name, "the shape (samples,)", str(array.shape), advice)
    if array.dtype.kind != "f" and array.dtype.name not in INTEGERS:
        expected = f"floats or one of {', '.join(INTEGERS)}"
        raise unusable(name, expected, array.dtype.name, "Scale the samples to [-1, 1]")
    return as_floats(array)
