"""An unpickler of all protocols that builds only what a table of names allows, and not more than there is.

It follows the rules of torch's own safe loader, which reads protocol 2 alone: nothing is imported, and only
values of the table are called, made or given a state. Beyond them it is bounded by the size of the file:
what a pickle claims to hold is not believed, and keys are of types that are hashed soon and differently.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

LEFT_OUT = (
    "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER",
)  # fmt: skip
"""Opcodes that no checkpoint needs: other ways to call, and buffers from elsewhere."""
MAPPINGS = (dict, OrderedDict, Counter)
CONTAINERS: dict[str, tuple[type, ...]] = {
    "APPEND": (list,), "APPENDS": (list,), "SETITEM": MAPPINGS, "SETITEMS": MAPPINGS,
    "ADDITEMS": (set,),
}  # fmt: skip
"""Opcodes that fill something, and what they may fill."""
FILLED = {"SETITEM": slice(-2, -1), "SETITEMS": slice(None, None, 2), "ADDITEMS": slice(None)}
"""Opcodes that add keys, and where they are on the stack."""
GUARDED = ("REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "DICT", "FROZENSET", *CONTAINERS)
KEYS = (str, bytes, bool, float, type(None), np.number)
MAX_KEY = sys.hash_info.modulus - 1
"""Of an integer: larger ones have the hashes of smaller ones. Tuples can be made that all have the same, and
objects of settings take for ever to hash if each holds another one twice."""
COPIED = (bytes, bytearray, str, list, tuple, dict, set)
REUSE = 4
"""What a file holds may be copied so many times: tied weights share their storage, for one."""
NUMERIC_KINDS = "biuf"
"""NumPy kinds (bool, signed, unsigned, float) a stored scalar may have."""
STORAGE_ID = 5
"""Parts of the name of a storage: "storage", its type, its key, its device, its length."""


def dotted(module: str, name: str) -> str:
    """Of a global, as Python 3 calls it; protocol 2 is written with the names of Python 2."""
    if (module, name) in NAME_MAPPING:
        return ".".join(NAME_MAPPING[module, name])
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def scan(file: BinaryIO, names: set[str]) -> None:
    """Read the next pickle of a file without executing it.

    Args:
        file: left behind the pickle.
        names: gets the dotted names that it imports, up to damage too.

    Raises:
        ValueError: it is no pickle.
    """
    count = 0
    strings, memo = ["?", "?"], dict[Any, str]()
    argument: Any
    top: Any = None
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name.endswith("PUT") or opcode.name == "MEMOIZE":
            if isinstance(top, str):
                memo[count if argument is None else argument] = top
            count += 1
            continue  # what is on top of the stack stays there
        top = memo.get(argument) if opcode.name.endswith("GET") else argument
        if opcode.name in ("GLOBAL", "INST"):
            names.add(dotted(*str(argument).split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL":
            names.add(dotted(*strings))
        elif isinstance(top, str):
            strings = [strings[-1], top]


class _ScalarType:
    """Stands in for `numpy.dtype`, whose own `__setstate__` trusts flags read from the file."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        del align, copy
        self.dtype = np.dtype(name)
        if self.dtype.kind not in NUMERIC_KINDS:
            raise ValueError(f"a NumPy scalar of a numeric type expected, got {name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _scalar(scalar_type: _ScalarType, data: bytes) -> np.generic:
    """Stands in for `numpy.core.multiarray.scalar`."""
    return np.frombuffer(data, scalar_type.dtype, count=1)[0]


class _Array(np.ndarray):
    """Stands in for `numpy.ndarray`, and what makes one to be given a state: numbers and nothing else."""

    def __new__(cls, *_: Any) -> _Array:
        return np.zeros(0, np.int8).view(cls)

    def __setstate__(self, state: Any) -> None:
        version, shape, kind, in_fortran_order, data = state
        super().__setstate__((version, shape, kind.dtype, in_fortran_order, data))


def _frombuffer(data: bytes, kind: _ScalarType, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Stands in for `numpy.core.numeric._frombuffer`."""
    return np.frombuffer(data, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, which Python 3 writes bytes with in protocol 2."""
    if encoding != "latin1":
        raise ValueError(f"bytes as latin1 expected, got {encoding!r}")
    return text.encode(encoding)


def _sized(kind: type) -> Callable[..., Any]:
    """Stands in for `bytes` and `bytearray`, which make room for any number."""

    def make(*arguments: Any) -> Any:
        if arguments and not isinstance(arguments[0], (bytes, str, list, tuple)):
            raise ValueError(f"the content of {kind.__name__} expected, got {type(arguments[0])}")
        return kind(*arguments)

    return make


STAND_INS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _latin1,
    "builtins.bytearray": _sized(bytearray),
    "builtins.bytes": _sized(bytes),
    "numpy.dtype": _ScalarType,
    "numpy.ndarray": _Array,
    **{
        f"numpy.{core}.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (
            ("multiarray.scalar", _scalar),
            ("multiarray._reconstruct", _Array),
            ("numeric._frombuffer", _frombuffer),
        )
    },
}
"""By dotted name, what is taken in place of functions and types that trust what they are given."""


@dataclass(frozen=True)
class Table:
    """What a pickle may name, and what it may do with it."""

    names: Mapping[str, Any]
    """Dotted name to value."""
    called: Collection[str]
    """Names of those that may be called."""
    made: Collection[str]
    """Names of classes that may be made without a call."""
    size: int
    """Of the file, in bytes: storages have not more, and nothing longer is read."""

    @cached_property
    def permitted(self) -> dict[str, set[int]]:
        """By instruction, identities of the values that it may be about."""
        called = {id(self.names[name]) for name in self.called}
        made = {id(self.names[name]) for name in self.made}
        return {"REDUCE": called, "NEWOBJ": made, "BUILD": called | made}


