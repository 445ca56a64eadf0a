"""Transformer layers with explicit caches, built from the modules of a Fairseq or Hugging Face model.

Both libraries name the projections and norms of a layer alike. Cross-attention keys and values come
from outside, one set for each utterance; the beams are folded into the query length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fairseq_openvino.tensors import MASKED


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, t, h*dh) -> (B, h, t, dh)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, t, dh) -> (B, t, D)."""
    return x.transpose(1, 2).flatten(2)


def fused_projection(*parts: Any) -> nn.Linear:
    """Linear layers of the same input as one, D -> the widths of all."""
    width_in, width_out = parts[0].in_features, sum(part.out_features for part in parts)
    fused = skip_init(nn.Linear, width_in, width_out)  # draws no random numbers
    with torch.no_grad():
        fused.weight.copy_(torch.cat([part.weight for part in parts]))
        biases = [
            part.weight.new_zeros(part.out_features) if part.bias is None else part.bias
            for part in parts
        ]
        fused.bias.copy_(torch.cat(biases))
    return fused


def self_attention_projection(attention: Any) -> nn.Linear:
    """Query, key and value projections as one, D -> 3D."""
    return fused_projection(attention.q_proj, attention.k_proj, attention.v_proj)


class FeedForward(nn.Module):
    """fc2(activation(fc1(x))) of a layer, with its pre- or post-norm residual."""

    def __init__(self, layer: Any, norm_first: bool) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = layer.final_layer_norm, layer.fc1, layer.fc2
        self.activation, self.norm_first = layer.activation_fn, norm_first

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, D) -> (B, t, D)."""
        y = self.fc2(self.activation(self.fc1(self.norm(x) if self.norm_first else x)))
        return x + y if self.norm_first else self.norm(x + y)


class EncoderLayer(nn.Module):
    """One Transformer encoder layer; (N, S, D), bias (N, 1, 1, S) or none -> (N, S, D)."""

    def __init__(self, layer: Any, norm_first: bool) -> None:
        super().__init__()
        attention = layer.self_attn
        self.heads, self.scale = attention.num_heads, attention.scaling
        self.project, self.out = self_attention_projection(attention), attention.out_proj
        self.norm, self.norm_first = layer.self_attn_layer_norm, norm_first
        self.feed_forward = FeedForward(layer, norm_first)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See the class."""
        qkv = split_heads(self.project(self.norm(x) if self.norm_first else x), 3 * self.heads)
        q, k, v = qkv.split(self.heads, dim=1)  # (N, H, S, dh) each
        scores = q @ k.transpose(2, 3) * self.scale
        weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
        x = x + self.out(merge_heads(weights @ v))
        return self.feed_forward(x if self.norm_first else self.norm(x))


class DecoderLayer(nn.Module):
    """One Transformer decoder layer over l new tokens, with explicit caches."""

    def __init__(self, layer: Any, norm_first: bool) -> None:
        super().__init__()
        attention, cross = layer.self_attn, layer.encoder_attn
        self.heads, self.head_width = attention.num_heads, attention.head_dim
        self.scale = attention.scaling
        self.project, self.out = self_attention_projection(attention), attention.out_proj
        self.norm, self.norm_first = layer.self_attn_layer_norm, norm_first
        self.cross_query, self.cross_out = (
            skip_init(nn.Linear, *_shape(cross.q_proj)),
            cross.out_proj,
        )
        with torch.no_grad():  # scale the query once, here: a scaled product stays unfused
            self.cross_query.weight.copy_(cross.q_proj.weight * cross.scaling)
            self.cross_query.bias.copy_(cross.q_proj.bias * cross.scaling)
        self.cross_norm = layer.encoder_attn_layer_norm
        self.feed_forward = FeedForward(layer, norm_first)

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


def causal_bias(step: Tensor, past_length: Any) -> Tensor:
    """Bias (1, 1, l, L+l) that hides later tokens; step = 0 .. l-1, L = past_length."""
    seen = torch.arange(past_length + step.shape[0], device=step.device)  # (L+l,)
    visible = seen.unsqueeze(0) <= (step + past_length).unsqueeze(1)  # (l, L+l)
    return torch.where(visible, 0.0, MASKED).unsqueeze(0).unsqueeze(0)


def _shape(linear: Any) -> tuple[int, int]:
    return linear.in_features, linear.out_features
