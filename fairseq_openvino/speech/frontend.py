"""Front ends: from a waveform to what an encoder reads. Pure and picklable, for workers that only read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fairseq_openvino.bundle import Bundle, FeatureConfig
from fairseq_openvino.errors import AudioError, ModelError, UtteranceTooLongError, failure
from fairseq_openvino.speech.features import (
    FRAME_LENGTH_MS,
    FRAME_SHIFT_MS,
    FRAMES_PER_SECOND,
    array_of,
    fbank,
    global_cmvn,
    layer_norm,
    log_mel,
    two_pass_cmvn,
    utterance_cmvn,
)

ACTION = "Computing features"
EXPORT_AGAIN = "Export the bundle again"
MAX_STATISTICS_BYTES = 1 << 20
UTTERANCE_TRANSFORMS = {"utterance_cmvn": utterance_cmvn, "two_pass_cmvn": two_pass_cmvn}
"""By their names in `FeatureConfig.transforms`."""


class FrontEnd(Protocol):
    """What every family needs in front of its encoder."""

    rate_hz: int
    """Of the waveform it expects."""

    def __call__(self, waveform: np.ndarray, rate_hz: int) -> np.ndarray:
        """Samples (samples,) in [-1, 1] to (T, F), float32.

        Raises:
            AudioError: the waveform cannot be used.
            UtteranceTooLongError: it is longer than the model can hear.
        """
        ...

    def stored(self, frames: np.ndarray) -> np.ndarray:
        """Features (T, F) from a file, as they are before any transform, to (T, F), float32.

        Raises:
            AudioError, UtteranceTooLongError: as above.
        """
        ...


def heard(front_end: Callable[..., np.ndarray], path: str, *signal: Any) -> np.ndarray:
    """What a front end makes of a signal; its errors get the path."""
    try:
        return front_end(*signal)
    except AudioError as error:
        raise type(error)(f"{path}: {error}") from error


@dataclass(frozen=True)
class FilterBanks:
    """Kaldi filter banks with the transforms of a Fairseq model's training data."""

    config: FeatureConfig
    max_frames: int
    """Positions of the encoder's input (max_source_positions)."""
    statistics: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)
    """Mean and standard deviation (F,) of `global_cmvn`."""

    @classmethod
    def of(cls, bundle: Bundle) -> FilterBanks:
        """As a bundle says."""
        config, statistics = bundle.manifest.features, None
        if config.global_cmvn is not None:
            statistics = _statistics(bundle, config.global_cmvn)
        return cls(config, bundle.manifest.limits.max_source_frames, statistics)

    @property
    def rate_hz(self) -> int:
        """See `FrontEnd`."""
        return self.config.sample_rate_hz

    @property
    def max_samples(self) -> int:
        """The most that give `max_frames`."""
        frame, shift = (self.rate_hz * ms // 1000 for ms in (FRAME_LENGTH_MS, FRAME_SHIFT_MS))
        return int(frame + shift * self.max_frames) - 1

    def __call__(self, waveform: np.ndarray, rate_hz: int) -> np.ndarray:
        """See `FrontEnd`."""
        frames = fbank(waveform, rate_hz, self.config.bins)
        if not len(frames):
            got = f"{1000 * len(waveform) / rate_hz:.1f} ms"
            expected = f"at least {FRAME_LENGTH_MS:.0f} ms of audio"
            raise AudioError(f"{ACTION} failed: expected {expected}, got {got}. Drop the file.")
        return self.stored(frames)

    def stored(self, frames: np.ndarray) -> np.ndarray:
        """See `FrontEnd`."""
        if len(frames) > self.max_frames:
            raise UtteranceTooLongError(
                f"{ACTION} failed: expected at most {self.max_frames} frames (max_source_positions), "
                f"got {len(frames)}. Split the audio."
            )
        for transform in self.config.transforms:
            if transform in UTTERANCE_TRANSFORMS:
                normalise = UTTERANCE_TRANSFORMS[transform]
                frames = normalise(frames, self.config.norm_means, self.config.norm_vars)
            elif transform == "global_cmvn" and self.statistics is not None:
                frames = global_cmvn(frames, *self.statistics)
            else:
                raise failure(
                    ModelError, ACTION, "the bundle", ", ".join((*UTTERANCE_TRANSFORMS, "global_cmvn")),
                    repr(transform), "Use fairseq-generate",
                )  # fmt: skip
        return frames.astype(np.float32)


@dataclass(frozen=True)
class Waveform:
    """The samples themselves, scaled as Fairseq does where the bundle says `layer_norm`.

    Of an S2T model Fairseq does so whatever `standardize_audio` says: it tests a method where it means to
    call it (data/audio/speech_to_text_dataset.py:246).
    """

    config: FeatureConfig
    max_samples: int
    """The most that are heard as a whole."""

    @property
    def rate_hz(self) -> int:
        """See `FrontEnd`."""
        return self.config.sample_rate_hz

    def __call__(self, waveform: np.ndarray, rate_hz: int) -> np.ndarray:
        """See `FrontEnd`."""
        _check_samples(waveform, rate_hz, self.rate_hz)
        if len(waveform) > self.max_samples:
            raise UtteranceTooLongError(
                f"{ACTION} failed: expected at most {self.max_samples} samples, got {len(waveform)}. "
                "Split the audio."
            )
        scaled = layer_norm(waveform) if self.config.transforms else waveform.astype(np.float32)
        return scaled[:, None]

    def stored(self, frames: np.ndarray) -> np.ndarray:
        """Always an error: the model reads samples."""
        raise _no_features()


def _statistics(bundle: Bundle, name: str) -> tuple[np.ndarray, np.ndarray]:
    """`mean` and `std` of a NumPy archive, which may claim to hold more than there is room for."""
    where, bins = bundle.directory / name, bundle.manifest.features.bins
    with bundle.open(name) as file:
        try:
            archive = zipfile.ZipFile(file)
            members = [archive.open(f"{each}.npy") for each in ("mean", "std")]
            mean, std = (array_of(member.read(MAX_STATISTICS_BYTES)) for member in members)
        except Exception as error:  # as `array_of`, and so does a damaged archive
            expected = "an archive of statistics"
            raise failure(ModelError, "Reading", where, expected, error, EXPORT_AGAIN) from error
    shapes = ((), (1,), (bins,), (1, 1), (1, bins))  # as `export` takes them
    if mean.shape not in shapes or std.shape not in shapes:
        expected, got = f"the mean and deviation of {bins} filter banks", (mean.shape, std.shape)
        raise failure(ModelError, "Reading", where, expected, got, EXPORT_AGAIN)
    return mean, std


def speech_to_text(bundle: Bundle) -> FilterBanks | Waveform:
    """The front end of a Fairseq model."""
    features, limits = bundle.manifest.features, bundle.manifest.limits
    if features.bins == 1:
        return Waveform(features, limits.max_source_frames)
    return FilterBanks.of(bundle)


@dataclass(frozen=True)
class LogMel:
    """Whisper's log-mel frames of one window."""

    config: FeatureConfig
    window: int
    """T."""

    @property
    def rate_hz(self) -> int:
        """See `FrontEnd`."""
        return self.config.sample_rate_hz

    def __call__(self, waveform: np.ndarray, rate_hz: int) -> np.ndarray:
        """See `FrontEnd`."""
        _check_samples(waveform, rate_hz, self.rate_hz)
        seconds = len(waveform) / rate_hz
        if seconds * FRAMES_PER_SECOND > self.window:
            raise UtteranceTooLongError(
                f"{ACTION} failed: expected at most {self.window / FRAMES_PER_SECOND:g} s of "
                f"audio (one window), got {seconds:.2f} s. Split the audio."
            )
        return log_mel(waveform, self.config.bins, self.window)

    def stored(self, frames: np.ndarray) -> np.ndarray:
        """Always an error: Whisper's features depend on the whole window."""
        raise _no_features()


def _check_samples(waveform: np.ndarray, rate_hz: int, wanted_hz: int) -> None:
    if rate_hz != wanted_hz or not len(waveform) or not np.isfinite(waveform).all():
        raise AudioError(
            f"{ACTION} failed: expected finite samples at {wanted_hz} Hz, got "
            f"{len(waveform)} at {rate_hz} Hz. Repair or drop the file."
        )


def _no_features() -> AudioError:
    return AudioError(f"{ACTION} failed: expected audio, got stored features. Give audio files.")
