"""The original model in float64 without a float64 copy of it."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


class Float64(TorchFunctionMode):
    """Within this context float32 code computes in float64.

    Each function of torch gets its float32 tensors widened, and where the code asks for float32 by name
    it gets float64: Fairseq does so in the softmax of attention (`utils.py:514`) and in GELU
    (`modules/gelu.py:25`). A weight is wide only as long as the function that reads it, so memory grows
    by the largest weight, not by all of them. The modules keep their float32 tensors.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """See `TorchFunctionMode`."""
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        if func is not torch.nn.functional.embedding and func.__name__ != "__get__":
            args, kwargs = tree_map(_widened, (args, kwargs))  # else exact: widen the result alone
        return tree_map(_widened, func(*args, **kwargs))


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype is torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value
