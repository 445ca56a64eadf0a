"""Bundles exported on first use, found again by content; safe for several processes at once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq_openvino import __version__, machine
from fairseq_openvino.atomic import locked, sha256
from fairseq_openvino.bundle import Bundle, is_bundle, open_bundle
from fairseq_openvino.errors import BundleError

if TYPE_CHECKING:  # a bundle that is there is found without torch
    from fairseq_openvino.export.parity import Report

logger = logging.getLogger(__name__)

BUNDLES = "bundles"
KEY_DIGITS, SHA256_DIGITS = 24, 64
FIXED_SECONDS, BYTES_PER_SECOND = 8, 10e6
"""An export on two cores, roughly: what each takes, and how much of its weights a second."""
DIGESTS = "digests"
REMEMBERED_BYTES = 16 << 20
"""Files below are read each time."""
SETTLED_SECONDS = 2
"""A file changed within these may change again without another time stamp."""
SHAPING = ("numpy", "openvino", "torch", "onnx", "onnxruntime", "fairseq-fixed")
"""Distributions whose versions shape a bundle."""


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/fairseq_openvino`, else `~/.cache/fairseq_openvino`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fairseq_openvino"


def tool_versions() -> dict[str, str]:
    """Versions of the packages that shape a bundle."""
    return {"fairseq-openvino": __version__, **machine.versions(SHAPING)}


def cached(
    name: str,
    content: Mapping[str, Any],
    cache_dir: Path,
    make: Callable[[Path], tuple[Bundle, Report]],
    weights_bytes: int = 0,
    announce: Callable[[str], object] = logger.info,
) -> Bundle:
    """The bundle of some content, made now if this cache has none.

    Args:
        name: begins the directory's name.
        content: everything that shapes the bundle, as JSON types.
        cache_dir: where bundles are kept.
        make: exports it to a directory.
        weights_bytes: size of what is exported, for the time that is announced.
        announce: receives a line before an export and one after it.

    Raises:
        StorageError: the cache directory is not writable.
    """
    target = cache_dir / BUNDLES / f"{name}-{key(content)}"
    with locked(target.with_name(target.name + ".lock")):  # others wait, then find the bundle
        if is_bundle(target):
            try:
                return open_bundle(target)
            except BundleError as error:
                logger.warning(f"exporting again, the cached bundle is damaged: {error}")
        started, seconds = time.monotonic(), FIXED_SECONDS + weights_bytes / BYTES_PER_SECOND
        announce(f"exporting {name} for the first use (about {seconds:.0f} s) ...")
        bundle, report = make(target)
        announce(f"... took {time.monotonic() - started:.0f} s, kept in {target}")
        logger.info(f"exported; parity with {report.reference}:\n{report.table()}")
        return bundle


def remembered_sha256(path: Path, cache_dir: Path) -> str:
    """SHA-256 of a file; of a large one it is kept as long as size, times and place stay the same."""
    status = path.stat()
    if status.st_size < REMEMBERED_BYTES:
        return sha256(path)
    identity = [str(path.resolve()), status.st_dev, status.st_ino]
    identity += [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    memo = cache_dir / DIGESTS / key({"file": identity})
    with suppress(OSError):
        found = memo.read_text("ascii")
        if len(found) == SHA256_DIGITS:
            return found
    digest = sha256(path)
    with suppress(OSError):
        if time.time() > max(status.st_mtime, status.st_ctime) + SETTLED_SECONDS:
            memo.parent.mkdir(parents=True, exist_ok=True)
            part = memo.with_name(f"{memo.name}.{os.getpid()}")
            part.write_text(digest, "ascii")
            part.replace(memo)
    return digest


def key(content: Mapping[str, Any]) -> str:
    """Equal for equal content."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]
