"""The house rules: imports only downwards, cheap import, sizes, no network of heavy packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKAGE, child_environment

FLOORS = [
    {"errors", "atomic"},
    {"audio_mp3"},
    {"audio_containers"},
    {"bundle", "vocabulary", "audio", "features"},
    {"model", "search", "whisper_tokens", "whisper_search", "whisper_request", "whisper_segments",
     "whisper_context"},
    {"runtime.engine", "runtime.rewrite", "runtime.plan", "runtime.session", "runtime.s2t",
     "runtime.whisper", "runtime.transcriber", "runtime"},
    {"checkpoint", "compat_speech", "compat", "compat_transformers"},
    {"export.graphs", "export.transformer", "export.openai_whisper",
     "export.whisper_source", "export.whisper", "export.data", "export.preprocessing",
     "export.s2t_transformer", "export.onnx", "export.ir", "export.float64", "export.forced",
     "export.runners", "export.memory", "export.parity", "export.loading", "export", "export.cache"},
    {"models.s2t_openvino", "models.whisper_openvino", "whisper_task", "models", "generator",
     "generation", "manifest", "tasks", "tasks.speech_to_text_openvino"},
    {"verify", "doctor", "transcribe", "reporting", "benchmark", "benchmark.arguments", "benchmark.child",
     "benchmark.engines", "benchmark.graphs", "benchmark.material", "benchmark.plan",
     "benchmark.process", "benchmark.profile", "benchmark.provenance", "benchmark.report",
     "benchmark.results", "benchmark.rounds", "benchmark.workload", "benchmark.whisper",
     "benchmark.whisper.checkpoint", "benchmark.whisper.command", "benchmark.whisper.material",
     "benchmark.whisper.memory", "benchmark.whisper.own_child", "benchmark.whisper.peer_child",
     "benchmark.whisper.peer_ggml", "benchmark.whisper.plan", "benchmark.whisper.report",
     "benchmark.whisper.results", "benchmark.whisper.rounds",
     "evaluate", "evaluate.accuracy", "evaluate.arguments", "evaluate.chart", "evaluate.child",
     "evaluate.clips", "evaluate.corpus", "evaluate.engines", "evaluate.measure",
     "evaluate.options", "evaluate.originals", "evaluate.process", "evaluate.records",
     "evaluate.report", "evaluate.results",
     "quantize", "quantize.arguments", "quantize.components", "quantize.compress",
     "quantize.divergence", "quantize.gate", "quantize.material", "quantize.options",
     "quantize.procedure", "quantize.progress", "quantize.recording", "quantize.report",
     "quantize.samples"},
    {"cli", "__main__"},
]  # fmt: skip
"""A module imports from its own floor and from floors above it in this list only."""
HEAVY = ("torch", "fairseq", "openvino", "onnx", "onnxruntime", "nncf", "transformers")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fairseq_openvino"):
            base = (node.module or "").removeprefix("fairseq_openvino").lstrip(".")
            inner = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
            names |= {name for name in inner if name in modules()} or {base}
    return names - {""}


def test_every_module_has_a_floor() -> None:
    assert set(modules()) == set().union(*FLOORS)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_run_downwards(name: str) -> None:
    above = {other for other in imported(modules()[name]) if floor(other) > floor(name)}
    assert not above


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
    heavy = loaded_after("from fairseq_openvino import load_model") & set(HEAVY)
    assert heavy == {"openvino"}
