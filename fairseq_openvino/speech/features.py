"""Waveforms to features: Kaldi filter banks with CMVN and scaled samples (Fairseq), log-mel (Whisper).

Pure functions.
"""

from __future__ import annotations

import io
from functools import cache

import kaldi_native_fbank as knf
import numpy as np
from numpy.lib import format as npy

PCM16_SCALE = 2.0**15
"""Kaldi expects 16-bit integer amplitudes (Fairseq `audio_utils.py:get_fbank`)."""
FRAME_LENGTH_MS = 25.0
FRAME_SHIFT_MS = 10.0
FRAMES_PER_SECOND = 100
CMVN_VARIANCE_FLOOR = 1e-10
LAYER_NORM_EPSILON = 1e-5
NUMERIC_KINDS = "biuf"
WHISPER_RATE_HZ, FFT_SAMPLES, HOP_SAMPLES = 16_000, 400, 160
SMALLEST_POWER, DECADES = 1e-10, 8.0
"""Whisper's floor of the mel power, and the range kept below a window's maximum."""
BREAK_HERTZ, BREAK_MEL, MEL_PER_LOG_HERTZ = 1000.0, 15.0, 27.0 / np.log(6.4)


def fbank(waveform: np.ndarray, sample_rate_hz: int, bins: int = 80) -> np.ndarray:
    """Kaldi filter banks, equal to `torchaudio.compliance.kaldi.fbank` with Fairseq's arguments.

    Args:
        waveform: shape (samples,), float32 in [-1, 1].
        sample_rate_hz: rate of the waveform in Hz; never changed here.
        bins: F, the number of mel bins.

    Returns:
        Natural-log energies, shape (T, F), float32; T = 0 if the waveform is shorter than 25 ms.
        Source: Fairseq `data/audio/audio_utils.py:_get_torchaudio_fbank`.
    """
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = float(sample_rate_hz)
    options.frame_opts.frame_length_ms = FRAME_LENGTH_MS
    options.frame_opts.frame_shift_ms = FRAME_SHIFT_MS
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = bins
    options.energy_floor = 1.0
    extractor = knf.OnlineFbank(options)
    extractor.accept_waveform(float(sample_rate_hz), np.asarray(waveform * PCM16_SCALE, np.float32))
    extractor.input_finished()
    frames = [extractor.get_frame(i) for i in range(extractor.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, bins), np.float32)


def utterance_cmvn(
    features: np.ndarray, norm_means: bool = True, norm_vars: bool = True
) -> np.ndarray:
    """Normalise each bin over the utterance; (T, F) -> (T, F).

    Source: Fairseq `data/audio/feature_transforms/utterance_cmvn.py`, same order of operations.
    """
    mean = features.mean(axis=0)
    square_sums = (features**2).sum(axis=0)
    if norm_means:
        features = np.subtract(features, mean)
    if norm_vars:
        variance = square_sums / features.shape[0] - mean**2
        features = np.divide(features, np.sqrt(np.maximum(variance, CMVN_VARIANCE_FLOOR)))
    return features


def two_pass_cmvn(
    features: np.ndarray, norm_means: bool = True, norm_vars: bool = True
) -> np.ndarray:
    """As `utterance_cmvn`, without its cancellation; (T, F) -> (T, F).

    Source: transformers `models/speech_to_text/feature_extraction_speech_to_text.py:utterance_cmvn`.
    """
    if norm_means:
        features = np.subtract(features, features.mean(axis=0))
    if norm_vars:
        floor = np.sqrt(np.float32(CMVN_VARIANCE_FLOOR))
        features = np.divide(features, np.maximum(features.std(axis=0), floor))
    return features


