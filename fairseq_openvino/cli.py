"""`fairseq-openvino export|verify|transcribe|quantize|evaluate|benchmark|doctor`.

Exit codes: 0 done; 1 done, but some utterances failed or a comparison did not hold; 2 wrong usage;
3 model, bundle or data damaged or not fitting; 4 unsafe input refused; 5 dependency, device,
permission or disk space missing; 130 interrupted; 141 whoever read the output stopped, as `head` does.
Output is UTF-8 whatever the locale says.
"""

from __future__ import annotations

import argparse
import ast
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq_openvino import __version__
from fairseq_openvino.benchmark.arguments import add_arguments as add_benchmark_arguments
from fairseq_openvino.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PARTIAL,
    FairseqOpenVINOError,
    MissingDependencyError,
    OptionError,
)
from fairseq_openvino.evaluate.arguments import add_arguments as add_evaluate_arguments
from fairseq_openvino.quantize.arguments import add_arguments as add_quantize_arguments
from fairseq_openvino.transcribe import add_arguments as add_transcribe_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    level = os.environ.get("LOGLEVEL", "WARNING").upper()  # Fairseq's variable
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.run is not _verify:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return int(options.run(options, rest))
    except FairseqOpenVINOError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return EXIT_BROKEN_PIPE


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and their flags."""
    parser = argparse.ArgumentParser(
        prog="fairseq-openvino", description="Train in Fairseq, run on OpenVINO.",
        epilog=__doc__.split("\n\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_export_arguments(commands.add_parser("export", help="checkpoint to bundle"))
    verify = commands.add_parser(
        "verify", help="fairseq-generate twice: eager and --ov-engine, compared",
        usage="fairseq-openvino verify FAIRSEQ_GENERATE_ARGUMENTS... [--ov-FLAG ...]",
    )  # fmt: skip
    verify.set_defaults(run=_verify)
    add_transcribe_arguments(commands.add_parser("transcribe", help="audio files to text"))
    add_quantize_arguments(commands.add_parser("quantize", help="smaller and faster, gated"))
    add_evaluate_arguments(commands.add_parser("evaluate", help="accuracy and time on a corpus"))
    add_benchmark_arguments(commands.add_parser("benchmark", help="against every alternative"))
    doctor = commands.add_parser("doctor", help="versions, shims, devices, precision in use")
    doctor.set_defaults(run=_doctor)
    return parser


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `export`, which is also `scripts/export_onnx.py`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--path", type=Path, metavar="CKPT", help="Fairseq checkpoint")
    source.add_argument(
        "--whisper", metavar="SOURCE",
        help="Whisper: Hugging Face directory, OpenAI .pt file, or hub name",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="DIR", help="data directory of --path")
    parser.add_argument("--config-yaml", default="config.yaml", help="YAML in the data directory")
    parser.add_argument(
        "--gen-subset", metavar="NAME",
        help="use its transforms (needed if the YAML has different ones for evaluation splits)",
    )  # fmt: skip
    parser.add_argument(
        "--sample-rate", type=int, metavar="HZ",
        help="of the training audio, if the YAML does not say (default: 16000)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, required=True, metavar="BUNDLE", help="directory to create"
    )
    parser.add_argument(
        "--precision", default="f32", help="stored weights: f32 (exact) or f16 (half the size)"
    )
    parser.add_argument("--onnx-only", action="store_true", help="no OpenVINO IR")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--model-overrides", default="{}", help="dictionary of model arguments, as Fairseq's"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE",
        help="of --whisper: tokenizer.json, *.tiktoken or a directory (default: beside the source)",
    )  # fmt: skip
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace, _: list[str]) -> int:
    warnings.filterwarnings("ignore")  # of Fairseq's and Hydra's own code
    logging.getLogger("fairseq").setLevel(logging.ERROR)
    from fairseq_openvino.export import ExportOptions, export_checkpoint
    from fairseq_openvino.export.data import DataDirectory

    wanted = ExportOptions(options.precision, not options.onnx_only, True, options.overwrite)
    if options.whisper is not None:
        bundle, report = _export_whisper(options, wanted)
    elif options.data is None:
        raise OptionError(
            "Exporting failed in --data: expected the data directory of --path, got none. "
            "Name the directory the model was trained with."
        )
    else:
        data = DataDirectory(
            options.data, options.config_yaml, options.gen_subset, options.sample_rate
        )
        overrides = _overrides(options.model_overrides)
        bundle, report = export_checkpoint(options.path, data, options.output, wanted, overrides)
    print(report.table())
    print(f"\n{bundle.manifest.architecture} exported to {bundle.directory}")
    for name, file in bundle.manifest.files.items():
        print(f"  {name:<14} {file.bytes / 1e6:8.2f} MB")
    return EXIT_OK


def _export_whisper(options: argparse.Namespace, wanted: Any) -> tuple[Any, Any]:
    try:
        from fairseq_openvino.export.whisper import export_whisper
    except ImportError as error:
        raise MissingDependencyError(
            f"Exporting failed in --whisper: expected the package transformers, got {error}. "
            "Install fairseq-openvino[whisper-export]."
        ) from error
    return export_whisper(options.whisper, options.output, wanted, options.tokenizer)


def _overrides(text: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise OptionError(
            f"Exporting failed in --model-overrides: expected a dictionary, got {text!r} ({error}). "
            "Write it as \"{'name': value}\"."
        ) from error
    if not isinstance(value, dict):
        raise OptionError(
            f"Exporting failed in --model-overrides: expected a dictionary, got {text!r}. "
            "Write it as \"{'name': value}\"."
        )
    return value


def _verify(_: argparse.Namespace, arguments: list[str]) -> int:
    from fairseq_openvino.verify import compare, generate_twice, report

    eager, engine = generate_twice(arguments)
    comparison = compare(eager, engine)
    print(report(eager, engine, comparison))
    return EXIT_OK if comparison.passed else EXIT_PARTIAL


def _doctor(_: argparse.Namespace, __: list[str]) -> int:
    from fairseq_openvino.doctor import report

    print(report())
    return EXIT_OK
