"""The `s2t_transformer` family as two explicit graphs, built from the modules of a Fairseq model.

Letters: N utterances, K beams, R = N*K rows, T input frames, F feature bins, S encoder frames,
l tokens in this call, L tokens before it, D model width, H heads, V vocabulary, P decoder layers.

The graphs differ from Fairseq's modules in form, not in arithmetic: the padding mask is always
present (an all-zero bias changes no value), cross-attention keys and values are computed once per
utterance in the encoder graph, and beams are folded into the query length of cross-attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairseq_openvino.bundle import MASKED, attention_specs
from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.layers import DecoderLayer, EncoderLayer, causal_bias, split_heads

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
    _refuse_unsupported(model)
    bins = int(arguments.input_feat_per_channel) * int(arguments.input_channels)
    return graphs(model, bins, int(arguments.max_source_positions))


def graphs(model: Any, feature_bins: int, max_source_frames: int) -> Graphs:
    """Wrap what has the modules of a `S2TTransformerModel` under their names."""
    decoder = model.decoder
    layers, attention = len(decoder.layers), decoder.layers[0].self_attn
    memory, state = attention_specs(layers, attention.num_heads, attention.head_dim)
    return Graphs(
        architecture=ARCHITECTURE,
        encoder=EncoderGraph(model).eval(),
        decoder=DecoderGraph(model).eval(),
        layers=layers,
        memory=memory,
        state=state,
        model_width=decoder.embed_dim,
        feature_bins=feature_bins,
        vocabulary_size=decoder.output_projection.out_features,
        max_source_frames=max_source_frames,
        max_target_tokens=int(model.max_decoder_positions()),
        subsampling=SUBSAMPLING,
    )


def _refuse_unsupported(model: Any) -> None:
    decoder = model.decoder
    layer = decoder.layers[0]
    unsupported = {
        "adaptive_softmax_cutoff": decoder.adaptive_softmax is not None,
        "quant_noise_pq": decoder.quant_noise is not None,
        "cross_self_attention": decoder.cross_self_attention,
        "no_cross_attention": layer.encoder_attn is None,
        "scale_attn": layer.attn_ln is not None,
        "scale_heads": layer.c_attn is not None,
        "scale_fc": layer.ffn_layernorm is not None,
        "scale_resids": layer.w_resid is not None,
        "add_bias_kv": layer.self_attn.bias_k is not None,
    }
    found = sorted(name for name, present in unsupported.items() if present)
    if found:
        raise ArchitectureError(
            f"Export failed in {ARCHITECTURE}: expected a model without {', '.join(found)}, "
            "got one that uses it. Generate with Fairseq itself."
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


class EncoderGraph(nn.Module):
    """Features to the cross-attention inputs of every decoder layer.

    features (N, T, F), lengths (N,) -> encoder_lengths (N,), cross_bias (N, 1, 1, S), then
    cross_key, cross_value (N, H, S, dh) for each layer.

    Source: Fairseq `models/speech_to_text/s2t_transformer.py:S2TTransformerEncoder` and the
    static key/value projections of `modules/multihead_attention.py`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        encoder = model.encoder
        self.subsample, self.scale = encoder.subsample, encoder.embed_scale
        self.padding_index = encoder.padding_idx
        self.register_buffer("positions", encoder.embed_positions.weights.clone())
        self.layers = nn.ModuleList(
            EncoderLayer(layer, layer.normalize_before) for layer in encoder.transformer_layers
        )
        self.norm = encoder.layer_norm
        attentions = [layer.encoder_attn for layer in model.decoder.layers]
        self.heads = attentions[0].num_heads
        self.cross_keys = nn.ModuleList(attention.k_proj for attention in attentions)
        self.cross_values = nn.ModuleList(attention.v_proj for attention in attentions)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        x, lengths = subsample(self.subsample, features, lengths)
        frame = torch.arange(x.shape[1], device=x.device)  # (S,)
        valid = frame.unsqueeze(0) < lengths.unsqueeze(1)  # (N, S)
        bias = torch.where(valid, 0.0, MASKED).unsqueeze(1).unsqueeze(1)  # (N, 1, 1, S)
        index = torch.where(valid, frame + (self.padding_index + 1), self.padding_index)
        x = self.scale * x + nn.functional.embedding(index, self.positions)
        for layer in self.layers:
            x = layer(x, bias)
        if self.norm is not None:
            x = self.norm(x)
        cross: list[Tensor] = []
        for key, value in zip(self.cross_keys, self.cross_values, strict=True):
            cross += [split_heads(key(x), self.heads), split_heads(value(x), self.heads)]
        return lengths, bias, *cross


class DecoderGraph(nn.Module):
    """l new tokens of every row to logits; row r belongs to utterance r // K.

    tokens (R, l), offset (), cross_bias (N, 1, 1, S), then for each layer past_key, past_value
    (R, H, L, dh), cross_key, cross_value (N, H, S, dh) -> logits (R, l, V), then present_key,
    present_value (R, H, L+l, dh) for each layer.

    Source: Fairseq `models/transformer/transformer_decoder.py`, incremental decoding.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.decoder
        self.tokens, self.scale = decoder.embed_tokens, decoder.embed_scale
        self.project_in, self.project_out = decoder.project_in_dim, decoder.project_out_dim
        self.first_position = decoder.padding_idx + 1
        self.register_buffer("positions", _position_table(decoder))
        self.embedding_norm, self.norm = decoder.layernorm_embedding, decoder.layer_norm
        self.layers = nn.ModuleList(
            DecoderLayer(layer, layer.normalize_before) for layer in decoder.layers
        )
        self.output = decoder.output_projection

    def forward(
        self, tokens: Tensor, offset: Tensor, cross_bias: Tensor, *caches: Tensor
    ) -> tuple[Tensor, ...]:
        """See the class."""
        x = self.scale * nn.functional.embedding(tokens, self.tokens.weight)  # (R, l, D)
        if self.project_in is not None:
            x = self.project_in(x)
        step = torch.arange(tokens.shape[1], device=x.device)  # (l,)
        x = x + nn.functional.embedding(step + (offset + self.first_position), self.positions)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        causal = causal_bias(step, caches[0].shape[2])
        present: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            past_key, past_value, key, value = caches[4 * i : 4 * i + 4]
            x, new_key, new_value = layer(
                x, causal, (past_key, past_value), (key, value, cross_bias)
            )
            present += [new_key, new_value]
        if self.norm is not None:
            x = self.norm(x)
        if self.project_out is not None:
            x = self.project_out(x)
        return self.output(x), *present


def _position_table(decoder: Any) -> Tensor:
    """Rows indexed by padding_idx + 1 + position: sinusoidal buffer, learned weight, or zeros."""
    rows = decoder.padding_idx + 1 + int(decoder.max_positions())
    table = decoder.embed_positions
    if table is None:
        return torch.zeros(rows, decoder.embed_dim)
    weights = table.weights if hasattr(table, "weights") else table.weight.detach()
    return weights[:rows].clone()
