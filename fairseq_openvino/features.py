"""Waveforms to the features Fairseq trains on: Kaldi log-mel filter banks and CMVN. Pure functions."""

from __future__ import annotations

import kaldi_native_fbank as knf
import numpy as np

PCM16_SCALE = 2.0**15
"""Kaldi expects 16-bit integer amplitudes (Fairseq `audio_utils.py:get_fbank`)."""
FRAME_LENGTH_MS = 25.0
FRAME_SHIFT_MS = 10.0
CMVN_VARIANCE_FLOOR = 1e-10


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


def global_cmvn(features: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Normalise with corpus statistics, mean and std of shape (F,); (T, F) -> (T, F).

    Source: Fairseq `data/audio/feature_transforms/global_cmvn.py`.
    """
    return np.divide(np.subtract(features, mean), std)
