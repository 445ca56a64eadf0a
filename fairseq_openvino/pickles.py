"""An unpickler of protocols 2 to 5 that builds only what a table of names allows.

torch's own safe loader reads protocol 2 alone. This one follows its rules: nothing is imported, and only
values of the table are called, made or given a state.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, BinaryIO

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
GUARDED = ("REDUCE", "NEWOBJ", "BUILD", "BINPERSID", *CONTAINERS)


def dotted(module: str, name: str) -> str:
    """Of a global, as Python 3 calls it; protocol 2 is written with the names of Python 2."""
    if (module, name) in NAME_MAPPING:
        return ".".join(NAME_MAPPING[module, name])
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def scan(file: BinaryIO, names: set[str]) -> int:
    """Read the next pickle of a file without executing it.

    Args:
        file: left behind the pickle.
        names: gets the dotted names that it imports, up to damage too.

    Returns:
        Its protocol.

    Raises:
        ValueError: it is no pickle.
    """
    protocol, count = 0, 0
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
        if opcode.name == "PROTO":
            protocol = argument
        elif opcode.name in ("GLOBAL", "INST"):
            names.add(dotted(*str(argument).split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL":
            names.add(dotted(*strings))
        elif isinstance(top, str):
            strings = [strings[-1], top]
    return protocol


class Unpickler(pickle._Unpickler):
    """A restricted unpickler; raises UnpicklingError at the first thing that is not allowed."""

    allowed: dict[str, Any]
    """Dotted name to value; set by `module`."""
    stack: list[Any]
    metastack: list[list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        """A value of the table."""
        wanted = dotted(module, name)
        if wanted not in self.allowed:
            raise pickle.UnpicklingError(f"Trying to load the GLOBAL {wanted}")
        return self.allowed[wanted]

    def _guard(self, opcode: str) -> None:
        """Refuse an instruction whose object is not one that it may change or call."""
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
            is_allowed = any(made is each for each in self.allowed.values())
        if not is_allowed:
            raise pickle.UnpicklingError(f"Trying to {opcode} {target!r:.80}")


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


def module(allowed: dict[str, Any]) -> Any:
    """A stand-in for the module `pickle`, for `torch.load(pickle_module=...)`."""
    kind = type("Unpickler", (Unpickler,), {"allowed": allowed})

    def load(file: BinaryIO, **options: Any) -> Any:
        return kind(file, **options).load()

    return SimpleNamespace(__name__=__name__, Unpickler=kind, load=load)
