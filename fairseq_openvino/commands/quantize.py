"""`fairseq-openvino quantize`; importing this loads nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_openvino.commands.progress import progress_lines
from fairseq_openvino.errors import EXIT_OK
from fairseq_openvino.flags import add_flags, given
from fairseq_openvino.quantize.options import MODES, Options

GATE = (
    "validation", "validation_size", "metric", "tokenizer", "max_drop", "accept_uncertain", "beam",
    "batch_size",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Quantize a bundle; publish it only if its texts hold up."
    parser.epilog = "modes:\n" + "\n".join(f"  {name:<13} {what}" for name, what in MODES.items())
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="in floating point; or any Whisper model"
    )
    parser.add_argument(
        "--calibration", type=Path, required=True, metavar="CORPUS",
        help="Fairseq, Common Voice or plain TSV, or a LibriSpeech folder",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, required=True, metavar="BUNDLE", help="directory to create"
    )
    add_flags(parser, Options, Options.__dataclass_fields__.keys() - GATE)
    add_flags(parser.add_argument_group("quality gate"), Options, GATE)


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Quantize, print the table of trials; QualityError (exit code 1) if none passed or none can be told."""
    from fairseq_openvino.quantize.procedure import quantize_bundle

    options = Options(**given(arguments, Options))
    result = quantize_bundle(
        arguments.bundle, arguments.calibration, arguments.output, options, progress_lines()
    )
    print(result.table)
    print(f"\n{result.bundle.manifest.precision} written to {result.bundle.directory}")
    for name, file in result.bundle.manifest.files.items():
        print(f"  {name:<14} {file.bytes / 1e6:8.2f} MB")
    return EXIT_OK
