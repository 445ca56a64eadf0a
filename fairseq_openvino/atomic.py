"""Directories and files that appear whole or not at all (stage, fsync, rename); locks of processes.

While a directory is published as NAME, `.NAME.staging-XXXXXXXX` beside it holds what is written and, for a
moment, what is replaced; `.NAME.staging-XXXXXXXX.lock` is locked by the process that does it. A file is
written as `.X...X.part`, which is locked itself. A lock that nobody holds belongs to a process that died:
whoever publishes there next clears up after it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from fairseq_openvino.errors import OptionError, StorageError, failure

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HASH_BLOCK_BYTES = 1 << 20
NEW, OLD = "new", "old"
"""In a staging directory: what becomes the target, and what the target was."""
STAGING = ".staging-"
LOCK = ".lock"
PART = ".part"
POLL_SECONDS = 0.1


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content.

    Raises:
        StorageError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(HASH_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        advice = "Check the path and its permissions"
        raise failure(StorageError, "Reading", path, "a readable file", error, advice) from error
    return digest.hexdigest()


def open_regular(path: str | PathLike[str], buffering: int = -1) -> BinaryIO:
    """A regular file, open for reading; a pipe is not waited for.

    Raises:
        OSError: it cannot be read, or is a pipe or a device.
    """
    try:
        file = open(path, "rb", buffering, opener=_without_waiting)  # noqa: SIM115
    except ValueError as error:  # a path with a null character
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has none


def read_whole(path: Path, most: int) -> bytes:
    """Content of a regular file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, is a pipe or a device, or larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, more than {most}", str(path))
        return file.read(size)


def writable_directory(path: Path) -> Path:
    """The directory, which is made where it is missing; what processes that died left there is removed.

    Raises:
        StorageError: it cannot be made, or no file can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise unwritable("Writing", path, error) from error


def write_file(target: Path, content: bytes, lasting: bool = True) -> None:
    """Write a file that appears whole, in place of one that is there; `lasting` as in `staged_file`.

    Raises:
        StorageError: it could not be written; nothing is left behind.
    """
    with staged_file(target, lasting) as file:
        file.write(content)


@contextmanager
def staged_file(target: Path, lasting: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that becomes `target` when the block ends without error.

    Args:
        target: the file to publish.
        lasting: wait until it is on the disk; else a loss of power may leave another content.

    Raises:
        StorageError: it could not be written; nothing is left behind.
    """
    try:
        with _part(target.parent) as file:
            try:
                yield file
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
                if sys.platform == "win32":  # which renames no open file
                    file.close()
                os.replace(file.name, target)
            except BaseException:
                with suppress(OSError):
                    file.close()
                with suppress(OSError):
                    os.unlink(file.name)
                raise
        if lasting:
            sync(target.parent)
    except OSError as error:
        raise unwritable("Writing", target, error) from error


def _part(directory: Path) -> BinaryIO:
    """A new file that is locked while it is open."""
    while True:
        name = directory / f".{uuid.uuid4().hex}{PART}"  # shorter than a name that just fits
        file = open(name, "xb")  # noqa: SIM115
        _lock(file, shared=False, wait=True)
        with suppress(FileNotFoundError):  # cleared up before it was locked
            if os.path.samestat(os.fstat(file.fileno()), name.stat()):
                return file
        file.close()


@contextmanager
def locked(path: Path, wait: bool = True, guarded: Path | None = None) -> Iterator[bool]:
    """Hold a lock file, which is created with its parents and gone afterwards.

    Args:
        path: the lock file.
        wait: until another process lets go of it.
        guarded: as long as this is there, the lock file stays: somebody will have to remove both.

    Yields:
        Whether it is held: False only where another process holds it and `wait` is off.

    Raises:
        StorageError: the lock file could not be created.
    """
    file = _hold(path, wait=wait)
    if file is None:
        yield False
        return
    with file:
        try:
            yield True
        finally:
            if sys.platform == "win32":  # which removes no open file
                file.close()
            if guarded is None or not guarded.exists():
                with suppress(OSError):
                    path.unlink()


