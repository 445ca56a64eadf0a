"""Inputs, outputs and states of a bundle's graphs, as its manifest has them.

They are compared before a graph is compiled: one that fits its checksum can still be another model's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import openvino as ov

from fairseq_openvino.bundle import Manifest
from fairseq_openvino.errors import BundleError, failure
from fairseq_openvino.tensors import TensorSpec, features_layout

Port = tuple[str, tuple[int | str, ...]]
"""Element type and dimensions; letters stand for those that are not fixed."""
Found = tuple[ov.Type, ov.PartialShape]


def check(model: ov.Model, graph: str, manifest: Manifest, path: Path) -> None:
    """Compare a graph with its manifest.

    Args:
        model: as it was read.
        graph: encoder or decoder.
        manifest: of the bundle.
        path: where it was read from, for errors.

    Raises:
        BundleError: a name, type, rank or fixed size differs.
    """
    inputs, outputs = _encoder(manifest) if graph == "encoder" else _decoder(manifest)
    states = _tensors(manifest.state) if graph == "decoder" else {}
    infos = [variable.info for variable in model.get_variables()]
    found = {info.variable_id: (info.data_type, info.data_shape) for info in infos}
    named = {f"past_{name}present_{name}": port for name, port in states.items()}
    for what, expected, ports in (
        ("inputs", inputs, _ports(model.inputs, inputs)),
        ("outputs", outputs, _ports(model.outputs, outputs)),
        ("states", named, found),
    ):
        for name in sorted(expected.keys() | ports.keys()):
            _compare(what, name, expected.get(name), ports.get(name), path)


def _encoder(manifest: Manifest) -> tuple[dict[str, Port], dict[str, Port]]:
    shape, kind = features_layout(manifest.dimensions.feature_bins)
    inputs: dict[str, Port] = {
        "features": ("f32" if kind == "float32" else "i64", ("N", "T", *shape)),
        "lengths": ("i64", ("N",)),
    }
    return inputs, {"encoder_lengths": ("i64", ("N",)), **_tensors(manifest.memory)}


def _decoder(manifest: Manifest) -> tuple[dict[str, Port], dict[str, Port]]:
    inputs: dict[str, Port] = {
        "tokens": ("i64", ("R", "l")), "offset": ("i64", ()), "beam_idx": ("i32", ("R",)),
    }  # fmt: skip
    logits: Port = ("f32", ("R", "l", manifest.dimensions.vocabulary_size))
    return inputs | _tensors(manifest.memory), {"logits": logits}


def _tensors(specs: Iterable[TensorSpec]) -> dict[str, Port]:
    return {spec.name: ("f32", spec.dims) for spec in specs}


def _ports(found: Iterable[ov.Output], known: Collection[str]) -> dict[str, Found]:
    """By the name that is known, of several; of a port without a name by its place."""
    named: dict[str, Found] = {}
    for place, port in enumerate(found):
        names = sorted(port.get_names(), key=lambda name: (name not in known, name))
        named[names[0] if names else f"#{place}"] = (
            port.get_element_type(), port.get_partial_shape(),
        )  # fmt: skip
    return named


def _compare(what: str, name: str, expected: Port | None, found: Found | None, path: Path) -> None:
    if expected is None or found is None:
        wanted, got = ("none" if each is None else "one" for each in (expected, found))
        raise _misfit(path, f"{wanted} called {name!r} among its {what}", got)
    kind, shape = found[0].get_type_name(), found[1]
    wanted = f"{expected[0]} {_shown(expected[1])} for {name!r} among its {what}"
    if kind != expected[0] or shape.rank.is_dynamic or len(shape) != len(expected[1]):
        raise _misfit(path, wanted, f"{kind} {shape}")
    for size, dim in zip(expected[1], shape, strict=True):
        if isinstance(size, int) and dim.is_static and dim.get_length() != size:
            raise _misfit(path, wanted, f"{kind} {shape}")


def _shown(dims: tuple[int | str, ...]) -> str:
    return f"[{','.join(map(str, dims))}]"


def _misfit(path: Path, expected: str, got: str) -> BundleError:
    advice = "Export the bundle again"
    return failure(BundleError, "Reading a graph", path, expected, got, advice)
