"""Rewrites of a bundle's graphs before compiling: same function, a form the device runs faster."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import openvino as ov
from openvino import op
from openvino import opset13 as ops

from fairseq_openvino.model import Head
from fairseq_openvino.runtime.bfloat import widened
from fairseq_openvino.tensors import MASKED, TensorSpec

MIN_QUANTIZED_WEIGHTS = 1 << 12
"""Smaller matrices stay in floating point: they cost nothing and hold little redundancy."""
INT8_LEVELS = 127
QUANTIZED_TOGETHER = 1 << 20
"""Weights that are in memory as f32 at a time."""
ASIDE = ("ShapeOf", "Assign")
"""Readers of keys that lead to no attention."""
MIN_PARTED_TOKENS = 1 << 12
PARTS = (64, *range(40, 64), *range(65, 129))
"""Sizes, of which one divides most vocabularies."""
HALVES = (ov.Type.f16, ov.Type.bf16)
DECOMPRESSION = "decompression_0"
"""OpenVINO's mark of a Convert whose input is a compressed weight (`ov::Decompression`)."""


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


def narrow_inputs(model: ov.Model, names: Collection[str]) -> None:
    """Read these inputs in bf16, as the device computes with them: half of the memory at each step."""
    for name in names:
        port = model.input(name)
        parameter = port.get_node()
        consumers = port.get_target_inputs()
        parameter.set_element_type(ov.Type.bf16)
        wide = ops.convert(parameter, "f32")
        for consumer in consumers:
            consumer.replace_source_output(wide.output(0))
    model.validate_nodes_and_infer_types()


def narrow_outputs(model: ov.Model, names: Collection[str]) -> None:
    """Leave these outputs in bf16, for `narrow_inputs`."""
    for name in names:
        port = model.output(name)
        result = port.get_node()
        source = result.input_value(0)
        source_names = source.get_names()
        narrow = ops.convert(source, "bf16")
        source.get_tensor().set_names(set())
        narrow.output(0).get_tensor().set_names(source_names)
        result.input(0).replace_source_output(narrow.output(0))
    model.validate_nodes_and_infer_types()


def keep_16_bits(model: ov.Model) -> None:
    """Mark weights stored in 16 bits as such: the device widens them once, in the form it computes with.

    Unmarked they are widened in the graph first, and both forms stay in memory.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convert" or DECOMPRESSION in node.get_rt_info():
            continue
        weights = node.input_value(0).get_node()
        readers = {each.get_node().get_type_name() for each in node.output(0).get_target_inputs()}
        is_half = _is_constant(weights) and weights.get_element_type() in HALVES
        if is_half and readers <= {"MatMul", "Gather", "Convolution"}:
            node.get_rt_info()[DECOMPRESSION] = ""


def quantize_weights(model: ov.Model, done: Callable[[], None] = lambda: None) -> None:
    """Weights of the linear layers to 8 bits, symmetric, one scale for each output row; no data.

    `done` is called behind each matrix.

    The CPU plugin recognises Constant(i8) -> Convert -> Multiply as compressed weights.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
            continue
        constant = node.input_value(1).get_node()
        if constant.get_type_name() == "Convert":
            constant = constant.input_value(0).get_node()
        if not _is_constant(constant) or np.prod(constant.shape) < MIN_QUANTIZED_WEIGHTS:
            continue
        levels, scale = _quantized(constant)
        stored = op.Constant(levels, shared_memory=True)
        compressed = ops.multiply(ops.convert(stored, "f32"), ops.constant(scale))
        node.input(1).replace_source_output(compressed.output(0))
        done()
    model.validate_nodes_and_infer_types()


