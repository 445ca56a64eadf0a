"""`fairseq-openvino transcribe`: audio files to text; a bundle needs neither torch nor fairseq."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from fairseq_openvino.errors import EXIT_OK, EXIT_PARTIAL, invalid
from fairseq_openvino.flags import add_flags, docstrings, given
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.speech.files import audio_files
from fairseq_openvino.speech.options import AudioOptions
from fairseq_openvino.speech.writers import FORMATS
from fairseq_openvino.whisper.options import WhisperOptions

FAMILIES = {"Fairseq S2T": S2TOptions, "Whisper": WhisperOptions}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command; those left out keep the model's own defaults."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="audio or video of any format; - for standard input; a directory: the audio files directly "
        "in it; a quoted pattern, as 'clips/*.mp3'",
    )  # fmt: skip
    parser.add_argument(
        "--model", required=True, metavar="SOURCE",
        help="bundle; or Whisper: a name such as base, turbo, openai/whisper-small, a directory of "
        "Hugging Face, PEFT or CTranslate2, an OpenAI .pt file; or a Fairseq checkpoint with --data. "
        "What is no bundle is exported on first use",
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="data directory of a Fairseq checkpoint")
    parser.add_argument(
        "--config-yaml", metavar="NAME", help="YAML in it (default: config.yaml, or the only one)"
    )
    parser.add_argument("--format", choices=tuple(FORMATS), default="text")
    parser.add_argument("--batch-size", type=int, default=8, help="files decoded together")
    add_flags(parser.add_argument_group("audio"), AudioOptions)
    add_flags(parser, EngineOptions, ("device", "precision", "threads", "cache_dir"))
    names = [{field.name for field in fields(options)} for options in FAMILIES.values()]
    shared = set.intersection(*names)
    texts = {name: _shared_help(name) for name in shared}
    add_flags(parser.add_argument_group("search"), S2TOptions, shared, **texts)
    for title, options in FAMILIES.items():
        own = {field.name for field in fields(options)} - shared
        add_flags(parser.add_argument_group(title), options, own)


def _shared_help(name: str) -> str:
    """Of an option that both families have: once, or each family's own."""
    texts = {title: docstrings(options)[name] for title, options in FAMILIES.items()}
    first = next(iter(texts.values()))
    if len(set(texts.values())) == 1:
        return first
    return "; ".join(f"{title}: {text.removesuffix('.')}" for title, text in texts.items())


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Files that fail are reported on stderr; the others are not lost."""
    from fairseq_openvino.loading import load_model

    if arguments.batch_size < 1:
        raise invalid("Transcribing", "--batch-size", "at least 1", arguments.batch_size)
    files = audio_files(arguments.files)
    recognizer = load_model(
        arguments.model, data=arguments.data, config_yaml=arguments.config_yaml,
        **given(arguments, EngineOptions),
    )  # fmt: skip
    recognizer.check_supported()
    kinds = (AudioOptions, S2TOptions, WhisperOptions)
    options = {name: value for kind in kinds for name, value in given(arguments, kind).items()}
    total, failed, damaged, size = 0, 0, 0, arguments.batch_size
    for start in range(0, len(files), size):
        for result in recognizer.transcribe_each(files[start : start + size], **options):
            total += 1
            if isinstance(result, Exception):
                failed += 1
                print(f"error: {result}", file=sys.stderr)
            else:
                damaged += result.damage is not None
                print(FORMATS[arguments.format](result), flush=True)
    for count, what in ((failed, "failed"), (damaged, "are damaged (see above)")):
        if count:
            print(f"{count} of {total} files {what}", file=sys.stderr)
    return EXIT_PARTIAL if failed or damaged else EXIT_OK
