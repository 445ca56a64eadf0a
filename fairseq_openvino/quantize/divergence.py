"""How far one engine's distributions are from another's, on recorded utterances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fairseq_openvino.quantize import recording
from fairseq_openvino.runtime.engine import Engine, Variant
from fairseq_openvino.runtime.session import Session, encode


def divergence(
    reference: Engine,
    candidate: Engine,
    paths: Sequence[Path],
    tick: Callable[[], None] = lambda: None,
) -> float:
    """Mean over tokens of KL(reference || candidate), in nats; infinite if one is not a number.

    Both run the whole model, encoder and decoder, over the tokens the reference decoded.

    Args:
        reference: the engine that is right; each runs at the precision of its options.
        candidate: the engine that is judged.
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


def _log_probs(engine: Engine, path: Path) -> Iterator[np.ndarray]:
    """Of each recorded session, shape (L, V), float64."""
    precision = engine.options.precision
    for call in recording.read(path):
        if not call.sequences:
            continue
        encoded = encode(engine, Variant("encoder", precision, 1), call.features, call.lengths)
        for tokens in call.sequences:
            with Session(engine, Variant("decoder", precision, 1), encoded) as session:
                yield session.step(tokens, np.zeros(1, np.int32))[0].astype(np.float64)
