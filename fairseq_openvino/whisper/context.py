"""Audio contexts shorter than the window: how much is encoded, and which texts are doubted.

Whisper was trained on windows of 30 s: with fewer encoder positions than about 500 its decoder
repeats itself until the token limit. A text that looks wrong is decoded again with the whole window.
"""

from __future__ import annotations

from fairseq_openvino.model import Clip, Transcript
from fairseq_openvino.speech.features import HOP_SAMPLES, WHISPER_RATE_HZ
from fairseq_openvino.whisper.windows import compression_ratio

FRAMES_PER_POSITION = 2
MARGIN = 100
"""Encoder positions (2 s) that `auto` encodes behind the clip."""
FLOOR = 600
"""Fewest positions of `auto`, where the window has as many."""
STEP = 50
"""`auto` encodes a multiple of this, so that few shapes occur."""
QUIET_DECADES, LOG_MEL_DECADES = 3.0, 4.0
"""Frames 30 dB below the loudest are silence; a log-mel value of 1 is four decades of power."""
MIN_HEARD_FRAMES = 20
"""Less sound (0.2 s) behind the last segment is its own end."""
MAX_COMPRESSION_RATIO = 2.4
"""As openai-whisper's (`transcribe.py`)."""
MIN_LOG_PROBABILITY = -0.8
"""Average of a text's tokens. openai-whisper's -1 keeps texts that the whole window gets right."""
MIN_TOKENS_PER_SECOND = 1.0
"""Speech has three or more; fewer may mean that the text stops before the audio does."""
MAX_TOKENS_PER_SECOND, MAX_TOKENS_BESIDE = 20, 30
"""A longer text is taken for a loop and not followed to its end."""


def frames(clip: Clip) -> int:
    """Frames of a clip without padding, at least one."""
    return max(_samples(clip) // HOP_SAMPLES, 1)


def positions(clip: Clip) -> int:
    """Encoder positions that the audio of a clip covers."""
    return -(-_samples(clip) // (FRAMES_PER_POSITION * HOP_SAMPLES))


def auto_positions(clip: Clip, window: int) -> int:
    """Encoder positions of `audio_context="auto"`, at most `window`."""
    needed = -(-(positions(clip) + MARGIN) // STEP) * STEP
    return min(max(needed, FLOOR), window)


def is_silent(clip: Clip, seek: int) -> bool:
    """Whether nobody speaks from frame `seek` on: what a decoder writes then is made up."""
    levels = clip.features.max(axis=1)
    heard = levels[seek : frames(clip)] > levels.max() - QUIET_DECADES / LOG_MEL_DECADES
    return int(heard.sum()) < MIN_HEARD_FRAMES


def token_limit(seconds: float) -> int:
    """Most tokens of a clip that is decoded with less than the whole window."""
    return int(MAX_TOKENS_PER_SECOND * seconds) + MAX_TOKENS_BESIDE


def doubt(transcript: Transcript, eos: int, max_tokens: int | None) -> str | None:
    """Why a text may be wrong, or None; `max_tokens` is what the user asked for."""
    best = transcript.hypotheses[0][1]
    count = len(best.tokens)
    if eos not in best.tokens[-1:] and count != max_tokens:
        return f"no end after {count} tokens"
    ratio = compression_ratio(transcript.text)
    if ratio > MAX_COMPRESSION_RATIO:
        return f"compression ratio {ratio:.1f}"
    average = float(best.positional_scores.mean())
    if average < MIN_LOG_PROBABILITY:
        return f"average log-probability {average:.2f}"
    if count < MIN_TOKENS_PER_SECOND * transcript.seconds:
        return f"{count} tokens in {transcript.seconds:.1f} s"
    return None


def _samples(clip: Clip) -> int:
    """Length at Whisper's sample rate."""
    return round(clip.seconds * WHISPER_RATE_HZ)
