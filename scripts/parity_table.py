"""Parity of every `s2t_transformer` member at true size, random weights, as a Markdown table.

Torch (Fairseq itself) against ONNX under onnxruntime and against the IR on the CPU in f32, worst
logit error over all cases of the export gate: padded batches, random beam reordering, one token a
call and all tokens in one call.
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
    print("| architecture | conv_version | parameters | ONNX | IR | gate |")
    print("|---|---|---|---|---|---|")
    passed = True
    for size in sizes:
        for convolution in CONVOLUTIONS:
            passed &= _row(f"s2t_transformer_{size}", convolution)
    return 0 if passed else 1


def _row(arch: str, convolution: str) -> bool:
    from fairseq_openvino.errors import ParityError
    from fairseq_openvino.export import ir, onnx, parity, s2t_transformer

    model, arguments = _random_model(arch, convolution)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    graphs = s2t_transformer.build(model, arguments)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        onnx.export_onnx(graphs, directory)
        encoder, decoder = ir.convert(
            directory / "encoder.onnx", directory / "decoder.onnx", graphs
        )
        ir.save(encoder, directory / "encoder.xml", "f32")
        ir.save(decoder, directory / "decoder.xml", "f32")
        del encoder, decoder
        try:
            rows = parity.check(
                parity.FairseqReference(model), graphs, directory, "f32", ir=True
            ).rows
        except ParityError as error:
            print(
                f"| {arch} | {convolution} | {parameters:.1f} M | | | FAILED |\n{error}", flush=True
            )
            return False
    onnx_worst = max(max(row.onnx_steps, row.onnx_sequence) for row in rows)
    ir_worst = max(max(row.ir_steps or 0, row.ir_sequence or 0) for row in rows)
    errors = f"{onnx_worst:.1e} | {ir_worst:.1e}"
    print(f"| {arch} | {convolution} | {parameters:.1f} M | {errors} | passed |", flush=True)
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
