"""What a long command says while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def progress_lines() -> Callable[[str], None]:
    """A function that prints a line on stderr, with the seconds since now."""
    started = time.monotonic()

    def show(line: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {line}", file=sys.stderr, flush=True)

    return show
