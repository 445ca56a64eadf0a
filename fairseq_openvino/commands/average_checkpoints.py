"""`fairseq-openvino average-checkpoints`, with the flags of Fairseq's `scripts/average_checkpoints.py`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from fairseq_openvino.errors import EXIT_OK, invalid
from fairseq_openvino.flags import add_flags, given

ACTION = "Averaging checkpoints"


@dataclass(frozen=True)
class AveragingOptions:
    """Which checkpoints of a directory, and what is left out of their mean."""

    num_epoch_checkpoints: int | None = None
    """The latest N of checkpointEPOCH.pt in the directory given as --inputs."""
    num_update_checkpoints: int | None = None
    """The latest N of checkpoint_EPOCH_UPDATE.pt there."""
    checkpoint_upper_bound: int | None = None
    """Latest epoch or update that counts."""
    drop_ctc: bool = False
    """Leave out the CTC head, so that the encoder initialises one without."""
    strip_paths: bool = False
    """Leave no directories of this machine in the settings."""

    def __post_init__(self) -> None:
        numbers = [self.num_epoch_checkpoints, self.num_update_checkpoints]
        for field in fields(self)[:2]:
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise invalid(ACTION, field.name, "at least 1", value)
        if None not in numbers:
            expected = "it or num_epoch_checkpoints"
            raise invalid(ACTION, "num_update_checkpoints", expected, "both", "Leave out one")
        if self.checkpoint_upper_bound is not None and numbers == [None, None]:
            expected = "a number of checkpoints of a directory with it"
            advice = "Add --num-epoch-checkpoints or --num-update-checkpoints"
            raise invalid(ACTION, "checkpoint_upper_bound", expected, "none", advice)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "--inputs", nargs="+", type=Path, required=True, metavar="PATH",
        help="checkpoints, or one directory of them",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="checkpoint to write"
    )
    add_flags(parser, AveragingOptions)


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Write the mean, and print of what."""
    from fairseq_openvino.export.fairseq.averaging import EPOCHS, UPDATES, average, last_checkpoints

    options = AveragingOptions(**given(arguments, AveragingOptions))
    inputs = arguments.inputs
    count = options.num_epoch_checkpoints or options.num_update_checkpoints
    if count is not None:
        if len(inputs) != 1:
            raise invalid(ACTION, "--inputs", "one directory", f"{len(inputs)} paths")
        names = EPOCHS if options.num_epoch_checkpoints else UPDATES
        inputs = last_checkpoints(inputs[0], names, count, options.checkpoint_upper_bound)
    average(inputs, arguments.output, options.drop_ctc, options.strip_paths)
    print(f"mean of {', '.join(map(str, inputs))} written to {arguments.output}")
    return EXIT_OK
