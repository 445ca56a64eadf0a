"""The mean of several Fairseq checkpoints, as Fairseq's `scripts/average_checkpoints.py` computes it."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq_openvino.atomic import clear_leftovers, staged_file, unwritable
from fairseq_openvino.checkpoint import load_checkpoint
from fairseq_openvino.errors import CheckpointError, failure

ACTION = "Averaging checkpoints"
EPOCHS, UPDATES = r"checkpoint(\d+)\.pt", r"checkpoint_\d+_(\d+)\.pt"
"""Names of checkpoints that `fairseq-train` writes, and the number they are ordered by."""
PRETRAINED = ("load_pretrained_encoder_from", "load_pretrained_decoder_from")
"""Files the weights were initialised from: a trained model need not look for them."""
CTC_HEAD = "encoder.ctc_proj."
PLAIN_TYPES = (bool, int, float, str, type(None))


def last_checkpoints(directory: Path, names: str, count: int, bound: int | None) -> list[Path]:
    """The `count` latest files called like `names` and numbered at most `bound`, latest first.

    Raises:
        CheckpointError: there are fewer.
    """
    files = directory.iterdir() if directory.is_dir() else ()
    numbered = [
        (int(match[1]), path) for path in files if (match := re.fullmatch(names, path.name))
    ]
    found = sorted(each for each in numbered if bound is None or each[0] <= bound)[::-1][:count]
    if len(found) < count:
        limit = "" if bound is None else f" up to number {bound}"
        expected = f"at least {count} files named {names}{limit}"
        advice = "Average fewer, or name the files"
        raise failure(CheckpointError, ACTION, directory, expected, len(found), advice)
    return [path for _, path in found]


def average(
    paths: Sequence[Path], output: Path, drop_ctc: bool = False, strip_paths: bool = False
) -> None:
    """Write a checkpoint with the mean of the weights and the settings of the first of `paths`.

    Sums are computed in the order of `paths`, in float32 for float16; means of integers are rounded
    down. Optimizer, training and task state are left out, and nothing but tensors, plain containers and
    `argparse.Namespace` is written. One checkpoint at a time is read.

    Args:
        paths: files of `fairseq-train`.
        output: the file to write, which appears whole or not at all.
        drop_ctc: leave out the CTC head of an encoder.
        strip_paths: of absolute paths in the settings only the last component stays, and none of the
            checkpoints that the training started from.

    Raises:
        CheckpointError: a file is missing, damaged, or has other parameters than the first.
        UnsafeCheckpointError: loading a file could run code.
        StorageError: the output could not be written; nothing is left behind.
    """
    first = load_checkpoint(paths[0])
    weights = _mean(paths, first["model"])
    settings = {key: _plain(first.get(key), key, strip_paths) for key in ("args", "cfg")}
    if drop_ctc:
        weights = {name: each for name, each in weights.items() if not name.startswith(CTC_HEAD)}
        _set(settings["args"] or (settings["cfg"] or {}).get("model"), "ctc_weight", 0.0)
    history = [
        {
            "criterion_name": each.get("criterion_name"),
            "optimizer_name": each.get("optimizer_name"),
            "lr_scheduler_state": {},
            "num_updates": each.get("num_updates", 0),
        }
        for each in (first.get("optimizer_history") or [{}])[-1:]
    ]
    state = settings | {
        "model": weights, "criterion": None, "optimizer_history": history, "task_state": {},
        "extra_state": {}, "last_optimizer_state": None,
    }  # fmt: skip
    clear_leftovers(output.parent)
    with staged_file(output) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # so its writer ends where the disk is full
            raise unwritable("Writing", output, error) from error


def _mean(paths: Sequence[Path], first: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Source: Fairseq `scripts/average_checkpoints.py:average_checkpoints`."""
    shapes = {name: tuple(each.shape) for name, each in first.items()}
    total: dict[str, torch.Tensor] = {}
    for path in paths:
        weights = load_checkpoint(path)["model"]
        found = {name: tuple(each.shape) for name, each in weights.items()}
        if found != shapes:
            different = sorted(set(found.items()) ^ set(shapes.items()))[0][0]
            expected, got = f"the parameters of {paths[0]}", f"a difference in {different}"
            advice = "Average checkpoints of one run"
            raise failure(CheckpointError, ACTION, path, expected, got, advice)
        for name, each in weights.items():
            value = each.float() if each.dtype == torch.float16 else each
            total[name] = total[name].add_(value) if name in total else value.clone()
    for each in total.values():
        each.div_(len(paths)) if each.is_floating_point() else each.floor_divide_(len(paths))
    return total


def _set(arguments: Any, name: str, value: Any) -> None:
    """Of model arguments, which are a namespace or a dictionary."""
    values = vars(arguments) if isinstance(arguments, Namespace) else arguments or {}
    values[name] = value


def _plain(value: Any, key: str, strip_paths: bool) -> Any:
    """Settings as plain containers; `key` is where they are."""
    if isinstance(value, Namespace):
        return Namespace(**_plain(vars(value), key, strip_paths))
    if isinstance(value, Enum):
        return _plain(value.value, key, strip_paths)
    if isinstance(value, os.PathLike):
        return _plain(os.fspath(value), key, strip_paths)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): _plain(each, str(name), strip_paths) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each, key, strip_paths) for each in value]
    if type(value) not in PLAIN_TYPES:
        got, advice = type(value).__name__, "Train with settings of plain values"
        raise failure(CheckpointError, ACTION, f"the setting {key!r}", "a plain value", got, advice)
    if strip_paths and key in PRETRAINED:
        return None
    if strip_paths and isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value.rstrip("/")) or "."
    return value
