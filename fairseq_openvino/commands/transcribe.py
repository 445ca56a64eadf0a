"""`fairseq-openvino transcribe`: audio files to text; a bundle needs neither torch nor fairseq."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fairseq_openvino.atomic import writable_directory
from fairseq_openvino.commands.delivery import Delivery
from fairseq_openvino.commands.job import transcribe_job
from fairseq_openvino.commands.outputs import Documents, Files, Printed, stems
from fairseq_openvino.commands.progress import AudioBar
from fairseq_openvino.errors import StorageError, invalid
from fairseq_openvino.flags import add_flags, docstrings, given
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.speech.files import named_audio
from fairseq_openvino.speech.options import SPLIT, AudioOptions, SubtitleOptions
from fairseq_openvino.speech.writers import FORMATS, TIMED
from fairseq_openvino.whisper.options import WhisperOptions

TEXT = "text"
FAMILIES = {"Fairseq S2T": S2TOptions, "Whisper": WhisperOptions}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command; those left out keep the model's own defaults."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="audio or video of any format and length; - for standard input; a directory: the audio files "
        "directly in it; a quoted pattern, as 'clips/*.mp3'; a manifest .tsv with a column audio or path",
    )  # fmt: skip
    parser.add_argument(
        "--model", required=True, metavar="SOURCE",
        help="bundle; or Whisper: a name such as base, turbo, openai/whisper-small, a directory of "
        "Hugging Face, PEFT or CTranslate2, an OpenAI .pt file; or a Fairseq checkpoint with --data. "
        "What is no bundle is exported on first use",
    )  # fmt: skip
    parser.add_argument(
        "--expect", metavar="SHA256",
        help="of the bundle's manifest.json, as `info` shows it: another bundle is not read",
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="data directory of a Fairseq checkpoint")
    parser.add_argument(
        "--config-yaml", metavar="NAME", help="YAML in it (default: config.yaml, or the only one)"
    )
    parser.add_argument(
        "--format", type=_formats, action="extend", metavar="LIST",
        help=f"one or several of {', '.join(FORMATS)} (default: {TEXT}); json, srt, vtt and tsv find "
        "timestamps",
    )  # fmt: skip
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR",
        help="write a file for each input and format, named as the input, instead of standard output",
    )  # fmt: skip
    parser.add_argument(
        "--skip-existing", action="store_true",
        help="leave out inputs whose files are all in --output-dir",
    )  # fmt: skip
    parser.add_argument(
        "--job", type=Path, metavar="DIR",
        help="keep there what is done, and go on where a job was stopped; the results are "
        "DIR/results.jsonl. Several processes may run the same command at the same time",
    )  # fmt: skip
    parser.add_argument(
        "--retry-failed", action="store_true", help="of a job: files that failed, once more"
    )
    parser.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS",
        help="a job on a Ray cluster that shares its directory: one model for every --threads CPUs; auto: "
        "the cluster of this machine (default: Ray is started here and ended)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8, help="files decoded together")
    add_flags(parser.add_argument_group("audio"), AudioOptions)
    add_flags(parser.add_argument_group("srt and vtt"), SubtitleOptions)
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
    from fairseq_openvino.jobs.transcribe import completed
    from fairseq_openvino.loading import load_model

    if arguments.batch_size < 1:
        raise invalid("Transcribing", "--batch-size", "at least 1", arguments.batch_size)
    named = list(named_audio(arguments.files, _config_yaml(arguments)))
    _check_flags(arguments)
    names = tuple(dict.fromkeys(arguments.format or (TEXT,)))
    layout = SubtitleOptions(**given(arguments, SubtitleOptions))
    if layout.needs_words and not {"srt", "vtt"} & set(names):
        expected, got = "a format with a layout, srt or vtt", ", ".join(names)
        raise invalid("Transcribing", layout.needs_words, expected, got, "Leave it out")
    if arguments.job is not None:
        return transcribe_job(arguments, named, _given(arguments))
    if arguments.skip_existing:
        documents = Documents(names, arguments.output_dir, stems(named))
        named = [each for each in named if documents.missing(each[0])]
    files = [path for path, _ in named]
    several = len(files) > 1 or getattr(arguments, "channel", None) == SPLIT
    delivery, files = _delivery(arguments.output_dir, names, layout, named, several)
    recognizer = load_model(
        arguments.model, data=arguments.data, config_yaml=arguments.config_yaml,
        expect=arguments.expect, **given(arguments, EngineOptions),
    )  # fmt: skip
    recognizer.check_supported()
    options = completed(recognizer, _given(arguments), names, layout)
    with AudioBar(files) as bar:
        try:
            for news in recognizer.follow(files, batch_size=arguments.batch_size, **options):
                bar.clear()
                delivery.take(news)
                bar.take(news)
        except KeyboardInterrupt:
            bar.clear()
            delivery.stop()
            raise
    return delivery.exit_code()


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    kinds = (AudioOptions, S2TOptions, WhisperOptions)
    return {name: value for kind in kinds for name, value in given(arguments, kind).items()}


def _config_yaml(arguments: argparse.Namespace) -> Path | None:
    """The YAML whose `audio_root` manifests refer to, where it is named."""
    if arguments.data is None or arguments.config_yaml is None:
        return None
    return Path(arguments.data, arguments.config_yaml)


def _check_flags(arguments: argparse.Namespace) -> None:
    for flag, needed in (("skip_existing", "output_dir"), ("retry_failed", "job"), ("ray", "job")):
        if getattr(arguments, flag) and getattr(arguments, needed) is None:
            raise invalid("Transcribing", flag, f"--{needed.replace('_', '-')} too", "it alone")


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in FORMATS:
            known = ", ".join(FORMATS)
            raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {known})")
    return names


def _delivery(
    directory: Path | None,
    names: Sequence[str],
    layout: SubtitleOptions,
    named: Sequence[tuple[str, str | None]],
    several: bool,
) -> tuple[Delivery, list[str]]:
    """To the outputs asked for, and the files whose outputs can be written.

    Raises:
        OptionError: outputs would get into each other's way.
        StorageError: the directory cannot be written to.
    """
    files = [path for path, _ in named]
    if directory is None:
        if len(names) == 1 and not (several and names[0] in TIMED):
            return Delivery([Printed(names[0], layout)]), files
        expected = "one on standard output, and text or jsonl for several results"
        raise invalid("Transcribing", "format", expected, ", ".join(names), "Give --output-dir")
    found = stems(named)
    writable_directory(directory)
    outputs = [Files(name, layout, directory, found) for name in names]
    delivery, accepted = Delivery(outputs), []
    for file in files:
        try:
            for output in outputs:
                output.check(file)
            accepted.append(file)
        except StorageError as error:
            delivery.ended([error])
    return delivery, accepted
