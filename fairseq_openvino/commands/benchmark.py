"""The `benchmark` subcommand; importing this loads nothing heavy."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

from fairseq_openvino.benchmark.plan import (
    TRAINED,
    TRAINED_DIRECTORY,
    Options,
    known_engines,
    numbers,
    split,
)
from fairseq_openvino.benchmark.report import markdown, write
from fairseq_openvino.benchmark.rounds import run_benchmark
from fairseq_openvino.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PARTIAL,
    MissingDependencyError,
    OptionError,
)

QUICK = {"utterances": "1,8", "rounds": 2, "tokens": 20}
"""Defaults of --quick."""
NEEDED = ("torch", "fairseq", "onnx", "onnxruntime")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `benchmark`; unset flags take the defaults of `Options`, or of QUICK."""
    models = f"s,m,l (random weights), {TRAINED} (examples/covost); default: s,{TRAINED}"
    parser.add_argument("--models", metavar="LIST", help=models)
    parser.add_argument(
        "--vocabularies", metavar="LIST", help="sizes for the random models (default: 250)"
    )
    parser.add_argument(
        "--utterances", metavar="LIST", help="of the batch, random models (default: 1,8,32)"
    )
    parser.add_argument("--beams", metavar="LIST", help="default: 5")
    parser.add_argument("--engines", metavar="LIST", help="default: all, see --list-engines")
    parser.add_argument("--list-engines", action="store_true", help="names and meanings, no run")
    parser.add_argument("--rounds", type=int, help="default: 5; Whisper: 3")
    parser.add_argument(
        "--tokens", type=int, help="of each random hypothesis (default: 60; Whisper: 64)"
    )
    parser.add_argument("--threads", type=int, help="of every engine (default: all cores)")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="for one load or run (default: 180)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="for benchmark.* or whisper.* (.md, .json, .png; default: benchmark)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="keep models and caches (default: temporary; Whisper: in --output)",
    )
    parser.add_argument(
        "--model-overrides", metavar="DICT", help="arguments of the random models to replace"
    )
    parser.add_argument(
        "--quick", action="store_true", help="1 and 8 utterances, 2 rounds, 20 tokens"
    )
    parser.add_argument(
        "--whisper",
        nargs="+",
        metavar="SIZE",
        help="instead: Whisper against its other engines (random weights: tiny, base, small)",
    )
    parser.add_argument(
        "--whisper-memory", action="store_true", help="instead: memory over 2000 Whisper clips"
    )


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Measure, print, write; the exit code is 1 if an engine failed and 130 after Ctrl-C."""
    started = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {line}", file=sys.stderr, flush=True)

    if arguments.whisper or arguments.whisper_memory:
        from fairseq_openvino.benchmark.whisper.command import run as run_whisper

        return run_whisper(arguments, progress)
    if arguments.list_engines:
        print("\n".join(f"{name:<20} {meaning}" for name, meaning in known_engines().items()))
        return EXIT_OK
    options = parse(arguments)
    _check_packages()
    results = run_benchmark(options, progress)
    print(markdown(results))
    written = write(results, options.output)
    if not any(path.suffix == ".png" for path in written):
        progress("no chart: it needs matplotlib (extra: eval) and a measured baseline")
    progress(f"written: {', '.join(map(str, written))}")
    if results.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_PARTIAL if any(row.error for row in results.rows) else EXIT_OK


def parse(arguments: argparse.Namespace) -> Options:
    """Flags to options.

    Raises:
        OptionError: a list or number is malformed, or a name unknown.
    """
    chosen: dict[str, Any] = dict(QUICK) if arguments.quick else {}
    trained = (TRAINED,) if TRAINED_DIRECTORY.is_dir() else ()
    chosen["models"] = ("s", *trained)
    names = ("vocabularies", "utterances", "beams", "rounds", "tokens", "threads", "timeout",
             "output", "work_dir")  # fmt: skip
    given = {name: getattr(arguments, name) for name in names}
    chosen |= {name: value for name, value in given.items() if value is not None}
    for name in ("models", "engines"):
        if getattr(arguments, name) is not None:
            chosen[name] = split(getattr(arguments, name))
    for name in ("vocabularies", "utterances", "beams"):
        if name in chosen:
            chosen[name] = numbers(f"--{name}", chosen[name])
    if arguments.model_overrides is not None:
        chosen["model_overrides"] = _dictionary(arguments.model_overrides)
    return Options(**chosen)


def _dictionary(text: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, dict):
        raise OptionError(
            f"Benchmarking failed in --model-overrides: expected a dictionary, got {text!r}. "
            "Write it as \"{'name': value}\"."
        )
    return value


def _check_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"Benchmarking failed: expected the packages {', '.join(NEEDED)}, got none of "
            f"{', '.join(missing)}. Install fairseq-openvino[fairseq]."
        )
