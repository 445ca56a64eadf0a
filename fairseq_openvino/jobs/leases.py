"""Who decodes which batch, and who is gone.

Clocks of two machines are never compared: a worker is gone once an observer has seen no heartbeat of it
for some time of the observer's own, or at once if it has signed off or its process is dead.
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from fairseq_openvino.atomic import unwritable, write_file

LEASE_SECONDS = 30.0
"""Without a heartbeat, after which a worker is taken to be gone."""
PROC = Path("/proc")
DEAD = frozenset("ZX")
"""States of a process that waits to be reaped. Source: proc(5)."""


@dataclass(frozen=True)
class Lease:
    """The right to decode a batch, until somebody has one of a higher epoch."""

    batch: int
    epoch: int


class Leases:
    """The directory of leases."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def take(self, lease: Lease, worker: str) -> bool:
        """Create it; False if somebody else has.

        It is a symbolic link to the worker's name: that appears whole, in one call, and takes no block.

        Raises:
            StorageError: it could not be written, and is not there.
        """
        path = self.path(lease)
        try:
            path.symlink_to(worker)
        except FileExistsError:
            return False
        except OSError as error:
            raise unwritable("Claiming a batch", path, error) from error
        return True

    def highest(self) -> dict[int, int]:
        """The highest epoch of each batch that was ever claimed."""
        found: dict[int, int] = {}
        names = os.listdir(self._directory) if self._directory.exists() else []
        for name in names:
            batch, _, epoch = name.partition(".")
            if batch.isdecimal() and epoch.isdecimal():
                found[int(batch)] = max(int(epoch), found.get(int(batch), -1))
        return found

    def path(self, lease: Lease) -> Path:
        """Where it is."""
        return self._directory / f"{lease.batch}.{lease.epoch}"

    def remove(self, highest: dict[int, int]) -> None:
        """Those of `highest` and all below; others may have removed them already."""
        for batch, last in highest.items():
            for epoch in range(last + 1):
                self.path(Lease(batch, epoch)).unlink(missing_ok=True)


@dataclass(frozen=True)
class Identity:
    """A process."""

    host: str
    machine: str | None
    """Boot and namespaces within which `pid` and `started` say who it is; None where nobody knows."""
    pid: int
    started: str | None
    """When the process began, by the machine's own count; a pid may be used again."""

    @classmethod
    def mine(cls) -> Identity:
        """Of this process."""
        pid = os.getpid()
        return cls(platform.node(), _machine(), pid, (_state(pid) or ("", None))[1])

    def is_dead(self) -> bool:
        """Whether it is known to be: of a process of another machine nothing is."""
        if self.machine is None or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's, of whom a /proc with hidepid shows nothing
            pass
        found = _state(self.pid)
        return found is not None and (found[0] in DEAD or found[1] != self.started)

    @property
    def worker(self) -> str:
        """A name that no other worker has."""
        return f"{self.host}-{self.pid}-{uuid.uuid4().hex[:8]}"


def _machine() -> str | None:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        spaces = (PROC / "self/ns/pid", PROC / "self/ns/time")  # that of time since Linux 5.6
        return " ".join([boot, *(os.readlink(each) for each in spaces if each.is_symlink())])
    except OSError:
        return None


def _state(pid: int) -> tuple[str, str] | None:
    """State of a process and when it began; None if there is none."""
    try:
        _, _, fields = (PROC / str(pid) / "stat").read_text().rpartition(")")
    except OSError:
        return None
    state, *rest = fields.split()
    return state, rest[18]


def holder(lease: Path) -> str | None:
    """The worker that a lease was given to; None if it is gone or damaged."""
    try:
        return os.readlink(lease)
    except OSError:
        return None


def sign_on(directory: Path, worker: str, identity: Identity) -> Path:
    """The file of a worker, to be touched while it lives.

    Raises:
        StorageError: it cannot be written.
    """
    path = directory / worker
    write_file(path, json.dumps(asdict(identity)).encode())
    return path


def identity(path: Path) -> Identity | None:
    """Of the worker with this file; None if it is gone or damaged."""
    try:
        return Identity(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class Watch:
    """Tells who is gone, as far as this observer has seen."""

    def __init__(self, workers: Path, lease_seconds: float) -> None:
        self._workers, self._lease_seconds = workers, lease_seconds
        self._seen: dict[Path, tuple[int, float]] = {}
        """By file: its time stamp, and when it was first seen with it, by our own clock."""

    def is_free(self, lease: Path, observer: str) -> bool:
        """Whether the holder of a lease is gone, or the observer itself."""
        worker = holder(lease)
        if worker is None or worker == observer:
            return True
        path = self._workers / worker
        found = identity(path)
        return found is None or found.is_dead() or self._is_silent(path)

    def _is_silent(self, path: Path) -> bool:
        now = time.monotonic()
        try:
            with open(path, "rb") as file:  # which makes a network file system ask again
                stamp = os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return True
        before, since = self._seen.get(path, (None, now))
        if stamp != before:
            self._seen[path] = stamp, now
            return False
        return now - since >= self._lease_seconds


def beat(path: Path) -> None:
    """Say that the worker with this file lives.

    Raises:
        StorageError: it cannot be said.
    """
    try:
        os.utime(path)
    except OSError as error:
        raise unwritable("Working", path, error) from error
