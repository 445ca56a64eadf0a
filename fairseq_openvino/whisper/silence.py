"""Whether anybody may be speaking, from the log-mel frames that are there anyway.

A decoder asked for a text gives one, for noise too. What cannot be speech is therefore not decoded:
silence, steady noise and hum, pure tones, sounds held as long as a chord. Speech swells with every
syllable, is broad, and changes its spectrum within 50 ms; a clip is speech as soon as two seconds of it
are. Measured above 300 Hz, over what stands out from the background, so that hum and noise behind a voice
do not matter. Rhythmic or sung music, surf and steps are left to the model's no-speech probability.

Source of the measures: Scheirer and Slaney, "Construction and evaluation of a robust multifeature
speech/music discriminator", ICASSP 1997 (modulation energy, spectral flux). The thresholds lie midway
between real speech, also at 0 dB beside noise or music, and non-speech (`tests/test_whisper_silence.py`).
"""

from __future__ import annotations

import numpy as np

DB_PER_UNIT, DB_OF_ZERO = 40.0, -40.0
"""Of Whisper's log-mel values: (log10(power) + 4) / 4."""
INAUDIBLE_DB = -60.0
"""No bin of 16-bit samples that are 0 or 1 is louder; speech attenuated by 40 dB is, by 20 dB."""
MIN_FRAMES = 150
"""Less sound is not judged: it may be a single vowel."""
BLOCK_FRAMES, HOP_FRAMES = 200, 100
UNHEARD_SHARE = 10
"""The lowest tenth of the bins, below 300 Hz, is hum more often than voice."""
BANDS = 9
SMOOTHED_FRAMES, SYLLABLE_FRAMES = 9, 20
"""A click is shorter than half the first, speech in two seconds is not shorter than the second."""
BACKGROUND_PERCENTILE = 10
MIN_SWELL_DB = 6.0
"""Noise: at most 4; speech: from 7 at 0 dB in noise to 60."""
FOREGROUND_DB, RANGE_DB = 8.0, 25.0
"""What counts of a frame: so much above the background, and so near to its loudest bin."""
MIN_SHARE = 1 / 9
"""Of the bins in the broadest tenth of the frames; tones: at most 1/14, speech: at least 1/6."""
CHANGE_FRAMES = 5
MIN_CHANGE_DB = 4.5
"""Held notes: at most 4.2; speech: at least 4.9 below a low-pass at 1.5 kHz, else 5.3."""


def is_speech(features: np.ndarray) -> bool:
    """Whether the log-mel frames (T, F) of a clip, without padding, may hold speech."""
    levels = DB_PER_UNIT * features[:, features.shape[1] // UNHEARD_SHARE :] + DB_OF_ZERO
    if levels.max() < INAUDIBLE_DB:
        return False
    if len(levels) < MIN_FRAMES:
        return True
    last = max(len(levels) - BLOCK_FRAMES, 0)
    blocks = (levels[i : i + BLOCK_FRAMES] for i in (*range(0, last, HOP_FRAMES), last))
    return any(_swells(block) and _is_articulated(block) for block in blocks)


def _swells(levels: np.ndarray) -> bool:
    """Whether the power of a band rises for as long as a syllable; levels (T, F) in dB."""
    frames, bins = levels.shape
    width = bins // BANDS
    power = 10 ** (levels[:, : BANDS * width] / 10)
    bands = 10 * np.log10(power.reshape(frames, BANDS, width).sum(2))
    windows = np.lib.stride_tricks.sliding_window_view(bands, SMOOTHED_FRAMES, axis=0)
    smoothed = np.sort(np.median(windows, axis=2), axis=0)
    background = np.percentile(smoothed, BACKGROUND_PERCENTILE, axis=0)
    return bool((smoothed[-SYLLABLE_FRAMES] - background).max() > MIN_SWELL_DB)


def _is_articulated(levels: np.ndarray) -> bool:
    """Whether what stands out of the background is broad and changes its shape."""
    background = np.percentile(levels, BACKGROUND_PERCENTILE, axis=0)
    foreground = np.where(levels > background + FOREGROUND_DB, levels, -np.inf)
    peaks = foreground.max(axis=1)
    loud = (peaks > peaks.max() - RANGE_DB) & np.isfinite(peaks)
    heard = np.isfinite(foreground) & (foreground > peaks[:, None] - RANGE_DB)
    pairs = np.flatnonzero(loud[:-CHANGE_FRAMES] & loud[CHANGE_FRAMES:])
    if not len(pairs):
        return False
    shares = np.percentile(heard[loud].mean(axis=1), 90)
    either = heard[pairs] | heard[pairs + CHANGE_FRAMES]
    change = levels[pairs + CHANGE_FRAMES] - levels[pairs]
    count = either.sum(axis=1, keepdims=True)
    louder = (change * either).sum(axis=1, keepdims=True) / count  # is no change of shape
    changes = np.sqrt((((change - louder) * either) ** 2).sum(axis=1) / count[:, 0])
    return bool(shares >= MIN_SHARE and np.median(changes) > MIN_CHANGE_DB)
