"""Torch graphs to ONNX: tensor names, dynamic axes, opset, checker.

| graph   | tensor              | shape             | type  |
|---------|---------------------|-------------------|-------|
| encoder | in  features        | (N, T, F)         | f32   |
|         | in  lengths         | (N,)              | i64   |
|         | out encoder_lengths | (N,)              | i64   |
|         | out cross_bias      | (N, 1, 1, S)      | f32   |
|         | out cross_key.p     | (N, H, S, dh)     | f32   |
|         | out cross_value.p   | (N, H, S, dh)     | f32   |
| decoder | in  tokens          | (R, l)            | i64   |
|         | in  offset          | ()                | i64   |
|         | in  cross_bias      | (N, 1, 1, S)      | f32   |
|         | in  past_key.p      | (R, H, L, dh)     | f32   |
|         | in  past_value.p    | (R, H, L, dh)     | f32   |
|         | in  cross_key.p     | (N, H, S, dh)     | f32   |
|         | in  cross_value.p   | (N, H, S, dh)     | f32   |
|         | out logits          | (R, l, V)         | f32   |
|         | out present_key.p   | (R, H, L+l, dh)   | f32   |
|         | out present_value.p | (R, H, L+l, dh)   | f32   |

p = 0 .. P-1; N, T, R, l, L, S are dynamic; R is a multiple of N and row r belongs to utterance
r // (R / N).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

from fairseq_openvino.export import memory
from fairseq_openvino.export.graphs import Graphs

OPSET = 17
ENCODER_ONNX = "encoder.onnx"
DECODER_ONNX = "decoder.onnx"


def cross_names(layers: int) -> list[str]:
    """cross_key.0, cross_value.0, cross_key.1, ... in graph order."""
    return [f"cross_{part}.{i}" for i in range(layers) for part in ("key", "value")]


def cache_names(prefix: str, layers: int) -> list[str]:
    """<prefix>_key.0, <prefix>_value.0, ... for prefix `past` or `present`, in graph order."""
    return [f"{prefix}_{part}.{i}" for i in range(layers) for part in ("key", "value")]


def decoder_inputs(layers: int) -> list[str]:
    """Input names of the decoder graph, in graph order."""
    names = ["tokens", "offset", "cross_bias"]
    past, cross = cache_names("past", layers), cross_names(layers)
    for i in range(layers):
        names += past[2 * i : 2 * i + 2] + cross[2 * i : 2 * i + 2]
    return names


def export_onnx(graphs: Graphs, directory: Path) -> tuple[Path, Path]:
    """Write and check both graphs.

    Returns:
        Paths of the encoder and of the decoder inside `directory`.
    """
    encoder, decoder = directory / ENCODER_ONNX, directory / DECODER_ONNX
    outputs = ["encoder_lengths", "cross_bias", *cross_names(graphs.layers)]
    axes: dict[str, dict[int, str]] = {
        "features": {0: "N", 1: "T"},
        "lengths": {0: "N"},
        "encoder_lengths": {0: "N"},
        "cross_bias": {0: "N", 3: "S"},
    }
    axes |= {name: {0: "N", 2: "S"} for name in cross_names(graphs.layers)}
    features = torch.zeros(2, 40, graphs.feature_bins)
    _export(graphs.encoder, (features, torch.tensor([40, 32])), encoder,
            ["features", "lengths"], outputs, axes)  # fmt: skip
    axes = {"tokens": {0: "R", 1: "l"}, "cross_bias": {0: "N", 3: "S"}, "logits": {0: "R", 1: "l"}}
    axes |= {name: {0: "N", 2: "S"} for name in cross_names(graphs.layers)}
    axes |= {name: {0: "R", 2: "L"} for name in cache_names("past", graphs.layers)}
    axes |= {name: {0: "R", 2: "L+l"} for name in cache_names("present", graphs.layers)}
    outputs = ["logits", *cache_names("present", graphs.layers)]
    _export(graphs.decoder, _decoder_example(graphs), decoder,
            decoder_inputs(graphs.layers), outputs, axes)  # fmt: skip
    return encoder, decoder


def _decoder_example(graphs: Graphs) -> tuple[torch.Tensor, ...]:
    """N = 2, K = 2, l = 3, L = 5, S = 7; distinct tensors, or the tracer would merge inputs.

    The offset 0 does not fit L, but every position table; l is less in a model of fewer positions.
    """

    def cache(rows: int, length: int) -> torch.Tensor:
        return torch.zeros(rows, graphs.heads, length, graphs.head_width)

    tokens = torch.zeros(4, min(3, graphs.max_target_tokens), dtype=torch.int64)
    example = [tokens, torch.tensor(0), torch.zeros(2, 1, 1, 7)]
    for _ in range(graphs.layers):
        example += [cache(4, 5), cache(4, 5), cache(2, 7), cache(2, 7)]
    return tuple(example)


def _export(
    module: Any,
    example: tuple[torch.Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
) -> None:
    before = set(path.parent.iterdir())
    with torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter announces its own deprecation
        torch.onnx.export(
            module, example, str(path), input_names=inputs, output_names=outputs,
            dynamic_axes=axes, opset_version=OPSET, dynamo=False,
            do_constant_folding=False,  # it stores a tied embedding twice, and no graph gets smaller
        )  # fmt: skip
    parts = set(path.parent.iterdir()) - before - {path}
    if parts:  # above 2 GB the exporter writes each weight to a file of its own
        model = onnx.load(path)
        for part in parts:
            part.unlink()
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=False)
    memory.trim()
