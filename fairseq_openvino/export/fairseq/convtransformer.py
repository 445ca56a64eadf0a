"""The encoder of the `convtransformer` family: that of `s2t_transformer` behind two 2-D convolutions."""

from __future__ import annotations

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
        Encoder(model.encoder, FrontEnd(model.encoder)),
        model.decoder,
        int(model.encoder.input_dim),
        int(arguments.max_source_positions),
        SUBSAMPLING,
    )


class FrontEnd(nn.Module):
    """Under the names of the `Conv2dSubsampler`, which computes the same.

    Source: Fairseq `models/speech_to_text/convtransformer.py:ConvTransformerEncoder`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.conv, self.out = encoder.conv, encoder.out
