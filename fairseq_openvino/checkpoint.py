"""Fairseq checkpoints without code execution: a restricted unpickler and a short allow-list.

A checkpoint is a pickle, and a pickle may call any function while it loads. Fairseq 0.12 loads
with `weights_only=False` (facebookresearch/fairseq#5610); here only tensors, plain containers and
the names in `ALLOWED_GLOBALS` can be built, and no more of them than the file has bytes for.
`fairseq-train` itself stores a single name outside torch's own list, `argparse.Namespace`; the
others occur in checkpoints of older Fairseq versions.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
import math
import mmap
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq_openvino import pickles
from fairseq_openvino.errors import CheckpointError, UnsafeCheckpointError

logger = logging.getLogger(__name__)

TRUST_VARIABLE = "FAIRSEQ_OPENVINO_TRUST_CHECKPOINT"
"""Environment variable; `1` allows checkpoints that need globals outside `ALLOWED_GLOBALS`."""

ALLOWED_GLOBALS = frozenset(
    {
        "argparse.Namespace",
        "builtins.bool",
        "builtins.bytes",
        "builtins.dict",
        "builtins.float",
        "builtins.int",
        "builtins.list",
        "builtins.str",
        "builtins.tuple",
        "collections.defaultdict",
        "fairseq.data.dictionary.Dictionary",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.nodes.AnyNode",
        "omegaconf.nodes.BooleanNode",
        "omegaconf.nodes.FloatNode",
        "omegaconf.nodes.IntegerNode",
        "omegaconf.nodes.StringNode",
        "pathlib.PosixPath",
        "typing.Any",
    }
)
"""Names imported on demand: data holders whose construction has no side effect."""

MAX_NAMES_IN_MESSAGE, MAX_CHARACTERS = 10, 200
"""Of what a file says, in the message about it."""
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_PICKLES = 4
"""In a file of torch < 1.6: magic number, protocol, system info, the object; storages follow."""
TORCHSCRIPT = "constants.pkl"
"""In archives that `torch.load` would run."""
REFUSAL = "Trying to"
"""Begins the messages with which the unpickler refuses a call, as opposed to damaged bytes."""
CALLED_CLASSES = {"collections.defaultdict", "pathlib.PosixPath"}
"""Of those, what pickles make by a call; for the builtins there is no need, as types they are named."""
CALLED = (
    "_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set", "collections.Counter",
    "collections.OrderedDict", "torch.Size", "torch.device", "torch.serialization._get_layout",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._tensor._rebuild_from_type_v2",
)  # fmt: skip
"""Of torch's own list, what makes tensors and plain values. Its other names are types and constants, and
tensors (sparse, quantized, of other devices) that no weights are and whose sizes nothing bounds."""
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
PARENT = "_parent"
"""Attribute of OmegaConf's nodes that leads upwards."""
MAX_EXPANDED = 100_000
"""Values in a checkpoint, those that occur in several places counted in each, unless so many are stored."""


def _rebuilding(size: int) -> dict[str, Callable[..., Any]]:
    """Stand-ins for what makes tensors of storages, in a file of `size` bytes.

    torch itself makes a storage longer where a tensor needs it, and calls whatever it is told to.
    """
    left = pickles.REUSE * size

    def within(rebuild: Callable[..., Any]) -> Callable[..., Any]:
        def run(storage: Any, offset: int, shape: Any, stride: Any, *rest: Any) -> torch.Tensor:
            nonlocal left
            kind = rest[2] if rebuild is torch._utils._rebuild_tensor_v3 else storage.dtype
            last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
            count = math.prod(shape)
            left -= count * kind.itemsize
            there = storage._untyped_storage.nbytes()
            if left < 0 or (count and (last + 1) * kind.itemsize > there):
                raise ValueError(f"a tensor of the shape {tuple(shape)} in {there} bytes")
            found: torch.Tensor = rebuild(storage, offset, shape, stride, *rest)
            return found

        return run

    made: dict[str, Callable[..., Any]] = {
        f"torch._utils.{name}": within(getattr(torch._utils, name))
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
    }
    known = (*made.values(), *(getattr(torch._utils, name) for name in PARAMETERS))

    def of_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        if function not in known:
            raise pickle.UnpicklingError(f"{REFUSAL} call what makes no tensor")
        return torch._tensor._rebuild_from_type_v2(function, kind, arguments, state)

    return made | {"torch._tensor._rebuild_from_type_v2": of_type}


