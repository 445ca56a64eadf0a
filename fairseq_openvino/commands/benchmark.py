"""`fairseq-openvino benchmark`: speed against every other way to run the same checkpoint."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from fairseq_openvino import flags
from fairseq_openvino.commands.progress import progress_lines
from fairseq_openvino.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PARTIAL,
    MissingDependencyError,
    invalid,
)
from fairseq_openvino.measure.benchmark import Progress, benchmark
from fairseq_openvino.measure.benchmark_figures import compute
from fairseq_openvino.measure.benchmark_report import markdown, write
from fairseq_openvino.measure.options import add_peers
from fairseq_openvino.measure.plan import ACTION, TRAINED, BenchmarkOptions

QUICK = {"utterances": (1, 8), "rounds": 2, "tokens": 20}
"""Defaults of --quick."""
WHISPER = {"rounds": 3, "tokens": 64}
"""Defaults with --whisper and --whisper-memory."""
OF_FAIRSEQ = ("models", "vocabularies", "utterances", "beams", "model_overrides")
"""Fields that say nothing there."""
NEEDED = ("torch", "fairseq", "onnx", "onnxruntime")
MEMORY_LIMIT = 0.05
"""Resident memory may differ by this much."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    hidden = ("frames", "peers", "whisper")
    names = [name for name in BenchmarkOptions.__dataclass_fields__ if name not in hidden]
    flags.add_flags(parser, BenchmarkOptions, names)
    add_peers(parser)
    parser.add_argument(
        "--whisper", nargs="+", metavar="SIZE", default=argparse.SUPPRESS,
        help=flags.docstrings(BenchmarkOptions)["whisper"],
    )  # fmt: skip
    parser.add_argument(
        "--score-only", type=Path, metavar="FILE",
        help="no run: tables and chart again from benchmark.jsonl or whisper.jsonl",
    )  # fmt: skip
    parser.add_argument("--list-engines", action="store_true", help="names and meanings, no run")
    parser.add_argument(
        "--quick", action="store_true", help="1 and 8 utterances, 2 rounds, 20 tokens"
    )


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Measure, print, write; the exit code is 1 if an engine failed and 130 after Ctrl-C."""
    options, progress = parse(arguments), progress_lines()
    if arguments.list_engines:
        known = options.known_engines.items()
        print("\n".join(f"{name:<20} {spec.meaning}" for name, spec in known))
        return EXIT_OK
    if options.whisper_memory:
        return _memory(options, progress)
    records = arguments.score_only or options.output / f"{options.name}.jsonl"
    if arguments.score_only is None:
        if not options.whisper:
            _check_packages()
        benchmark(options, progress)
    results = compute(records)
    print(markdown(results))
    written = write(results, records.with_suffix(".png"))
    if not any(path.suffix == ".png" for path in written):
        progress("no chart: it needs matplotlib (extra: eval) and a measured baseline")
    progress(f"written: {', '.join(map(str, written))}")
    if results.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_PARTIAL if any(row.error for row in results.rows) else EXIT_OK


def parse(arguments: argparse.Namespace) -> BenchmarkOptions:
    """Flags to options.

    Raises:
        OptionError: a name is unknown, a number out of range, or a flag of the other benchmark.
    """
    given = flags.given(arguments, BenchmarkOptions)
    chosen: dict[str, Any] = {"models": ("s", TRAINED)} if "trained" in given else {}
    if "whisper" in given or given.get("whisper_memory"):
        for name in (*OF_FAIRSEQ, *(("quick",) if arguments.quick else ())):
            if name in given or name == "quick":
                raise invalid(ACTION, name, "a flag of the Whisper benchmark", "one of Fairseq's")
        given["whisper"] = tuple(given.get("whisper", ()))
        chosen = {"models": ("s",), **WHISPER}
    elif arguments.quick:
        chosen |= QUICK
    return BenchmarkOptions(**chosen | given)


def _memory(options: BenchmarkOptions, progress: Progress) -> int:
    from fairseq_openvino.measure.memory import measure_memory

    curve = measure_memory(options, progress)
    print(curve.line())
    progress(f"written: {curve.write(options.output)}")
    return EXIT_OK if curve.spread <= MEMORY_LIMIT else EXIT_PARTIAL


def _check_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"Benchmarking failed: expected the packages {', '.join(NEEDED)}, got none of "
            f"{', '.join(missing)}. Install fairseq-openvino[fairseq]."
        )
