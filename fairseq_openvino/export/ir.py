"""ONNX to OpenVINO IR; the decoder becomes stateful and takes `beam_idx`.

What the CPU plugin fuses depends on the exact form of the graph: `beam_idx` must be an i32 parameter
feeding a Gather on each state, and each state a ReadValue/Assign pair with an initialiser. Then
self-attention with its cache and reordering becomes one node per layer.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from openvino import op
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation

from fairseq_openvino.bundle import DECODER_IR, ENCODER_IR
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.onnx import DECODER_ONNX, ENCODER_ONNX, past, present
from fairseq_openvino.runtime.graphs import save_graph

MIN_WEIGHTS = 1 << 10
"""Numbers of a constant that is worth storing in 16 bits."""


def write(directory: Path, graphs: Graphs, precision: str) -> None:
    """Convert the ONNX files of a directory; weights are stored in `precision` (f32 or f16).

    The encoder keeps its inputs and outputs. The decoder becomes stateful, with the inputs tokens
    (R, l), offset (), beam_idx (R,) i32 and the memory, and the output logits (R, l, V). One model at a
    time is loaded.
    """
    save(ov.convert_model(directory / ENCODER_ONNX), directory / ENCODER_IR, precision)
    if not graphs.has_decoder:
        return
    decoder = ov.convert_model(directory / DECODER_ONNX)
    _make_stateful(decoder, graphs)
    save(decoder, directory / DECODER_IR, precision)


def save(model: ov.Model, path: Path, precision: str) -> None:
    """Write `path` (.xml) and the weights beside it (.bin).

    At `precision` f16 weights are rounded; at f32 they are stored in 16 bits only where that is exact,
    as it is for a checkpoint of 16-bit numbers. `model` is changed.
    """
    _compute_positions(model)
    _store_in_16_bits(model, rounded=precision == "f16")
    save_graph(model, path)


def _store_in_16_bits(model: ov.Model, rounded: bool) -> None:
    """Replace f32 constants by f16 or bf16 ones: of the same values, or the next in f16."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        tensor = _in_16_bits(node.data, rounded) if node.data.size >= MIN_WEIGHTS else None
        if tensor is None:
            continue
        constant = op.Constant(tensor)
        constant.set_friendly_name(node.get_friendly_name())
        wide = ops.convert(constant, "f32")
        for consumer in node.output(0).get_target_inputs():
            consumer.replace_source_output(wide.output(0))
    model.validate_nodes_and_infer_types()


def _compute_positions(model: ov.Model) -> None:
    """Replace tables of sinusoidal positions by what they are computed from; the device folds it again.

    Source: Fairseq `modules/sinusoidal_positional_embedding.py:get_embedding`.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        table = node.data
        if table.ndim != 2 or table.shape[1] < 4 or table.shape[1] % 2:  # noqa: PLR2004
            continue
        rows, half = len(table), table.shape[1] // 2
        scales = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
        if not np.allclose(table[-1], _sinusoids(scales, torch.tensor([rows - 1])), atol=1e-5):
            continue
        sinusoids = _sinusoids(scales, torch.arange(rows))
        padding = np.flatnonzero(~table.any(axis=1))
        sinusoids[padding] = 0
        if len(padding) > 1 or not np.array_equal(table, sinusoids):
            continue
        row = ops.range(ops.constant(0.0), ops.constant(float(rows)), ops.constant(1.0), "f32")
        angle = ops.multiply(
            ops.unsqueeze(row, ops.constant(1)), ops.constant(scales.numpy()[None])
        )
        computed = ops.concat([ops.sin(angle), ops.cos(angle)], 1)
        if len(padding):
            kept = ops.convert(ops.not_equal(row, ops.constant(np.float32(padding[0]))), "f32")
            computed = ops.multiply(computed, ops.unsqueeze(kept, ops.constant(1)))
        for consumer in node.output(0).get_target_inputs():
            consumer.replace_source_output(computed.output(0))
    model.validate_nodes_and_infer_types()


def _sinusoids(scales: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
    angles = positions.unsqueeze(1) * scales.unsqueeze(0)
    return torch.cat([torch.sin(angles), torch.cos(angles)], 1).numpy()


def _in_16_bits(values: np.ndarray, rounded: bool) -> ov.Tensor | None:
    """The same numbers in f16 or bf16, or rounded to f16; None if there are none."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if np.isfinite(half).all() if rounded else np.array_equal(half, values):
        return ov.Tensor(half)
    bits = np.ascontiguousarray(values).view(np.uint32)
    if not (bits & 0xFFFF).any():
        upper = (bits >> 16).astype(np.uint16)
        tensor = ov.Tensor(ov.Type.bf16, ov.Shape(values.shape))
        tensor.data.view(np.uint16)[...] = upper
        return tensor
    return None


def _make_stateful(model: ov.Model, graphs: Graphs) -> None:
    beam_idx = ops.parameter([-1], np.int32, name="beam_idx")
    beam_idx.output(0).get_tensor().set_names({"beam_idx"})
    axis = ops.constant(np.int64(0))
    for spec in graphs.state:
        parameter = model.input(past(spec)).get_node()
        consumers = parameter.output(0).get_target_inputs()
        reordered = ops.gather(parameter, beam_idx, axis)
        for consumer in consumers:
            consumer.replace_source_output(reordered.output(0))
    model.add_parameters([beam_idx])
    model.validate_nodes_and_infer_types()
    pairs = {past(spec): present(spec) for spec in graphs.state}
    apply_make_stateful_transformation(model, pairs)
    _initialise_states(model, graphs)
    model.validate_nodes_and_infer_types()


def _initialise_states(model: ov.Model, graphs: Graphs) -> None:
    rows = ops.shape_of(model.input("beam_idx"), output_type="i64")  # (1,)
    specs = {past(spec) + present(spec): spec for spec in graphs.state}
    zeros: dict[tuple[int | str, ...], ov.Node] = {}
    for node in model.get_ops():
        if node.get_type_name() != "ReadValue":
            continue
        spec = specs[node.get_attributes()["variable_id"]]
        if spec.start is not None:
            start = _rows_of(model.input(spec.start).get_node(), rows)
        elif (start := zeros.get(spec.dims)) is None:
            sizes = [dim if isinstance(dim, int) else 0 for dim in spec.dims[1:]]
            tail = ops.constant(np.array(sizes, np.int64))
            zero = ops.constant(np.float32(0))
            start = zeros[spec.dims] = ops.broadcast(zero, ops.concat([rows, tail], 0))
        node.set_arguments([start.output(0)])


def _rows_of(memory: ov.Node, rows: ov.Node) -> ov.Node:
    """A memory tensor (N, ...) with each utterance repeated for its rows: (R, ...)."""
    zero, one = ops.constant(np.int64(0)), ops.constant(np.int64(1))
    count = ops.squeeze(rows, zero)
    utterances = ops.gather(ops.shape_of(memory, output_type="i64"), zero, zero)
    row = ops.range(zero, count, one, output_type="i64")
    return ops.gather(memory, ops.divide(ops.multiply(row, utterances), count), zero)
