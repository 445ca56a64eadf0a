"""What an engine loads, made from a checkpoint once (in its process)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from fairseq_openvino import machine
from fairseq_openvino.measure.engines import EngineSpec

CALIBRATED = 4
"""Utterances that calibrate random weights: enough for ranges, and nobody judges what they say."""


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
    """`quantize` at its defaults; random weights are calibrated in short, and pass whatever they say."""
    from fairseq_openvino.quantize.options import Options
    from fairseq_openvino.quantize.procedure import quantize_bundle

    inference = "bf16" if machine.cpu().has_bf16 else "f32"
    if spec.judged:
        config = Path(str(spec.data)) / spec.config_yaml
        chosen = Options(config_yaml=config, inference_precision=inference, threads=spec.threads)
    else:
        chosen = Options(
            inference_precision=inference, threads=spec.threads, calibration_size=CALIBRATED,
            held_out_size=1, alphas=(0.5,), beam=1, max_drop=1e6,
        )  # fmt: skip
    with TemporaryDirectory(dir=target.parent) as scratch:
        bundle = Path(scratch) / "bundle"
        _export(spec, bundle)
        quantize_bundle(bundle, Path(str(spec.calibration)), target, chosen)


FORMS: dict[str, Callable[[EngineSpec, Path], None]] = {
    "bundle": _export,
    "onnx": _export,
    "quantized": _quantize,
}
"""By `EngineSpec.form`; `onnx` is a bundle of ONNX graphs alone."""
