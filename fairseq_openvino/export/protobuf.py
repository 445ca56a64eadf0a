"""ONNX files written weight by weight, so that memory holds no second copy of them.

The fields of a protobuf message may stand in any order and in parts, so the weights follow the rest of
the graph. Source: protobuf.dev/programming-guides/encoding, onnx.proto (ONNX IR specification).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch

MAX_BYTES = 2_000_000_000
"""Of one file: protobuf reads at most 2 GiB. Larger weights go to a second file."""
PAGE_BYTES = 4096
"""Weights in a second file begin at multiples of it and can be mapped."""
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Field numbers of ModelProto, GraphProto and TensorProto."""


def write_model(path: Path, model: onnx.ModelProto, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a graph with these initializers, by name; above 2 GB in `<path>.data`.

    Args:
        path: of the file to write.
        model: a graph without them; it is not used afterwards.
        weights: any shapes, of types that NumPy has.
    """
    if sum(weight.nbytes for weight in weights.values()) > MAX_BYTES:
        with open(path.with_name(f"{path.name}.data"), "wb") as file:
            for name, weight in weights.items():
                file.write(bytes(-file.tell() % PAGE_BYTES))
                place = {
                    "location": f"{path.name}.data",
                    "offset": file.tell(),
                    "length": weight.nbytes,
                }
                tensor = model.graph.initializer.add()
                tensor.CopyFrom(_tensor(name, weight))
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                file.write(_content(weight))
        path.write_bytes(model.SerializeToString())
        return
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    heads = {name: _head(_tensor(name, weight), weight) for name, weight in weights.items()}
    size = len(graph) + sum(len(head) + weights[name].nbytes for name, head in heads.items())
    with open(path, "wb") as file:
        file.write(model.SerializeToString() + _field(GRAPH, size) + graph)
        for name, head in heads.items():
            file.write(head)
            file.write(_content(weights[name]))


def _tensor(name: str, weight: torch.Tensor) -> onnx.TensorProto:
    """All of an initializer but its content."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(weight.numpy().dtype)
    return onnx.TensorProto(name=name, dims=weight.shape, data_type=kind)


def _head(tensor: onnx.TensorProto, weight: torch.Tensor) -> bytes:
    """What stands in front of the content of an initializer."""
    described = tensor.SerializeToString() + _field(RAW_DATA, weight.nbytes)
    return _field(INITIALIZER, len(described) + weight.nbytes) + described


def _content(weight: torch.Tensor) -> memoryview:
    return np.ascontiguousarray(weight.numpy()).reshape(-1).view(np.uint8).data


def _field(number: int, size: int) -> bytes:
    """Begin of a length-delimited field."""
    return bytes(_varint(number << 3 | 2)) + bytes(_varint(size))


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:  # noqa: PLR2004
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
