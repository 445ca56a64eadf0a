"""Bundles exported on first use, found again by content; safe for several processes at once.

| in a cache directory       | what it is                                                        |
|----------------------------|-------------------------------------------------------------------|
| `bundles/NAME-KEY`         | a bundle                                                          |
| `bundles/NAME-KEY.used`    | when it was opened last; locked as long as a process uses it      |
| `compiled/PRECISION/*`     | graphs as OpenVINO compiled them                                  |
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO

from fairseq_openvino.atomic import (
    LOCK,
    clear_leftovers,
    lock_shared,
    locked,
    remove_directory,
)
from fairseq_openvino.bundle import MANIFEST, Bundle, is_bundle, open_bundle, read_manifest
from fairseq_openvino.errors import BundleError, StorageError

if TYPE_CHECKING:
    from fairseq_openvino.export.parity import Report

logger = logging.getLogger(__name__)

BUNDLES, COMPILED = "bundles", "compiled"
USED = ".used"
COMPILED_SUFFIXES = (".blob", ".cl_cache")
KEY_DIGITS = 24

_held: dict[Path, BinaryIO | TemporaryDirectory[str]] = {}
"""Until this process ends: locks of bundles in use, and bundles that are kept nowhere else."""


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/fairseq_openvino`, else `~/.cache/fairseq_openvino`.

    A relative `XDG_CACHE_HOME` does not count: basedir-spec, "All paths must be absolute".
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "fairseq_openvino"


@functools.cache
def is_writable(cache_dir: Path) -> bool:
    """Whether something can be kept there; if not, a warning says so once."""
    try:
        with locked(cache_dir / LOCK, wait=False):
            return True
    except StorageError as error:
        logger.warning(f"nothing is kept for the next run: {error}")
        return False


def cached(
    name: str,
    content: Mapping[str, Any],
    cache_dir: Path,
    make: Callable[[Path], tuple[Bundle, Report]],
) -> Bundle:
    """The bundle of some content, made now if this cache has none.

    Where the cache cannot be written, what is made is gone when this process ends.

    Args:
        name: begins the directory's name.
        content: everything that shapes the bundle, as JSON types.
        cache_dir: where bundles are kept.
        make: exports it to a directory.

    Raises:
        StorageError: the bundle could not be written.
    """
    target = cache_dir / BUNDLES / f"{name}-{key(content)}"
    if not is_writable(cache_dir):
        return _found(target) or _made(_temporary() / target.name, make)
    with locked(_beside(target, LOCK)):  # others wait, then find the bundle
        clear_leftovers(target.parent)  # of one who died when it was there already, too
        bundle = _found(target) or _made(target, make)
        used = _beside(target, USED)
        if used not in _held:
            _held[used] = lock_shared(used)
        with suppress(OSError):  # else it counts as used when it was made
            os.utime(used)
        return bundle


def _found(target: Path) -> Bundle | None:
    if is_bundle(target):
        try:
            return open_bundle(target)
        except BundleError as error:
            logger.warning(f"exporting again, the cached bundle is damaged: {error}")
    return None


def _made(target: Path, make: Callable[[Path], tuple[Bundle, Report]]) -> Bundle:
    bundle, report = make(target)
    logger.info(f"exported; parity with {report.reference}:\n{report.table()}")
    return bundle


def _temporary() -> Path:
    scratch = TemporaryDirectory(prefix="fairseq-openvino-")
    path = Path(scratch.name)
    _held[path] = scratch
    return path


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def key(content: Mapping[str, Any]) -> str:
    """Equal for equal content."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


@dataclass(frozen=True)
class Entry:
    """Something in a cache that can be made again."""

    path: Path
    """A bundle, or a compiled graph."""
    source: str
    """What it was made from; of a compiled graph a word for it."""
    bytes: int
    used: float
    """Last use, in seconds since 1970; for a compiled graph as exact as the file system notes reading."""

    @property
    def is_bundle(self) -> bool:
        """Else it is a compiled graph."""
        return self.path.is_dir()

    @property
    def directory(self) -> Path:
        """The bundle, or where the compiled graph is with others."""
        return self.path if self.is_bundle else self.path.parent

    def remove(self) -> bool:
        """Whether it is gone now; False if a process uses it.

        Raises:
            OSError: it could not be removed, and is whole.
        """
        lock = _beside(self.path, LOCK) if self.is_bundle else self.path.parent / LOCK
        with locked(lock, wait=False) as nobody_makes_it:
            if not nobody_makes_it:
                return False
            if not self.is_bundle:
                self.path.unlink(missing_ok=True)
                return True
            with locked(_beside(self.path, USED), wait=False) as nobody_uses_it:
                if nobody_uses_it:
                    remove_directory(self.path)
                return nobody_uses_it


def entries(cache_dir: Path) -> Iterator[Entry]:
    """Bundles, then compiled graphs; what this package did not put there is passed over."""
    for path in sorted((cache_dir / BUNDLES).glob("*")):
        if is_bundle(path):
            size = sum(file.stat().st_size for file in path.iterdir())
            stamp = _beside(path, USED)
            used = (stamp if stamp.exists() else path / MANIFEST).stat().st_mtime
            yield Entry(path, _source(path), size, used)
    for root in (cache_dir / COMPILED, cache_dir):  # the latter as `transcribe --cache-dir`
        for path in sorted(root.glob("*/*")):
            if path.suffix in COMPILED_SUFFIXES and path.is_file():
                status = path.stat()
                used = max(status.st_atime, status.st_mtime)
                yield Entry(path, "compiled models", status.st_size, used)


def _source(path: Path) -> str:
    try:
        manifest, _ = read_manifest(path)
    except BundleError:
        return f"{path.name} (damaged)"
    names = (manifest.source.get(name) for name in ("checkpoint", "directory"))
    return f"{next(filter(None, names), path.name)} ({manifest.architecture})"
