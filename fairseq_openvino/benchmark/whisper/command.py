"""What `benchmark --whisper SIZE...` and `benchmark --whisper-memory` run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from fairseq_openvino.benchmark.plan import split
from fairseq_openvino.benchmark.whisper.memory import measure_memory, write_curve
from fairseq_openvino.benchmark.whisper.plan import ENGINES, Options
from fairseq_openvino.benchmark.whisper.report import markdown, write
from fairseq_openvino.benchmark.whisper.rounds import run_whisper_benchmark
from fairseq_openvino.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PARTIAL, OptionError

OF_FAIRSEQ = ("models", "vocabularies", "utterances", "beams", "model_overrides", "quick")
"""Flags that say nothing here."""
MEMORY_LIMIT = 0.05
"""Resident memory may differ by this much."""


def run(arguments: argparse.Namespace, progress: Callable[[str], None]) -> int:
    """Measure, print, write; the exit code is 1 if an engine failed and 130 after Ctrl-C.

    Raises:
        OptionError: a flag is malformed or of the other benchmark.
    """
    options = parse(arguments)
    if arguments.list_engines:
        print("\n".join(f"{engine.name:<20} {engine.package}" for engine in ENGINES))
        return EXIT_OK
    if arguments.whisper_memory:
        curve = measure_memory(options, progress)
        print(curve.line())
        progress(f"written: {write_curve(curve, options.output)}")
        return EXIT_OK if curve.spread <= MEMORY_LIMIT else EXIT_PARTIAL
    results = run_whisper_benchmark(options, progress)
    print(markdown(results))
    progress(f"written: {', '.join(map(str, write(results, options.output)))}")
    if results.interrupted:
        return EXIT_INTERRUPTED
    failed = any(row.error for row in results.rows)
    return EXIT_PARTIAL if failed else EXIT_OK


def parse(arguments: argparse.Namespace) -> Options:
    """Flags to options.

    Raises:
        OptionError: a name is unknown, a number out of range, or a flag of the other benchmark.
    """
    for name in OF_FAIRSEQ:
        if getattr(arguments, name):
            flag = f"--{name.replace('_', '-')}"
            raise OptionError(
                f"Benchmarking failed in {flag}: expected a flag of the Whisper benchmark, got one "
                "of Fairseq's. Leave it out."
            )
    names = ("rounds", "tokens", "threads", "timeout", "output", "work_dir")
    given: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    given["engines"] = split(arguments.engines or "")
    given["sizes"] = tuple(arguments.whisper) if arguments.whisper else None
    return Options(**{name: value for name, value in given.items() if value is not None})