def _quantized(constant: ov.Node) -> tuple[np.ndarray, np.ndarray]:
    """Levels (..., in), int8, and scales (..., 1), float32, of weights (..., in)."""
    shape = list(constant.shape)
    stored = constant.data.reshape(-1, shape[-1])
    levels, scale = np.empty(stored.shape, np.int8), np.empty((len(stored), 1), np.float32)
    count = max(1, QUANTIZED_TOGETHER // shape[-1])
    for first in range(0, len(stored), count):
        part = slice(first, first + count)
        weights = _float32(stored[part], constant.get_element_type())
        scale[part] = np.maximum(np.abs(weights).max(-1, keepdims=True), 1e-12) / INT8_LEVELS
        levels[part] = np.clip(np.round(weights / scale[part]), -INT8_LEVELS, INT8_LEVELS)
    return levels.reshape(shape), scale.reshape([*shape[:-1], 1])


def _float32(values: np.ndarray, kind: ov.Type) -> np.ndarray:
    """Values of a constant; NumPy has no bf16."""
    if kind == ov.Type.bf16:
        return widened(values)
    return values.astype(np.float32)


def _is_constant(node: ov.Node) -> bool:
    return bool(node.get_type_name() == "Constant")


def fix_batch(model: ov.Model, utterances: int, beam: int, memory: Iterable[TensorSpec]) -> None:
    """Make N and R = N * K static; l, S and L stay dynamic.

    A recurrent state becomes static as a whole, its variable with it: the CPU plugin keeps nothing of
    what such a graph writes to a variable of dynamic shape.
    """
    first = {spec.name: utterances for spec in memory}
    first |= dict.fromkeys(("tokens", "beam_idx", "bounds"), utterances * beam)
    shapes = {}
    for port in model.inputs:
        if (name := port.get_any_name()) in first:  # not the bias: one row for all, or one each
            shapes[port] = ov.PartialShape([first[name], *list(port.get_partial_shape())[1:]])
    model.reshape(shapes)
    for variable in model.get_variables():
        info = variable.info
        sizes = list(info.data_shape)[1:]
        if all(size.is_static for size in sizes):
            info.data_shape = ov.PartialShape([utterances * beam, *sizes])
            variable.update(info)
    model.validate_nodes_and_infer_types()


def append_head(model: ov.Model, head: Head) -> None:
    """Outputs in place of the logits, see `model.Step`.

    Without candidates `log_probs` (R, l, V), or (R, l - 1) of the tokens that follow. Else, of the last
    token, `scores` and `best` (R, C) under
    the new inputs `bias` (1 or R, V) and, with a mask, `bounds` (R, width); and as the head says
    `watched` (R, G), `left` (R, 1) and `attention` (R, l, A, S).
    """
    outputs = _candidates(model, head) if head.candidates else _log_probs(model, head)
    if head.attention:
        outputs["attention"] = _attention(model, head.attention)
    _replace_outputs(model, outputs)


def _log_probs(model: ov.Model, head: Head) -> dict[str, ov.Output]:
    if head.last:
        found = ops.log_softmax(_last_logits(model), -1)
        return {"log_probs": ops.unsqueeze(found, ops.constant(1)).output(0)}
    logits = model.output("logits").get_node().input_value(0)
    if not head.following:
        return {"log_probs": ops.log_softmax(logits, -1).output(0)}
    allowed = np.arange(logits.get_partial_shape()[-1].get_length()) < head.following
    bias = np.where(allowed, 0, MASKED).astype(np.float32)
    scores = ops.add(logits, ops.constant(bias))  # the product that makes the logits takes it along
    normaliser = _log_sum(scores, ops.reduce_max(scores, ops.constant([-1]), True))  # (R, l, 1)
    after = ops.roll(model.input("tokens"), ops.constant(-1), ops.constant(1))
    chosen = ops.gather_elements(scores, ops.unsqueeze(after, ops.constant(2)), 2)
    found = ops.squeeze(ops.subtract(chosen, normaliser), ops.constant(2))
    zero, one, last = (ops.constant(np.array([i], np.int64)) for i in (0, 1, -1))
    return {"log_probs": ops.slice(found, zero, last, one, one).output(0)}


def _candidates(model: ov.Model, head: Head) -> dict[str, ov.Output]:
    logits = _last_logits(model)  # (R, V)
    vocabulary_size = logits.get_partial_shape()[-1].get_length()
    scores = ops.add(logits, _input(model, "bias", [-1, vocabulary_size], np.float32))
    if head.mask is not None:
        scores = head.mask.graph(scores, _input(model, "bounds", [-1, head.mask.width], np.int32))
    best, tokens = _best(scores, head.candidates, vocabulary_size)
    largest = ops.reduce_max(logits, ops.constant(np.array([-1], np.int64)), True)
    normaliser = _log_sum(logits, largest)  # log-softmax of C values instead of V
    outputs = {
        "scores": ops.subtract(best, normaliser).output(0),
        "best": tokens,
    }
    if head.watched:
        chosen = ops.constant(np.array(head.watched, np.int64))
        watched = ops.gather(logits, chosen, ops.constant(1))
        outputs["watched"] = ops.subtract(watched, normaliser).output(0)
    if head.renormalised:
        first = ops.constant(np.array([0], np.int64))
        largest = ops.gather(best, first, ops.constant(1))  # (R, 1)
        outputs["left"] = ops.subtract(_log_sum(scores, largest), normaliser).output(0)
    return outputs


def _best(scores: ov.Node, count: int, vocabulary_size: int) -> tuple[ov.Output, ov.Output]:
    """The largest of (R, V) and their tokens (R, C), best first.

    A large vocabulary is parted: the C largest are in the C parts with the largest maxima.
    """
    part = next((size for size in PARTS if vocabulary_size % size == 0), 0)
    if vocabulary_size < MIN_PARTED_TOKENS or not part or count > vocabulary_size // part:
        found = ops.topk(scores, ops.constant(np.int32(count)), -1, "max", "value")
        return found.output(0), found.output(1)
    one, size = ops.constant(np.int64(1)), ops.constant(np.int32(part))
    parts = ops.reshape(scores, ops.constant([0, vocabulary_size // part, part]), True)
    maxima = ops.reduce_max(parts, ops.constant([2]), False)
    chosen = ops.topk(maxima, ops.constant(np.int32(count)), -1, "max", "none").output(1)
    left = ops.reshape(ops.gather(parts, chosen, one, 1), ops.constant([0, count * part]), True)
    found = ops.topk(left, ops.constant(np.int32(count)), -1, "max", "value")
    number = ops.divide(found.output(1), size)  # of its part among those chosen
    place = ops.subtract(found.output(1), ops.multiply(number, size))
    first = ops.multiply(ops.gather_elements(chosen, number, 1), size)
    return found.output(0), ops.add(first, place).output(0)


def _attention(model: ov.Model, heads: tuple[tuple[int, int], ...]) -> ov.Output:
    """Cross-attention weights (R, l, A, S); the graph has them as (N, H, K*l, S) in each layer."""
    axis, parts = ops.constant(np.int64(1)), []
    for layer, head in heads:
        node = model.input(f"cross_key.{layer}").get_node()
        while node.get_type_name() != "Softmax":
            consumers = (each.get_node() for each in node.output(0).get_target_inputs())
            node = next(each for each in consumers if each.get_type_name() not in ASIDE)
        parts.append(ops.gather(node, ops.constant(np.array([head], np.int64)), axis))
    chosen = ops.transpose(ops.concat(parts, 1), ops.constant(np.array([0, 2, 1, 3], np.int64)))
    rows = ops.shape_of(model.input("tokens"), output_type="i64")
    last = ops.gather(
        ops.shape_of(chosen, output_type="i64"), ops.constant([2, 3]), ops.constant(0)
    )
    return ops.reshape(chosen, ops.concat([rows, last], 0), False).output(0)


def _log_sum(values: ov.Node, largest: ov.Node) -> ov.Node:
    """Log of the sum of exp (..., 1), for values (..., V) up to `largest` (..., 1)."""
    shares = ops.exp(ops.subtract(values, largest))
    axis = ops.constant(np.array([-1], np.int64))
    return ops.add(largest, ops.log(ops.reduce_sum(shares, axis, True)))


def _last_logits(model: ov.Model) -> ov.Output:
    """Logits (R, V) of the last token; where a product makes them, it sees no other token."""
    logits = model.output("logits").get_node().input_value(0)
    projection, last, axis = logits.get_node(), ops.constant(-1), ops.constant(1)
    if projection.get_type_name() != "MatMul":
        return ops.gather(logits, last, axis).output(0)
    states = ops.gather(projection.input_value(0), last, axis)  # (R, D)
    projection.input(0).replace_source_output(states.output(0))
    model.validate_nodes_and_infer_types()
    return logits


def _input(model: ov.Model, name: str, shape: list[int], dtype: type[np.generic]) -> ov.Node:
    parameter = ops.parameter(shape, dtype)
    parameter.output(0).get_tensor().set_names({name})
    model.add_parameters([parameter])
    return parameter


def _replace_outputs(model: ov.Model, outputs: dict[str, ov.Output]) -> None:
    model.remove_result(model.output("logits").get_node())
    results = []
    for name, output in outputs.items():
        output.get_tensor().set_names({name})
        results.append(ops.result(output))
    model.add_results(results)
    model.validate_nodes_and_infer_types()
