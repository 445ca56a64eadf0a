"""The encoder of the `s2t_transformer` family, built from the modules of a Fairseq model.

Letters as in `transformer_decoder.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairseq_openvino.export.fairseq import transformer_decoder
from fairseq_openvino.export.fairseq.transformer_decoder import key_bias, valid_frames
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.layers import EncoderLayer

ARCHITECTURE = "s2t_transformer"
SUBSAMPLING = 4
"""Both front ends halve the frame rate twice."""


def build(model: Any, arguments: Any) -> Graphs:
    """Wrap a loaded `S2TTransformerModel`.

    Args:
        model: the Fairseq model, in eval mode.
        arguments: its `args` (checkpoint `cfg.model`).

    Raises:
        ArchitectureError: an option of the checkpoint has no counterpart in these graphs.
    """
    transformer_decoder.refuse_unsupported(ARCHITECTURE, model.decoder)
    bins = int(arguments.input_feat_per_channel) * int(arguments.input_channels)
    return graphs(model, bins, int(arguments.max_source_positions))


def graphs(model: Any, feature_bins: int, max_source_frames: int) -> Graphs:
    """Wrap what has the modules of a `S2TTransformerModel` under their names."""
    return transformer_decoder.graphs(
        ARCHITECTURE,
        Encoder(model.encoder, model.encoder.subsample),
        model.decoder,
        feature_bins,
        max_source_frames,
        SUBSAMPLING,
    )


def subsample(module: nn.Module, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The convolutional front end; (N, T, F), (N,) -> (N, S, D), (N,).

    Source: Fairseq `models/speech_to_text/modules/convolution.py`.
    """
    if hasattr(module, "conv_layers"):  # Conv1dSubsampler
        x = features.transpose(1, 2)  # (N, F, T)
        for conv in module.conv_layers:
            x = nn.functional.glu(conv(x), dim=1)
            lengths = torch.div(lengths - 1, 2, rounding_mode="floor") + 1
        return x.transpose(1, 2), lengths
    x = module.conv(features.unsqueeze(1))  # (N, C, S, F / 4)
    x = module.out(x.transpose(1, 2).flatten(2))  # (N, S, D)
    # int(T / S + 0.5) frames per encoder frame, as Conv2dSubsampler computes it
    factor = torch.floor(features.shape[1] / x.new_tensor(1.0).mul(x.shape[1]) + 0.5)
    lengths = torch.ceil(lengths.to(torch.float32) / factor).to(torch.int64)
    return x, torch.minimum(lengths, torch.zeros_like(lengths) + x.shape[1])


def position_embedding(valid: Tensor, table: Tensor, padding_index: int) -> Tensor:
    """Rows of a table (.., D) behind that of padding; valid (N, S) -> (N, S, D).

    Source: Fairseq `utils.py:make_positions`.
    """
    frame = torch.arange(valid.shape[1], device=valid.device)  # (S,)
    index = torch.where(valid, frame + (padding_index + 1), padding_index)
    return nn.functional.embedding(index, table)


class Encoder(nn.Module):
    """features (N, T, F), lengths (N,) -> (N, S, D), (N,).

    Source: Fairseq `models/speech_to_text/s2t_transformer.py:S2TTransformerEncoder`.
    """

    def __init__(self, encoder: Any, front_end: nn.Module) -> None:
        super().__init__()
        self.subsample, self.scale = front_end, encoder.embed_scale
        self.padding_index = encoder.padding_idx
        self.register_buffer("positions", encoder.embed_positions.weights.clone())
        self.layers = nn.ModuleList(
            EncoderLayer(layer, layer.normalize_before) for layer in encoder.transformer_layers
        )
        self.norm = encoder.layer_norm

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x, lengths = subsample(self.subsample, features, lengths)
        valid = valid_frames(x, lengths)
        bias = key_bias(valid)
        x = self.scale * x + position_embedding(valid, self.positions, self.padding_index)
        for layer in self.layers:
            x = layer(x, bias)
        return (x if self.norm is None else self.norm(x)), lengths
