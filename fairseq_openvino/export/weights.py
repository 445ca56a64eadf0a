"""Weights of an ONNX graph in a file beside it, written one by one: memory holds no second copy of them.

Whoever loads the graph can map that file. Source: onnx.proto (`TensorProto.external_data`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch

PAGE_BYTES = 4096
"""Weights begin at multiples of it."""


def write_model(path: Path, model: onnx.ModelProto, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a graph, and these weights as its initializers to `<path>.data`.

    Args:
        path: of the graph.
        model: the graph, without initializers; it gets them.
        weights: by name, of any shapes and of types that NumPy has.
    """
    data = path.with_name(f"{path.name}.data")
    with open(data, "wb") as file:
        for name, weight in weights.items():
            values = weight.numpy()
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            tensor = model.graph.initializer.add(name=name, dims=values.shape, data_type=kind)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            file.write(bytes(-file.tell() % PAGE_BYTES))
            place = {"location": data.name, "offset": file.tell(), "length": values.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    path.write_bytes(model.SerializeToString())
