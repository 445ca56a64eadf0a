"""How a batch is run: precision of each graph and number of parallel requests."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_openvino import machine
from fairseq_openvino.runtime.engine import INT8_BF16
from fairseq_openvino.runtime.options import EngineOptions

MIN_UTTERANCES_PER_STREAM = 8
"""Fewer utterances keep one request on all threads busy; more run better on a thread each."""
FEW_UTTERANCES = 2
"""Up to here a decoder step waits for weights, not for arithmetic: 8-bit weights win even on AMX."""


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


def plan_batch(
    options: EngineOptions,
    utterances: int,
    splits: bool = True,
    cpu: machine.CPU | None = None,
    reads_text: bool = False,
) -> Plan:
    """Decide for N utterances.

    Args:
        options: what was asked for.
        utterances: N.
        splits: whether there may be more than one stream.
        cpu: default: this machine's.
        reads_text: whether sources are short, so that a few of them cost weights and little else.
    """
    cpu = machine.cpu() if cpu is None else cpu
    streams = (options.streams or _streams(utterances, options.threads)) if splits else 1
    if options.precision != "fast":
        return Plan(options.precision, options.precision, streams, "as asked")
    if not options.device.upper().startswith("CPU"):
        return Plan("f16", "f16", streams, "16 bits on an accelerator")
    vnni = bool(cpu.flags & {"avx512_vnni", "avx_vnni"})
    if vnni and reads_text and utterances <= FEW_UTTERANCES:
        return Plan("int8", "int8", streams, "this CPU multiplies 8 bits natively")
    if "amx_bf16" in cpu.flags and utterances > FEW_UTTERANCES:
        return Plan("bf16", "bf16", streams, "this CPU multiplies bf16 in tiles")
    if cpu.has_bf16:
        return Plan("bf16", INT8_BF16, streams, "bf16, and decoder weights in 8 bits")
    if vnni:
        return Plan("int8", "int8", streams, "this CPU multiplies 8 bits natively")
    return Plan("f32", "int8", streams, "no 16- or 8-bit products; smaller decoder weights")


def _streams(utterances: int, threads: int | None) -> int:
    available = threads or machine.threads()
    return max(1, min(available, utterances // MIN_UTTERANCES_PER_STREAM))
