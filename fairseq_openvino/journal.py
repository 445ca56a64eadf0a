"""Append-only records: what a process has finished stays finished, whenever and however it is stopped.

A line is the CRC-32 of a JSON object in eight hexadecimal digits, a blank, and the object. Each process
appends to a file of its own. What a killed one left of its last line is cut off when the file is opened to
go on, and left out, as damaged lines are, where it is read.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairseq_openvino.atomic import sync, unwritable
from fairseq_openvino.errors import StorageError

SYNC_SECONDS = 1.0
"""Work whose records a loss of power may cost; a killed process loses no record."""


class Lines:
    """Appends lines to a file; threads may share it.

    Raises:
        StorageError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            is_new = not path.exists()
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                _cut_torn_line(self._file)
                if is_new:
                    sync(path.parent)
            except OSError:
                os.close(self._file)
                raise
        except OSError as error:
            raise self._unwritable(error) from error
        self._synced = time.monotonic()
        self._is_dirty = False

    def append_lines(self, content: bytes) -> None:
        """Write whole lines, and see to it that they are on the disk within `SYNC_SECONDS` of the next call.

        Raises:
            StorageError: they were not written, not even in part.
        """
        with self._lock:
            try:
                self._write(content)
            except OSError as error:
                raise self._unwritable(error) from error
            self._is_dirty = True
            is_due = time.monotonic() - self._synced >= SYNC_SECONDS
        if is_due:
            self.sync()

    def _write(self, content: bytes) -> None:
        before = os.lseek(self._file, 0, os.SEEK_END)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, before)
            raise

    def sync(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            StorageError: it is not, or in a file that nobody can read again.
        """
        with self._lock:
            if not self._is_dirty:
                return
            try:
                os.fsync(self._file)
                if not os.fstat(self._file).st_nlink:
                    raise FileNotFoundError(errno.ENOENT, "it was removed", str(self.path))
            except OSError as error:
                raise self._unwritable(error) from error
            self._synced = time.monotonic()
            self._is_dirty = False

    def close(self) -> None:
        """Sync, and end writing: what is appended afterwards is refused."""
        try:
            self.sync()
        finally:
            with self._lock:
                os.close(self._file)
                self._file = -1  # whose number another file may get

    def _unwritable(self, error: OSError) -> StorageError:
        return unwritable("Writing", self.path, error)


class Journal(Lines):
    """Appends records."""

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, see `append_lines`."""
        content = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        line = content.encode("utf-8", "surrogatepass")
        self.append_lines(b"%08x %s\n" % (zlib.crc32(line), line))


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, which may be growing; a line that is damaged or not finished is none."""
    return (record for _, _, record in located(path))


def record_at(path: Path, begin: int) -> dict[str, Any] | None:
    """The record whose line begins at this byte; None if it has been damaged since it was found there."""
    found, _, record = next(located(path, begin), (None, 0, None))
    return record if found == begin else None


def located(path: Path, begin: int = 0) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """As `records`, from a line that begins at this byte on: first byte, end and content of each."""
    with open(path, "rb") as file:
        file.seek(begin)
        for line in file:
            if not line.endswith(b"\n"):
                return
            end = begin + len(line)
            checksum, _, content = line[:-1].partition(b" ")
            if checksum == b"%08x" % zlib.crc32(content):
                yield begin, end, json.loads(content.decode("utf-8", "surrogatepass"))
            begin = end


def _cut_torn_line(file: int) -> None:
    """Remove what follows the last line end."""
    end = position = os.lseek(file, 0, os.SEEK_END)
    while position > 0:
        begin = max(position - (1 << 16), 0)
        found = os.pread(file, position - begin, begin).rfind(b"\n")
        if found >= 0:
            position = begin + found + 1
            break
        position = begin
    if position < end:
        os.ftruncate(file, position)
