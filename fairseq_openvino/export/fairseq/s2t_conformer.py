"""The encoder of `s2t_conformer`, built from the modules of a Fairseq model.

Letters as in `transformer_decoder.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.fairseq import transformer_decoder
from fairseq_openvino.export.fairseq.conformer_layer import ConformerLayer, position_table
from fairseq_openvino.export.fairseq.s2t_transformer import (
    SUBSAMPLING,
    position_embedding,
    subsample,
)
from fairseq_openvino.export.fairseq.transformer_decoder import key_bias, valid_frames
from fairseq_openvino.export.graphs import Graphs

ARCHITECTURE = "s2t_conformer"


def build(model: Any, arguments: Any) -> Graphs:
    """Wrap a loaded `S2TConformerModel`.

    Args:
        model: the Fairseq model, in eval mode.
        arguments: its `args` (checkpoint `cfg.model`).

    Raises:
        ArchitectureError: an option of the checkpoint has no counterpart in these graphs.
    """
    transformer_decoder.refuse_unsupported(ARCHITECTURE, model.decoder)
    if arguments.pos_enc_type == "rel_pos" and arguments.attn_type != "espnet":
        raise ArchitectureError(
            f"Export failed in {ARCHITECTURE}: expected attn_type 'espnet' with pos_enc_type 'rel_pos', "
            f"got {arguments.attn_type!r}. Fairseq cannot run such a model either."
        )
    frames = int(arguments.max_source_positions)
    bins = int(arguments.input_feat_per_channel) * int(arguments.input_channels)
    encoder = Encoder(model.encoder, frames)
    return transformer_decoder.graphs(
        ARCHITECTURE, encoder, model.decoder, bins, frames, SUBSAMPLING
    )


class Encoder(nn.Module):
    """features (N, T, F), lengths (N,) -> (N, S, D), (N,).

    Source: Fairseq `models/speech_to_text/s2t_conformer.py:S2TConformerEncoder`.
    """

    def __init__(self, encoder: Any, max_source_frames: int) -> None:
        super().__init__()
        self.subsample, self.scale = encoder.subsample, encoder.embed_scale
        self.linear, self.padding_index = encoder.linear, encoder.padding_idx
        encoding, layers = encoder.embed_positions, encoder.conformer_layers
        frames = encoder_frames(encoder.subsample, max_source_frames)
        relations = position_table(layers[0], encoding, frames)
        absolute = encoding.weights.clone() if encoder.pos_enc_type == "abs" else None
        self.register_buffer("positions", absolute)
        self.layers = nn.ModuleList(ConformerLayer(layer, relations) for layer in layers)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x, lengths = subsample(self.subsample, features, lengths)
        valid, x = valid_frames(x, lengths), self.scale * x
        if self.positions is not None:
            x = x + position_embedding(valid, self.positions, self.padding_index)
        x, bias = self.linear(x), key_bias(valid)
        for layer in self.layers:
            x = layer(x, bias)
        return x, lengths


def encoder_frames(front_end: Any, frames: int) -> int:
    """S of T = `frames`."""
    convolutions = front_end.conv_layers if hasattr(front_end, "conv_layers") else front_end.conv
    for each in convolutions:
        if isinstance(each, nn.Conv1d | nn.Conv2d):
            frames = (frames + 2 * each.padding[0] - each.kernel_size[0]) // each.stride[0] + 1
    return frames
