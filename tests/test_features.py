"""Filter banks against torchaudio's Kaldi port, CMVN against Fairseq's transforms."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from fairseq_openvino.speech import features

TOLERANCE = 1e-3
AUDIBLE_NATS = 15.0
"""Bins this far (65 dB) below the loudest of their frame still hold signal, not rounding noise."""
RATES_HZ = (8_000, 16_000, 22_050, 44_100, 48_000)


@pytest.fixture(scope="module")
def reference():
    """`fbank(waveform, rate, bins)` exactly as Fairseq calls torchaudio.

    torchaudio's compiled part needs the CUDA build of torch, so that only `compliance/kaldi.py` is
    loaded, under a stub of its parent package.
    """
    torch = pytest.importorskip("torch")
    spec = importlib.machinery.PathFinder.find_spec("torchaudio")
    if spec is None or spec.origin is None:
        pytest.skip("torchaudio is not installed")
    path = Path(spec.origin).parent / "compliance" / "kaldi.py"
    if not path.is_file():
        pytest.skip("this torchaudio has no compliance/kaldi.py")
    saved = sys.modules.get("torchaudio")
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        kaldi_spec = importlib.util.spec_from_file_location("kaldi_reference", path)
        kaldi = importlib.util.module_from_spec(kaldi_spec)
        kaldi_spec.loader.exec_module(kaldi)
    finally:
        del sys.modules["torchaudio"]
        if saved is not None:
            sys.modules["torchaudio"] = saved

    def compute(waveform: np.ndarray, rate_hz: int, bins: int, exact: bool = False) -> np.ndarray:
        scaled = torch.from_numpy(waveform[np.newaxis] * np.float32(2**15))
        scaled = scaled.double() if exact else scaled
        return kaldi.fbank(scaled, num_mel_bins=bins, sample_frequency=rate_hz).numpy()

    return compute


def signal(kind: str, samples: int, rate_hz: int) -> np.ndarray:
    rng = np.random.default_rng(samples + rate_hz)
    seconds = np.arange(samples) / rate_hz
    made = {
        "noise": 0.3 * rng.standard_normal(samples),
        "quiet": 1e-4 * rng.standard_normal(samples),
        "tone": 0.5 * np.sin(2 * np.pi * 440 * seconds),
        "chirp": 0.5 * np.sin(2 * np.pi * (100 + 1500 * seconds) * seconds),
        "silence": np.zeros(samples),
        "offset": np.full(samples, 0.25),
        "clipped": np.clip(3 * rng.standard_normal(samples), -1, 1),
        "click": np.eye(1, samples, samples // 2)[0],
    }
    return made[kind].astype(np.float32)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("kind", ["noise", "quiet", "silence", "offset", "clipped", "click"])
def test_filter_banks_equal_torchaudio(reference, kind, rate_hz):
    waveform = signal(kind, int(0.73 * rate_hz), rate_hz)
    ours = features.fbank(waveform, rate_hz)
    theirs = reference(waveform, rate_hz, 80)
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("kind", ["tone", "chirp"])
def test_filter_banks_of_pure_tones_are_as_exact_as_torchaudio(reference, kind, rate_hz):
    """Far from a pure tone, bins hold the rounding errors of a float32 FFT, torchaudio's too."""
    waveform = signal(kind, int(0.73 * rate_hz), rate_hz)
    ours = features.fbank(waveform, rate_hz)
    theirs = reference(waveform, rate_hz, 80)
    exact = reference(waveform, rate_hz, 80, exact=True)
    audible = exact > exact.max(axis=1, keepdims=True) - AUDIBLE_NATS
    assert audible.mean() > 0.05
    assert np.abs(ours - theirs)[audible].max() <= TOLERANCE
    assert np.abs(ours - exact).max() <= TOLERANCE + 3 * np.abs(theirs - exact).max()


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 561, 719, 1600, 15_999, 160_001])
@pytest.mark.parametrize("bins", [40, 80])
def test_every_length_gives_the_same_frames(reference, samples, bins):
    waveform = signal("noise", samples, 16_000)
    ours = features.fbank(waveform, 16_000, bins)
    theirs = reference(waveform, 16_000, bins)
    assert ours.shape == theirs.shape == (1 + (samples - 400) // 160, bins)
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_less_than_one_frame_is_empty(samples):
    assert features.fbank(np.zeros(samples, np.float32), 16_000).shape == (0, 80)


def test_filter_banks_leave_the_waveform_alone():
    waveform = signal("noise", 1600, 16_000)
    before = waveform.copy()
    features.fbank(waveform, 16_000)
    assert np.array_equal(waveform, before)


@pytest.mark.parametrize("norm_means", [True, False])
@pytest.mark.parametrize("norm_vars", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 57])
def test_utterance_cmvn_equals_fairseq(norm_means, norm_vars, frames):
    pytest.importorskip("fairseq")
    from fairseq.data.audio.feature_transforms.utterance_cmvn import UtteranceCMVN

    rng = np.random.default_rng(frames)
    values = (5 + 3 * rng.standard_normal((frames, 80))).astype(np.float32)
    ours = features.utterance_cmvn(values.copy(), norm_means, norm_vars)
    theirs = UtteranceCMVN(norm_means, norm_vars)(values.copy())
    np.testing.assert_array_equal(ours, theirs)


def test_utterance_cmvn_of_constant_features_is_finite():
    values = np.full((10, 4), 2.0, np.float32)
    assert np.isfinite(features.utterance_cmvn(values)).all()


def test_global_cmvn_equals_fairseq(tmp_path):
    pytest.importorskip("fairseq")
    from fairseq.data.audio.feature_transforms.global_cmvn import GlobalCMVN

    rng = np.random.default_rng(0)
    values = rng.standard_normal((31, 80)).astype(np.float32)
    mean, std = rng.standard_normal(80), rng.uniform(0.5, 2, 80)
    np.savez(tmp_path / "stats.npz", mean=mean, std=std)
    theirs = GlobalCMVN(str(tmp_path / "stats.npz"))(values)
    np.testing.assert_array_equal(features.global_cmvn(values, mean, std), theirs)


@pytest.mark.parametrize("samples", [1, 199, 200, 16_000, 31_999, 32_000])
@pytest.mark.parametrize("level", [0.0, 1e-6, 0.3])
def test_a_window_is_its_heard_frames_and_padding(samples: int, level: float) -> None:
    from fairseq_openvino.speech.features import heard_frames, log_mel, padded_log_mel

    waveform = np.random.default_rng(0).normal(0, level, samples).astype(np.float32)
    window = log_mel(waveform, 80, 200)
    frames = window[: heard_frames(samples, 200)]
    np.testing.assert_allclose(padded_log_mel(frames, 200), window, atol=2e-7)
