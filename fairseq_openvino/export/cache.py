"""Bundles exported on first use, found again by content; safe for several processes at once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from fairseq_openvino.atomic import locked, sha256
from fairseq_openvino.bundle import Bundle, is_bundle, open_bundle
from fairseq_openvino.errors import BundleError, CheckpointError
from fairseq_openvino.export.fairseq.data import DataDirectory

logger = logging.getLogger(__name__)

BUNDLES = "bundles"
KEY_DIGITS = 24


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/fairseq_openvino`, else `~/.cache/fairseq_openvino`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fairseq_openvino"


def cached_bundle(
    checkpoint: Path, data: DataDirectory, overrides: dict[str, Any], cache_dir: Path
) -> Bundle:
    """The bundle of a checkpoint, exported now if this cache has none.

    Args:
        checkpoint: a Fairseq `.pt` file.
        data: its data directory.
        overrides: model arguments to replace.
        cache_dir: where bundles are kept.

    Raises:
        CheckpointError: there is no such file.
        StorageError: the cache directory is not writable.
        FairseqOpenVINOError: whatever `export_checkpoint` raises; nothing is left in the cache.
    """
    if not checkpoint.is_file():
        raise CheckpointError(
            f"Loading a checkpoint failed in {str(checkpoint)!r}: expected a file, got none. "
            "Check --path."
        )
    target = cache_dir / BUNDLES / _key(checkpoint, data, overrides)
    with locked(target.with_name(target.name + ".lock")):  # others wait, then find the bundle
        if is_bundle(target):
            try:
                return open_bundle(target)
            except BundleError as error:
                logger.warning(f"exporting again, the cached bundle is damaged: {error}")
        from fairseq_openvino.export import ExportOptions, export_checkpoint

        logger.info(f"exporting {checkpoint} on first use into {target}")
        options = ExportOptions(keep_onnx=False, overwrite=True, transcribes=False)
        bundle, report = export_checkpoint(checkpoint, data, target, options, overrides)
        logger.info(f"exported; parity with Fairseq:\n{report.table()}")
        return bundle


def _key(checkpoint: Path, data: DataDirectory, overrides: dict[str, Any]) -> str:
    from fairseq_openvino.export import tool_versions

    content = {
        "checkpoint": sha256(checkpoint),
        "data": [sha256(path) for path in data.sources()],
        "described": {key: repr(value) for key, value in data.described().items()},
        "statistics": [values.tolist() for values in data.transforms.statistics or ()],
        "overrides": {key: repr(value) for key, value in sorted(overrides.items())},
        "versions": tool_versions(),
    }
    text = json.dumps(content, sort_keys=True)
    return f"{checkpoint.stem}-{hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]}"
