"""How far the whole quantization is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """All steps that are planned, and those that are done; one step is one utterance in a graph.

    Args:
        planned: most steps; fewer are taken if a trial passes early.
        said: what they are, in words.
        announce: receives the lines.
    """

    def __init__(self, planned: int, said: str, announce: Callable[[str], None]) -> None:
        from tqdm import tqdm

        self._planned, self._done, self._announce = planned, 0, announce
        self._started = time.monotonic()
        self._due = self._started
        announce(f"{said}: at most {planned} steps")
        self._bar = tqdm(
            total=planned,
            unit=" steps",
            file=sys.stderr,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[..., None]]:
        """Within it, call what it gives with the number of steps that were done (default: 1)."""
        self._bar.set_description(name)

        def step(count: int = 1) -> None:
            self._done += count
            self._planned = max(self._planned, self._done)
            self._bar.total = self._planned
            self._bar.update(count)
            if self._bar.disable and time.monotonic() >= self._due:
                self._announce(f"{name}: {self}")
                self._due = time.monotonic() + SECONDS_BETWEEN_LINES

        yield step

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def __str__(self) -> str:
        """As `step 120 of at most 1840, at most 95 s left`."""
        spent = time.monotonic() - self._started
        left = spent / self._done * (self._planned - self._done) if self._done else 0.0
        return f"step {self._done} of at most {self._planned}, at most {left:.0f} s left"
