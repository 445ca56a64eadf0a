"""The NNCF calls, and the nodes that stay in floating point.

Never quantized to 8-bit activations:

- attention products (SDPA nodes and products of two activations): the CPU plugin fuses
  self-attention with its cache only in floating point, cross-attention would be quantized anew at
  every step, and in the encoder they are no faster in 8 bits;
- depthwise convolutions: they cost little, and NNCF 3.4 moves their scales, one for each channel, in
  front of the transpose that is before them, where the channels are another axis;
- the output projection: its result is the distribution itself;
- the product that reads the features: one scale for all bins is too coarse for recordings quieter or
  noisier than those of the calibration (of real tiny.en it causes most of what quantizing changes).

The output projection and the embeddings get 8-bit weights instead.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import openvino as ov

from fairseq_openvino.errors import MissingDependencyError
from fairseq_openvino.model import LOG_PROBS
from fairseq_openvino.quantize.samples import Inputs, Samples

KV_CACHE_KEY = ["runtime_options", "KV_CACHE_PRECISION"]
"""Read by the CPU plugin from the graph, for calibration, whose compilation is NNCF's."""
WEIGHTED = ("MatMul", "Convolution")
FLOATING = ("ScaledDotProductAttention", "GroupConvolution")
FOLDED = ("Constant", "Convert", "Multiply", "Subtract", "Reshape", "FakeQuantize", "Transpose")
"""Nodes between a stored weight and its layer."""
MOVING = ("Transpose", "Reshape", "Unsqueeze", "Squeeze")
"""Nodes that change no value."""
INT4_GROUP = 64
"""Weights of one output that share a scale in 4 bits."""
NO_SMOOTHING = -1.0

Progress = Callable[[], None]
"""Called once for each sample that is used."""


def quantize(
    graph: ov.Model,
    samples: Samples,
    alpha: float,
    excluded: tuple[str, ...] = (),
    tick: Progress = lambda: None,
) -> ov.Model:
    """Weights and activations to 8 bits; what is left of the weights in a decoder too.

    Args:
        graph: encoder or decoder as the bundle stores it.
        samples: calibration inputs.
        alpha: SmoothQuant's for linear layers; negative: without.
        excluded: layers (`layers`) that stay in floating point.
        tick: called for each sample, `passes` times in all.
    """
    nncf = load_nncf()

    def used(inputs: Inputs) -> Inputs:
        tick()
        return inputs

    protected = _protected(graph)
    if "logits" in _output_names(graph):
        graph.set_rt_info("f32", KV_CACHE_KEY)
    advanced = nncf.AdvancedQuantizationParameters(
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(
            convolution=NO_SMOOTHING, matmul=alpha
        ),
    )
    with _quiet():
        quantized = nncf.quantize(
            graph,
            nncf.Dataset(samples, used),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=[*protected, *excluded]),
            advanced_parameters=advanced,
        )
        _lower_quantizers(quantized, protected)
        if "logits" in _output_names(graph):
            scope = nncf.IgnoredScope(names=list(excluded)) if excluded else None
            quantized = nncf.compress_weights(
                quantized, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=scope
            )
    return quantized


def passes(alpha: float) -> int:
    """How often `quantize` goes through its samples: ranges, and with smoothing once before."""
    return 1 if alpha < 0 else 2


def compress(graph: ov.Model, bits: int) -> ov.Model:
    """Weights to 8 or 4 bits, without data; activations stay as they are."""
    nncf = load_nncf()
    modes = nncf.CompressWeightsMode
    options: dict[str, Any] = {"mode": modes.INT8_SYM}
    if bits == 4:  # noqa: PLR2004
        adjust = nncf.GroupSizeFallbackMode.ADJUST  # widths that are no multiple of the group
        options = {
            "mode": modes.INT4_SYM,
            "group_size": INT4_GROUP,
            "advanced_parameters": nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=adjust
            ),
        }
    with _quiet():
        return nncf.compress_weights(graph, **options)


