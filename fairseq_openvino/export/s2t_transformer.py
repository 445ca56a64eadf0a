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
from torch.nn.utils import skip_init

from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.graphs import MASKED, Graphs

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
    decoder = model.decoder
    heads = decoder.layers[0].self_attn.num_heads
    return Graphs(
        architecture=ARCHITECTURE,
        encoder=EncoderGraph(model).eval(),
        decoder=DecoderGraph(model).eval(),
        layers=len(decoder.layers),
        heads=heads,
        head_width=decoder.layers[0].self_attn.head_dim,
        model_width=decoder.embed_dim,
        feature_bins=int(arguments.input_feat_per_channel) * int(arguments.input_channels),
        vocabulary_size=decoder.output_projection.out_features,
        max_source_frames=int(arguments.max_source_positions),
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
            "got one that uses it. Generate without --ov-engine."
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


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, t, h*dh) -> (B, h, t, dh)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, t, dh) -> (B, t, D)."""
    return x.transpose(1, 2).flatten(2)


def fused_projection(attention: Any) -> nn.Linear:
    """Query, key and value projections of a self-attention as one linear layer, D -> 3D."""
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    width_in, width_out = parts[0].in_features, sum(part.out_features for part in parts)
    fused = skip_init(nn.Linear, width_in, width_out)  # draws no random numbers
    with torch.no_grad():
        fused.weight.copy_(torch.cat([part.weight for part in parts]))
        fused.bias.copy_(torch.cat([part.bias for part in parts]))
    return fused


class FeedForward(nn.Module):
    """fc2(activation(fc1(x))) of a Fairseq layer, with its pre- or post-norm residual."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = layer.final_layer_norm, layer.fc1, layer.fc2
        self.activation, self.norm_first = layer.activation_fn, layer.normalize_before

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, D) -> (B, t, D)."""
        y = self.fc2(self.activation(self.fc1(self.norm(x) if self.norm_first else x)))
        return x + y if self.norm_first else self.norm(x + y)


class EncoderLayer(nn.Module):
    """One Transformer encoder layer; (N, S, D), bias (N, 1, 1, S) -> (N, S, D)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.self_attn
        self.heads, self.scale = attention.num_heads, attention.scaling
        self.project, self.out = fused_projection(attention), attention.out_proj
        self.norm, self.norm_first = layer.self_attn_layer_norm, layer.normalize_before
        self.feed_forward = FeedForward(layer)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """See the class."""
        qkv = split_heads(self.project(self.norm(x) if self.norm_first else x), 3 * self.heads)
        q, k, v = qkv.split(self.heads, dim=1)  # (N, H, S, dh) each
        weights = torch.softmax(q @ k.transpose(2, 3) * self.scale + bias, dim=-1)
        x = x + self.out(merge_heads(weights @ v))
        return self.feed_forward(x if self.norm_first else self.norm(x))


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
        self.layers = nn.ModuleList(EncoderLayer(layer) for layer in encoder.transformer_layers)
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


class DecoderLayer(nn.Module):
    """One Transformer decoder layer over l new tokens, with explicit caches."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, cross = layer.self_attn, layer.encoder_attn
        self.heads, self.head_width = attention.num_heads, attention.head_dim
        self.scale = attention.scaling
        self.project, self.out = fused_projection(attention), attention.out_proj
        self.norm, self.norm_first = layer.self_attn_layer_norm, layer.normalize_before
        self.cross_query, self.cross_out = (
            skip_init(nn.Linear, *_shape(cross.q_proj)),
            cross.out_proj,
        )
        with torch.no_grad():  # scale the query once, here: a scaled product stays unfused
            self.cross_query.weight.copy_(cross.q_proj.weight * cross.scaling)
            self.cross_query.bias.copy_(cross.q_proj.bias * cross.scaling)
        self.cross_norm = layer.encoder_attn_layer_norm
        self.feed_forward = FeedForward(layer)

    def forward(
        self, x: Tensor, causal: Tensor, past: tuple[Tensor, Tensor], cross: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (R, l, D), causal (1, 1, l, L+l), past (R, H, L, dh), cross (N, H, S, dh) and bias."""
        qkv = split_heads(self.project(self.norm(x) if self.norm_first else x), 3 * self.heads)
        q, k, v = qkv.split(self.heads, dim=1)  # (R, H, l, dh) each
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)  # (R, H, L+l, dh)
        weights = torch.softmax(q @ k.transpose(2, 3) * self.scale + causal, dim=-1)
        x = x + self.out(merge_heads(weights @ v))
        if not self.norm_first:
            x = self.norm(x)
        x = x + self._cross_attention(self.cross_norm(x) if self.norm_first else x, *cross)
        return self.feed_forward(x if self.norm_first else self.cross_norm(x)), k, v

    def _cross_attention(self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        q = self.cross_query(x).reshape(key.shape[0], -1, self.heads, self.head_width)
        weights = torch.softmax(q.transpose(1, 2) @ key.transpose(2, 3) + bias, dim=-1)
        y = (weights @ value).transpose(1, 2)  # (N, K*l, H, dh)
        return self.cross_out(y.reshape(x.shape[0], -1, self.heads * self.head_width))


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
        self.layers = nn.ModuleList(DecoderLayer(layer) for layer in decoder.layers)
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
        past_length = caches[0].shape[2]
        seen = torch.arange(past_length + tokens.shape[1], device=x.device)  # (L+l,)
        visible = seen.unsqueeze(0) <= (step + past_length).unsqueeze(1)  # (l, L+l)
        causal = torch.where(visible, 0.0, MASKED).unsqueeze(0).unsqueeze(0)
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


def _shape(linear: Any) -> tuple[int, int]:
    return linear.in_features, linear.out_features


def _position_table(decoder: Any) -> Tensor:
    """Rows indexed by padding_idx + 1 + position: sinusoidal buffer, learned weight, or zeros."""
    rows = decoder.padding_idx + 1 + int(decoder.max_positions())
    table = decoder.embed_positions
    if table is None:
        return torch.zeros(rows, decoder.embed_dim)
    weights = table.weights if hasattr(table, "weights") else table.weight.detach()
    return weights[:rows].clone()