def load_checkpoint(path: str | os.PathLike[str], key: str = "model") -> dict[str, Any]:
    """Load a checkpoint onto the CPU without running code from it.

    Args:
        path: a file written by `fairseq-train`, `torch.save` or the averaging script.
        key: where the weights are.

    Returns:
        The stored dict, with at least the key `key`: parameter name to tensor. A file of weights alone
        (`torch.save(model.state_dict())`) gives a dict with that key only.

    Raises:
        UnsafeCheckpointError: the file needs globals outside `ALLOWED_GLOBALS`.
        CheckpointError: the file is missing, damaged or not a Fairseq checkpoint.
    """
    state = load_object(path)
    if isinstance(state, dict) and state and all(map(torch.is_tensor, state.values())):
        return {key: state}
    if not isinstance(state, dict) or key not in state:
        keys = sorted(map(str, state))[:MAX_NAMES_IN_MESSAGE] if isinstance(state, dict) else None
        got = f"{type(state).__name__}" if keys is None else f"{len(state)} keys, as {keys}"
        raise CheckpointError(
            f"Loading a checkpoint failed in {os.fspath(path)!r}: expected a dict with the key {key!r}, "
            f"got {got}. Pass a checkpoint of the kind named."
        )
    return state


def load_object(path: str | os.PathLike[str]) -> Any:
    """Load whatever `torch.save` wrote, as `load_checkpoint` does.

    Raises:
        UnsafeCheckpointError, CheckpointError: as there.
    """
    name = os.fspath(path)
    _check_file(name)
    found, damage = _inspect(name)
    refused = sorted(found - ALLOWED_GLOBALS - pickles.STAND_INS.keys() - _of_torch().keys())
    if damage is not None and not refused:  # else the names are the better message
        raise _damaged(name, damage) from damage
    if not refused:
        content = _load(name, pickles.module(_table(name, found)))
        _check_expanded(name, content)
        return content
    if os.environ.get(TRUST_VARIABLE) == "1":
        logger.warning(
            "Loading %r with code execution because %s=1; sha256 %s, globals: %s",
            name,
            TRUST_VARIABLE,
            _sha256(name),
            ", ".join(refused),
        )
        return _load(name, pickle)
    raise _refusal(name, refused)


def _check_file(name: str) -> None:
    path = Path(name)
    if not path.exists():
        got = "no such file"
    elif not path.is_file():
        got = "a directory" if path.is_dir() else "a special file"
    elif path.stat().st_size == 0:
        got = "an empty file"
    else:
        return
    raise CheckpointError(
        f"Loading a checkpoint failed in {name!r}: expected a file written by torch.save, "
        f"got {got}. Check the path."
    )


def _damaged(name: str, error: Exception) -> CheckpointError:
    reason = str(error).split(". ")[0][:MAX_CHARACTERS] or type(error).__name__
    return CheckpointError(
        f"Loading a checkpoint failed in {name!r} ({Path(name).stat().st_size} bytes): expected a "
        f"complete file written by torch.save, got {reason!r}. Copy or download it again."
    )


def _refusal(name: str, refused: list[str]) -> UnsafeCheckpointError:
    names = ", ".join(repr(each[:MAX_CHARACTERS])[1:-1] for each in refused[:MAX_NAMES_IN_MESSAGE])
    more = len(refused) - MAX_NAMES_IN_MESSAGE
    return UnsafeCheckpointError(
        f"Loading a checkpoint was refused in {name!r}: expected tensors, containers and "
        f"argparse.Namespace, got the globals {names}{f' and {more} more' if more > 0 else ''}, "
        "which could run code. If you trust where the file comes from, set "
        f"{TRUST_VARIABLE}=1."
    )


def _of_torch() -> dict[str, Any]:
    """Of torch's own list, by name, what may be named."""
    allowed: dict[str, Any] = torch._weights_only_unpickler._get_allowed_globals()
    constants = (torch.dtype, torch.qscheme, torch.serialization.StorageType)
    return {
        name: value
        for name, value in allowed.items()
        if name in CALLED or isinstance(value, (type, *constants))
    }


