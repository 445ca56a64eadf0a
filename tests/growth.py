"""Whether what is repeated holds on to memory, threads, descriptors or processes (bar R8).

`Growth(warm_up=2000, window=1000).run(work, 10_000).check_flat()`, or `sample()` after each piece of work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

MAX_SHARE = 0.05
MAX_BYTES = 100 << 20
PAGE_BYTES, TICKS_HZ = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Held:
    """What this process holds, or it and all below it."""

    resident_bytes: float
    threads: float
    descriptors: float
    processes: float

    def __str__(self) -> str:
        return (
            f"{self.resident_bytes / (1 << 20):.1f} MiB, {self.threads:g} threads, "
            f"{self.descriptors:g} descriptors, {self.processes:g} processes"
        )


def held(with_children: bool = False) -> Held:
    """Now; a process that ends meanwhile counts as ended."""
    counts = [_counts(pid) for pid in ([os.getpid()] if not with_children else family(os.getpid()))]
    return Held(*map(sum, zip(*filter(None, counts), strict=True)))


def family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it has ended
            continue
        for child in children:
            yield from family(int(child))


def _counts(pid: int) -> tuple[int, int, int, int] | None:
    """Bytes, threads, descriptors, and 1; None of a process that has ended."""
    process = Path("/proc") / str(pid)
    try:
        pages = int((process / "statm").read_text().split()[1])
        threads = len(os.listdir(process / "task"))
        descriptors = len(os.listdir(process / "fd")) - (pid == os.getpid())  # but for this look
    except OSError:
        return None
    return (pages * PAGE_BYTES, threads, descriptors, 1) if pages else None


class Growth:
    """Samples of what is held, one after each piece of work."""

    def __init__(self, warm_up: int, window: int, with_children: bool = False) -> None:
        """As R8 wants it.

        Args:
            warm_up: samples that do not count.
            window: samples of which the median is compared: those behind the warm-up with all later.
            with_children: count this process and all below it.
        """
        self._warm_up, self._window, self._with_children = warm_up, window, with_children
        self._samples: list[Held] = []

    def sample(self) -> None:
        """Look, after one piece of work."""
        self._samples.append(held(self._with_children))

    def run(self, work: Callable[[int], object], count: int) -> Growth:
        """Do a piece of work so often, with a sample after each."""
        for number in range(count):
            work(number)
            self.sample()
        return self

    def windows(self) -> list[Held]:
        """Medians of all whole windows behind the warm-up."""
        begins = range(self._warm_up, len(self._samples) - self._window + 1, self._window)
        names = [field.name for field in fields(Held)]
        return [
            Held(*(median(getattr(each, name) for each in part) for name in names))
            for part in (self._samples[begin : begin + self._window] for begin in begins)
        ]

    def check_flat(self) -> str:
        """The figures in words.

        Raises:
            AssertionError: memory has grown by more than 5 % or 100 MiB, anything else at all.
        """
        first, *later = self.windows()
        assert later, "samples of two windows at least"
        worst = Held(*(max(getattr(each, f.name) for each in later) for f in fields(Held)))
        grown = worst.resident_bytes - first.resident_bytes
        share = grown / first.resident_bytes
        figures = f"first {first}; most later {worst}: {grown / (1 << 20):+.1f} MiB, {share:+.1%}"
        for name in ("processes", "threads", "descriptors"):
            assert getattr(worst, name) <= getattr(first, name), f"more {name}: {figures}"
        assert share <= MAX_SHARE and grown <= MAX_BYTES, f"more memory: {figures}"
        return figures


class Cost:
    """What a process needs from now on: memory beyond what it holds, and time of a core."""

    def __init__(self, pid: int | str) -> None:
        self._process = Path(f"/proc/{pid}")
        (self._process / "clear_refs").write_text("5")  # Linux forgets the peak before
        self._peak, self._seconds = self._now()

    def _now(self) -> tuple[int, float]:
        """Most bytes it held, and seconds; both 0 of a process that has ended."""
        try:
            status = (self._process / "status").read_text()
            times = (self._process / "stat").read_text().rpartition(")")[2].split()[11:13]
            peak = int(status.partition("VmHWM:")[2].split()[0]) << 10
        except (OSError, IndexError):
            return 0, 0.0
        return peak, sum(map(int, times)) / TICKS_HZ

    def extra_bytes(self) -> int:
        """At most, at one time."""
        return self._now()[0] - self._peak

    def seconds(self) -> float:
        """Of computing: another process that is busy changes nothing."""
        return self._now()[1] - self._seconds
