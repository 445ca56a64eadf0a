"""Graphs as OpenVINO's files, `.xml` and the weights in `.bin`: errors of its reader and writer are ours."""

from __future__ import annotations

from pathlib import Path

import openvino as ov

from fairseq_openvino.atomic import unwritable
from fairseq_openvino.errors import BundleError, failure, is_out_of_memory


def read_graph(path: Path, core: ov.Core | None = None) -> ov.Model:
    """A graph, whose weights are mapped.

    Raises:
        BundleError: OpenVINO cannot read it.
    """
    try:
        return (core or ov.Core()).read_model(path)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        got = " ".join(str(error).split()).rstrip(".")
        expected, advice = "a graph that OpenVINO reads", "Export the bundle again"
        raise failure(BundleError, "Reading a graph", path, expected, got, advice) from error


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
