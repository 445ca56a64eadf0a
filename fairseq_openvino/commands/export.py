"""`fairseq-openvino export`, which is also `scripts/export_onnx.py`."""

from __future__ import annotations

import argparse
import ast
import logging
import warnings
from pathlib import Path
from typing import Any

from fairseq_openvino.errors import EXIT_OK, invalid
from fairseq_openvino.export.options import ExportOptions
from fairseq_openvino.flags import add_flags, given
from fairseq_openvino.s2t.vocabulary import SUBWORDS

ACTION = "Exporting"
TEXT = ("source_lang", "target_lang", "bpe", "sentencepiece_model")
"""Fields of a `TextDirectory`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--path", type=Path, metavar="CKPT", help="Fairseq checkpoint")
    source.add_argument(
        "--source", "--whisper", metavar="SOURCE",
        help="Whisper: directory of Hugging Face, PEFT or CTranslate2, OpenAI .pt file, or a name such as "
        "base, turbo, openai/whisper-small; Speech2Text: directory of Hugging Face, or a name",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, required=True, metavar="BUNDLE", help="directory to create"
    )
    add_flags(parser, ExportOptions)
    fairseq = parser.add_argument_group("Fairseq")
    fairseq.add_argument("--data", type=Path, metavar="DIR", help="data directory of --path")
    for side in ("source", "target"):
        fairseq.add_argument(
            f"--{side}-lang", f"-{side[0]}", metavar="XX",
            help=f"{side} language of a text model (default: the checkpoint's)",
        )  # fmt: skip
    fairseq.add_argument(
        "--bpe", choices=SUBWORDS,
        help="subwords of a text model, as Fairseq's (default: sentencepiece if there is a model of it)",
    )  # fmt: skip
    fairseq.add_argument(
        "--sentencepiece-model", type=Path, metavar="FILE",
        help="of the text model's source (default: the only *.model in --data)",
    )  # fmt: skip
    fairseq.add_argument("--config-yaml", default="config.yaml", help="YAML in the data directory")
    fairseq.add_argument(
        "--gen-subset", metavar="NAME",
        help="use its transforms (needed if the YAML has different ones for evaluation splits)",
    )  # fmt: skip
    fairseq.add_argument(
        "--sample-rate", type=int, metavar="HZ",
        help="of the training audio, if the YAML does not say (default: 16000)",
    )  # fmt: skip
    fairseq.add_argument(
        "--user-dir", metavar="DIR",
        help="module with further architectures and their exporters, as Fairseq's",
    )  # fmt: skip
    fairseq.add_argument(
        "--model-overrides", default="{}", help="dictionary of model arguments, as Fairseq's"
    )
    parser.add_argument_group("Whisper").add_argument(
        "--tokenizer", type=Path, metavar="FILE",
        help="tokenizer.json, *.tiktoken or a directory (default: beside the source, else OpenAI's)",
    )  # fmt: skip


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Export, and print the parity table and the files."""
    warnings.filterwarnings("ignore")  # of Fairseq's and Hydra's own code
    logging.getLogger("fairseq").setLevel(logging.ERROR)
    options = ExportOptions(**given(arguments, ExportOptions))
    export = _export_checkpoint if arguments.source is None else _export_source
    bundle, report = export(arguments, options)
    print(report.table())
    print(f"\n{bundle.manifest.architecture} exported to {bundle.directory}")
    for name, file in bundle.manifest.files.items():
        print(f"  {name:<14} {file.bytes / 1e6:8.2f} MB")
    return EXIT_OK


def _export_checkpoint(arguments: argparse.Namespace, options: ExportOptions) -> tuple[Any, Any]:
    from fairseq_openvino.export.fairseq import export_checkpoint
    from fairseq_openvino.export.fairseq.task import Data, data_directory
    from fairseq_openvino.export.fairseq.text import TextDirectory

    if arguments.data is None:
        expected, advice = (
            "the data directory of --path",
            "Name the directory the model was trained with",
        )
        raise invalid(ACTION, "--data", expected, "none", advice)
    if arguments.user_dir is not None:
        _import_user_dir(arguments.user_dir)
    text = TextDirectory(arguments.data, *(getattr(arguments, name) for name in TEXT))
    data: Data = text
    if text == TextDirectory(arguments.data):
        data = data_directory(
            arguments.data, arguments.config_yaml, arguments.gen_subset, arguments.sample_rate
        )
    overrides = _overrides(arguments.model_overrides)
    return export_checkpoint(arguments.path, data, arguments.output, options, overrides)


def _import_user_dir(directory: str) -> None:
    """As Fairseq's commands do."""
    from fairseq.utils import import_user_module

    try:
        import_user_module(argparse.Namespace(user_dir=directory))
    except (ImportError, FileNotFoundError) as error:
        expected, advice = "the directory of a Python module", "Check it as fairseq-train has it"
        raise invalid(ACTION, "--user-dir", expected, f"{directory!r} ({error})", advice) from error


def _export_source(arguments: argparse.Namespace, options: ExportOptions) -> tuple[Any, Any]:
    from fairseq_openvino.export.sources import locate
    from fairseq_openvino.loading import export_place

    return export_place(locate(arguments.source), arguments.output, options, arguments.tokenizer)


def _overrides(text: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(text)
        if isinstance(value, dict):
            return value
        problem = repr(text)
    except (ValueError, SyntaxError) as error:
        problem = f"{text!r} ({error})"
    advice = "Write it as \"{'name': value}\""
    raise invalid(ACTION, "--model-overrides", "a dictionary", problem, advice)
