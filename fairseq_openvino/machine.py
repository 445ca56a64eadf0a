"""This machine, this process and what is installed: cores, CPU, memory, limits, versions, commit."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fairseq_openvino import __version__

CPU_FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx2")
"""Instruction sets that decide the speed of bf16 and int8 inference."""
PACKAGES = ("torch", "fairseq-fixed", "fairseq", "openvino", "onnxruntime", "numpy")
"""Distributions that a table of figures names."""
ROOT = Path("/")
DONTNEED = 4
"""MADV_DONTNEED of Linux."""


@dataclass(frozen=True)
class CPU:
    """The first core, as Linux describes it; empty where it does not."""

    model: str = ""
    flags: frozenset[str] = frozenset()

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bf16 natively."""
        return bool(self.flags & {"amx_bf16", "avx512_bf16"})


@cache
def cpu(root: Path = ROOT) -> CPU:
    """From `proc/cpuinfo` below `root`."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return CPU()
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return CPU(found.get("model name", ""), frozenset(found.get("flags", "").split()))


def threads(root: Path = ROOT) -> int:
    """Threads that may compute at the same time: cores of this process within its quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # neither macOS nor Windows has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else min(cores, quota)


@cache
def cpu_quota(root: Path = ROOT) -> int | None:
    """Cores that the control groups (v1 or v2) of this process are limited to, rounded up.

    Args:
        root: where `proc` and `sys` are.

    Returns:
        The tightest limit of the group and those above it, at least 1; None if there is none.
        Source: Linux Documentation/admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    shares: list[float] = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        group = mount / path.lstrip("/")
        inside = [group, *group.parents]
        shares += [_share(place) for place in inside[: inside.index(mount) + 1]]
    tightest = min(shares, default=math.inf)
    return None if tightest == math.inf else max(1, math.ceil(tightest))


def _share(group: Path) -> float:
    """Cores of one control group; infinite if it sets no limit."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text()
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def peak_megabytes() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    peak = _megabytes("proc/self/status", "VmHWM")
    if peak is None:
        import resource  # which Windows does not have; the package can be imported there

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return peak


def resident_megabytes() -> float | None:
    """Resident memory of this process now, in MB; None where the system does not say."""
    return _megabytes("proc/self/status", "VmRSS")


def available_megabytes() -> float | None:
    """Memory that can be had without swapping, in MB; None where the system does not say."""
    return _megabytes("proc/meminfo", "MemAvailable")


def _megabytes(path: str, name: str) -> float | None:
    """A line `<name>: <number> kB` of a file of the kernel."""
    try:
        lines = (ROOT / path).read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if line is None else int(line.split()[1]) * 1024 / 1e6


def trim() -> None:
    """Give freed memory back to the system: glibc keeps blocks of up to 32 MB, as most weights are."""
    malloc_trim = getattr(_libc(), "malloc_trim", None)  # other C libraries have none
    if malloc_trim is not None:
        malloc_trim(0)


def let_go(directory: Path) -> None:
    """Take what is mapped of the files in a directory out of memory; it is read again where needed."""
    madvise = getattr(_libc(), "madvise", None)
    if madvise is None:
        return
    inside = f"{directory.resolve()}{os.sep}"
    try:
        mapped = (ROOT / "proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in mapped:
        span, *_, name = line.split(maxsplit=5)
        if name.startswith(inside):
            begin, end = (int(address, 16) for address in span.split("-"))
            madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), DONTNEED)


def _libc() -> Any:
    """The C library of Linux; None elsewhere."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def limit(**most: int) -> None:
    """Limit this process for good, as `limit(RLIMIT_CORE=0)`; what it is limited to already stays."""
    import resource  # which Windows does not have

    for name, wanted in most.items():
        kind = getattr(resource, name)
        allowed = resource.getrlimit(kind)[1]
        value = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
        resource.setrlimit(kind, (value, value))


def how_ended(code: int) -> str:
    """What a process's exit code says; below 0 it is the signal that ended it."""
    return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Short commit of the checkout that this file is in, `+` if files differ; None outside of one."""
    checkout = Path(__file__).parent.parent
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return done.stdout.strip() or None


def provenance() -> dict[str, str]:
    """What a table of figures must name: CPU, cores, flags, versions, commit, date."""
    found = {
        "cpu": cpu().model or platform.processor() or "unknown",
        "cores": str(threads()),
        "flags": " ".join(flag for flag in CPU_FLAGS if flag in cpu().flags) or "none",
        "python": platform.python_version(),
        "fairseq-openvino": __version__,
        **versions(PACKAGES),
    }
    if checkout := commit():
        found["commit"] = checkout
    return found | {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
