"""The encoder of the `transformer` family, which reads text: Fairseq's task `translation`.

Letters as in `transformer_decoder.py`; T = S source tokens, eos included.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_openvino.export.fairseq import transformer_decoder
from fairseq_openvino.export.fairseq.transformer_decoder import (
    key_bias,
    position_table,
    valid_frames,
)
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.layers import EncoderLayer
from fairseq_openvino.export.parity import Cases

ARCHITECTURE = "transformer"
CASES: Cases = (((1,), 4), ((11, 6), 8), ((40, 39, 21, 2), 12), ((130, 71), 16))
"""Sentences, and one as long as a paragraph."""


def build(model: Any, arguments: Any) -> Graphs:
    """Wrap a loaded `TransformerModel`.

    Args:
        model: the Fairseq model, in eval mode.
        arguments: its model arguments, which its modules reflect.

    Raises:
        ArchitectureError: an option of the checkpoint has no counterpart in these graphs.
    """
    transformer_decoder.refuse_unsupported(ARCHITECTURE, model.decoder)
    encoder = model.encoder
    graphs = transformer_decoder.graphs(
        ARCHITECTURE,
        Encoder(encoder),
        model.decoder,
        feature_bins=0,
        max_source_frames=int(encoder.max_positions()),
        subsampling=1,
    )
    return replace(graphs, source_vocabulary_size=encoder.embed_tokens.num_embeddings)


class Encoder(nn.Module):
    """tokens (N, T) i64, padded behind, lengths (N,) -> (N, T, D), (N,).

    Fairseq pads in front and counts positions from the first token: where a token stands changes
    neither its position nor what it sees, so only the order of sums differs.

    Source: Fairseq `models/transformer/transformer_encoder.py:TransformerEncoderBase`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.tokens, self.scale = encoder.embed_tokens, encoder.embed_scale
        self.first_position = encoder.padding_idx + 1
        width = encoder.embed_tokens.embedding_dim
        self.register_buffer("positions", position_table(encoder, width))
        self.embedding_norm, self.norm = encoder.layernorm_embedding, encoder.layer_norm
        self.layers = nn.ModuleList(
            EncoderLayer(layer, layer.normalize_before) for layer in encoder.layers
        )

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        bias = key_bias(valid_frames(tokens, lengths))
        place = torch.arange(tokens.shape[1], device=tokens.device)  # (T,)
        x = self.scale * nn.functional.embedding(tokens, self.tokens.weight)
        x = x + nn.functional.embedding(place + self.first_position, self.positions)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        for layer in self.layers:
            x = layer(x, bias)
        return (x if self.norm is None else self.norm(x)), lengths
