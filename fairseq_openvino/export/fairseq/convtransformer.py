"""The encoder of the `convtransformer` family: that of `s2t_transformer` behind two 2-D convolutions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from fairseq_openvino.export.fairseq import transformer_decoder
from fairseq_openvino.export.fairseq.s2t_transformer import SUBSAMPLING, Encoder
from fairseq_openvino.export.graphs import Graphs

ARCHITECTURE = "convtransformer"


def build(model: Any, arguments: Any) -> Graphs:
    """Wrap a loaded `ConvTransformerModel`.

    Args:
        model: the Fairseq model, in eval mode.
        arguments: its `args` (checkpoint `cfg.model`).

    Raises:
        ArchitectureError: an option of the checkpoint has no counterpart in these graphs.
    """
    transformer_decoder.refuse_unsupported(ARCHITECTURE, model.decoder)
    return transformer_decoder.graphs(
        ARCHITECTURE,
        encoder(model.encoder),
        model.decoder,
        int(model.encoder.input_dim),
        int(arguments.max_source_positions),
        SUBSAMPLING,
    )


def encoder(own: Any) -> Encoder:
    """The graph of a `ConvTransformerEncoder`, whose last norm Fairseq leaves out."""
    return Encoder(
        SimpleNamespace(
            subsample=FrontEnd(own),
            embed_scale=own.embed_scale,
            padding_idx=own.padding_idx,
            embed_positions=own.embed_positions,
            transformer_layers=own.transformer_layers,
            layer_norm=None,
        )
    )


class FrontEnd(nn.Module):
    """Two convolutions and a layer under the names of the `Conv2dSubsampler`, which computes the same.

    Source: Fairseq `models/speech_to_text/convtransformer.py:ConvTransformerEncoder`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.conv, self.out = encoder.conv, encoder.out
