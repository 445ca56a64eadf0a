"""Tables in Markdown, and measurements as files: Markdown to read, JSON to compute with, a chart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairseq_openvino.atomic import write_file
from fairseq_openvino.errors import StorageError, failure

MAX_CELL_CHARACTERS = 160
UNITS = ("B", "kB", "MB", "GB", "TB")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; rows that are shorter than the header are filled with empty cells."""
    lines = [_line(header), "|---" * len(header) + "|"]
    return lines + [_line([*row, *[""] * (len(header) - len(row))]) for row in rows]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns for a terminal, indented by two."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return [f"  {'  '.join(cells)}".rstrip() for cells in padded]


def human_bytes(size: int) -> str:
    """As `12.3 MB`, in powers of 1000."""
    power = min(int(math.log10(max(size, 1))) // 3, len(UNITS) - 1)
    return f"{size / 1000**power:.{1 if power else 0}f} {UNITS[power]}"


def one_line(text: str, limit: int = MAX_CELL_CHARACTERS) -> str:
    """Text that fits into a cell."""
    return " ".join(text.replace("|", "/").split())[:limit]


def number(value: float | None, form: str) -> str:
    """A number, or `-` where there is none."""
    return "-" if value is None else format(value, form)


def write_report(
    chart: Path, markdown: str, content: dict[str, Any], draw: Callable[[Path], bool]
) -> list[Path]:
    """Write the text beside the chart, under its name with .md and .json.

    Args:
        chart: where the chart goes; its directory is created.
        markdown: the text.
        content: everything the text says, for the JSON file.
        draw: writes the chart, or returns False if it cannot be drawn.

    Returns:
        The files written.

    Raises:
        StorageError: the directory cannot be written.
    """
    text = chart.with_suffix(".md")
    with _writing(chart.parent):
        write_file(text, markdown.encode() + b"\n")
        written = [text, write_json(chart.with_suffix(".json"), content)]
        return [*written, chart] if draw(chart) else written


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a file to compute with, and return it; its directory is created.

    Raises:
        StorageError: the directory cannot be written.
    """
    with _writing(path.parent):
        write_file(path, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    return path


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except StorageError:
        raise
    except OSError as error:
        raise failure(
            StorageError, "Writing a report", directory, "a writable directory", error,
            "Give another --output",
        ) from error  # fmt: skip
