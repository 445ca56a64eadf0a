"""What this machine offers: versions, CPU features, Fairseq shims, devices and real precisions.

OpenVINO picks precisions by CPU (bf16 inference and an 8-bit key/value cache on AMX), so the
report compiles a small graph for every precision and reads back what was chosen.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fairseq_openvino import __version__, machine
from fairseq_openvino.errors import EXIT_OK
from fairseq_openvino.tables import aligned

if TYPE_CHECKING:
    import openvino as ov

PACKAGES: tuple[tuple[str, str], ...] = (
    ("msgspec", ""),
    ("numpy", ""),
    ("openvino", ""),
    ("sentencepiece", ""),
    ("soundfile", ""),
    ("soxr", ""),
    ("kaldi-native-fbank", ""),
    ("av", "media"),
    ("torch", "fairseq"),
    ("fairseq-fixed", "fairseq"),
    ("onnx", "fairseq"),
    ("onnxruntime", "fairseq"),
    ("tokenizers", "whisper"),
    ("transformers", "whisper-export"),
    ("safetensors", "whisper-export"),
    ("peft", "whisper-export"),
    ("nncf", "quantize"),
    ("sacrebleu", "eval"),
    ("jiwer", "eval"),
    ("matplotlib", "eval"),
    ("starlette", "server"),
    ("uvicorn", "server"),
    ("ray", "ray"),
)
"""Distribution and the extra that brings it (empty: always needed)."""
EXTRAS = {name.removesuffix("-fixed"): extra for name, extra in PACKAGES if extra}
"""Importable package to the extra that brings it."""

SHOWN = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "NUM_STREAMS", "INFERENCE_NUM_THREADS")
"""Properties of a compiled model in the table."""
PROBE_WIDTH = 64
NOT_INSTALLED = "not installed"


BATCHES = (1, 8, 32)
"""Utterances for which the choices of `fast` are shown."""


@dataclass(frozen=True)
class Package:
    """One distribution."""

    name: str
    version: str | None
    """None if it is not installed."""
    extra: str
    """Extra that brings it; empty if it is always needed."""


@dataclass(frozen=True)
class Precision:
    """What one precision means on one device."""

    device: str
    asked: str
    executed: str
    """Precision in which the probe's matrix product ran, or why it did not compile."""
    properties: dict[str, str] = field(default_factory=dict)
    """Values of SHOWN in the compiled model; those the device does not know are absent."""


@dataclass(frozen=True)
class Diagnosis:
    """Everything in the report."""

    machine: dict[str, str]
    packages: tuple[Package, ...]
    shims: tuple[tuple[str, str, str], ...]
    """Name, `active` or `inactive`, reason."""
    precisions: tuple[Precision, ...]


def diagnose() -> Diagnosis:
    """Inspect this process and machine; compiles a tiny graph for every device and precision."""
    packages = tuple(_package(name, extra) for name, extra in PACKAGES)
    return Diagnosis(_machine(), packages, _shims(), _precisions())


def report() -> str:
    """The diagnosis as text for a terminal or an issue."""
    found = diagnose()
    parts = [f"fairseq-openvino {__version__}", "", "Machine"]
    parts += aligned([(name, value) for name, value in found.machine.items()])
    parts += ["", "Packages", *aligned([_package_row(package) for package in found.packages])]
    parts += ["", "Fairseq shims (FAIRSEQ_OPENVINO_DISABLE_SHIMS=name,name switches off)"]
    parts += aligned(list(found.shims))
    parts += ["", "Precision in use for each --precision"]
    header = ("DEVICE", "ASKED", "EXECUTED", *SHOWN)
    rows = [
        (row.device, row.asked, row.executed, *(row.properties.get(key, "-") for key in SHOWN))
        for row in found.precisions
    ]
    parts += [*aligned([header, *rows]), "", "What --precision fast means on this CPU"]
    return "\n".join([*parts, *aligned(_fast_plans())])


