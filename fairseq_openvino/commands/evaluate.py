"""`fairseq-openvino evaluate`: accuracy, time and memory of engines on a corpus."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fairseq_openvino import flags
from fairseq_openvino.commands.progress import progress_lines
from fairseq_openvino.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PARTIAL, invalid
from fairseq_openvino.measure.engines import Search
from fairseq_openvino.measure.evaluation import evaluate
from fairseq_openvino.measure.evaluation_figures import compute
from fairseq_openvino.measure.evaluation_report import markdown, write
from fairseq_openvino.measure.journal import read, spellings
from fairseq_openvino.measure.options import ACTION, EvaluationOptions, add_peers, known_engines

GROUPS = {
    "models": (
        "checkpoint", "data", "config_yaml", "bundle", "int8_bundle", "int8_precision", "name",
    ),
    "corpus": ("text_column", "limit", "shard"),
    "measurement": (
        "metrics", "normalizer", "tokenizer", "batch_size", "repeats", "threads", "timeout",
        "cache_dir", "output",
    ),
}  # fmt: skip
"""Fields of the options by group of flags."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    help_texts = flags.docstrings(EvaluationOptions)
    parser.add_argument(
        "corpus", nargs="?", type=Path, metavar="MANIFEST", help=help_texts["corpus"]
    )
    engines = parser.add_argument_group("engines")
    flags.add_flags(engines, EvaluationOptions, ("engines",))
    engines.add_argument("--list-engines", action="store_true", help="names and meanings, no run")
    add_peers(engines)
    for title, names in GROUPS.items():
        flags.add_flags(parser.add_argument_group(title), EvaluationOptions, names)
    flags.add_flags(parser.add_argument_group("generate(), for every engine"), Search)
    records = parser.add_argument_group("records")
    records.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    records.add_argument(
        "--score-only", type=Path, nargs="+", metavar="DIR",
        help="no run: all figures again from the records in DIR; several are shards of one corpus",
    )  # fmt: skip


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Measure, print, write; the exit code is 1 if anything failed and 130 after Ctrl-C."""
    if arguments.list_engines:
        print("\n".join(f"{name:<14} {spec.meaning}" for name, spec in known_engines().items()))
        return EXIT_OK
    if arguments.score_only is not None:
        directories: list[Path] = arguments.score_only
        given = flags.given(arguments, EvaluationOptions)
        if len(directories) > 1 and "output" not in given:
            expected = "--output for the tables of several directories"
            raise invalid(ACTION, "--score-only", expected, "none")
        return _report(directories, given.get("output", directories[0]))
    options = parse(arguments)
    if not evaluate(options, progress_lines(), arguments.resume):
        print("interrupted; --resume goes on", file=sys.stderr)
        if read([options.output]).utterances:
            _report([options.output], options.output)
        return EXIT_INTERRUPTED
    return _report([options.output], options.output)


def parse(arguments: argparse.Namespace) -> EvaluationOptions:
    """Flags to options.

    Raises:
        OptionError: one is missing, out of range, or a name unknown.
    """
    given = flags.given(arguments, EvaluationOptions)
    if given.get("corpus") is None:
        raise invalid(ACTION, "MANIFEST", "a corpus", "none")
    return EvaluationOptions(**given, search=Search(**flags.given(arguments, Search)))


def _report(directories: list[Path], output: Path) -> int:
    results = compute(read(directories), spellings(directories[0]))
    print(markdown(results))
    written = write(results, output)
    print(f"written: {', '.join(map(str, written))}", file=sys.stderr)
    if len(written) < 3:  # noqa: PLR2004
        print("no chart: it needs matplotlib (extra: eval) and the first engine", file=sys.stderr)
    return EXIT_OK if results.complete else EXIT_PARTIAL