def lock_shared(path: Path) -> BinaryIO:
    """Hold a lock file together with others until it is closed; `locked` has to wait meanwhile.

    Raises:
        StorageError: the lock file could not be created.
    """
    file = _hold(path, shared=True)
    assert file is not None
    return file


def _hold(path: Path, shared: bool = False, wait: bool = True) -> BinaryIO | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "a+b")  # noqa: SIM115  open as long as the lock is held
            if not _lock(file, shared, wait):
                file.close()
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            file.close()  # whoever held it before has removed it
    except OSError as error:
        raise unwritable("Locking", path.parent, error) from error


def _lock(file: BinaryIO, shared: bool, wait: bool) -> bool:
    """Whether the system gives the lock, which ends when the file is closed or the process dies.

    Where a file system has no locks, those who would wait go on alone, and nobody clears up.
    """
    if fcntl is not None:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
        except OSError:
            return wait
        return True
    if sys.platform == "win32":
        import msvcrt

        while True:  # it has no shared locks, but refuses to remove files in use
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if shared or not wait:
                    return shared
                time.sleep(POLL_SECONDS)
    return wait


@contextmanager
def staged_directory(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty staging directory that becomes `target` when the block ends without error.

    Args:
        target: the directory to publish; its parent is created.
        overwrite: replace an existing target instead of refusing it.

    Raises:
        OptionError: the target exists and `overwrite` is off.
        StorageError: a file could not be written; nothing is left behind.
    """
    target = target.absolute()
    clear_leftovers(target.parent)  # which may bring the target back
    if target.exists() and not overwrite:
        raise OptionError(
            f"Publishing failed in {str(target)!r}: expected a name that is free, got an existing "
            "path. Choose another name, or overwrite it."
        )
    try:
        with workspace(target) as work:
            stage = work / NEW
            stage.mkdir()
            yield stage
            _sync_tree(stage)
            if target.exists():
                os.rename(target, work / OLD)
            os.rename(stage, target)
            sync(target.parent)
    except StorageError:
        raise
    except OSError as error:
        raise unwritable("Publishing", target, error) from error


def remove_directory(target: Path) -> None:
    """Remove a directory; what is half removed never has its name.

    Raises:
        OSError: it could not be removed, and is whole.
    """
    with workspace(target) as work:
        os.rename(target, work / NEW)


def clear_leftovers(directory: Path) -> None:
    """Remove what processes that died left in a directory; what they were replacing is put back."""
    for lock in directory.glob(f".*{STAGING}*{LOCK}"):
        work = lock.with_suffix("")
        with suppress(OSError), locked(lock, wait=False, guarded=work) as is_stale:
            if is_stale:
                _clear(work, directory / work.name[1:].rpartition(STAGING)[0])
    for part in directory.glob(f".{'[0-9a-f]' * 32}{PART}"):
        with suppress(OSError), locked(part, wait=False):
            continue  # it is gone now, unless it is being written


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """A directory beside the target, on its file system, gone afterwards with all that is left in it.

    Raises:
        StorageError: its lock file could not be created.
        OSError: it could not be created, or what it was to replace could not be put back.
    """
    work = target.parent / f".{target.name}{STAGING}{uuid.uuid4().hex[:8]}"
    with locked(work.with_name(work.name + LOCK), guarded=work):
        try:
            work.mkdir()
            yield work
        finally:
            _clear(work, target)


def _clear(work: Path, target: Path) -> None:
    """Remove a staging directory; what nothing has replaced after all is put back first.

    Raises:
        OSError: it could not be put back, and stays where it is.
    """
    if (work / OLD).exists() and not target.exists():
        os.rename(work / OLD, target)
    shutil.rmtree(work, ignore_errors=True)


def unwritable(action: str, where: Path | str, error: Exception) -> StorageError:
    """The error of a place that files could not be written to."""
    expected = "a writable directory with free space"
    advice = "Check permissions and disk space, or choose another directory"
    return failure(StorageError, action, where, expected, error, advice)


def _sync_tree(directory: Path) -> None:
    for path in directory.iterdir():
        sync(path)
    sync(directory)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    if sys.platform == "win32":  # flushes only what is open for writing, and no directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
