"""The `evaluate` subcommand; importing this loads nothing heavy."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from fairseq_openvino.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PARTIAL
from fairseq_openvino.evaluate.measure import evaluate
from fairseq_openvino.evaluate.options import (
    DEFAULT_ENGINES,
    Options,
    Search,
    fail,
    known_engines,
    shard,
    split,
)
from fairseq_openvino.evaluate.records import read, spellings
from fairseq_openvino.evaluate.report import markdown, write
from fairseq_openvino.evaluate.results import compute

DEFAULT_OUTPUT = Path("evaluation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate`; unset flags take the defaults of `Options`."""
    parser.add_argument(
        "corpus", nargs="?", type=Path, metavar="MANIFEST",
        help="Fairseq manifest, Common Voice or plain TSV (path, text), or LibriSpeech folder",
    )  # fmt: skip
    _add_model_arguments(parser)
    corpus = parser.add_argument_group("corpus")
    corpus.add_argument("--text-column", metavar="NAME", help="column of the references")
    corpus.add_argument("--limit", type=int, metavar="N", help="the first N utterances")
    corpus.add_argument("--shard", metavar="I/N", help="of those, every N-th from the I-th on")
    search = parser.add_argument_group("generate(), for every engine")
    search.add_argument("--beam", type=int, help="default: 5")
    search.add_argument("--lenpen", type=float, help="default: 1")
    search.add_argument("--max-len-a", type=float, help="S2T (default: 0)")
    search.add_argument("--max-len-b", type=int, help="S2T (default: 200)")
    search.add_argument(
        "--language", help="S2T: target, Whisper: spoken language (default: the corpus')"
    )
    search.add_argument("--task", help="Whisper: transcribe (default) or translate")
    search.add_argument(
        "--audio-context", help="Whisper on OpenVINO: full (default), or auto, less for short clips"
    )
    _add_measurement_arguments(parser)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("models")
    models.add_argument(
        "--engines",
        metavar="LIST",
        help=f"default: {','.join(DEFAULT_ENGINES)}; see --list-engines",
    )
    models.add_argument("--list-engines", action="store_true", help="names and meanings, no run")
    models.add_argument(
        "--checkpoint", type=Path, metavar="CKPT",
        help="for pytorch: a Fairseq checkpoint, or a Hugging Face Whisper directory",
    )  # fmt: skip
    models.add_argument("--data", type=Path, metavar="DIR", help="Fairseq's data directory")
    models.add_argument("--config-yaml", help="YAML in it (default: config.yaml)")
    models.add_argument("--bundle", type=Path, metavar="BUNDLE", help="for the openvino engines")
    models.add_argument(
        "--int8-bundle", type=Path, metavar="BUNDLE",
        help="for openvino-int8, made by quantize (default: --bundle at precision int8)",
    )  # fmt: skip
    models.add_argument(
        "--int8-precision", help="of what is not quantized in --int8-bundle (default: its own)"
    )
    models.add_argument("--name", help="of the model, for the table")


def _add_measurement_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--metrics", metavar="LIST",
        help="of bleu, chrf, wer, accuracy (default: bleu,chrf or wer,accuracy, by the corpus)",
    )  # fmt: skip
    group.add_argument(
        "--normalizer", help="Whisper's, for wer: auto (default), english, basic, none"
    )
    group.add_argument(
        "--sacrebleu-tokenizer", dest="tokenizer", metavar="NAME", help="default: 13a"
    )
    group.add_argument("--batch-size", type=int, help="utterances decoded together (default: 1)")
    group.add_argument("--repeats", type=int, help="measured passes (default: 3)")
    group.add_argument("--threads", type=int, help="of every engine (default: all cores)")
    group.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="for loading or a batch (default: 600)"
    )
    group.add_argument("--cache-dir", type=Path, metavar="DIR", help="for compiled models")
    group.add_argument(
        "--output", type=Path, metavar="DIR",
        help="for utterances.jsonl, evaluation.md, .json, .svg (default: evaluation)",
    )  # fmt: skip
    group.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    group.add_argument(
        "--score-only", type=Path, nargs="+", metavar="DIR",
        help="no run: all figures again from the records in DIR; several are shards of one corpus",
    )  # fmt: skip


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Measure, print, write; the exit code is 1 if anything failed and 130 after Ctrl-C."""
    if arguments.list_engines:
        print("\n".join(f"{name:<14} {meaning}" for name, meaning in known_engines().items()))
        return EXIT_OK
    if arguments.score_only is not None:
        directories: list[Path] = arguments.score_only
        if len(directories) > 1 and arguments.output is None:
            raise fail("--score-only", "--output for the tables of several directories", "none")
        return _report(directories, arguments.output or directories[0])
    options = parse(arguments)
    started = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {line}", file=sys.stderr, flush=True)

    finished = evaluate(options, progress, arguments.resume)
    if not finished:
        print("interrupted; --resume goes on", file=sys.stderr)
        if not read([options.output]).utterances:
            return EXIT_INTERRUPTED
    code = _report([options.output], options.output)
    return code if finished else EXIT_INTERRUPTED


def parse(arguments: argparse.Namespace) -> Options:
    """Flags to options.

    Raises:
        OptionError: a flag is malformed or missing, or a name unknown.
    """
    if arguments.corpus is None:
        raise fail("MANIFEST", "a corpus", "none")
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    chosen: dict[str, Any] = {
        field.name: given[field.name] for field in fields(Options) if field.name in given
    }
    chosen.setdefault("output", DEFAULT_OUTPUT)
    for name in ("engines", "metrics"):
        if name in chosen:
            chosen[name] = split(f"--{name}", chosen[name])
    if "shard" in chosen:
        chosen["shard"] = shard(chosen["shard"])
    chosen["search"] = Search(
        **{field.name: given[field.name] for field in fields(Search) if field.name in given}
    )
    return Options(**chosen)


def _report(directories: list[Path], output: Path) -> int:
    results = compute(read(directories), spellings(directories[0]))
    print(markdown(results))
    written = write(results, output)
    print(f"written: {', '.join(map(str, written))}", file=sys.stderr)
    if len(written) < 3:  # noqa: PLR2004
        print("no chart: it needs matplotlib (extra: eval) and the first engine", file=sys.stderr)
    return EXIT_OK if results.complete else EXIT_PARTIAL
