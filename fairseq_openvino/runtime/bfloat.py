"""bf16 in numpy, which has no such type: its 16 bits as uint16."""

from __future__ import annotations

import numpy as np


def widened(bits: np.ndarray) -> np.ndarray:
    """bf16 as float32, exactly."""
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def narrowed(values: np.ndarray) -> np.ndarray:
    """float32 as the nearest bf16; of two, the even one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
