"""The tensors between encoder and decoder: what a graph is given, leaves and keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec

MASKED = -65504.0
"""Additive bias of a masked position: exp() of it is 0 in f32 and it is finite in f16 and bf16."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that the decoder is given anew (memory) or keeps between calls (state).

    The decoder graph calls a memory tensor by its name, a state `past_<name>` where it comes in and
    `present_<name>` where it goes out.
    """

    name: str
    """As `cross_key.0`, or `key.0` of a state."""
    dims: tuple[Count | str, ...]
    """Letters of the package docstring, and numbers: `N` first in a memory, `R` in a state; a memory
    is padded along `S`, a state grows along `L`, from 0."""
    fill: float = 0.0
    """What a memory is padded with."""
    start: str | None = None
    """Memory tensor with which a state that has no `L` begins, (N, ...); None: zeros."""

    @property
    def is_mask(self) -> bool:
        """Whether it hides frames rather than describing them."""
        return self.fill != 0.0


def attention_specs(
    layers: int, heads: int, head_width: int
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Memory and state of a transformer decoder with P layers, H heads and dh."""
    parts = [f"{part}.{layer}" for layer in range(layers) for part in ("key", "value")]
    mask = TensorSpec("cross_bias", ("N", 1, 1, "S"), MASKED)
    cross = (TensorSpec(f"cross_{part}", ("N", heads, "S", head_width)) for part in parts)
    state = (TensorSpec(part, ("R", heads, "L", head_width)) for part in parts)
    return (mask, *cross), tuple(state)


def features_layout(feature_bins: int) -> tuple[tuple[int, ...], str]:
    """What follows (N, T) in the shape of an encoder's features, and their type: token ids if F is 0."""
    return ((feature_bins,), "float32") if feature_bins else ((), "int64")


def is_recurrent(state: Iterable[TensorSpec]) -> bool:
    """Whether a decoder with this state is given one token a call."""
    return any("L" not in spec.dims for spec in state)
