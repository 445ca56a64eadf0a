r"""`fairseq-openvino translate`: text to text, a line each, by a text model of Fairseq.

What stands before the last tab of a line is kept, so that lines of `transcribe` stay named. `text` is a
line a hypothesis; `jsonl` is an object a line of input. A blank line stays blank; so does, in `text`, one
that fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

from fairseq_openvino.errors import (
    EXIT_OK,
    EXIT_PARTIAL,
    BatchError,
    StorageError,
    failure,
    invalid,
)
from fairseq_openvino.flags import add_flags, given
from fairseq_openvino.model import Transcript
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.speech.sources import STANDARD_INPUT
from fairseq_openvino.speech.writers import described

TAB = "\t"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "file", nargs="?", default=STANDARD_INPUT, metavar="FILE",
        help="UTF-8 text, a sentence a line (default: -, standard input)",
    )  # fmt: skip
    parser.add_argument(
        "--model", required=True, metavar="SOURCE",
        help="bundle of a text model; or a Fairseq checkpoint with --data, exported on first use",
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="data directory of a Fairseq checkpoint")
    parser.add_argument("--format", choices=tuple(FORMATS), default="text")
    parser.add_argument(
        "--batch-size", type=int, default=32, help="lines read and decoded together"
    )
    add_flags(parser, EngineOptions, ("device", "precision", "threads", "cache_dir"))
    add_flags(parser.add_argument_group("search"), S2TOptions)


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Lines that fail are reported on stderr; the others are not lost."""
    from fairseq_openvino.loading import load_model

    if arguments.batch_size < 1:
        raise invalid("Translating", "--batch-size", "at least 1", arguments.batch_size)
    recognizer = load_model(arguments.model, data=arguments.data, **given(arguments, EngineOptions))
    options, written, failed = given(arguments, S2TOptions), FORMATS[arguments.format], 0
    number, lines = 0, _lines(arguments.file)
    while batch := list(islice(lines, arguments.batch_size)):
        names, texts = zip(*(_parted(line) for line in batch), strict=True)
        try:
            results: Iterable[Any] = recognizer.translate(texts, arguments.batch_size, **options)
        except BatchError as error:
            results = error.results
        for name, text, result in zip(names, texts, results, strict=True):
            number += 1
            if not isinstance(result, Transcript):
                failed += 1
                print(f"error: line {number}: {result}", file=sys.stderr)
            print(written(name, text, result), end="")
        sys.stdout.flush()
    if failed:
        print(f"{failed} of {number} lines failed", file=sys.stderr)
    return EXIT_PARTIAL if failed else EXIT_OK


def _lines(name: str) -> Iterator[str]:
    """Without their ends.

    Raises:
        StorageError: the file cannot be read.
    """
    try:
        with nullcontext(sys.stdin.buffer) if name == STANDARD_INPUT else open(name, "rb") as file:
            for line in file:
                yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")
    except OSError as error:
        raise failure(
            StorageError, "Translating", repr(name), "a readable file", error, "Check the path"
        ) from error


def _parted(line: str) -> tuple[str, str]:
    """What is kept, and what is translated: characters."""
    name, tab, text = line.rpartition(TAB)
    return name + tab, text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _text(name: str, _: str, result: Any) -> str:
    found = [line for line, _ in result.hypotheses] if isinstance(result, Transcript) else []
    return "".join(f"{name}{line}\n" for line in found or [""])


def _jsonl(name: str, text: str, result: Any) -> str:
    content: dict[str, Any] = {"name": name.removesuffix(TAB)} if name else {}
    content["source"] = text
    if isinstance(result, Transcript):
        found = [described(*pair) for pair in result.hypotheses]
        content |= {"text": result.text, "score": result.score, "hypotheses": found}
    else:
        content["error"] = str(result)
    line = json.dumps(content, ensure_ascii=False)
    return line.encode("utf-8", "backslashreplace").decode() + "\n"


FORMATS = {"text": _text, "jsonl": _jsonl}
"""Name to a function of what is kept of a line, its text, and the result or error."""
