"""What a long command says while it runs."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from fairseq_openvino.model import News
from fairseq_openvino.speech.writers import ESCAPES


def progress_lines() -> Callable[[str], None]:
    """A function that prints a line on stderr, with the seconds since now."""
    started = time.monotonic()

    def show(line: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {line}", file=sys.stderr, flush=True)

    return show


def clock(seconds: float) -> str:
    """As `00:12:34`; what is left of a second is dropped."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


class Bar:
    """A line on stderr if that is a terminal, else nothing.

    A context manager; what is logged meanwhile takes the line's place.
    """

    def __init__(self) -> None:
        self._shown = 0
        """Characters."""
        self._started = time.monotonic()
        self._visible = sys.stderr.isatty()

    def show(self, line: str) -> None:
        """In place of the last one, until the next or `clear`."""
        if self._visible:
            self.clear()
            line = line[: shutil.get_terminal_size().columns - 1]
            print(line, end="", file=sys.stderr, flush=True)
            self._shown = len(line)

    def clear(self) -> None:
        """Make room for other output."""
        if self._shown:
            print(f"\r{' ' * self._shown}\r", end="", file=sys.stderr, flush=True)
            self._shown = 0

    def _make_room(self, _: logging.LogRecord) -> bool:
        self.clear()
        return True

    def __enter__(self) -> Self:
        for handler in logging.root.handlers:
            handler.addFilter(self._make_room)
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        for handler in logging.root.handlers:
            handler.removeFilter(self._make_room)


class AudioBar(Bar):
    """How far recordings have come."""

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__()
        self._places = {name: i for i, name in enumerate(files, 1)}
        self._seconds = 0.0
        """Of audio that are done."""
        self._open: dict[str, float] = {}
        """Those of the recordings that are not finished."""

    def take(self, news: News) -> None:
        """Show how far this recording is, until the next news or `clear`."""
        self._seconds += news.seconds - self._open.get(news.path, 0.0)
        self._open[news.path] = news.seconds
        if news.result is not None:
            del self._open[news.path]
        self.show(self._line(news))

    def _line(self, news: News) -> str:
        file, _, _ = news.path.rpartition("#")  # of a channel
        place = self._places.get(news.path) or self._places.get(file, 0)
        speed = self._seconds / max(time.monotonic() - self._started, 1e-3)
        left = clock((news.duration - news.seconds) / speed) if speed else "?"
        return (
            f"{place}/{len(self._places)}  {clock(news.seconds)} of {clock(news.duration)}  "
            f"{speed:.1f} x real time  {left} left  {Path(news.path).name.translate(ESCAPES)}"
        )


class JobBar(Bar):
    """How far this process has brought a job."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__()
        self._before, self._total = done, total
        self._files, self._seconds = 0, 0.0

    def take(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Show what these add, records of `jobs.transcribe`; what others do meanwhile is not known."""
        self._files += len(records)
        self._seconds += sum(each["seconds"] for each in records)
        elapsed = max(time.monotonic() - self._started, 1e-3)
        done = self._before + self._files
        left = clock(elapsed / self._files * (self._total - done)) if self._files else "?"
        speed = self._seconds / elapsed
        self.show(f"{done}/{self._total} files  {speed:.1f} x real time  {left} left")
