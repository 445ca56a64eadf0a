"""What may follow in a Whisper text: a bias for rules about single tokens, a mask for timestamps.

Source: transformers `generation/logits_process.py:WhisperTimeStampLogitsProcessor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fairseq_openvino.bundle import WhisperConfig

NOWHERE = np.iinfo(np.int32).max


@dataclass(frozen=True)
class TimestampMask:
    """A `model.Mask`: pairs of timestamps that never decrease, and text only where it is more likely.

    Bounds (R, 3): forbidden are tokens below the first, timestamps below the second, and tokens from
    the third on.
    """

    first: int
    """<|0.00|>; every token from here on is a timestamp."""
    width: int = 3

    def bounds(
        self,
        tokens: np.ndarray,
        eos: int,
        max_initial_timestamp: int | None,
        until: np.ndarray | int = 0,
    ) -> np.ndarray:
        """For generated tokens (R, n), n >= 0; before the timestamp `until` (R,) no text ends."""
        first = self.first
        bounds = np.tile(np.array([0, first, NOWHERE], np.int32), (len(tokens), 1))
        if tokens.shape[1] == 0:
            bounds[:, 0] = first
            if max_initial_timestamp is not None:
                bounds[:, 2] = first + max_initial_timestamp + 1
            return bounds
        last = tokens[:, -1] >= first
        before = tokens[:, -2] >= first if tokens.shape[1] > 1 else np.ones_like(last)
        early = tokens[:, -1] - first < until
        bounds[last & before, 2] = first  # a pair is complete: text follows, or nothing more
        bounds[last & before & early, 2] = eos
        bounds[last & ~before, 0] = eos  # a segment has ended: another begins, or the text ends
        bounds[last & ~before & early, 0] = first
        newest = tokens.max(axis=1)  # timestamps never decrease
        seen = newest >= first
        bounds[seen, 1] = newest[seen] + 1
        repeat = last & ~before  # the same moment may end one segment and begin the next
        bounds[repeat, 1] = newest[repeat]
        return bounds

    def apply(self, scores: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """See `model.Mask`; `graph` does the same."""
        token = np.arange(scores.shape[1])
        allowed = (token >= bounds[:, :1]) & (token < bounds[:, 2:])
        allowed &= (token < self.first) | (token >= bounds[:, 1:2])
        scores = np.where(allowed, scores, -np.inf)
        scale = np.exp(scores - scores.max(axis=1, keepdims=True))
        timestamp = scale[:, self.first :].sum(axis=1) > scale[:, : self.first].max(axis=1)
        scores[timestamp, : self.first] = -np.inf
        return scores

    def graph(self, scores: Any, bounds: Any) -> Any:
        """See `model.Mask`; `apply` does the same."""
        from openvino import opset13 as ops

        vocabulary_size = scores.get_output_partial_shape(0)[-1].get_length()
        low, timestamp, high = (
            ops.gather(bounds, ops.constant(np.array([i], np.int64)), ops.constant(1))
            for i in range(3)
        )  # (R, 1) each
        token = ops.constant(np.arange(vocabulary_size, dtype=np.int32)[None])
        text = ops.constant(np.arange(vocabulary_size)[None] < self.first)
        never, axis = ops.constant(np.float32(-np.inf)), ops.constant(np.array([-1], np.int64))
        allowed = ops.logical_and(ops.greater_equal(token, low), ops.less(token, high))
        allowed = ops.logical_and(
            allowed, ops.logical_or(text, ops.greater_equal(token, timestamp))
        )
        scores = ops.select(allowed, scores, never)
        scale = ops.exp(ops.subtract(scores, ops.reduce_max(scores, axis, True)))
        split = ops.constant(np.array([self.first, vocabulary_size - self.first], np.int64))
        parts = ops.variadic_split(scale, ops.constant(np.int64(1)), split)
        likely = ops.greater(
            ops.reduce_sum(parts.output(1), axis, True), ops.reduce_max(parts.output(0), axis, True)
        )
        return ops.select(ops.logical_and(likely, text), never, scores)


class Rules:
    """What may follow, by token and by history, for one way of decoding.

    Args:
        config: of the model.
        eos: <|endoftext|>.
        vocabulary_size: V.
        timestamps: whether the timestamp rules hold.
        min_tokens: fewest tokens before <|endoftext|>.
    """

    def __init__(
        self,
        config: WhisperConfig,
        eos: int,
        vocabulary_size: int,
        timestamps: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self.config, self.eos, self.min_tokens = config, eos, min_tokens
        self.mask = TimestampMask(config.first_timestamp) if timestamps else None
        bias = np.zeros((1, vocabulary_size), np.float32)
        bias[0, list(config.suppressed)] = -np.inf
        if timestamps:
            bias[0, config.no_timestamps] = -np.inf
        self._later, self._first = bias, bias.copy()
        self._first[0, list(config.suppressed_at_start)] = -np.inf

    def bias(self, generated: int) -> np.ndarray:
        """Bias (1, V) of the token after `generated` others."""
        bias = self._later if generated else self._first
        if generated < self.min_tokens:
            bias = bias.copy()
            bias[0, self.eos] = -np.inf
        return bias

    def bounds(self, tokens: np.ndarray, until: np.ndarray | int = 0) -> np.ndarray | None:
        """Of the mask, for generated tokens (R, n); None without one."""
        if self.mask is None:
            return None
        return self.mask.bounds(tokens, self.eos, self.config.max_initial_timestamp, until)
