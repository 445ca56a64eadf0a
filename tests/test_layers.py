"""The house rules: imports only downwards, cheap import, sizes, no network of heavy packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import PACKAGE, child_environment

FLOORS = [
    {"__init__"},
    {"errors"},
    {"atomic", "journal", "machine", "tables", "flags", "tensors", "bundle"},
    {"model", "decoding", "replay", "pickles", "checkpoint"},
    {"speech"},
    {"compat"},
    {"metrics"},
    {"runtime"},
    {"s2t", "whisper", "ctc"},
    {"families"},
    {"recognizer"},
    {"export"},
    {"loading"},
    {"jobs"},
    {"server"},
    {"plugin", "tasks", "models"},
    {"quantize"},
    {"measure"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""Rooms: files of the top level and folders. One imports from its own floor and those before it."""
LAZY = {("__init__", "loading")}
"""`fairseq_openvino.load_model` is looked up when it is used."""
HEAVY = ("torch", "fairseq", "openvino", "onnx", "onnxruntime", "nncf", "transformers", "av", "ray")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


@cache
def modules() -> dict[str, Path]:
    """Dotted name below the package to file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[1:] and parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


@cache
def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, inside functions too."""
    names: set[str] = set()
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if below(name) in known else node.module for name in inner]
        else:
            continue
        names |= {below(name) for name in found if name.partition(".")[0] == PACKAGE.name}
    return names


def below(name: str) -> str:
    return name.partition(".")[2] or "__init__"


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in modules()} == set().union(*FLOORS)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_run_downwards(name: str) -> None:
    rooms = {room(other) for other in imported(modules()[name])}
    above = {other for other in rooms if floor(other) > floor(room(name))}
    assert not {(room(name), other) for other in above} - LAZY


@pytest.mark.parametrize("of", [room, str], ids=["rooms", "modules"])
def test_there_are_no_circles(of: Callable[[str], str]) -> None:
    needs: dict[str, set[str]] = {}
    for name, path in modules().items():
        if name != "__init__":
            found = {of(other) for other in imported(path)} - {"__init__", of(name)}
            needs.setdefault(of(name), set()).update(found)
    assert len(list(TopologicalSorter(needs).static_order())) >= len(needs)  # raises CycleError


def test_sizes_stay_readable() -> None:
    for name, path in modules().items():
        source = path.read_text()
        assert source.count("\n") <= MAX_FILE_LINES, name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= MAX_FUNCTION_LINES, f"{name}.{node.name}"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted(set(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=child_environment(),
    )  # fmt: skip
    return set(done.stdout.split())


def test_importing_the_package_is_cheap() -> None:
    assert not loaded_after("import fairseq_openvino") & {*HEAVY, "numpy"}
    assert not loaded_after("import fairseq_openvino.cli") & set(HEAVY)


def test_the_runtime_loads_neither_torch_nor_fairseq() -> None:
    """Nor does a model that is used (`test_offline`)."""
    assert loaded_after("from fairseq_openvino import load_model") & set(HEAVY) == {"openvino"}


def test_what_reports_its_import_is_told_not_to_first() -> None:
    """By the `__init__` of the rooms whose files import it (`compat/telemetry.py`)."""
    reporting = {"openvino", "onnxruntime", "nncf"}
    for name, path in modules().items():
        tree = ast.parse(path.read_text())
        found = {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
        for node in tree.body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        if reporting & {each.partition(".")[0] for each in found}:
            assert "require_consent()" in modules()[room(name)].read_text(), name
