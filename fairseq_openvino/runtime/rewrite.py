"""Rewrites of a bundle's graphs before compiling: same function, a form the device runs faster."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import op
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

MIN_QUANTIZED_WEIGHTS = 1 << 12
"""Smaller matrices stay in floating point: they cost nothing and hold little redundancy."""
INT8_LEVELS = 127


def fold_causal_mask(model: ov.Model) -> None:
    """Let attention mask by position instead of reading a mask tensor.

    The CPU plugin aligns a causal mask with the newest token (query i sees keys up to L + i), which
    is what the explicit mask says. Other devices are not known to and keep the mask.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        query, key, value = (node.input_value(i) for i in range(3))
        causal = ops.scaled_dot_product_attention(query, key, value, causal=True)
        causal.set_friendly_name(node.get_friendly_name())
        for consumer in node.output(0).get_target_inputs():
            consumer.replace_source_output(causal.output(0))
    model.validate_nodes_and_infer_types()


def keep_cross_attention(model: ov.Model) -> None:
    """Store cross-attention keys and values as state, read from the inputs at the first step only.

    In low precision the inputs are converted once for each utterance instead of at each step.
    """
    for parameter in model.get_parameters():
        name = parameter.output(0).get_any_name()
        if not name.startswith(("cross_key", "cross_value")):
            continue
        consumers = parameter.output(0).get_target_inputs()
        info = VariableInfo()
        info.variable_id, info.data_type = name, parameter.get_element_type()
        info.data_shape = parameter.get_partial_shape()
        variable = Variable(info)
        read = op.read_value(parameter, variable)
        for consumer in consumers:
            consumer.replace_source_output(read.output(0))
        model.add_variables([variable])
        model.add_sinks([op.assign(read, variable)])
    model.validate_nodes_and_infer_types()


def quantize_weights(model: ov.Model) -> None:
    """Weights of the linear layers to 8 bits, symmetric, one scale for each output row; no data.

    The CPU plugin recognises Constant(i8) -> Convert -> Multiply as compressed weights.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        constant = node.input_value(1).get_node()
        if constant.get_type_name() != "Constant":
            continue
        weights = np.asarray(constant.data, np.float32)  # (out, in)
        if weights.size < MIN_QUANTIZED_WEIGHTS or not node.get_attributes()["transpose_b"]:
            continue
        scale = np.maximum(np.abs(weights).max(-1, keepdims=True), 1e-12) / INT8_LEVELS
        levels = np.clip(np.round(weights / scale), -INT8_LEVELS, INT8_LEVELS).astype(np.int8)
        compressed = ops.multiply(
            ops.convert(ops.constant(levels), "f32"), ops.constant(scale.astype(np.float32))
        )
        node.input(1).replace_source_output(compressed.output(0))
    model.validate_nodes_and_infer_types()


def fix_batch(model: ov.Model, utterances: int, beam: int) -> None:
    """Make N and R = N * K static for single-token steps; S and L stay dynamic."""
    rows = utterances * beam
    fixed: dict[str, list[int]] = {"tokens": [rows, 1], "beam_idx": [rows], "offset": []}
    shapes = {}
    for port in model.inputs:
        name, shape = port.get_any_name(), list(port.get_partial_shape())
        if name == "bias":
            continue
        shapes[port] = ov.PartialShape(fixed.get(name, [utterances, *shape[1:]]))
    model.reshape(shapes)


def append_log_probs(model: ov.Model) -> None:
    """Output `log_probs` (R, l, V) in place of the logits."""
    logits = model.output("logits").get_node().input_value(0)
    _replace_outputs(model, {"log_probs": ops.log_softmax(logits, -1).output(0)})


def append_candidates(model: ov.Model, count: int) -> None:
    """Outputs `scores` and `best` (R, C) of the last token, under a new input `bias` (1 or R, V)."""
    logits = model.output("logits").get_node().input_value(0)
    width = logits.get_partial_shape()[-1].get_length()
    last = ops.gather(logits, ops.constant(np.int64(-1)), ops.constant(np.int64(1)))  # (R, V)
    bias = ops.parameter([-1, width], np.float32)
    bias.output(0).get_tensor().set_names({"bias"})
    model.add_parameters([bias])
    scores = ops.add(ops.log_softmax(last, -1), bias)
    best = ops.topk(scores, ops.constant(np.int32(count)), -1, "max", "value")
    _replace_outputs(model, {"scores": best.output(0), "best": best.output(1)})


def _replace_outputs(model: ov.Model, outputs: dict[str, ov.Output]) -> None:
    model.remove_result(model.output("logits").get_node())
    results = []
    for name, output in outputs.items():
        output.get_tensor().set_names({name})
        results.append(ops.result(output))
    model.add_results(results)
    model.validate_nodes_and_infer_types()
