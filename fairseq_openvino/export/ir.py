"""ONNX to OpenVINO IR; the decoder becomes stateful and takes `beam_idx`.

What the CPU plugin fuses depends on the exact form of the graph: `beam_idx` must be an i32 parameter
feeding a Gather on each cache, and each cache a ReadValue/Assign pair with an initialiser of length
0. Then self-attention with its cache and reordering becomes one node per layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation

from fairseq_openvino.bundle import DECODER_IR, ENCODER_IR
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.onnx import DECODER_ONNX, ENCODER_ONNX, cache_names


def write(directory: Path, graphs: Graphs, precision: str) -> None:
    """Convert both ONNX files of a directory; weights are stored in `precision` (f32 or f16).

    The encoder keeps its inputs and outputs. The decoder becomes stateful, with the inputs tokens
    (R, l), offset (), beam_idx (R,) i32, cross_bias, cross_key.p, cross_value.p and the output logits
    (R, l, V). One model at a time is in memory.
    """
    save(ov.convert_model(directory / ENCODER_ONNX), directory / ENCODER_IR, precision)
    decoder = ov.convert_model(directory / DECODER_ONNX)
    _make_stateful(decoder, graphs)
    save(decoder, directory / DECODER_IR, precision)


def save(model: ov.Model, path: Path, precision: str) -> None:
    """Write `path` (.xml) and the weights beside it (.bin), stored in `precision` (f32 or f16)."""
    ov.save_model(model, path, compress_to_fp16=precision == "f16")


def _make_stateful(model: ov.Model, graphs: Graphs) -> None:
    beam_idx = ops.parameter([-1], np.int32, name="beam_idx")
    beam_idx.output(0).get_tensor().set_names({"beam_idx"})
    axis = ops.constant(np.int64(0))
    pairs = {}
    for past, present in zip(
        cache_names("past", graphs.layers), cache_names("present", graphs.layers), strict=True
    ):
        parameter = model.input(past).get_node()
        consumers = parameter.output(0).get_target_inputs()
        reordered = ops.gather(parameter, beam_idx, axis)
        for consumer in consumers:
            consumer.replace_source_output(reordered.output(0))
        pairs[past] = present
    model.add_parameters([beam_idx])
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, pairs)
    _initialise_states(model, graphs)
    model.validate_nodes_and_infer_types()


def _initialise_states(model: ov.Model, graphs: Graphs) -> None:
    rows = ops.shape_of(model.input("beam_idx"), output_type="i64")
    tail = ops.constant(np.array([graphs.heads, 0, graphs.head_width], np.int64))
    empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([rows, tail], 0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([empty.output(0)])
