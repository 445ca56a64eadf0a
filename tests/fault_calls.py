"""Every call of this process to the file system, counted: one of them fails, or kills.

The functions of `os`, `io.open` and the native readers and writers of OpenVINO are replaced.
"""

from __future__ import annotations

import builtins
import errno as codes
import io
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

WRITING = (
    "rename", "replace", "mkdir", "rmdir", "unlink", "remove", "link", "symlink", "utime", "truncate",
)  # fmt: skip
"""Functions of `os` that take paths."""
ON_DESCRIPTORS = (
    "write", "pwrite", "fsync", "fdatasync", "ftruncate", "sendfile", "copy_file_range",
)  # fmt: skip
NATIVE_BYTES = 2048
"""What a native writer can write before its disk is full."""


@dataclass(frozen=True)
class Fault:
    """What happens to a process, and at which call."""

    at: int = -1
    """Number of the call, from 0; -1: at none."""
    errno: int = 0
    """The call fails with this."""
    kill: str = ""
    """SIGKILL `before`, `half` way through what it writes, or `after` the call."""
    seconds: float = 0.0
    """SIGKILL so long after the start, wherever it is then."""
    memory_bytes: int = 0
    """Address space beyond that of the process as it starts; 0: no limit."""
    reads: bool = False
    """Count the calls that read below the root, not those that write."""


class Calls:
    """Counts the calls of this process, and lets one of them fail or kill."""

    def __init__(self, fault: Fault, root: Path) -> None:
        self._fault, self._root = fault, f"{root}/"
        self.made: list[str] = []
        self.is_over = False
        self._do = {name: getattr(os, name) for name in (*WRITING, *ON_DESCRIPTORS, "open", "kill")}

    def install(self) -> None:
        """Replace what is counted."""
        for name in (*WRITING, *ON_DESCRIPTORS):
            setattr(os, name, partial(self._counted, name))
        os.open = self._os_open
        builtins.open = io.open = partial(_opened, self)
        if "openvino" in sys.modules:
            self._install_native()

    def _install_native(self) -> None:
        import openvino as ov

        save, read, compile_model = ov.save_model, ov.Core.read_model, ov.Core.compile_model

        def read_model(core: Any, path: Any, *more: Any, **named: Any) -> Any:
            return self.native("read_model", path, partial(read, core, path, *more, **named), True)

        def compiled(core: Any, *more: Any, **named: Any) -> Any:
            run = partial(compile_model, core, *more, **named)
            caches = [
                each["CACHE_DIR"] for each in more if isinstance(each, dict) and "CACHE_DIR" in each
            ]
            return self.native("compile_model", caches[0], run) if caches else run()

        def save_model(model: Any, path: Any, *more: Any, **named: Any) -> Any:
            return self.native("save_model", path, partial(save, model, path, *more, **named))

        ov.save_model, ov.Core.read_model, ov.Core.compile_model = save_model, read_model, compiled

    def counts(self, path: object, reads: bool) -> bool:
        """Whether a call on a path, or an open file, is one of those that may fail."""
        if self.is_over or reads != self._fault.reads:
            return False
        if isinstance(path, int):
            path = _name(path)
        return not reads or os.path.join(os.getcwd(), os.fsdecode(path)).startswith(self._root)

    def begin(self, name: str, path: object, reads: bool = False) -> bool:
        """A call begins: note it, and say whether this process dies within or after it.

        Raises:
            OSError: it is this one that fails.
        """
        if not self.counts(path, reads):
            return False
        self.made.append(f"{name} {_name(path) if isinstance(path, int) else os.fsdecode(path)}")
        if len(self.made) - 1 != self._fault.at:
            return False
        if self._fault.errno:
            raise OSError(self._fault.errno, os.strerror(self._fault.errno))
        if self._fault.kill == "before":
            self.die()
        return bool(self._fault.kill)

    def die(self) -> None:
        """As `kill -9`."""
        self._do["kill"](os.getpid(), signal.SIGKILL)

    def native(self, name: str, path: object, run: Callable[[], Any], reads: bool = False) -> Any:
        """A call into OpenVINO: its disk is full, or it gets no descriptor; or it dies as it writes."""
        errno, kill = self._fault.errno, self._fault.kill
        if reads and errno != codes.EMFILE:
            return run()
        is_hit = False
        try:
            is_hit = self.begin(name, path, reads)
        except OSError:
            limit, number = resource.RLIMIT_FSIZE, NATIVE_BYTES
            if errno == codes.EMFILE:
                limit, number = resource.RLIMIT_NOFILE, 3
            before = resource.getrlimit(limit)
            resource.setrlimit(limit, (number, before[1]))
            try:
                return run()
            finally:
                resource.setrlimit(limit, before)
        if is_hit and kill == "half":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (NATIVE_BYTES, resource.RLIM_INFINITY))
        result = run()
        if is_hit:
            self.die()
        return result

    def _counted(self, name: str, *arguments: Any, **named: Any) -> Any:
        is_hit = False
        if not (name in ON_DESCRIPTORS and arguments[0] in (1, 2)):
            is_hit = self.begin(name, arguments[0])
        if is_hit and self._fault.kill == "half" and name == "write":
            arguments = arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2]
        try:
            return self._do[name](*arguments, **named)
        finally:
            if is_hit:
                self.die()

    def _os_open(self, path: Any, flags: int, *more: Any, **named: Any) -> int:
        is_hit = self.begin("open", path, not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        result: int = self._do["open"](path, flags, *more, **named)
        if is_hit:
            self.die()
        return result


class _Raw(io.FileIO):
    """An open file whose calls are counted."""

    calls: Calls

    def write(self, content: Any) -> int:
        is_hit = self.fileno() not in (1, 2) and self.calls.begin("write", self.fileno())
        if is_hit and self.calls._fault.kill == "half":
            content = memoryview(content)[: len(content) // 2]
        written = super().write(content)
        if is_hit:
            self.calls.die()
        return written

    def truncate(self, size: int | None = None) -> int:
        self.calls.begin("ftruncate", self.fileno())
        return super().truncate(size)

    def readinto(self, buffer: Any) -> int:
        self.calls.begin("read", self.fileno(), reads=True)
        return super().readinto(buffer) or 0

    def readall(self) -> bytes:
        self.calls.begin("read", self.fileno(), reads=True)
        return super().readall()

    def read(self, size: int | None = -1) -> bytes:
        self.calls.begin("read", self.fileno(), reads=True)
        return super().read(-1 if size is None else size)


def _opened(
    calls: Calls,
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """As `open`, over a file that counts."""
    is_text, changes = "b" not in mode, bool(set("wxa+") & set(mode))
    if not isinstance(file, int) and opener is None:
        is_hit = calls.begin("open", file, reads=not changes)
    else:
        is_hit = False
    raw = _Raw(file, "".join(letter for letter in mode if letter in "rwxa+"), closefd, opener)
    raw.calls = calls
    if is_hit:
        calls.die()
    if buffering == 0 and not is_text:
        return raw
    kind = io.BufferedRandom if "+" in mode else io.BufferedWriter if changes else io.BufferedReader
    buffered = kind(raw, buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE)
    if not is_text:
        return buffered
    text = io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)
    text.mode = mode
    return text


def _name(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return str(descriptor)
