"""What an export writes."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq_openvino.errors import invalid
from fairseq_openvino.flags import flag

STORED_PRECISIONS = ("f32", "f16")


@dataclass(frozen=True)
class ExportOptions:
    """What to write."""

    precision: str = field(default="f32", metadata=flag(choices=STORED_PRECISIONS))
    """Stored weights: f32 (exact; in 16 bits where the checkpoint's numbers are 16-bit ones) or f16."""
    keep_onnx: bool = False
    """Keep encoder.onnx and decoder.onnx in the bundle (`scripts/export_onnx.py` does)."""
    onnx_only: bool = False
    """No OpenVINO IR."""
    ctc: bool = False
    """Of a Fairseq model trained with --ctc-weight: encoder and CTC head alone, which transcribe faster
    and tell when each word is said."""
    overwrite: bool = False
    """Replace an existing bundle."""

    def __post_init__(self) -> None:
        if self.precision not in STORED_PRECISIONS:
            expected = f"one of {', '.join(STORED_PRECISIONS)}"
            advice = "Quantize an exported bundle for smaller weights"
            raise invalid("Exporting", "precision", expected, repr(self.precision), advice)
