"""Models that cannot be exported whole: what can be runs compiled, the rest in PyTorch; a line says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import torch
from fairseq.models import FairseqEncoderDecoderModel
from fairseq.models.speech_to_text.convtransformer import ConvTransformerEncoder
from fairseq.models.speech_to_text.s2t_transformer import S2TTransformerEncoder
from torch import Tensor, nn

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import ArchitectureError, ParityError
from fairseq_openvino.export.fairseq import convtransformer, s2t_transformer
from fairseq_openvino.export.fairseq.decoder_alone import Given, encoder_output
from fairseq_openvino.export.float64 import Float64
from fairseq_openvino.export.parity import limit
from fairseq_openvino.model import Memory, Model
from fairseq_openvino.plugin.model import S2TOpenVINOModel
from fairseq_openvino.runtime.engine import compile_properties
from fairseq_openvino.runtime.graphs import compile_graph
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.runtime.options import EngineOptions

logger = logging.getLogger(__name__)

ENCODERS: dict[Any, Callable[[Any], nn.Module]] = {
    S2TTransformerEncoder: s2t_transformer.Encoder,
    ConvTransformerEncoder: convtransformer.encoder,
}
"""Fairseq's encoders that can be compiled whatever the decoder is."""
PROBED_FRAMES = (160, 97)
"""T of the utterances on which an encoder is tried."""


def in_parts(
    model: Any,
    refusal: Exception,
    decoder: Callable[[], Bundle],
    options: Callable[[Bundle | None], EngineOptions],
    bins: int,
) -> Any:
    """An eager model of Fairseq with what can be compiled of it.

    Args:
        model: with its weights.
        refusal: why it cannot be exported as a whole.
        decoder: exports its decoder alone, or finds it in the cache.
        options: of the engine that runs a bundle, or a graph that is in none.
        bins: F of its features.

    Raises:
        OptionError: an option of the engine is out of range.

    Returns:
        A `S2TOpenVINOModel` around its encoder; or the model itself, with a compiled encoder if possible.
    """
    name = type(model).__name__
    engine = options(None)
    if isinstance(
        refusal, ParityError
    ):  # its graphs are wrong, and nobody knows which part of them
        logger.warning(f"{name} runs in PyTorch: {refusal}")
        return model
    why = str(refusal).rpartition(". ")[0]  # without the advice
    model.make_generation_fast_(need_attn=False)
    reasons = []
    try:
        probe(model, bins)
        bundle = decoder()
        compiled = EncodedByTorch(model.encoder, CompiledModel(bundle, options(bundle)))
        logger.warning(f"{name}: the decoder runs on OpenVINO, its encoder in PyTorch: {why}")
        return S2TOpenVINOModel(compiled, model.decoder.dictionary)
    except Exception as error:  # code of others may fail in any way; Fairseq itself runs it
        reasons.append(error)
    try:
        model.encoder.forward = compiled_encoder(model.encoder, engine, bins)
        logger.warning(f"{name}: the encoder runs on OpenVINO, its decoder in PyTorch: {why}")
        return model
    except Exception as error:
        reasons.append(error)
    logger.warning(f"{name} runs in PyTorch: {why}")
    for reason in reasons:
        logger.debug("a part of it cannot be exported either", exc_info=reason)
    return model


def probe(model: Any, bins: int) -> None:
    """Raise ArchitectureError if a decoder graph cannot follow this encoder, or more than it is asked for."""
    own = type(model)
    is_own = own.get_normalized_probs.__module__.partition(".")[0] != "fairseq"
    has_two_decoders = getattr(model, "mt_task_name", None) is not None
    if not isinstance(model, FairseqEncoderDecoderModel) or is_own or has_two_decoders:
        raise ArchitectureError(
            f"Export failed in {own.__name__}: expected Fairseq's FairseqEncoderDecoderModel, got "
            "another kind of model. Generate with Fairseq itself."
        )
    with torch.no_grad():
        encoder_output(model.encoder(**_random_batch(bins)))


def _random_batch(bins: int) -> dict[str, Tensor]:
    random, lengths = torch.Generator().manual_seed(0), torch.tensor(PROBED_FRAMES)
    features = torch.randn(len(lengths), max(PROBED_FRAMES), bins, generator=random)
    features[1, PROBED_FRAMES[1] :] = 0
    return {"src_tokens": features, "src_lengths": lengths}


class EncodedByTorch:
    """A `model.Model` of a compiled decoder and an encoder in PyTorch.

    Args:
        encoder: of Fairseq, in eval mode.
        compiled: a bundle of `export.fairseq.decoder_alone`.
    """

    def __init__(self, encoder: Any, compiled: Model) -> None:
        self.encoder, self.compiled, self.manifest = encoder, compiled, compiled.manifest
        self.streams, self.prepare, self.open = compiled.streams, compiled.prepare, compiled.open

    def encode(
        self, features: np.ndarray, lengths: np.ndarray, streams: int = 1, together: int = 0
    ) -> Memory:
        """See `model.Model.encode`."""
        with torch.no_grad():
            found = self.encoder(
                src_tokens=torch.from_numpy(features), src_lengths=torch.from_numpy(lengths)
            )
        x, kept = encoder_output(found)
        return self.compiled.encode(x.numpy(), kept.numpy(), streams, together)


def compiled_encoder(
    encoder: Any, options: EngineOptions, bins: int
) -> Callable[..., dict[str, list[Tensor]]]:
    """The `forward` of an encoder, compiled in memory at f32.

    Raises:
        ArchitectureError: there is no graph for it.
        ParityError: the graph does not compute what the encoder does.
    """
    if type(encoder) not in ENCODERS:
        raise ArchitectureError(
            f"Export failed in {type(encoder).__name__}: expected one of the encoders "
            f"{', '.join(each.__name__ for each in ENCODERS)}, got another. Generate with Fairseq itself."
        )
    batch = _random_batch(bins)
    with torch.no_grad():
        graph = ENCODERS[type(encoder)](encoder).eval()
        model = ov.convert_model(graph, example_input=tuple(batch.values()))
    properties = compile_properties("f32", options.device, options.threads)
    compiled = compile_graph(ov.Core(), model, options.device, properties)

    def forward(src_tokens: Tensor, src_lengths: Tensor, **_: Any) -> dict[str, list[Tensor]]:
        x, lengths = compiled((src_tokens.numpy(), src_lengths.numpy())).values()
        return Given()(torch.from_numpy(x.copy()), torch.from_numpy(lengths.copy()))

    with torch.no_grad():
        own = encoder_output(encoder(**batch))[0]
        with Float64():
            wide = encoder_output(encoder(**batch))[0]
    found = encoder_output(forward(**batch))[0]
    accepted = limit(_largest(own - wide), _largest(wide))
    if not _largest(found - wide) <= accepted:
        raise ParityError(
            f"The parity gate failed in {type(encoder).__name__}: expected errors up to {accepted:.1e}, "
            f"got {_largest(found - wide):.1e}. Generate with Fairseq itself."
        )
    return forward


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