class Unpickler(pickle._Unpickler):
    """A restricted unpickler; raises UnpicklingError at the first thing that is not allowed."""

    table: Table
    """Set by `module`."""
    stack: list[Any]
    metastack: list[list[Any]]

    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(file, **options)
        self._storages: dict[Any, int] = {}
        self._left = REUSE * self.table.size

        def read(count: int) -> bytes:
            return file.read(
                min(count, self.table.size)
            )  # does not make room for what is not there

        self._file_read = read

    def find_class(self, module: str, name: str) -> Any:
        """A value of the table."""
        wanted = dotted(module, name)
        if wanted not in self.table.names:
            raise pickle.UnpicklingError(f"Trying to load the GLOBAL {wanted}")
        return self.table.names[wanted]

    def _guard(self, opcode: str) -> None:
        """Refuse an instruction whose object is not one that it may change or call, and costly keys."""
        if opcode in ("DICT", "FROZENSET"):
            _check_keys(self.stack[:: 2 if opcode == "DICT" else 1])
            return
        if opcode in ("APPENDS", "SETITEMS", "ADDITEMS"):
            target = self.metastack[-1][-1]
        else:
            target = self.stack[{"BINPERSID": -1, "SETITEM": -3}.get(opcode, -2)]
        if opcode in CONTAINERS:
            is_allowed = type(target) in CONTAINERS[opcode]
        elif opcode == "BINPERSID":
            is_allowed = isinstance(target, tuple) and target[:1] == ("storage",)
        else:
            made = type(target) if opcode == "BUILD" else target
            is_allowed = id(made) in self.table.permitted[opcode]
        if not is_allowed:
            raise pickle.UnpicklingError(f"Trying to {opcode} {_called(target)}")
        if opcode == "BINPERSID":
            self._check_storage(target)
        elif opcode in ("REDUCE", "BUILD"):
            self._spend(self.stack[-1])
        if opcode == "REDUCE":
            _check_keys(_hashed(target, self.stack[-1]))
        elif opcode in FILLED:
            _check_keys(self.stack[FILLED[opcode]])

    def _spend(self, given: Any) -> None:
        """Refuse to copy the same things again and again."""
        parts = given if isinstance(given, tuple) else (given,)
        self._left -= sum(len(part) for part in parts if isinstance(part, COPIED))
        if self._left < 0:
            raise ValueError(
                f"calls with more than {REUSE} times the {self.table.size} bytes of the file"
            )

    def _check_storage(self, identity: tuple[Any, ...]) -> None:
        """Refuse storages that are longer than the file."""
        _, kind, key, _, count = identity[:STORAGE_ID]
        _check_keys([key, *(view[0] for view in identity[STORAGE_ID:] if view)])
        bytes_each = getattr(getattr(kind, "dtype", None), "itemsize", 1)
        self._storages[key] = max(self._storages.get(key, 0), count * bytes_each)
        if count < 0 or sum(self._storages.values()) > self.table.size:
            raise ValueError(f"storages of more than the {self.table.size} bytes of the file")


def _hashed(kind: Any, given: Any) -> Iterable[Any]:
    """Keys of what a call makes of lists: items of a set, the first of each pair of a mapping."""
    if kind not in (set, *MAPPINGS, defaultdict):
        return
    for part in given[kind is defaultdict :]:
        if not isinstance(part, (dict, list, tuple, str)):
            raise pickle.UnpicklingError(f"{_called(kind)} of {_called(part)}")
        is_paired = kind in (OrderedDict, defaultdict) and not isinstance(part, dict)
        yield from (pair[0] for pair in part) if is_paired else part


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse what may take long to hash, or to tell from another key of the same hash."""
    for key in keys:
        is_small = type(key) is int and abs(key) <= MAX_KEY
        if not is_small and not isinstance(key, KEYS):
            raise ValueError(f"texts and numbers as keys expected, got {_called(key)}")


def _called(value: Any) -> str:
    """For messages; a text of the value itself may be of any length."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))[:80]


def _guarded(opcode: str) -> Callable[[Any], None]:
    load = pickle._Unpickler.dispatch[getattr(pickle, opcode)[0]]

    def run(unpickler: Any) -> None:
        unpickler._guard(opcode)
        load(unpickler)

    return run


def _load_bytearray(unpickler: Any) -> None:
    """As pickle's, which makes room before it knows what there is."""
    (size,) = struct.unpack("<Q", unpickler.read(8))
    unpickler.append(bytearray(unpickler.read(size)))


Unpickler.dispatch = {
    code: load
    for code, load in pickle._Unpickler.dispatch.items()
    if code not in {getattr(pickle, opcode)[0] for opcode in LEFT_OUT}
} | {getattr(pickle, opcode)[0]: _guarded(opcode) for opcode in GUARDED}
Unpickler.dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray


def module(table: Table) -> Any:
    """A stand-in for the module `pickle`, for `torch.load(pickle_module=...)`."""
    kind = type("Unpickler", (Unpickler,), {"table": table})

    def load(file: BinaryIO, **options: Any) -> Any:
        return kind(file, **options).load()

    return SimpleNamespace(__name__=__name__, Unpickler=kind, load=load)
