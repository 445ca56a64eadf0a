"""Fairseq's `TransformerDecoder` as a graph, and the encoder outputs that it needs.

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

from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.layers import DecoderLayer, causal_bias, split_heads
from fairseq_openvino.tensors import MASKED, attention_specs


def graphs(
    architecture: str, body: nn.Module, decoder: Any, feature_bins: int, max_source_frames: int,
    subsampling: int, min_source_frames: int = 1,
) -> Graphs:  # fmt: skip
    """Both graphs of a model whose decoder is Fairseq's `TransformerDecoder`.

    Args:
        architecture: Fairseq's model name.
        body: the encoder, features (N, T, F) and lengths (N,) -> (N, S, D of the encoder), (N,).
        decoder: the Fairseq decoder, in eval mode.
        feature_bins: F; 1 for a waveform, 0 for token ids.
        max_source_frames: largest T.
        subsampling: T / S, rounded.
        min_source_frames: smallest T that gives an encoder frame.
    """
    layers, attention = len(decoder.layers), decoder.layers[0].self_attn
    memory, state = attention_specs(layers, attention.num_heads, attention.head_dim)
    return Graphs(
        architecture=architecture,
        encoder=EncoderGraph(body, decoder).eval(),
        decoder=DecoderGraph(decoder).eval(),
        layers=layers,
        memory=memory,
        state=state,
        model_width=decoder.embed_dim,
        feature_bins=feature_bins,
        vocabulary_size=decoder.output_projection.out_features,
        max_source_frames=max_source_frames,
        max_target_tokens=int(decoder.max_positions()),
        subsampling=subsampling,
        min_source_frames=min_source_frames,
    )


def refuse_unsupported(architecture: str, decoder: Any) -> None:
    """Look for options of a `TransformerDecoder` that have no counterpart in its graph.

    Raises:
        ArchitectureError: naming them.
    """
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
            f"Export failed in {architecture}: expected a model without {', '.join(found)}, "
            "got one that uses it. Generate with Fairseq itself."
        )


def valid_frames(x: Tensor, lengths: Tensor) -> Tensor:
    """Which frames of x (N, S, D) are not padding, (N, S)."""
    return torch.arange(x.shape[1], device=x.device).unsqueeze(0) < lengths.unsqueeze(1)


def key_bias(valid: Tensor) -> Tensor:
    """Attention bias (N, 1, 1, S) that hides padding; valid (N, S)."""
    return torch.where(valid, 0.0, MASKED).unsqueeze(1).unsqueeze(1)


class EncoderGraph(nn.Module):
    """Features to the cross-attention inputs of every decoder layer.

    features (N, T, F), lengths (N,) -> encoder_lengths (N,), cross_bias (N, 1, 1, S), then
    cross_key, cross_value (N, H, S, dh) for each layer.

    Source: the static key/value projections of Fairseq `modules/multihead_attention.py`.
    """

    def __init__(self, body: nn.Module, decoder: Any) -> None:
        super().__init__()
        self.body = body
        attentions = [layer.encoder_attn for layer in decoder.layers]
        self.heads = attentions[0].num_heads
        self.cross_keys = nn.ModuleList(attention.k_proj for attention in attentions)
        self.cross_values = nn.ModuleList(attention.v_proj for attention in attentions)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        x, lengths = self.body(features, lengths)
        cross: list[Tensor] = []
        for key, value in zip(self.cross_keys, self.cross_values, strict=True):
            cross += [split_heads(key(x), self.heads), split_heads(value(x), self.heads)]
        return lengths, key_bias(valid_frames(x, lengths)), *cross


class DecoderGraph(nn.Module):
    """l new tokens of every row to logits; row r belongs to utterance r // K.

    tokens (R, l), offset (), cross_bias (N, 1, 1, S), then for each layer past_key, past_value
    (R, H, L, dh), cross_key, cross_value (N, H, S, dh) -> logits (R, l, V), then present_key,
    present_value (R, H, L+l, dh) for each layer.

    Source: Fairseq `models/transformer/transformer_decoder.py`, incremental decoding.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.tokens, self.scale = decoder.embed_tokens, decoder.embed_scale
        self.project_in, self.project_out = decoder.project_in_dim, decoder.project_out_dim
        self.first_position = decoder.padding_idx + 1
        self.register_buffer("positions", position_table(decoder, decoder.embed_dim))
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


def position_table(part: Any, width: int) -> Tensor:
    """Rows indexed by padding_idx + 1 + position: sinusoidal buffer, learned weight, or zeros.

    Args:
        part: a Fairseq encoder or decoder.
        width: of its embeddings.
    """
    rows = part.padding_idx + 1 + int(part.max_positions())
    table = part.embed_positions
    if table is None:
        return torch.zeros(rows, width)
    weights = table.weights if hasattr(table, "weights") else table.weight.detach()
    return weights[:rows].clone()
