"""What is quantized, how, and how much worse it may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq_openvino.errors import invalid
from fairseq_openvino.flags import flag

ACTION = "Quantizing"
AUTO = "auto"
INT8, INT8_WEIGHTS, MIXED, INT4_WEIGHTS = "int8", "int8-weights", "mixed", "int4-weights"
MODES = {
    AUTO: "the fastest that passes: int8, mixed and int8-weights are tried in this order",
    INT8: "weights and activations of encoder and decoder, calibrated",
    INT8_WEIGHTS: "8-bit weights, no calibration data needed",
    MIXED: "encoder as int8, decoder as int8-weights",
    INT4_WEIGHTS: "4-bit weights in groups, for big models",
}
METRICS = ("auto", "bleu", "chrf", "wer")
MAX_DROP = {"bleu": 0.2, "chrf": 0.2, "wer": 0.5}
"""Default of --max-drop by metric, in points."""
ALPHAS = (-1.0, 0.5)
"""Strengths of SmoothQuant that are tried; -1 is without. Of the real models that were measured no
graph did better with 0.3, 0.8 or 0.95."""
PRECISIONS = ("f32", "bf16", "f16", "int8")
"""Inference precisions a quantized bundle may be stored for."""


@dataclass(frozen=True)
class Options:
    """One quantization."""

    mode: str = field(default=AUTO, metadata=flag(choices=MODES))
    """What is quantized, and how."""
    calibration_size: int = field(default=32, metadata=flag(metavar="N"))
    """Utterances whose activations set the ranges."""
    held_out_size: int = field(default=8, metadata=flag(metavar="N"))
    """Further utterances on which SmoothQuant's alpha is chosen."""
    validation: Path | None = field(default=None, metadata=flag(metavar="CORPUS"))
    """Of the quality gate (default: the other utterances of the calibration corpus)."""
    validation_size: int | None = field(default=200, metadata=flag(metavar="N"))
    """Utterances of it, drawn at random."""
    metric: str = field(default="auto", metadata=flag(choices=METRICS))
    """Of the gate; auto: bleu for translations, wer for transcripts."""
    tokenizer: str = field(default="13a", metadata=flag(name="sacrebleu-tokenizer", metavar="NAME"))
    """sacrebleu's, for BLEU."""
    max_drop: float | None = field(default=None, metadata=flag(metavar="POINTS"))
    """Points the score may be worse than before (default: 0.2 bleu, 0.2 chrf, 0.5 wer); 100 or more
    publishes whatever the texts are."""
    accept_uncertain: bool = False
    """Publish what may be good enough where the validation set is too small to tell; the bundle's
    manifest says so."""
    beam: int = 5
    """Beams (K) of the gate's search."""
    batch_size: int = field(default=8, metadata=flag(metavar="N"))
    """Utterances the gate decodes together (N)."""
    inference_precision: str = field(default="f32", metadata=flag(choices=PRECISIONS))
    """What computes everything that is not quantized. It is what the gate measures, what the bundle
    stores and what `load_model` takes for it. int8 quantizes the activations of weight-only layers as
    they come."""
    config_yaml: Path | None = None
    """Fairseq's data configuration, for the `audio_root` of its manifests."""
    text_column: str | None = field(default=None, metadata=flag(metavar="NAME"))
    """Column of the references (default: that of the corpus' layout)."""
    language: str | None = None
    """S2T: target language; Whisper: spoken language (default: the corpus', else the model's)."""
    alphas: tuple[float, ...] = field(default=ALPHAS, metadata=flag(metavar="LIST"))
    """SmoothQuant strengths to try; negative: without."""
    threads: int | None = None
    """CPU threads of the gate (default: all cores)."""
    seed: int = 1
    """Of the draws of utterances."""
    work_dir: Path | None = field(default=None, metadata=flag(metavar="DIR"))
    """For recordings, reused (default: beside the output, removed once it is published)."""
    overwrite: bool = False
    """Replace an existing bundle."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, tuple(MODES)),
            ("metric", self.metric, METRICS),
            ("inference_precision", self.inference_precision, PRECISIONS),
        ):
            if value not in known:
                raise invalid(ACTION, name, f"one of {', '.join(known)}", repr(value))
        for name in (
            "calibration_size", "held_out_size", "validation_size", "beam", "batch_size", "threads",
        ):  # fmt: skip
            number = getattr(self, name)
            if number is not None and number < 1:
                raise invalid(ACTION, name, "at least 1", number)
        if self.max_drop is not None and not self.max_drop >= 0:
            raise invalid(ACTION, "max_drop", "0 points or more", self.max_drop)
        if not self.alphas or not all(alpha <= 1 for alpha in self.alphas):
            expected = "numbers up to 1, negative for none"
            raise invalid(ACTION, "alphas", expected, list(self.alphas))

    @property
    def original_precision(self) -> str:
        """What the original is run at: the same, but its weights are not quantized as it loads."""
        return "f32" if self.inference_precision == INT8 else self.inference_precision

    @property
    def calibrated(self) -> bool:
        """Whether activations are quantized at all."""
        return self.mode in (AUTO, INT8, MIXED)