def layers(graph: ov.Model) -> dict[str, tuple[str, ...]]:
    """Of a quantized graph: each quantizer of activations and the layers it feeds."""
    found = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize" and not _constant(node.input_value(0).get_node()):
            fed = tuple(sorted(_fed(node)))
            if fed:
                found[node.get_friendly_name()] = fed
    return found


def products_in_8_bits(graph: ov.Model) -> tuple[int, int]:
    """Of a graph's matrix products and convolutions: those of 8-bit activations, and all.

    Attention is a node of its own kind and not among them.
    """
    fed = {layer for each in layers(graph).values() for layer in each}
    return len(fed), sum(node.get_type_name() in WEIGHTED for node in graph.get_ops())


def bypass(graph: ov.Model, quantizer: str) -> None:
    """Take one quantizer of activations out of a graph; its layers keep their 8-bit weights."""
    node = next(n for n in graph.get_ordered_ops() if n.get_friendly_name() == quantizer)
    for consumer in node.output(0).get_target_inputs():
        consumer.replace_source_output(node.input_value(0))
    graph.validate_nodes_and_infer_types()


def load_nncf() -> Any:
    """The package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise MissingDependencyError(
            f"Quantizing failed: expected nncf, got {error}. Install fairseq-openvino[quantize]."
        ) from error
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without NNCF's own bars and messages on stdout; problems are exceptions.

    Handlers, whose levels `nncf.set_log_level` changes too, may be somebody else's.
    """
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _protected(graph: ov.Model) -> list[str]:
    names = []
    for node in graph.get_ordered_ops():
        operands = [value.get_node() for value in node.input_values()]
        kind, weighted = node.get_type_name(), any(map(_constant, operands))
        if kind in FLOATING or (kind == "MatMul" and not weighted):
            names.append(node.get_friendly_name())
    for name in {"logits", LOG_PROBS} & _output_names(graph):
        node = graph.output(name).get_node().input_value(0).get_node()
        while node.get_type_name() != "MatMul":
            operands = [value.get_node() for value in node.input_values()]
            node = next(each for each in operands if not _constant(each))
        names.append(node.get_friendly_name())
    if "logits" not in _output_names(graph):
        names += _fed(graph.input("features").get_node())
    return names


def _lower_quantizers(graph: ov.Model, protected: list[str]) -> None:
    """Move quantizers from behind attention products to the layers they are for.

    NNCF raises them through transposes as far as it can. Left there, the CPU plugin runs the product
    in f32 under a bf16 hint. A quantizer with one scale commutes with what only moves data.
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        if node.input_value(0).get_node().get_friendly_name() not in protected:
            continue
        if any(node.input_value(i).get_node().get_data().size > 1 for i in range(1, 5)):
            continue
        while (after := _only_consumer(node)) is not None and after.get_type_name() in MOVING:
            after.input(0).replace_source_output(node.input_value(0))
            for consumer in after.output(0).get_target_inputs():
                consumer.replace_source_output(node.output(0))
            node.input(0).replace_source_output(after.output(0))
    graph.validate_nodes_and_infer_types()


def _only_consumer(node: ov.Node) -> ov.Node | None:
    inputs = node.output(0).get_target_inputs()
    return next(iter(inputs)).get_node() if len(inputs) == 1 else None


def _output_names(graph: ov.Model) -> set[str]:
    return {name for output in graph.outputs for name in output.get_names()}


def _constant(node: ov.Node) -> bool:
    """Whether the node is a weight, or computed from nothing but one."""
    if node.get_type_name() not in FOLDED:
        return False
    return all(_constant(value.get_node()) for value in node.input_values())


def _fed(node: ov.Node) -> set[str]:
    """Layers with weights behind a node, up to the next ones."""
    found, waiting = set(), [node]
    while waiting:
        for consumer in waiting.pop().output(0).get_target_inputs():
            after = consumer.get_node()
            if after.get_type_name() in WEIGHTED:
                found.add(after.get_friendly_name())
            elif after.get_type_name() in MOVING:
                waiting.append(after)
    return found
