"""Torch graphs to ONNX: tensor names, dynamic axes, opset, checker.

| graph   | tensor              | shape             | type  |
|---------|---------------------|-------------------|-------|
| encoder | in  features        | (N, T, F)         | f32   |
|         | or, where F = 0     | (N, T)            | i64   |
|         | in  lengths         | (N,)              | i64   |
|         | out encoder_lengths | (N,)              | i64   |
|         | out each memory     | its spec's        | f32   |
| decoder | in  tokens          | (R, l)            | i64   |
|         | in  offset          | ()                | i64   |
|         | in  each memory     | its spec's        | f32   |
|         | in  past_<state>    | its spec's        | f32   |
|         | out logits          | (R, l, V)         | f32   |
|         | out present_<state> | its spec's, L+l   | f32   |

Memory and state are described by `Graphs` (a transformer decoder's: `bundle.attention_specs`). N, T, R,
l, L, S are dynamic; R is a multiple of N and row r belongs to utterance r // (R / N).
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from fairseq_openvino import machine
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.tensors import TensorSpec, features_layout

OPSET = 17
ENCODER_ONNX = "encoder.onnx"
DECODER_ONNX = "decoder.onnx"


def past(state: TensorSpec) -> str:
    """The decoder's input for a state."""
    return f"past_{state.name}"


def present(state: TensorSpec) -> str:
    """The decoder's output for a state."""
    return f"present_{state.name}"


def decoder_tensors(graphs: Graphs) -> dict[str, TensorSpec]:
    """Inputs of the decoder behind `tokens` and `offset`, in the order of its arguments.

    What belongs to a layer, named `<part>.<layer>`, stands together, the states first.
    """
    named = {past(spec): spec for spec in graphs.state} | {
        spec.name: spec for spec in graphs.memory
    }

    def layer(name: str) -> int:
        number = name.rpartition(".")[2]
        return int(number) if number.isdigit() else -1

    return {name: named[name] for name in sorted(named, key=layer)}


def export_onnx(graphs: Graphs, directory: Path) -> None:
    """Write and check the encoder and, if there is one, the decoder."""
    axes: dict[str, dict[int, str]] = {
        "features": {0: "N", 1: "T"},
        "lengths": {0: "N"},
        "encoder_lengths": {0: "N"},
    }
    axes |= {spec.name: _dynamic(spec) for spec in graphs.memory}
    frames = 40 * graphs.min_source_frames
    shape, kind = features_layout(graphs.feature_bins)
    features = torch.zeros(2, frames, *shape, dtype=getattr(torch, kind))
    example = features, torch.tensor([frames, frames - 8])
    _export(graphs.encoder, example, directory / ENCODER_ONNX, ["features", "lengths"],
            ["encoder_lengths", *(spec.name for spec in graphs.memory)], axes)  # fmt: skip
    if not graphs.has_decoder:
        return
    tensors = decoder_tensors(graphs)
    axes = {"tokens": {0: "R", 1: "l"}, "logits": {0: "R", 1: "l"}}
    axes |= {name: _dynamic(spec) for name, spec in tensors.items()}
    axes |= {present(spec): _dynamic(spec, "L+l") for spec in graphs.state}
    _export(graphs.decoder, _decoder_example(graphs), directory / DECODER_ONNX,
            ["tokens", "offset", *tensors],
            ["logits", *map(present, graphs.state)], axes)  # fmt: skip


def _dynamic(spec: TensorSpec, length: str = "L") -> dict[int, str]:
    """Axes without a fixed size."""
    letters = {axis: dim for axis, dim in enumerate(spec.dims) if isinstance(dim, str)}
    return {axis: length if letter == "L" else letter for axis, letter in letters.items()}


def _decoder_example(graphs: Graphs) -> tuple[torch.Tensor, ...]:
    """N = 2, K = 2, l = 3, L = 5, S = 7; distinct tensors, or the tracer would merge inputs.

    The offset 0 does not fit L, but every position table; l is less in a model of fewer positions.
    """
    sizes = {"N": 2, "R": 4, "L": 5, "S": 7}
    tokens = torch.zeros(4, min(3, graphs.max_target_tokens), dtype=torch.int64)
    tensors = [
        torch.zeros([sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims])
        for spec in decoder_tensors(graphs).values()
    ]
    return (tokens, torch.tensor(0), *tensors)


def _export(
    module: Any,
    example: tuple[torch.Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
) -> None:
    """The graph first, its weights as inputs of the same names; then the weights, one at a time.

    The exporter itself would hold them three times.
    """
    import onnx

    from fairseq_openvino.export.weights import write_model

    graph = io.BytesIO()
    with torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter announces its own deprecation
        torch.onnx.export(
            module, example, graph, input_names=inputs, output_names=outputs,
            dynamic_axes=axes, opset_version=OPSET, dynamo=False, export_params=False,
            do_constant_folding=False,  # it stores a tied embedding twice, and no graph gets smaller
        )  # fmt: skip
    model = onnx.load_from_string(graph.getvalue())
    onnx.checker.check_model(model, full_check=False)
    stored = module.state_dict()
    weights = {each.name: stored[each.name] for each in model.graph.input if each.name in stored}
    read = {each.name: each for each in model.graph.input}
    del model.graph.input[:]
    for name, tensor in zip(
        inputs, example, strict=True
    ):  # the exporter leaves out what is not read
        sizes = [axes.get(name, {}).get(axis, size) for axis, size in enumerate(tensor.shape)]
        kind = onnx.helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype)
        unread = onnx.helper.make_tensor_value_info(name, kind, sizes)
        model.graph.input.append(read.get(name, unread))
    write_model(path, model, weights)
    machine.trim()
