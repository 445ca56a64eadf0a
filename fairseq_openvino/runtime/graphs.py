"""Graphs as OpenVINO's files, `.xml` and the weights in `.bin`: errors of its reader and writer are ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import openvino as ov

from fairseq_openvino.atomic import unwritable
from fairseq_openvino.bundle import Bundle
from fairseq_openvino.bundle.directory import weights_of
from fairseq_openvino.errors import BundleError, DeviceError, failure, is_out_of_memory

OPEN_FILES = Path("/proc/self/fd")
"""Where Linux shows them under their numbers."""


def read_verified(bundle: Bundle, name: str, core: ov.Core | None = None) -> ov.Model:
    """A graph of a bundle as it was verified: where the system lets open files be named, none else is read.

    Raises:
        BundleError: it has changed since it was verified, or OpenVINO cannot read it.
    """
    with bundle.open(name) as graph, bundle.open(weights_of(name)) as weights:
        places = [OPEN_FILES / str(file.fileno()) for file in (graph, weights)]
        is_named = all(place.exists() for place in places)
        return read_graph(bundle.directory / name, core, places if is_named else ())


def read_graph(path: Path, core: ov.Core | None = None, places: Sequence[Path] = ()) -> ov.Model:
    """A graph, whose weights are mapped.

    Args:
        path: of the graph, with its weights beside it.
        core: of OpenVINO, a new one by default.
        places: of graph and weights, if they are read elsewhere than at `path`.

    Raises:
        BundleError: OpenVINO cannot read it.
    """
    try:
        return (core or ov.Core()).read_model(*(places or (path,)))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        got = " ".join(str(error).split()).rstrip(".")
        expected, advice = "a graph that OpenVINO reads", "Export the bundle again"
        raise failure(BundleError, "Reading a graph", path, expected, got, advice) from error


def compile_graph(
    core: ov.Core, model: ov.Model | Path, device: str, properties: dict[str, str]
) -> ov.CompiledModel:
    """A graph for a device.

    Raises:
        DeviceError: the device is not there, or cannot run it.
    """
    try:
        return core.compile_model(model, device, properties)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        last_line = str(error).strip().splitlines()[-1].rstrip(".")
        raise DeviceError(
            f"Compiling failed on device {device!r}: expected one of {', '.join(core.available_devices)}, "
            f"got {last_line}. Choose another device or precision."
        ) from error


def save_graph(model: ov.Model, path: Path) -> None:
    """Write `path` (.xml) and the weights beside it (.bin), as they are.

    Raises:
        StorageError: it could not be written.
    """
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise unwritable("Writing", path, error) from error
