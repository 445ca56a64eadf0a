"""Fairseq checkpoints without code execution: torch's safe loader and a short allow-list.

A checkpoint is a pickle, and a pickle may call any function while it loads. Fairseq 0.12 loads
with `weights_only=False` (facebookresearch/fairseq#5610); here only tensors, plain containers and
the names in `ALLOWED_GLOBALS` can be built. `fairseq-train` itself stores a single name outside
torch's own list, `argparse.Namespace`; the others occur in checkpoints of older Fairseq versions.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
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

MAX_NAMES_IN_MESSAGE = 10
SAFE_PROTOCOL = 2
"""Of pickles that torch's safe loader reads; newer ones are read by `pickles`."""
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_PICKLES = 4
"""In a file of torch < 1.6: magic number, protocol, system info, the object; storages follow."""
TORCHSCRIPT = "constants.pkl"
"""In archives that `torch.load` would run."""
REFUSALS = ("GLOBAL", "Trying to", "Can only")
"""Parts of the messages with which torch's loader refuses a call, as opposed to damaged bytes."""
NUMERIC_KINDS = "biuf"
"""NumPy kinds (bool, signed, unsigned, float) a stored scalar may have."""


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
    """Stands in for `numpy.ndarray`: an array of numbers and nothing else."""

    def __setstate__(self, state: Any) -> None:
        version, shape, kind, in_fortran_order, data = state
        super().__setstate__((version, shape, kind.dtype, in_fortran_order, data))


def _reconstruct(*_: Any) -> _Array:
    """Stands in for `numpy.core.multiarray._reconstruct`; a state follows."""
    return np.zeros(0, np.int8).view(_Array)


def _frombuffer(data: bytes, kind: _ScalarType, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Stands in for `numpy.core.numeric._frombuffer`."""
    return np.frombuffer(data, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


_NUMPY_STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _ScalarType,
    "numpy.ndarray": _Array,
    **{
        f"numpy.{core}.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (
            ("multiarray.scalar", _scalar),
            ("multiarray._reconstruct", _reconstruct),
            ("numeric._frombuffer", _frombuffer),
        )
    },
}


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
    found, protocol = _inspect(name)
    refused = sorted(found - ALLOWED_GLOBALS - _NUMPY_STAND_INS.keys())
    if not refused:
        return _load_safely(name, found, protocol)
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
    reason = str(error).split(". ")[0] or type(error).__name__
    return CheckpointError(
        f"Loading a checkpoint failed in {name!r} ({Path(name).stat().st_size} bytes): expected a "
        f"complete file written by torch.save, got {reason!r}. Copy or download it again."
    )


def _refusal(name: str, refused: list[str]) -> UnsafeCheckpointError:
    names = ", ".join(refused[:MAX_NAMES_IN_MESSAGE])
    more = len(refused) - MAX_NAMES_IN_MESSAGE
    return UnsafeCheckpointError(
        f"Loading a checkpoint was refused in {name!r}: expected tensors, containers and "
        f"argparse.Namespace, got the globals {names}{f' and {more} more' if more > 0 else ''}, "
        "which could run code. If you trust where the file comes from, set "
        f"{TRUST_VARIABLE}=1."
    )


def _load_safely(name: str, found: set[str], protocol: int) -> Any:
    permitted = {dotted: _resolve(dotted) for dotted in sorted(found & ALLOWED_GLOBALS)}
    permitted |= _NUMPY_STAND_INS
    # The unpicklers let `__setstate__` run only for types they find under their own name.
    permitted |= {f"{__name__}.{kind.__name__}": kind for kind in (_ScalarType, _Array)}
    if protocol > SAFE_PROTOCOL:
        allowed = torch._weights_only_unpickler._get_allowed_globals() | permitted
        return _load(name, pickles.module(allowed))
    with torch.serialization.safe_globals([(value, dotted) for dotted, value in permitted.items()]):
        return _load(name)


def _load(name: str, pickle_module: Any = None) -> Any:
    """With torch's safe unpickler, or another one."""
    try:
        return torch.load(
            name,
            map_location="cpu",
            weights_only=pickle_module is None,
            pickle_module=pickle_module,
            mmap=zipfile.is_zipfile(
                name
            ),  # what nobody looks at, as the optimizer's state, is not read
        )
    except pickle.UnpicklingError as error:
        reasons = [line for line in str(error).splitlines() if any(m in line for m in REFUSALS)]
        if not reasons or pickle_module is pickle:
            raise _damaged(name, error) from error
        raise UnsafeCheckpointError(
            f"Loading a checkpoint was refused in {name!r}: expected plain data, got a pickle "
            f"that the safe loader rejects ({reasons[0].strip()}). If you trust where the "
            f"file comes from, set {TRUST_VARIABLE}=1."
        ) from error
    except Exception as error:  # A damaged pickle makes the unpickler raise anything.
        raise _damaged(name, error) from error


def _resolve(dotted: str) -> Any:
    module, _, attribute = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise CheckpointError(
            f"Loading a checkpoint failed: expected the package of {dotted!r} to be installed, "
            f"got {error}. Install fairseq-openvino[fairseq]."
        ) from error


def _inspect(name: str) -> tuple[set[str], int]:
    """Names the file imports that torch's own allow-list does not hold, and its pickle protocol."""
    found: set[str] = set()
    protocol = 0
    try:
        pickled, count = _pickled(name)
        with pickled:
            for _ in range(count):
                protocol = max(protocol, pickles.scan(pickled, found))
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        if not found:
            raise _damaged(name, error) from error
        # Not torch's layout, but names to refuse are the better message.
    return found - torch._weights_only_unpickler._get_allowed_globals().keys(), protocol


def _pickled(name: str) -> tuple[Any, int]:
    """Where the pickles of a file are, as a file that has no more than there is, and how many."""
    if tarfile.is_tarfile(name):
        raise ValueError("a tar archive")
    with open(name, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if content[: len(ZIP_MAGIC)] != ZIP_MAGIC:
        return content, LEGACY_PICKLES
    content.close()
    reader = torch._C.PyTorchFileReader(name)
    if reader.has_record(TORCHSCRIPT):
        raise ValueError("a TorchScript archive")
    return io.BytesIO(reader.get_record("data.pkl")), 1


def _sha256(name: str) -> str:
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
