"""`fairseq-openvino export`, which is also `scripts/export_onnx.py`."""

from __future__ import annotations

import argparse
import ast
import logging
import warnings
from pathlib import Path
from typing import Any

from fairseq_openvino.errors import EXIT_OK, MissingDependencyError, OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
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


def run(options: argparse.Namespace, _: list[str]) -> int:
    """Export, and print the parity table and the files."""
    warnings.filterwarnings("ignore")  # of Fairseq's and Hydra's own code
    logging.getLogger("fairseq").setLevel(logging.ERROR)
    from fairseq_openvino.export import ExportOptions, export_checkpoint
    from fairseq_openvino.export.fairseq.data import DataDirectory

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
        from fairseq_openvino.export.whisper.graphs import export_whisper
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