def _table(name: str, found: set[str]) -> pickles.Table:
    """What a file may name, of what it does."""
    size = Path(name).stat().st_size
    own = {dotted: _resolve(dotted) for dotted in sorted(found & ALLOWED_GLOBALS)}
    stand_ins = pickles.STAND_INS | _rebuilding(size)
    called = {*stand_ins, *CALLED, *(CALLED_CLASSES & own.keys())}
    made = {name for name in own if not name.startswith(("builtins.", "typing."))}
    return pickles.Table(_of_torch() | own | stand_ins, called, made, size)


def _load(name: str, pickle_module: Any) -> Any:
    try:
        return torch.load(
            name,
            map_location="cpu",
            weights_only=False,
            pickle_module=pickle_module,
            mmap=zipfile.is_zipfile(
                name
            ),  # what nobody looks at, as the optimizer's state, is not read
        )
    except pickle.UnpicklingError as error:
        if not str(error).startswith(REFUSAL) or pickle_module is pickle:
            raise _damaged(name, error) from error
        raise UnsafeCheckpointError(
            f"Loading a checkpoint was refused in {name!r}: expected plain data, got a pickle "
            f"that the safe loader rejects ({error}). If you trust where the "
            f"file comes from, set {TRUST_VARIABLE}=1."
        ) from error
    except Exception as error:  # A damaged pickle makes the unpickler raise anything.
        raise _damaged(name, error) from error


def _check_expanded(name: str, content: Any) -> None:
    """Refuse a few values that occur in so many places that who walks through them never ends."""
    sizes: dict[int, int] = {}
    path: set[int] = set()
    todo, stored = [(content, False)], 1
    while todo:
        value, is_done = todo.pop()
        parts = _parts(value)
        if is_done:
            path.remove(id(value))
            sizes[id(value)] = 1 + sum(sizes.get(id(part), 1) for part in parts)
        elif parts and id(value) not in sizes:
            if id(value) in path:
                raise _damaged(name, ValueError("a container that contains itself"))
            path.add(id(value))
            stored += len(parts)
            todo.append((value, True))
            todo += [(part, False) for part in parts]
    expanded = sizes.get(id(content), 1)
    if expanded > max(MAX_EXPANDED, pickles.REUSE * stored):
        raise _damaged(name, ValueError(f"{stored} values that stand for {expanded}"))


def _parts(value: Any) -> list[Any]:
    """What a container or an object of settings holds."""
    if isinstance(value, (str, int, float, torch.Tensor, np.ndarray, type)):
        return []
    inside = vars(value) if hasattr(value, "__dict__") else {}
    parts = [part for key, part in inside.items() if key != PARENT]
    if isinstance(value, dict):
        parts += value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts += value
    return parts


def _resolve(dotted: str) -> Any:
    module, _, attribute = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise CheckpointError(
            f"Loading a checkpoint failed: expected the package of {dotted!r} to be installed, "
            f"got {error}. Install fairseq-openvino[fairseq]."
        ) from error


def _inspect(name: str) -> tuple[set[str], Exception | None]:
    """Names that a file imports, and why it is damaged."""
    found: set[str] = set()
    try:
        pickled, count = _pickled(name)
        with pickled:
            for _ in range(count):
                pickles.scan(pickled, found)
    except (RuntimeError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        return found, error
    return found, None


def _pickled(name: str) -> tuple[Any, int]:
    """Where the pickles of a file are, as a file that has no more than there is, and how many."""
    with open(name, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if _is_tar(content[: tarfile.BLOCKSIZE]):
        raise ValueError("a tar archive")
    if content[: len(ZIP_MAGIC)] != ZIP_MAGIC:
        return content, LEGACY_PICKLES
    size = len(content)
    content.close()
    reader = torch._C.PyTorchFileReader(name)
    if reader.has_record(TORCHSCRIPT):
        raise ValueError("a TorchScript archive")
    with zipfile.ZipFile(name) as archive:
        is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    if is_packed or sum(map(reader.get_record_size, reader.get_all_records())) > size:
        raise ValueError("a compressed archive")
    return io.BytesIO(reader.get_record("data.pkl")), 1


def _is_tar(head: bytes) -> bool:
    """Whether the first block of a file is that of a tar archive, which torch would unpack."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _sha256(name: str) -> str:
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
