r"""`fairseq-openvino detect-language`: which language is spoken in audio files of any length.

`text` is one line a file, `<path>\t<code>\t<probability>` and the next four codes and probabilities;
the path alone if nobody speaks. `jsonl` has all languages.
"""

from __future__ import annotations

import argparse
import json
import sys

from fairseq_openvino.errors import EXIT_OK, EXIT_PARTIAL, concerns_one_clip
from fairseq_openvino.flags import add_flags, given
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.speech.writers import ESCAPES

SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument(
        "--model", required=True, metavar="SOURCE", help="a multilingual Whisper, as for transcribe"
    )
    parser.add_argument(
        "--windows", type=int, default=1, metavar="N",
        help="mean over N windows of 30 s in which somebody speaks, spread over the file (default: 1, "
        "the first)",
    )  # fmt: skip
    parser.add_argument("--format", choices=tuple(FORMATS), default="text")
    add_flags(parser, EngineOptions, ("device", "precision", "threads", "cache_dir"))


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Files that fail are reported on stderr; the others are not lost."""
    from fairseq_openvino import load_model

    recognizer, failed = load_model(arguments.model, **given(arguments, EngineOptions)), 0
    for path in arguments.files:
        try:
            found = recognizer.detect_language(path, windows=arguments.windows)
        except Exception as error:
            if not concerns_one_clip(error):
                raise
            failed += 1
            print(f"error: {error}", file=sys.stderr)
        else:
            print(FORMATS[arguments.format](path, found), flush=True)
    if failed:
        print(f"{failed} of {len(arguments.files)} files failed", file=sys.stderr)
    return EXIT_PARTIAL if failed else EXIT_OK


def _text(path: str, found: dict[str, float]) -> str:
    columns = [f"{code}\t{share:.4f}" for code, share in list(found.items())[:SHOWN]]
    return "\t".join([path.translate(ESCAPES), *columns])


def _jsonl(path: str, found: dict[str, float]) -> str:
    content = {"path": path, "language": next(iter(found), None), "language_probabilities": found}
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


FORMATS = {"text": _text, "jsonl": _jsonl}
"""Name to a function of a path and its languages."""
