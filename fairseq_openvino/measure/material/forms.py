"""Random models, and what engines load of a model: made once, in their processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.atomic import staged_directory
from fairseq_openvino.measure.engines import EngineSpec

CALIBRATED = 4
"""Utterances that calibrate random weights: enough for ranges, and nobody judges what they say."""


def make(
    spec: EngineSpec, s2t: dict[str, Any] | None = None, whisper: dict[str, Any] | None = None
) -> None:
    """Write `spec.checkpoint`, unless it is there, and data.

    Args:
        spec: of any engine.
        s2t: `arch`, `vocabulary`, `overrides`; `frames`, and `subsets` of so many utterances.
        whisper: fields of a `whisper.Layout`.
    """
    checkpoint, data = Path(str(spec.checkpoint)), Path(str(spec.data))
    if whisper is not None and not checkpoint.exists():
        from fairseq_openvino.measure.material.whisper import Layout, write_whisper

        with staged_directory(checkpoint) as stage:
            write_whisper(stage, Layout(**whisper))
    if s2t is not None:
        from fairseq_openvino.measure.material.corpora import write_data
        from fairseq_openvino.measure.material.s2t import write_checkpoint

        if not checkpoint.is_file():
            size = {"vocabulary": s2t["vocabulary"], **s2t["overrides"]}
            write_checkpoint(data, s2t["arch"], checkpoint.name, **size)
        for subset, utterances in s2t["subsets"].items():
            write_data(data, utterances, (s2t["frames"], s2t["frames"]), subset)


def prepare(spec: EngineSpec) -> None:
    """Make `spec.bundle` in the form the engine needs, unless it is there.

    Raises:
        FairseqOpenVINOError: the checkpoint cannot be exported or quantized.
    """
    if spec.form and spec.bundle is not None and not Path(spec.bundle).is_dir():
        FORMS[spec.form](spec, Path(spec.bundle))


def _export(spec: EngineSpec, target: Path) -> None:
    """Of either family: Whisper checkpoints are directories."""
    from fairseq_openvino.export.fairseq import export_checkpoint
    from fairseq_openvino.export.fairseq.data import DataDirectory
    from fairseq_openvino.export.options import ExportOptions
    from fairseq_openvino.export.whisper import export_whisper

    checkpoint = Path(str(spec.checkpoint))
    if checkpoint.is_dir():
        export_whisper(checkpoint, target)
        return
    data = DataDirectory(Path(str(spec.data)), spec.config_yaml)
    export_checkpoint(checkpoint, data, target, ExportOptions(onnx_only=spec.form == "onnx"))


def _quantize(spec: EngineSpec, target: Path) -> None:
    """`quantize` at its defaults, accepted if nothing speaks against it: what it is worth is measured here.

    Random weights are calibrated in short, and pass whatever they say.
    """
    from fairseq_openvino.quantize.options import Options
    from fairseq_openvino.quantize.procedure import quantize_bundle

    chosen: dict[str, Any] = {
        "inference_precision": "bf16" if machine.cpu().has_bf16 else "f32", "threads": spec.threads,
        "accept_uncertain": True,
    }  # fmt: skip
    if spec.judged:
        chosen["config_yaml"] = Path(str(spec.data)) / spec.config_yaml
    else:
        chosen |= {
            "calibration_size": CALIBRATED, "held_out_size": 1, "alphas": (0.5,), "beam": 1,
            "max_drop": 1e6,
        }  # fmt: skip
    with TemporaryDirectory(dir=target.parent) as scratch:
        bundle = Path(scratch) / "bundle"
        _export(spec, bundle)
        quantize_bundle(bundle, Path(str(spec.calibration)), target, Options(**chosen))


FORMS: dict[str, Callable[[EngineSpec, Path], None]] = {
    "bundle": _export,
    "onnx": _export,
    "quantized": _quantize,
}
"""By `EngineSpec.form`; `onnx` is a bundle of ONNX graphs alone."""
