"""Tables in Markdown, and measurements as files: Markdown to read, JSON to compute with, a chart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fairseq_openvino.errors import StorageError

MAX_CELL_CHARACTERS = 160


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; rows that are shorter than the header are filled with empty cells."""
    lines = [_line(header), "|---" * len(header) + "|"]
    return lines + [_line([*row, *[""] * (len(header) - len(row))]) for row in rows]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


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
    paths = [chart.with_suffix(".md"), chart.with_suffix(".json")]
    plain = json.dumps(content, indent=1, ensure_ascii=False)
    try:
        chart.parent.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, (markdown, plain), strict=True):
            path.write_text(text + "\n", encoding="utf-8")
        return [*paths, chart] if draw(chart) else paths
    except OSError as error:
        raise StorageError(
            f"Writing a report failed in {str(chart.parent)!r}: expected a writable directory, got "
            f"{error}. Give another --output."
        ) from error
