"""Parity of every `s2t_transformer` member at true size, random weights, as a Markdown table.

Fairseq itself in f32, ONNX under onnxruntime and the IR on the CPU in f32 against Fairseq in f64: worst
logit error over all cases of the export gate (padded batches, random beam reordering, one token a
call and all tokens in one call), and the largest accepted one.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

SIZES = ("xs", "s", "sp", "m", "mp", "l", "lp")
CONVOLUTIONS = ("s2t_transformer", "convtransformer")
VOCABULARY = 1000


def main() -> int:
    """Print a row for each member; return 1 if one fails the gate."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(SIZES), help="members to measure")
    sizes = parser.parse_args().sizes.split(",")
    print("| architecture | conv_version | parameters | Fairseq f32 | ONNX | IR | limit | gate |")
    print("|---|---|---|---|---|---|---|---|")
    passed = True
    for size in sizes:
        for convolution in CONVOLUTIONS:
            passed &= _row(f"s2t_transformer_{size}", convolution)
    return 0 if passed else 1


def _row(arch: str, convolution: str) -> bool:
    from fairseq_openvino.errors import ParityError
    from fairseq_openvino.export import ExportOptions, finish_graphs, onnx, parity
    from fairseq_openvino.export.fairseq import s2t_transformer

    model, arguments = _random_model(arch, convolution)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    member = f"| {arch} | {convolution} | {parameters:.1f} M |"
    graphs = s2t_transformer.build(model, arguments)
    with tempfile.TemporaryDirectory() as name:
        expected = parity.expect(parity.FairseqReference(model), graphs)
        onnx.export_onnx(graphs, Path(name))
        del model
        graphs = graphs.without_modules()
        try:
            report = finish_graphs(graphs, Path(name), ExportOptions(), expected)
        except ParityError as error:
            print(f"{member} | | | | FAILED |\n{error}", flush=True)
            return False
    own = max(row.own_error for row in report.rows)
    onnx_worst = max(max(row.onnx_steps, row.onnx_sequence) for row in report.rows)
    ir_worst = max(max(row.ir_steps or 0, row.ir_sequence or 0) for row in report.rows)
    errors = " | ".join(f"{x:.1e}" for x in (own, onnx_worst, ir_worst, report.limit))
    print(f"{member} {errors} | passed |", flush=True)
    return True


def _random_model(arch: str, convolution: str) -> tuple[Any, Namespace]:
    import torch
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    torch.manual_seed(0)
    dictionary = Dictionary()
    for i in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(f"t{i}")
    arguments = Namespace(
        max_source_positions=6000, max_target_positions=1024, input_feat_per_channel=80,
        input_channels=1, conv_version=convolution,
    )  # fmt: skip
    ARCH_CONFIG_REGISTRY[arch](arguments)
    task = Namespace(target_dictionary=dictionary)
    return ARCH_MODEL_REGISTRY[arch].build_model(arguments, task).eval(), arguments


if __name__ == "__main__":
    sys.exit(main())