def global_cmvn(features: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Normalise with corpus statistics, mean and std of shape (F,); (T, F) -> (T, F).

    Source: Fairseq `data/audio/feature_transforms/global_cmvn.py`.
    """
    return np.divide(np.subtract(features, mean), std)


def layer_norm(waveform: np.ndarray) -> np.ndarray:
    """Samples with mean 0 and variance 1 over the utterance; (samples,) -> (samples,), float32.

    Source: Fairseq `data/audio/speech_to_text_dataset.py:_get_source_audio`.
    """
    wide = waveform.astype(np.float64)
    found: np.ndarray = (wide - wide.mean()) / np.sqrt(wide.var() + LAYER_NORM_EPSILON)
    return found.astype(np.float32)


def log_mel(waveform: np.ndarray, bins: int, window_frames: int) -> np.ndarray:
    """Whisper's log-mel spectrogram of a window, zero-padded.

    Args:
        waveform: shape (samples,), in [-1, 1], at 16 kHz, at most the window.
        bins: F.
        window_frames: T, frames of 10 ms.

    Returns:
        Shape (T, F), float32. Equal to transformers' `WhisperFeatureExtractor` within 1e-5; frames
        that hold padding only are not computed but filled in.

    Source: openai-whisper `audio.py:log_mel_spectrogram`.
    """
    frames = heard_frames(len(waveform), window_frames)
    padded = np.zeros(window_frames * HOP_SAMPLES)
    padded[: len(waveform)] = waveform
    padded = np.pad(padded, FFT_SAMPLES // 2, mode="reflect")
    decades = np.full((window_frames, bins), np.log10(SMALLEST_POWER))
    decades[:frames] = log10_mel(padded, bins, frames)
    decades = np.maximum(decades, decades.max(initial=np.log10(SMALLEST_POWER)) - DECADES)
    return scaled(decades).astype(np.float32)


def log10_mel(samples: np.ndarray, bins: int, frames: int | None = None) -> np.ndarray:
    """Logarithms of mel power, shape (frames, F), float64: the first frame sees the first 400 samples.

    Args:
        samples: shape (samples,), at 16 kHz, with whatever padding there is to be.
        bins: F.
        frames: the first so many; default: all that are whole.
    """
    windows = np.lib.stride_tricks.sliding_window_view(samples, FFT_SAMPLES)[::HOP_SAMPLES][:frames]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT_SAMPLES) / FFT_SAMPLES)
    power = np.abs(np.fft.rfft(windows * hann)) ** 2  # (frames, 201)
    return np.log10(np.maximum(power @ mel_filters(bins), SMALLEST_POWER))


def scaled(decades: np.ndarray) -> np.ndarray:
    """Logarithms of mel power as Whisper reads them."""
    return (decades + 4.0) / 4.0


def heard_frames(samples: int, window_frames: int) -> int:
    """Frames of a window that see anything of so many samples; the others hold padding only."""
    return min(window_frames, -(-(samples + FFT_SAMPLES // 2) // HOP_SAMPLES))


def padded_log_mel(frames: np.ndarray, window_frames: int) -> np.ndarray:
    """The window that `heard_frames` (T, F) were cut from; (window_frames, F)."""
    floor = (np.log10(SMALLEST_POWER) + 4.0) / 4.0
    silent = max(float(frames.max()) - DECADES / 4.0, floor)
    behind = np.full((window_frames - len(frames), frames.shape[1]), silent, np.float32)
    return np.concatenate([frames, behind])


@cache
def mel_filters(bins: int) -> np.ndarray:
    """Triangular filters of unit area on Slaney's mel scale up to 8 kHz, shape (201, F).

    Source: librosa `filters.mel` with its defaults, which Whisper was trained with.
    """
    top = _mel(np.array(WHISPER_RATE_HZ / 2))
    edges = _hertz(np.linspace(0.0, top, bins + 2))
    frequencies = np.linspace(0.0, WHISPER_RATE_HZ / 2, FFT_SAMPLES // 2 + 1)
    slopes = edges[None] - frequencies[:, None]  # (201, F + 2)
    widths = np.diff(edges)
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    area = 2.0 / (edges[2:] - edges[:-2])
    filters: np.ndarray = np.maximum(0.0, np.minimum(rising, falling)) * area
    return filters


def _mel(hertz: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    above = BREAK_MEL + np.log(np.maximum(hertz, BREAK_HERTZ) / BREAK_HERTZ) * MEL_PER_LOG_HERTZ
    return np.where(hertz < BREAK_HERTZ, hertz * BREAK_MEL / BREAK_HERTZ, above)


def _hertz(mel: np.ndarray) -> np.ndarray:
    """Inverse of `_mel`."""
    above = BREAK_HERTZ * np.exp((np.maximum(mel, BREAK_MEL) - BREAK_MEL) / MEL_PER_LOG_HERTZ)
    return np.where(mel < BREAK_MEL, mel * BREAK_HERTZ / BREAK_MEL, above)


def array_of(content: bytes) -> np.ndarray:
    """The numbers of a `.npy` file; room is made for what is there, not for what it claims.

    Raises:
        Exception: it is damaged, or of other things; NumPy's parser of headers raises many kinds.
    """
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, in_fortran_order, kind = read(file)
    if kind.kind not in NUMERIC_KINDS:
        raise ValueError(f"the type {kind}")
    return np.ndarray(shape, kind, content, file.tell(), order="F" if in_fortran_order else "C")
