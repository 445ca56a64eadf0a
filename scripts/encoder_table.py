"""Encoder time of a bundle in f32 and bf16 and of its quantized twin, as a Markdown table.

Each row is one instruction set, capped with ONEDNN_MAX_CPU_ISA in a process of its own; within a row
the precisions are interleaved and medians are compared.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np

from fairseq_openvino import machine

ISAS = ("DEFAULT", "AVX512_CORE_VNNI", "AVX2_VNNI", "AVX2")
ROUNDS = 9


def main() -> int:
    """Print the table; with --row, one row as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("int8_bundle", type=Path)
    parser.add_argument("--utterances", type=int, default=8, help="N")
    parser.add_argument("--frames", type=int, default=550, help="T")
    parser.add_argument("--threads", type=int, default=machine.threads())
    parser.add_argument("--row", action="store_true", help="measure in this process, print JSON")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(_row(options)))
        return 0
    print("| instruction set | f32, ms | bf16 | INT8, f32 hint | INT8, bf16 hint |")
    print("|---|---|---|---|---|")
    for isa in ISAS:
        environment = os.environ | ({} if isa == ISAS[0] else {"ONEDNN_MAX_CPU_ISA": isa})
        words = [sys.executable, *sys.argv, "--row"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        seconds = json.loads(done.stdout.splitlines()[-1])
        cells = [f"{1000 * seconds['f32']:.0f}"]
        for name in ("bf16", "int8-f32", "int8-bf16"):
            known = name in seconds
            ratio = f"{seconds['f32'] / seconds[name]:.2f}x" if known else ""
            cells.append(f"{1000 * seconds[name]:.0f} ({ratio})" if known else "not available")
        print(f"| {isa} | {' | '.join(cells)} |", flush=True)
    return 0


def _row(options: Namespace) -> dict[str, float]:
    """Median seconds of each precision that the instruction set has."""
    from fairseq_openvino import load_model
    from fairseq_openvino.errors import DeviceError

    models = {
        f"{kind}{precision}": load_model(bundle, precision=precision, threads=options.threads).model
        for kind, bundle in (("", options.bundle), ("int8-", options.int8_bundle))
        for precision in ("f32", "bf16")
    }
    bins = models["f32"].manifest.dimensions.feature_bins
    shape = (options.utterances, options.frames, bins)
    features = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    lengths = np.full(options.utterances, options.frames)
    for name, model in list(models.items()):
        try:
            model.encode(features, lengths)  # warm-up
        except DeviceError:
            del models[name]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            started = time.perf_counter()
            model.encode(features, lengths)
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(kept) for name, kept in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
