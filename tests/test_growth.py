"""The measure of growth sees each kind of leak, and nothing where there is none."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from growth import Growth


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def memory(kept: ExitStack) -> None:
    kept.callback(bytearray(b"x" * (6 << 20)).clear)  # 120 MiB between the medians


def descriptor(kept: ExitStack) -> None:
    kept.enter_context(open(os.devnull, "rb"))  # noqa: SIM115


def thread(kept: ExitStack) -> None:
    ended = threading.Event()
    started = threading.Thread(target=ended.wait)
    started.start()
    kept.callback(started.join)
    kept.callback(ended.set)


def process(kept: ExitStack) -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    kept.callback(child.communicate)


def work(_: int) -> None:
    bytearray(b"x" * (1 << 20))
    with open(os.devnull, "rb"):
        pass


def test_work_that_keeps_nothing_is_flat() -> None:
    Growth(10, 10, with_children=True).run(work, 40).check_flat()


@pytest.mark.parametrize(
    ("leak", "message"),
    [(memory, "memory"), (descriptor, "descriptors"), (thread, "threads"), (process, "processes")],
)
def test_leaks_are_seen(leak: Callable[[ExitStack], None], message: str, stack: ExitStack) -> None:
    count = 60 if leak is memory else 6
    growth = Growth(count // 3, count // 3, with_children=True)
    with pytest.raises(AssertionError, match=f"more {message}"):
        growth.run(lambda _: leak(stack), count).check_flat()
