"""Bundles exported on first use, found again by content; safe for several processes at once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq_openvino.atomic import locked
from fairseq_openvino.bundle import Bundle, is_bundle, open_bundle
from fairseq_openvino.errors import BundleError

if TYPE_CHECKING:  # a bundle that is there is found without torch
    from fairseq_openvino.export.parity import Report

logger = logging.getLogger(__name__)

BUNDLES = "bundles"
KEY_DIGITS = 24


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/fairseq_openvino`, else `~/.cache/fairseq_openvino`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fairseq_openvino"


def cached(
    name: str,
    content: Mapping[str, Any],
    cache_dir: Path,
    make: Callable[[Path], tuple[Bundle, Report]],
) -> Bundle:
    """The bundle of some content, made now if this cache has none.

    Args:
        name: begins the directory's name.
        content: everything that shapes the bundle, as JSON types.
        cache_dir: where bundles are kept.
        make: exports it to a directory.

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
        bundle, report = make(target)
        logger.info(f"exported; parity with {report.reference}:\n{report.table()}")
        return bundle


def key(content: Mapping[str, Any]) -> str:
    """Equal for equal content."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]
