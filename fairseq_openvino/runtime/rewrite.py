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
    """Make N and R = N * K static; l, S and L stay dynamic."""
    rows = utterances * beam
    fixed: dict[str, list[int]] = {"tokens": [rows, -1], "beam_idx": [rows], "offset": []}
    fixed["bounds"] = [rows, 3]
    shapes = {}
    for port in model.inputs:
        name, shape = port.get_any_name(), list(port.get_partial_shape())
        if name == "bias":
            continue  # one row for all, or one each
        shapes[port] = ov.PartialShape(fixed.get(name, [utterances, *shape[1:]]))
    model.reshape(shapes)


def append_log_probs(model: ov.Model) -> None:
    """Output `log_probs` (R, l, V) in place of the logits."""
    logits = model.output("logits").get_node().input_value(0)
    _replace_outputs(model, {"log_probs": ops.log_softmax(logits, -1).output(0)})


def append_candidates(
    model: ov.Model, count: int, first_timestamp: int = 0, probed: tuple[int, ...] = ()
) -> None:
    """Outputs `scores` and `best` (R, C) of the last token, under a new input `bias` (1 or R, V).

    With `first_timestamp`, another input `bounds` (R, 3) carries Whisper's timestamp rules, see
    `whisper.search.apply_rules`. With `probed`, the output of that name (R, G) holds the
    log-probabilities of these tokens, without bias.
    """
    logits = _last_logits(model)  # (R, V)
    width = logits.get_partial_shape()[-1].get_length()
    biased = ops.add(logits, _input(model, "bias", [-1, width], np.float32))
    if first_timestamp:
        bounds = _input(model, "bounds", [-1, 3], np.int32)
        biased = _timestamp_rules(biased, bounds, first_timestamp, width)
    best = ops.topk(biased, ops.constant(np.int32(count)), -1, "max", "value")
    axis = ops.constant(np.array([-1], np.int64))
    largest = ops.reduce_max(logits, axis, True)
    normaliser = ops.add(
        largest, ops.log(ops.reduce_sum(ops.exp(ops.subtract(logits, largest)), axis, True))
    )  # log-softmax of C values instead of V
    outputs = {
        "scores": ops.subtract(best.output(0), normaliser).output(0),
        "best": best.output(1),
    }
    if probed:
        watched = ops.gather(logits, ops.constant(np.array(probed, np.int64)), ops.constant(1))
        outputs["probed"] = ops.subtract(watched, normaliser).output(0)
    _replace_outputs(model, outputs)


def _last_logits(model: ov.Model) -> ov.Output:
    """Logits (R, V) of the last token; the output projection sees no other token."""
    projection = model.output("logits").get_node().input_value(0).get_node()
    last = ops.gather(projection.input_value(0), ops.constant(-1), ops.constant(1))  # (R, D)
    projection.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()
    logits: ov.Output = projection.output(0)
    return logits


def _input(model: ov.Model, name: str, shape: list[int], dtype: type[np.generic]) -> ov.Node:
    parameter = ops.parameter(shape, dtype)
    parameter.output(0).get_tensor().set_names({name})
    model.add_parameters([parameter])
    return parameter


def _timestamp_rules(scores: ov.Node, bounds: ov.Node, first: int, width: int) -> ov.Node:
    """Scores (R, V) with forbidden tokens at -inf."""
    low, timestamp, high = (
        ops.gather(bounds, ops.constant(np.array([i], np.int64)), ops.constant(1)) for i in range(3)
    )  # (R, 1) each
    token = ops.constant(np.arange(width, dtype=np.int32)[None])
    text = ops.constant(np.arange(width)[None] < first)
    never, axis = ops.constant(np.float32(-np.inf)), ops.constant(np.array([-1], np.int64))
    allowed = ops.logical_and(ops.greater_equal(token, low), ops.less(token, high))
    allowed = ops.logical_and(allowed, ops.logical_or(text, ops.greater_equal(token, timestamp)))
    scores = ops.select(allowed, scores, never)
    scale = ops.exp(ops.subtract(scores, ops.reduce_max(scores, axis, True)))
    split = ops.constant(np.array([first, width - first], np.int64))
    parts = ops.variadic_split(scale, ops.constant(np.int64(1)), split)
    likely = ops.greater(
        ops.reduce_sum(parts.output(1), axis, True), ops.reduce_max(parts.output(0), axis, True)
    )
    return ops.select(ops.logical_and(likely, text), never, scores)


def _replace_outputs(model: ov.Model, outputs: dict[str, ov.Output]) -> None:
    model.remove_result(model.output("logits").get_node())
    results = []
    for name, output in outputs.items():
        output.get_tensor().set_names({name})
        results.append(ops.result(output))
    model.add_results(results)
    model.validate_nodes_and_infer_types()
