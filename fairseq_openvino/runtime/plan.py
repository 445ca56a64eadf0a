"""How a batch is run: precision of each graph and number of parallel requests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fairseq_openvino.runtime.engine import INT8_BF16, EngineOptions

MIN_UTTERANCES_PER_STREAM = 8
"""Fewer utterances keep one request on all threads busy; more run better on a thread each."""
FEW_UTTERANCES = 2
"""Up to here a decoder step waits for weights, not for arithmetic: 8-bit weights win even on AMX."""
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Plan:
    """Decision for one batch."""

    encoder: str
    """Precision of the encoder: f32, bf16, f16 or int8."""
    decoder: str
    """Precision of the decoder; also INT8_BF16."""
    streams: int
    """Requests that run at the same time, each on its share of the threads."""
    reason: str
    """Why, for the log and `doctor`."""


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags as Linux names them; empty where it is not known."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").partition(":")[2].split())


def has_bf16(flags: frozenset[str]) -> bool:
    """Whether a CPU with these flags multiplies bf16 natively."""
    return bool(flags & {"amx_bf16", "avx512_bf16"})


def plan_batch(options: EngineOptions, utterances: int, flags: frozenset[str]) -> Plan:
    """Decide for N utterances on a CPU with these flags."""
    streams = options.streams or _streams(utterances, options.threads)
    if options.precision != "fast":
        return Plan(options.precision, options.precision, streams, "as asked")
    if not options.device.upper().startswith("CPU"):
        return Plan("f16", "f16", streams, "16 bits on an accelerator")
    if "amx_bf16" in flags and utterances > FEW_UTTERANCES:
        return Plan("bf16", "bf16", streams, "this CPU multiplies bf16 in tiles")
    if has_bf16(flags):
        return Plan("bf16", INT8_BF16, streams, "bf16, and decoder weights in 8 bits")
    if flags & {"avx512_vnni", "avx_vnni"}:
        return Plan("int8", "int8", streams, "this CPU multiplies 8 bits natively")
    return Plan("f32", "int8", streams, "no 16- or 8-bit products; smaller decoder weights")


def _streams(utterances: int, threads: int | None) -> int:
    available = threads or len(os.sched_getaffinity(0))
    return max(1, min(available, utterances // MIN_UTTERANCES_PER_STREAM))