def _fast_plans() -> list[tuple[str, ...]]:
    """Encoder and decoder precision by batch size, and why."""
    from fairseq_openvino.runtime.options import EngineOptions
    from fairseq_openvino.runtime.precision import plan_batch

    rows: list[tuple[str, ...]] = [("UTTERANCES", "ENCODER", "DECODER", "STREAMS", "WHY")]
    for utterances in BATCHES:
        plan = plan_batch(EngineOptions(precision="fast"), utterances)
        cells = (utterances, plan.encoder, plan.decoder, plan.streams, plan.reason)
        rows.append(tuple(map(str, cells)))
    return rows


def _package(name: str, extra: str) -> Package:
    other = name.removesuffix("-fixed")
    found = machine.versions((name, other))
    if name not in found and other in found:
        return Package(name, f"{found[other]} (as {other})", extra)
    return Package(name, found.get(name), extra)


def _package_row(package: Package) -> tuple[str, str]:
    if package.version is not None:
        return package.name, package.version
    if package.extra:
        return package.name, f"{NOT_INSTALLED} (extra: {package.extra})"
    return package.name, NOT_INSTALLED


def _machine() -> dict[str, str]:
    cpu, quota = machine.cpu(), machine.cpu_quota()
    have = [flag for flag in machine.CPU_FLAGS if flag in cpu.flags]
    lack = [flag for flag in machine.CPU_FLAGS if flag not in cpu.flags]
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": f"{cpu.model or platform.processor() or 'unknown'}, {os.cpu_count()} logical cores",
        "threads": f"{machine.threads()} "
        + (f"(control groups allow {quota})" if quota else "(no quota)"),
        "cpu flags": ", ".join(have) if have else "none of the known ones",
        "cpu lacks": ", ".join(lack) if cpu.flags else "unknown on this system",
    }


def _shims() -> tuple[tuple[str, str, str], ...]:
    missing = [name for name in ("torch", "fairseq") if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} {NOT_INSTALLED} (extra: fairseq)"
        return (("all", "inactive", reason),)
    from fairseq_openvino.compat.shims import apply_shims

    return tuple(
        (shim.name, "active" if shim.active else "inactive", shim.reason) for shim in apply_shims()
    )


def _precisions() -> tuple[Precision, ...]:
    import openvino as ov

    from fairseq_openvino.runtime.options import PRECISIONS

    core = ov.Core()
    model = _probe()
    return tuple(
        _read_back(core, model, device, asked)
        for device in core.available_devices
        for asked in PRECISIONS
        if asked != "fast"  # one of the others, chosen for each batch
    )


def _probe() -> ov.Model:
    """A graph with one matrix product, (?, 64) x (64, 64)."""
    import openvino as ov
    from openvino import opset13 as ops

    rows = ops.parameter([-1, PROBE_WIDTH], np.float32, name="rows")
    weights = np.linspace(-1, 1, PROBE_WIDTH**2, dtype=np.float32)
    product = ops.matmul(rows, ops.constant(weights.reshape(PROBE_WIDTH, -1)), False, True)
    return ov.Model([product], [rows], "doctor")


def _read_back(core: ov.Core, model: ov.Model, device: str, asked: str) -> Precision:
    from fairseq_openvino.runtime.engine import compile_properties, read_back
    from fairseq_openvino.runtime.rewrite import quantize_weights

    if asked == "int8":
        model = model.clone()
        quantize_weights(model)
    try:
        compiled = core.compile_model(model, device, compile_properties(asked, device))
        compiled({0: np.ones((1, PROBE_WIDTH), np.float32)})
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        return Precision(device, asked, f"does not compile: {reason}")
    return Precision(device, asked, _executed(compiled), read_back(compiled, SHOWN))


def _executed(compiled: ov.CompiledModel) -> str:
    """`runtimePrecision` of the node that does the product, from the executed graph."""
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: str(value.astype(str)) for key, value in node.rt_info.items()}
        if info.get("layerType") in ("MatMul", "FullyConnected", "FullyConnectedCompressed"):
            return info.get("runtimePrecision", "unknown")
    return "unknown"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No flags."""


def run(_: argparse.Namespace, __: list[str]) -> int:
    """Print the report."""
    print(report())
    return EXIT_OK
