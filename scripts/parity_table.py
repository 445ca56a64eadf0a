"""Parity of every `s2t_transformer` member at true size, random weights, as a Markdown table.

Fairseq itself in f32, ONNX under onnxruntime and the IR on the CPU in f32 against Fairseq in f64: worst
logit error over all cases of the export gate (padded batches, random beam reordering, one token a
call and all tokens in one call), and the largest accepted one.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from argparse import ArgumentParser
from pathlib import Path

warnings.filterwarnings("ignore")

SIZES = ("xs", "s", "sp", "m", "mp", "l", "lp")
CONVOLUTIONS = ("s2t_transformer", "convtransformer")
VOCABULARY = 1000


def main() -> int:
    """Print a row for each member; return 1 if one fails the gate."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(SIZES), help="members to measure")
    sizes = parser.parse_args().sizes.split(",")
    print("| architecture | conv_version | Fairseq in f32 | ONNX | IR | limit | gate |")
    print("|---|---|---|---|---|---|---|")
    members = [(f"s2t_transformer_{size}", conv) for size in sizes for conv in CONVOLUTIONS]
    return 0 if all([_row(*member) for member in members]) else 1


def _row(arch: str, convolution: str) -> bool:
    from fairseq_openvino.errors import ParityError
    from fairseq_openvino.export.fairseq import export_checkpoint
    from fairseq_openvino.export.fairseq.data import DataDirectory
    from fairseq_openvino.measure.material.s2t import write_checkpoint

    member = f"| {arch} | {convolution} |"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        checkpoint = write_checkpoint(
            directory, arch, vocabulary=VOCABULARY, sharpness=1.0, conv_version=convolution
        )
        try:
            _, report = export_checkpoint(
                checkpoint, DataDirectory(directory), directory / "bundle"
            )
        except ParityError as error:
            print(f"{member} | | | | FAILED |\n{error}", flush=True)
            return False
    own = max(row.own_error for row in report.rows)
    onnx_worst = max(max(row.onnx_steps, row.onnx_sequence) for row in report.rows)
    ir_worst = max(max(row.ir_steps or 0, row.ir_sequence or 0) for row in report.rows)
    errors = " | ".join(f"{x:.1e}" for x in (own, onnx_worst, ir_worst, report.limit))
    print(f"{member} {errors} | passed |", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
