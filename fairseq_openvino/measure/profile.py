"""Where a decoder step of ours spends its time (in a child).

The limit of a step is the time of its matrix products with weights: everything else is overhead.
Both are measured at the same past, the step without instrumentation, the nodes with OpenVINO's
PERF_COUNT.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fairseq_openvino.model import Ask, Clip, Head
from fairseq_openvino.s2t.search import candidate_count

PAST, MEASURED = 25, 11
"""Tokens before the first measured step, and measured steps: 30 past tokens in the middle."""
FULLY_CONNECTED = "FullyConnected"


def profile_step(model: Any, clips: Sequence[Clip], beam: int) -> dict[str, Any]:
    """Step time, nodes' time by type and their limit, all in microseconds a step."""
    options = replace(model.engine.options, profile=True, cache_dir=None)
    instrumented = type(model)(model.bundle, options)
    step, _ = _steps(model, clips, beam, counted=False)
    _, nodes = _steps(instrumented, clips, beam, counted=True)
    connected = nodes.get(FULLY_CONNECTED, 0.0)
    total = sum(nodes.values())
    return {
        "past_tokens": PAST + MEASURED // 2,
        "step_us": step,
        "nodes_us": dict(sorted(nodes.items(), key=lambda item: -item[1])),
        "nodes_total_us": total,
        "fully_connected_us": connected,
        "fully_connected_share": connected / total if total else None,
        "ratio_to_limit": step / connected if connected else None,
    }


def _steps(
    model: Any, clips: Sequence[Clip], beam: int, counted: bool
) -> tuple[float, dict[str, float]]:
    """Median time of a step and mean time of each node type, us."""
    lengths = np.array([len(clip.features) for clip in clips])
    bins = model.manifest.dimensions.feature_bins  # a waveform has one
    features = np.zeros((len(clips), lengths.max(), bins), np.float32)
    for row, clip in zip(features, clips, strict=True):
        row[: len(clip.features)] = clip.features.reshape(-1, bins)
    memory = model.encode(features, lengths)
    width = model.manifest.dimensions.vocabulary_size
    rows = memory.utterances * beam
    random = np.random.default_rng(0)
    times: list[float] = []
    nodes: defaultdict[str, float] = defaultdict(float)
    bias = np.zeros((1, width), np.float32)
    with model.open(memory, beam, Head(candidate_count(beam, width))) as session:
        for position in range(PAST + MEASURED):
            tokens = random.integers(4, width, (rows, 1))
            beam_idx = random.integers(0, beam, rows) + np.arange(rows) // beam * beam
            beam_idx = np.arange(rows) if position == 0 else beam_idx
            started = time.perf_counter()
            session.step(Ask(tokens, beam_idx.astype(np.int32), bias))
            if position < PAST:
                continue
            times.append(1e6 * (time.perf_counter() - started))
            if counted:
                for info in session._request.profiling_info:
                    nodes[info.node_type] += info.real_time.total_seconds() * 1e6 / MEASURED
    return statistics.median(times), {name: used for name, used in nodes.items() if used}
