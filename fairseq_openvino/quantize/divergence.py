"""How far one model's distributions are from another's, on recorded utterances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fairseq_openvino.model import LOG_PROBS, Ask, Head, Model
from fairseq_openvino.quantize import recording


def divergence(
    reference: Model,
    candidate: Model,
    paths: Sequence[Path],
    tick: Callable[[], None] = lambda: None,
) -> float:
    """Mean over tokens of KL(reference || candidate), in nats; infinite if one is not a number.

    Both run the whole model, encoder and decoder, over the tokens the reference decoded. Without a decoder
    the mean is over frames.

    Args:
        reference: the model that is right.
        candidate: the model that is judged.
        paths: recordings, see `recording`.
        tick: called once for each of them.
    """
    total, tokens = 0.0, 0
    for path in paths:
        pairs = zip(_log_probs(reference, path), _log_probs(candidate, path), strict=True)
        for expected, found in pairs:
            total += float((np.exp(expected) * (expected - found)).sum())
            tokens += len(expected)
        tick()
    mean = total / max(tokens, 1)
    return mean if math.isfinite(mean) else math.inf


def _log_probs(model: Model, path: Path) -> Iterator[np.ndarray]:
    """Of each recorded session, shape (L, V), float64; without a decoder of each call, (S, V)."""
    for call in recording.read(path):
        if model.manifest.has_decoder and not call.sequences:
            continue
        memory = model.encode(call.features, call.lengths)
        if not model.manifest.has_decoder:
            yield memory.tensors[LOG_PROBS][0, : memory.lengths[0]].astype(np.float64)
        for tokens in call.sequences:
            with model.open(memory, 1, Head()) as session:
                step = session.step(Ask(tokens, np.zeros(1, np.int32)))
                yield step.scores[0].astype(np.float64)
