"""The decoder of a model whose encoder has no exporter: what the encoder made takes the place of features."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.fairseq import architecture, transformer_decoder
from fairseq_openvino.export.fairseq.architecture import Architecture
from fairseq_openvino.export.fairseq.transformer_decoder import valid_frames
from fairseq_openvino.export.graphs import Graphs

UNUSED = ("encoder_embedding", "encoder_states", "src_tokens", "src_lengths")
"""What Fairseq's encoders return too."""
UNSUPPORTED = "the encoder, which is not in this bundle"


def build(model: Any, arguments: Any) -> Graphs:
    """Both graphs of a `FairseqEncoderDecoderModel`; F is the width of its encoder, and S is T.

    Raises:
        ArchitectureError: the decoder is not Fairseq's `TransformerDecoder`, or has options without
            counterpart.
    """
    from fairseq.models.speech_to_text.s2t_transformer import TransformerDecoderScriptable
    from fairseq.models.transformer import TransformerDecoder

    decoder: Any = getattr(model, "decoder", None)
    name = type(model).__name__
    if type(decoder) not in (TransformerDecoder, TransformerDecoderScriptable):
        raise ArchitectureError(
            f"Export failed in {name}: expected Fairseq's TransformerDecoder, got "
            f"{type(decoder).__name__}. Generate with Fairseq itself."
        )
    transformer_decoder.refuse_unsupported(name, decoder)
    width = decoder.layers[0].encoder_attn.kdim
    limit = int(arguments.max_source_positions)
    return transformer_decoder.graphs(name, Passed(), decoder, width, limit, subsampling=1)


class Passed(nn.Module):
    """x (N, S, D), lengths (N,) -> the same."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return x, lengths


class Given:
    """Of the encoder what the decoder sees: its output as Fairseq's transformer encoders return it."""

    def __call__(self, x: Tensor, lengths: Tensor) -> dict[str, list[Tensor]]:
        """x (N, S, D), lengths (N,) -> encoder_out (S, N, D), encoder_padding_mask (N, S)."""
        mask = ~valid_frames(x, lengths)
        masks = [mask] if mask.any() else []  # as Fairseq: a decoder is faster without
        found = {"encoder_out": [x.transpose(0, 1)], "encoder_padding_mask": masks}
        return found | {name: [] for name in UNUSED}

    def reorder_encoder_out(
        self, found: dict[str, list[Tensor]], order: Tensor
    ) -> dict[str, list[Tensor]]:
        """Other rows."""
        (x,), masks = found["encoder_out"], found["encoder_padding_mask"]
        return found | {
            "encoder_out": [x.index_select(1, order)],
            "encoder_padding_mask": [mask.index_select(0, order) for mask in masks],
        }


def reference(model: Any) -> architecture.Reference:
    """The decoder alone as the parity gate calls it."""
    return architecture.Reference(Namespace(encoder=Given(), decoder=model.decoder))


ARCHITECTURE = Architecture(build, reference)


def encoder_output(found: Any) -> tuple[Tensor, Tensor]:
    """What an encoder returned as x (N, S, D) and lengths (N,).

    Raises:
        ArchitectureError: it is not what Fairseq's transformer encoders return, padding at the end.
    """
    try:
        (x,) = found["encoder_out"]
        masks = found["encoder_padding_mask"]
        x = x.transpose(0, 1)
        padding = masks[0] if masks else torch.zeros(x.shape[:2], dtype=torch.bool)
        lengths = (~padding).sum(1)
        if torch.equal(padding, ~valid_frames(x, lengths)):
            return x, lengths
        got = "padding between frames"
    except (TypeError, KeyError, IndexError, ValueError, AttributeError, RuntimeError) as error:
        got = f"{type(error).__name__}: {error}"
    raise ArchitectureError(
        "Export failed in the encoder: expected encoder_out and encoder_padding_mask as Fairseq's "
        f"transformer encoders return them, got {got}. Generate with Fairseq itself."
    )
