"""Fairseq's Conformer layer in a form that is folded as far as constants go.

Letters: N utterances, S frames, D width, H heads, dh head width, C channels, M the largest S.

Padding leaks through the depthwise convolution, as it does in Fairseq.

Source: Fairseq `modules/conformer_layer.py`, `modules/espnet_multihead_attention.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fairseq_openvino.export.layers import fused_projection, merge_heads, split_heads


class ConformerLayer(nn.Module):
    """x (N, S, D), bias (N, 1, 1, S) that hides padding -> (N, S, D)."""

    def __init__(self, layer: Any, positions: Tensor | None) -> None:
        """Wrap a Fairseq `ConformerEncoderLayer` in eval mode; positions from `position_table`."""
        super().__init__()
        self.before, self.after = HalfFeedForward(layer.ffn1), HalfFeedForward(layer.ffn2)
        self.attention_norm, self.norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self.attention = _attention(layer.self_attn, positions)
        self.convolution = Convolution(layer.conv_module)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """See the class."""
        x = x + self.before(x)
        x = x + self.attention(self.attention_norm(x), bias)
        x = x + self.convolution(x)
        return self.norm(x + self.after(x))


def position_table(layer: Any, encoding: Any, frames: int) -> Tensor | None:
    """What the attention of a model knows of positions; the same for all its layers.

    Args:
        layer: one of its layers.
        encoding: its `RelPositionalEncoding`, if it has one.
        frames: M.

    Returns:
        For relative positions the encodings (2M, D) of the distances M - 1 to 1 - M, and zeros; for
        rotary ones cosines and sines (2, M, 1, dh); else none.
    """
    attention = layer.self_attn
    if hasattr(attention, "pos_bias_u"):
        encoding.extend_pe(torch.zeros(1, frames))
        middle = encoding.pe.shape[1] // 2
        table: Tensor = encoding.pe[0, middle - frames + 1 : middle + frames]
        return nn.functional.pad(table, (0, 0, 0, 1))
    if hasattr(attention, "rotary_emb"):
        tables = attention.rotary_emb(attention.linear_q.weight, seq_len=frames)  # (M, 1, 1, dh)
        return torch.stack(tables)[:, :frames, 0]
    return None


class HalfFeedForward(nn.Module):
    """Half of what the feed-forward module says; (N, S, D) -> (N, S, D)."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.norm, self.first, self.activation = module.layer_norm, module.w_1, module.activation
        self.second = _linear(module.w_2.weight * 0.5, module.w_2.bias * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.second(self.activation(self.first(self.norm(x))))


class Convolution(nn.Module):
    """The convolution module with its batch normalisation folded; (N, S, D) -> (N, S, D)."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.norm, self.activation = module.layer_norm, module.activation
        first, bias = module.pointwise_conv1, module.pointwise_conv1.bias
        value, gate = first.weight.squeeze(2).chunk(2)
        biases = (None, None) if bias is None else bias.chunk(2)
        self.value, self.gate = _linear(value, biases[0]), _linear(gate, biases[1])
        self.depthwise = nn.utils.fuse_conv_bn_eval(module.depthwise_conv, module.batch_norm)
        last = module.pointwise_conv2
        self.out = _linear(last.weight.squeeze(2), last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.norm(x)
        x = self.value(x) * torch.sigmoid(self.gate(x))  # (N, S, C)
        x = self.activation(self.depthwise(x.transpose(1, 2)))  # (N, C, S)
        return self.out(x.transpose(1, 2))


class Attention(nn.Module):
    """Self-attention that knows no positions; (N, S, D), bias (N, 1, 1, S) -> (N, S, D)."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        if hasattr(attention, "linear_q"):  # ESPNETMultiHeadedAttention
            query, key, value = attention.linear_q, attention.linear_k, attention.linear_v
            self.heads, self.out = attention.h, attention.linear_out
        else:
            query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
            self.heads, self.out = attention.num_heads, attention.out_proj
        self.project = fused_projection(_scaled(query, self.heads), key, value)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """See the class."""
        q, k, v = split_heads(self.project(x), 3 * self.heads).split(self.heads, dim=1)
        return self.out(_attend(q @ k.transpose(2, 3) + bias, v))


class RotaryAttention(nn.Module):
    """Queries and keys of inputs rotated by their position; as `Attention`."""

    def __init__(self, attention: Any, positions: Tensor) -> None:
        super().__init__()
        self.heads, self.out = attention.h, attention.linear_out
        query = _scaled(attention.linear_q, attention.h)
        self.project, self.value = fused_projection(query, attention.linear_k), attention.linear_v
        self.register_buffer("positions", positions)  # (2, M, 1, dh)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """See the class."""
        by_head = x.unflatten(2, (self.heads, -1))  # (N, S, H, dh)
        cosines, sines = self.positions[:, : x.shape[1]]  # (S, 1, dh)
        first, second = by_head.chunk(2, dim=3)
        turned = torch.cat([-second, first], 3)
        turned = by_head * cosines + turned * sines
        q, k = split_heads(self.project(turned.flatten(2)), 2 * self.heads).chunk(2, dim=1)
        v = split_heads(self.value(x), self.heads)
        return self.out(_attend(q @ k.transpose(2, 3) + bias, v))


class RelativeAttention(Attention):
    """With scores of the distance between query and key; as `Attention`.

    Projecting the distances does not depend on x: it is done here, for all of them.
    """

    def __init__(self, attention: Any, positions: Tensor) -> None:
        super().__init__(attention)
        heads, width = attention.h, attention.d_k
        scale = width**-0.5
        with torch.no_grad():
            content, distance = attention.pos_bias_u * scale, attention.pos_bias_v * scale
            self.project.bias[: heads * width] += content.flatten()
            projected = (positions.double() @ attention.linear_pos.weight.double().T).float()
        self.register_buffer("distances", projected.unflatten(1, (heads, width)).transpose(0, 1))
        self.register_buffer("shift", (distance - content).unsqueeze(1))  # (H, 1, dh)
        self.frames = len(positions) // 2

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """See the class."""
        q, k, v = split_heads(self.project(x), 3 * self.heads).split(self.heads, dim=1)
        frames = x.shape[1]
        distances = self.distances[:, self.frames - frames : self.frames + frames]  # (H, 2S, dh)
        by_distance = (q + self.shift) @ distances.transpose(1, 2)  # (N, H, S, 2S)
        # Row i begins at distance S - 1: its key 0 is at S - 1 - i. Rows of 2S - 1 move along by one.
        flat = by_distance.flatten(2)[:, :, frames - 1 : frames - 1 + frames * (2 * frames - 1)]
        by_key = flat.unflatten(2, (frames, 2 * frames - 1))[:, :, :, :frames]  # (N, H, S, S)
        return self.out(_attend(q @ k.transpose(2, 3) + by_key + bias, v))


def _attention(attention: Any, positions: Tensor | None) -> nn.Module:
    if positions is not None:
        kind = RelativeAttention if hasattr(attention, "pos_bias_u") else RotaryAttention
        return kind(attention, positions)
    return Attention(attention)


def _attend(scores: Tensor, values: Tensor) -> Tensor:
    """Scores (N, H, S, S), values (N, H, S, dh) -> (N, S, D)."""
    return merge_heads(torch.softmax(scores, dim=-1) @ values)


def _scaled(query: Any, heads: int) -> nn.Linear:
    """A query projection of which the products need no scale."""
    scale = (query.out_features // heads) ** -0.5
    return _linear(query.weight * scale, query.bias * scale)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """weight (out, in), bias (out,)."""
    linear = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear
