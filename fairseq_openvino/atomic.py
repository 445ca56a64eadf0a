"""Directories that appear whole or not at all (stage, fsync, rename), and locks between processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairseq_openvino.errors import OptionError, StorageError

HASH_BLOCK_BYTES = 1 << 20


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, created with its parents; other processes wait.

    Raises:
        StorageError: the lock file could not be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115  closed below
    except OSError as error:
        raise StorageError(
            f"Opening the cache failed in {str(path.parent)!r}: expected a writable directory, got "
            f"{error}. Choose another cache directory."
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
    if target.exists() and not overwrite:
        raise OptionError(
            f"Publishing failed in {str(target)!r}: expected a name that is free, got an existing "
            "path. Choose another name, or overwrite it."
        )
    stage = target.parent / f".{target.name}.staging-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        stage.mkdir(parents=True)
        yield stage
        _sync_tree(stage)
        _replace(stage, target)
    except OSError as error:
        raise StorageError(
            f"Publishing failed in {str(target)!r}: expected a writable directory with free space, "
            f"got {error}. Check permissions and disk space."
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(stage: Path, target: Path) -> None:
    retired = stage.with_name(stage.name + ".old")
    if target.exists():
        os.rename(target, retired)
    os.rename(stage, target)
    _sync(target.parent)
    if retired.is_dir():
        shutil.rmtree(retired)
    elif retired.exists():
        retired.unlink()


def _sync_tree(directory: Path) -> None:
    for path in directory.iterdir():
        _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
