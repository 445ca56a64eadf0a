"""The `quantize` subcommand; importing this loads nothing heavy."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fairseq_openvino.errors import EXIT_OK
from fairseq_openvino.quantize.options import (
    ALPHAS,
    MAX_DROP,
    METRICS,
    MODES,
    PRECISIONS,
    Options,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `quantize`; unset flags take the defaults of `Options`."""
    drops = ", ".join(f"{drop:g} {metric}" for metric, drop in MAX_DROP.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Quantize a bundle; publish it only if its texts hold up."
    parser.epilog = "modes:\n" + "\n".join(f"  {name:<13} {what}" for name, what in MODES.items())
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="in floating point")
    parser.add_argument(
        "--calibration", type=Path, required=True, metavar="CORPUS",
        help="Fairseq, Common Voice or plain TSV, or a LibriSpeech folder",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, required=True, metavar="BUNDLE", help="directory to create"
    )
    parser.add_argument("--mode", choices=tuple(MODES), help="default: int8")
    parser.add_argument("--calibration-size", type=int, metavar="N", help="default: 50 utterances")
    gate = parser.add_argument_group("quality gate")
    gate.add_argument(
        "--validation", type=Path, metavar="CORPUS", help="default: the rest of --calibration"
    )
    gate.add_argument(
        "--validation-size", type=int, metavar="N", help="utterances drawn from it (default: 500)"
    )
    gate.add_argument("--metric", choices=METRICS, help="default: auto")
    gate.add_argument(
        "--sacrebleu-tokenizer", dest="tokenizer", metavar="NAME", help="default: 13a"
    )
    gate.add_argument("--max-drop", type=float, metavar="POINTS", help=f"default: {drops}")
    gate.add_argument("--beam", type=int, help="default: 5")
    gate.add_argument("--batch-size", type=int, metavar="N", help="decoded together (default: 8)")
    parser.add_argument(
        "--inference-precision", choices=PRECISIONS,
        help="what computes the rest, in the gate and by default afterwards (default: f32); int8: "
        "activations of weight-only layers are quantized as they come",
    )  # fmt: skip
    parser.add_argument("--config-yaml", type=Path, help="Fairseq's data YAML, for its audio_root")
    parser.add_argument("--text-column", metavar="NAME", help="column of the references")
    parser.add_argument("--language", help="S2T: target language; Whisper: spoken language")
    parser.add_argument(
        "--alphas", type=_numbers, metavar="LIST",
        help=f"SmoothQuant strengths to try (default: {','.join(f'{a:g}' for a in ALPHAS)})",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="of the draws of utterances (default: 1)")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="for recordings, reused (default: beside the output, removed once published)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Quantize, print the table of trials; QualityError (exit code 1) if none passed."""
    from fairseq_openvino.quantize.procedure import quantize_bundle

    started = time.monotonic()

    def announce(line: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {line}", file=sys.stderr, flush=True)

    options = parse(arguments)
    result = quantize_bundle(
        arguments.bundle, arguments.calibration, arguments.output, options, announce
    )
    print(result.table)
    print(f"\n{result.bundle.manifest.precision} written to {result.bundle.directory}")
    for name, file in result.bundle.manifest.files.items():
        print(f"  {name:<14} {file.bytes / 1e6:8.2f} MB")
    return EXIT_OK


def parse(arguments: argparse.Namespace) -> Options:
    """Flags to options.

    Raises:
        OptionError: a value is out of range.
    """
    given = {name: getattr(arguments, name, None) for name in Options.__dataclass_fields__}
    return Options(**{name: value for name, value in given.items() if value is not None})


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected --alphas=a,b,..., got {text!r}") from error
