"""Calls of a model whose answers outlive the process that made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np

from fairseq_openvino.model import Ledger

Answer = TypeVar("Answer")


class Replay:
    """Takes answers from a ledger as long as it knows them; those that follow are computed and kept.

    A call that raises is not kept, nor is any later one: with this ledger they are made again.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = ledger

    def __call__(self, kind: type[Answer], compute: Callable[[], Answer]) -> Answer:
        """The answer of the next call, bit for bit what `compute` returns or has returned once.

        Args:
            kind: of the answer: dataclasses, containers and arrays of numbers; never None.
            compute: makes the call.
        """
        if self._ledger is None:
            return compute()
        known = self._ledger.known()
        if known is not None:
            return msgspec.convert(known, kind, dec_hook=_array)
        ledger, self._ledger = self._ledger, None
        answer = compute()
        ledger.add(msgspec.to_builtins(answer, enc_hook=_plain))
        self._ledger = ledger
        return answer


def _plain(array: Any) -> dict[str, Any]:
    """An array (n,) in JSON's types; 32 bits are as exact in the 64 that JSON has."""
    if not isinstance(array, np.ndarray):
        raise NotImplementedError(type(array))
    return {"type": array.dtype.name, "values": array.tolist()}


def _array(kind: type[Any], plain: dict[str, Any]) -> np.ndarray:
    """What `_plain` was given."""
    return np.array(plain["values"], plain["type"])
