"""Files that anybody may have written: opened without following links, and JSON that has one meaning."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

BLOCK_BYTES = 1 << 20
FLAGS = os.O_RDONLY
for _name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # no system has them all
    FLAGS |= getattr(os, _name, 0)
MAX_DIGITS = 19
"""Of an integer: those of 64 bits."""
Stamp = tuple[int, int, int, int, int]


def open_no_follow(path: Path) -> BinaryIO:
    """A regular file, open for reading; a pipe is not waited for.

    A file of several names (hard links) is one: stores by content, backups and `cp -l` make such names, and
    a checksum vouches for what is read. But not if anybody may write it, who by the other name needs no
    right to this directory.

    Raises:
        OSError: there is none, or it may not be read.
        ValueError: it is a link, directory, pipe or device, or anybody may write it by another name.
    """
    try:
        descriptor = os.open(path, FLAGS)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a symbolic link") from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ValueError("a directory, pipe or device")
    if status.st_nlink > 1 and status.st_mode & stat.S_IWOTH:
        os.close(descriptor)
        raise ValueError(
            f"a file of {status.st_nlink} names (hard links) that anybody may write, mode "
            f"{stat.S_IMODE(status.st_mode):o}"
        )
    return open(descriptor, "rb")


def stamp(status: os.stat_result) -> Stamp:
    """What differs if a file was written to, or replaced."""
    return (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip


def content_sha256(file: BinaryIO) -> str:
    """Hexadecimal SHA-256 of what is left of an open file."""
    digest = hashlib.sha256()
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def strict_json(content: bytes) -> Any:
    """A JSON document that every reader understands alike.

    Raises:
        ValueError: it is not UTF-8, not JSON, nested too deeply, names a key twice, or has a number that
            is not finite or needs more than 64 bits.
    """
    try:
        found = json.loads(
            content.decode(), object_pairs_hook=_object, parse_int=_integer, parse_float=_real,
            parse_constant=_no_number,
        )  # fmt: skip
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} twice in an object")
    return found


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    found = float(text)
    return found if math.isfinite(found) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"the number {text[:MAX_DIGITS]}")
