"""Where figures come from: machine, versions, commit, date."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fairseq_openvino import __version__
from fairseq_openvino.benchmark.plan import default_threads
from fairseq_openvino.doctor import CPU_FLAGS, CPU_INFO

PACKAGES = ("torch", "fairseq-fixed", "fairseq", "openvino", "onnxruntime", "numpy")


def provenance() -> dict[str, str]:
    """Everything a table must name."""
    model, flags = _cpu()
    found = {
        "cpu": model,
        "cores": str(default_threads()),
        "flags": " ".join(flag for flag in CPU_FLAGS if flag in flags) or "none",
        "python": platform.python_version(),
        "fairseq-openvino": __version__,
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _commit()
    if commit:
        found["commit"] = commit
    found["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return found


def _cpu() -> tuple[str, set[str]]:
    if not CPU_INFO.is_file():
        return platform.processor() or "unknown", set()
    fields: dict[str, str] = {}
    for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields.get("model name", "unknown"), set(fields.get("flags", "").split())


def _commit() -> str | None:
    """Short commit of this checkout, `+` if files differ from it; None outside of one."""
    root = Path(__file__).parent.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return done.stdout.strip() or None
