"""Reading a file takes at most 5 s of computing and 64 MiB with four times the file; it raises our errors."""

from __future__ import annotations

import gc
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairseq_openvino.errors import FairseqOpenVINOError

MAX_SECONDS, HANG_SECONDS = 5, 60
"""Of computing, which is the same on a busy machine; and by the clock, for what waits."""
MAX_BYTES, MAX_TIMES = 64 << 20, 4
RESERVE_BYTES = 1 << 30
"""Address space that is left: a test that fails does not take the machine with it."""


def contained(read: Callable[[], Any], size: int, what: str) -> FairseqOpenVINOError | None:
    """Run a reader of a file of `size` bytes within these limits; returns the error that it raised."""
    with _limited():
        before, begin = _start_of_peak(), time.process_time()
        try:
            read()
            error = None
        except FairseqOpenVINOError as raised:
            error = raised
        except BaseException as raised:  # as what Rust raises
            raise AssertionError(f"{what}: {type(raised).__name__}: {raised!s:.300}") from raised
        seconds, grown = time.process_time() - begin, _status("VmHWM") - before
    cause: BaseException | None = error
    while cause is not None:
        assert not isinstance(cause, (MemoryError, TimeoutError)), f"{what}: {cause!r:.300}"
        assert "allocate" not in str(cause), f"{what}: {cause!s:.300}"
        cause = cause.__cause__
    assert seconds < MAX_SECONDS, f"{what}: {seconds:.1f} s"
    assert grown <= MAX_BYTES + MAX_TIMES * size, f"{what}: {grown >> 20} MiB for {size} bytes"
    return error


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done after {HANG_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + RESERVE_BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, previous)


def _start_of_peak() -> int:
    """Resident bytes; the peak is counted from here on."""
    gc.collect(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    """Of this process, in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) << 10
