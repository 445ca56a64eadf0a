"""Where and how a bundle is compiled."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike

from fairseq_openvino.errors import invalid
from fairseq_openvino.flags import flag

PRECISIONS = ("f32", "bf16", "f16", "int8", "fast")
"""f32 reproduces Fairseq; bf16 and f16 compute and cache in 16 bits; int8 has 8-bit weights and
activations quantized as they come; fast is the quickest of them for this CPU and batch."""


@dataclass(frozen=True)
class EngineOptions:
    """Options of an engine; keywords of `load_model`."""

    device: str = "CPU"
    """OpenVINO device: CPU, GPU, NPU, AUTO."""
    precision: str = field(default="f32", metadata=flag(choices=PRECISIONS))
    """Inference precision (default: the bundle's own, f32 unless quantized for another)."""
    threads: int | None = field(default=None, metadata=flag(metavar="N"))
    """CPU threads (default: all cores)."""
    streams: int | None = field(default=None, metadata=flag(metavar="N"))
    """Requests that may run at the same time (default: as the batch needs)."""
    cache_dir: str | PathLike[str] | None = field(default=None, metadata=flag(metavar="DIR"))
    """Directory for compiled models (default: none are kept)."""
    profile: bool = False
    """Collect the time of every node, for `InferRequest.profiling_info`."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            known = f"one of {', '.join(PRECISIONS)}"
            raise invalid("Compiling", "precision", known, repr(self.precision))
        for name, value in (("threads", self.threads), ("streams", self.streams)):
            if value is not None and value < 1:
                raise invalid("Compiling", name, "at least 1", value)
