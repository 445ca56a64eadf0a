"""Reduce a Fairseq checkpoint to what generation needs, without paths of the training machine.

    python examples/covost/strip_checkpoint.py RUN/checkpoint*.pt --output checkpoint.pt

averages the weights of several checkpoints (Fairseq's `scripts/average_checkpoints.py` is not part
of its packages), drops optimizer and iterator states and keeps Fairseq's layout, so
`fairseq-generate` reads the result. Nothing but tensors, plain containers and
`argparse.Namespace` is written.
"""

from __future__ import annotations

import argparse
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from fairseq_openvino.errors import EXIT_OK, CheckpointError, FairseqOpenVINOError, StorageError

PRETRAINED = ("load_pretrained_encoder_from", "load_pretrained_decoder_from")
"""Files the weights were initialised from: the model must not look for them again."""
CTC_HEAD = "encoder.ctc_proj."
PLAIN_TYPES = (bool, int, float, str, type(None))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoints", nargs="+", help="files of one run you trust; averaged")
    parser.add_argument("--output", required=True, metavar="PT")
    parser.add_argument("--drop-ctc", action="store_true", help="leave out the CTC head")
    options = parser.parse_args(arguments)
    try:
        states = [_load(Path(path)) for path in options.checkpoints]
        _save(strip(states, options.drop_ctc), Path(options.output))
    except FairseqOpenVINOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def strip(states: list[dict[str, Any]], drop_ctc: bool = False) -> dict[str, Any]:
    """One checkpoint with averaged weights and the configuration of the last of `states`."""
    last = states[-1]
    configuration = _plain(last["cfg"])
    model = average([state["model"] for state in states])
    if drop_ctc:
        model = {name: value for name, value in model.items() if not name.startswith(CTC_HEAD)}
        configuration["model"].ctc_weight = 0.0
    return {
        "args": None,
        "cfg": configuration,
        "model": model,
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": last["optimizer_history"][-1]["criterion_name"],
                "optimizer_name": last["optimizer_history"][-1]["optimizer_name"],
                "lr_scheduler_state": {},
                "num_updates": last["optimizer_history"][-1]["num_updates"],
            }
        ],
        "task_state": {},
        "extra_state": {},
        "last_optimizer_state": None,
    }


def average(models: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Mean of each parameter, computed in float64; all models must have equal names and shapes."""
    shapes = [{name: tuple(value.shape) for name, value in model.items()} for model in models]
    for index, other in enumerate(shapes):
        if other != shapes[0]:
            different = sorted(set(other.items()) ^ set(shapes[0].items()))[0]
            raise CheckpointError(
                f"Averaging failed in checkpoint {index + 1} of {len(models)}: expected the "
                f"parameters of the first, got a difference in {different[0]}. "
                "Average checkpoints of one run."
            )
    return {name: _mean([model[name] for model in models]) for name in models[0]}


def _mean(values: list[torch.Tensor]) -> torch.Tensor:
    if len(values) == 1 or not values[0].is_floating_point():
        return values[-1].clone()
    return torch.stack([value.double() for value in values]).mean(dim=0).to(values[0].dtype)


def _plain(value: Any, key: str = "") -> Any:
    """Plain containers only; absolute paths become their last component, relative ones stay."""
    if isinstance(value, argparse.Namespace):
        return argparse.Namespace(**_plain(vars(value)))
    if isinstance(value, Enum):
        return _plain(value.value)
    if hasattr(value, "items"):
        return {str(name): _plain(entry, str(name)) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if key in PRETRAINED:
        return None
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value.rstrip("/")) or "."
    if type(value) in PLAIN_TYPES:
        return value
    raise CheckpointError(
        f"Stripping failed in the configuration key {key!r}: expected plain values, "
        f"got {type(value).__name__}. Train with a configuration of plain values."
    )


def _load(path: Path) -> dict[str, Any]:
    # Weights of a run of one's own: Fairseq's configurations need the full unpickler here.
    try:
        state = torch.load(path, map_location="cpu", weights_only=False)
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"Reading a checkpoint failed in {path}: expected a Fairseq checkpoint, got {error}. "
            "Check the path."
        ) from error
    if not isinstance(state, dict) or not {"model", "cfg", "optimizer_history"} <= state.keys():
        raise CheckpointError(
            f"Reading a checkpoint failed in {path}: expected the keys cfg, model and "
            f"optimizer_history, got {type(state).__name__}. Give a file of fairseq-train."
        )
    return state


def _save(state: dict[str, Any], path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(state, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        raise StorageError(
            f"Writing a checkpoint failed in {path}: expected a writable directory, got {error}. "
            "Check permission and free space."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
