"""`fairseq-openvino export|verify|transcribe|benchmark|doctor`.

Exit codes: 0 done; 1 done, but some utterances failed or a comparison did not hold; 2 wrong usage;
3 model, bundle or data damaged or not fitting; 4 unsafe input refused; 5 dependency, device,
permission or disk space missing; 130 interrupted.
"""

from __future__ import annotations

import argparse
import ast
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq_openvino import __version__
from fairseq_openvino.benchmark.arguments import add_arguments as add_benchmark_arguments
from fairseq_openvino.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PARTIAL,
    FairseqOpenVINOError,
    OptionError,
)
from fairseq_openvino.transcribe import add_arguments as add_transcribe_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
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
    add_benchmark_arguments(commands.add_parser("benchmark", help="against every alternative"))
    doctor = commands.add_parser("doctor", help="versions, shims, devices, precision in use")
    doctor.set_defaults(run=_doctor)
    return parser


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `export`, which is also `scripts/export_onnx.py`."""
    parser.add_argument(
        "--path", type=Path, required=True, metavar="CKPT", help="Fairseq checkpoint"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data directory")
    parser.add_argument("--config-yaml", default="config.yaml", help="YAML in the data directory")
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
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace, _: list[str]) -> int:
    warnings.filterwarnings("ignore")  # of Fairseq's and Hydra's own code
    from fairseq_openvino.export import ExportOptions, export_checkpoint
    from fairseq_openvino.export.data import DataDirectory

    bundle, report = export_checkpoint(
        options.path,
        DataDirectory(options.data, options.config_yaml),
        options.output,
        ExportOptions(options.precision, not options.onnx_only, True, options.overwrite),
        _overrides(options.model_overrides),
    )
    print(report.table())
    print(f"\n{bundle.manifest.architecture} exported to {bundle.directory}")
    for name, file in bundle.manifest.files.items():
        print(f"  {name:<14} {file.bytes / 1e6:8.2f} MB")
    return EXIT_OK


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
