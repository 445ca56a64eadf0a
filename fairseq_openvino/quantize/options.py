"""What is quantized, how, and how much worse it may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairseq_openvino.errors import OptionError

INT8, INT8_WEIGHTS, MIXED, INT4_WEIGHTS = "int8", "int8-weights", "mixed", "int4-weights"
MODES = {
    INT8: "weights and activations of encoder and decoder, calibrated",
    INT8_WEIGHTS: "8-bit weights, no calibration data needed",
    MIXED: "encoder as int8, decoder as int8-weights",
    INT4_WEIGHTS: "4-bit weights in groups, for big models",
}
METRICS = ("auto", "bleu", "chrf", "wer")
MAX_DROP = {"bleu": 0.2, "chrf": 0.2, "wer": 0.5}
"""Default of --max-drop by metric, in points."""
ALPHAS = (-1.0, 0.3, 0.5, 0.8, 0.95)
"""Strengths of SmoothQuant that are tried; -1 is without."""
PRECISIONS = ("f32", "bf16", "f16", "int8")
"""Inference precisions a quantized bundle may be stored for."""


@dataclass(frozen=True)
class Options:
    """One quantization."""

    mode: str = INT8
    """One of MODES."""
    calibration_size: int = 50
    """Utterances whose activations set the ranges."""
    held_out_size: int = 8
    """Further utterances on which SmoothQuant's alpha is chosen."""
    validation: Path | None = None
    """Corpus of the quality gate; default: the other utterances of the calibration corpus."""
    validation_size: int | None = 500
    """Utterances of it, drawn at random; None takes all."""
    config_yaml: Path | None = None
    """Fairseq's data configuration, for the `audio_root` of its manifests."""
    text_column: str | None = None
    """Column of the references; default: that of the corpus' layout."""
    metric: str = "auto"
    """One of METRICS; auto: bleu for translations, wer for transcripts."""
    tokenizer: str = "13a"
    """sacrebleu's, for BLEU."""
    max_drop: float | None = None
    """Points the score may be worse than before; default: MAX_DROP."""
    inference_precision: str = "f32"
    """One of PRECISIONS: what computes everything that is not quantized. It is what the gate
    measures, what the bundle stores and what `load_model` takes for it. int8 quantizes the
    activations of weight-only layers as they come."""
    beam: int = 5
    """Beams (K) of the gate's search."""
    language: str | None = None
    """S2T: target language; Whisper: spoken language. Default: the corpus', else the model's."""
    batch_size: int = 8
    """Utterances the gate decodes together (N)."""
    alphas: tuple[float, ...] = ALPHAS
    """Candidates for SmoothQuant's alpha."""
    threads: int | None = None
    """CPU threads of the gate; default: all cores."""
    seed: int = 1
    """Of the draws of utterances."""
    work_dir: Path | None = None
    """Where recordings are kept; default: beside the output, removed once it is published."""
    overwrite: bool = False
    """Replace an existing output."""

    def __post_init__(self) -> None:
        for flag, value, known in (
            ("--mode", self.mode, tuple(MODES)),
            ("--metric", self.metric, METRICS),
            ("--inference-precision", self.inference_precision, PRECISIONS),
        ):
            if value not in known:
                raise fail(flag, f"one of {', '.join(known)}", repr(value))
        for flag, number in (
            ("--calibration-size", self.calibration_size),
            ("--validation-size", self.validation_size),
            ("--beam", self.beam),
            ("--batch-size", self.batch_size),
            ("--threads", self.threads),
            ("held_out_size", self.held_out_size),
        ):
            if number is not None and number < 1:
                raise fail(flag, "at least 1", str(number))
        if self.max_drop is not None and not self.max_drop >= 0:
            raise fail("--max-drop", "0 points or more", str(self.max_drop))
        if not self.alphas or not all(alpha <= 1 for alpha in self.alphas):
            raise fail("--alphas", "numbers up to 1, negative for none", str(list(self.alphas)))

    @property
    def original_precision(self) -> str:
        """What the original is run at: the same, but its weights are not quantized as it loads."""
        return "f32" if self.inference_precision == INT8 else self.inference_precision

    @property
    def calibrated(self) -> bool:
        """Whether activations are quantized at all."""
        return self.mode in (INT8, MIXED)


def fail(where: str, expected: str, got: str) -> OptionError:
    """An error that names a flag."""
    return OptionError(
        f"Quantizing failed in {where}: expected {expected}, got {got}. Correct the flag."
    )
