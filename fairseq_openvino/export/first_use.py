"""An export that nobody asked for by name: what it depends on, and what is said about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_openvino import __version__, machine
from fairseq_openvino.atomic import sha256, writable_directory, write_file
from fairseq_openvino.bundle import Bundle
from fairseq_openvino.export.cache import key

if TYPE_CHECKING:
    from fairseq_openvino.export.parity import Report

Make = Callable[[Path], "tuple[Bundle, Report]"]
"""Exports to a directory."""
SHAPING = ("numpy", "openvino", "torch", "onnx", "onnxruntime", "fairseq-fixed")
"""Distributions whose versions shape a bundle."""
FIXED_SECONDS, BYTES_PER_SECOND = 8, 10e6
"""An export on two cores, roughly: what each takes, and how much of its weights a second."""
DIGESTS = "digests"
"""In a cache directory: of large files."""
REMEMBERED_BYTES = 16 << 20
"""Files below are read each time."""
SETTLED_SECONDS = 2
"""A file changed within these may change again without another time stamp."""
SHA256_DIGITS = 64


def tool_versions() -> dict[str, str]:
    """Versions of the packages that shape a bundle."""
    return {"fairseq-openvino": __version__, **machine.versions(SHAPING)}


def announced(make: Make, name: str, weights_bytes: int, announce: Callable[[str], object]) -> Make:
    """The same with a line before it, which says how long it may take, and one after it."""

    def make_and_tell(target: Path) -> tuple[Bundle, Report]:
        started, seconds = time.monotonic(), FIXED_SECONDS + weights_bytes / BYTES_PER_SECOND
        announce(f"exporting {name} for the first use (about {seconds:.0f} s) ...")
        made = make(target)
        announce(f"... took {time.monotonic() - started:.0f} s, in {target}")
        return made

    return make_and_tell


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
            write_file(writable_directory(memo.parent) / memo.name, digest.encode())
    return digest
