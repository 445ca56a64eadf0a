"""Fairseq checkpoints to bundles: load, build graphs, ONNX, IR, parity gate, publish."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairseq_openvino import __version__, machine
from fairseq_openvino.atomic import staged_directory
from fairseq_openvino.bundle import (
    Bundle,
    Dimensions,
    Limits,
    Manifest,
    open_bundle,
    write_manifest,
)
from fairseq_openvino.errors import ModelError, OptionError
from fairseq_openvino.export import ir, memory, onnx, parity
from fairseq_openvino.export.fairseq import s2t_transformer
from fairseq_openvino.export.fairseq.checkpoint import Loaded, load
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.export.fairseq.preprocessing import fail
from fairseq_openvino.export.graphs import Graphs

logger = logging.getLogger(__name__)

ARCHITECTURES = {s2t_transformer.ARCHITECTURE: s2t_transformer.build}
"""Fairseq model name to exporter."""
STORED_PRECISIONS = ("f32", "f16")
SHAPING = ("numpy", "openvino", "torch", "onnx", "onnxruntime", "fairseq-fixed")
"""Distributions whose versions shape a bundle."""


@dataclass(frozen=True)
class ExportOptions:
    """What to write."""

    precision: str = "f32"
    """Stored weight precision: f32 or f16 (half the size, no longer exact)."""
    ir: bool = True
    """Convert to OpenVINO IR (off: --onnx-only)."""
    keep_onnx: bool = True
    """Leave encoder.onnx and decoder.onnx in the bundle."""
    overwrite: bool = False
    """Replace an existing bundle."""
    transcribes: bool = True
    """Refuse a data configuration that only Fairseq can apply: its bundle decodes features that
    Fairseq computes, but cannot `transcribe`."""

    def __post_init__(self) -> None:
        if self.precision not in STORED_PRECISIONS:
            raise OptionError(
                f"Exporting failed in --precision: expected one of {', '.join(STORED_PRECISIONS)}, "
                f"got {self.precision!r}. Quantize an exported bundle for smaller weights."
            )


def export_checkpoint(
    checkpoint: Path,
    data: DataDirectory,
    output: Path,
    options: ExportOptions | None = None,
    overrides: dict[str, Any] | None = None,
) -> tuple[Bundle, parity.Report]:
    """Export one checkpoint.

    Args:
        checkpoint: a Fairseq `.pt` file.
        data: the data directory it belongs to.
        output: the bundle directory to create.
        options: what to write.
        overrides: model arguments to replace, as Fairseq's --model-overrides.

    Returns:
        The verified bundle and the parity report.

    Raises:
        CheckpointError, ModelError: a file is missing, damaged or does not fit the others.
        ArchitectureError: the architecture has no exporter.
        ParityError: a graph does not reproduce the model; nothing is published.
        StorageError: the bundle could not be written; nothing is left behind.
    """
    options = options or ExportOptions()
    loaded = load(checkpoint, data, overrides or {}, tuple(ARCHITECTURES))
    _check_data(data, options)
    graphs = ARCHITECTURES[loaded.architecture](loaded.model, loaded.arguments)
    memory.trim()
    with staged_directory(output, options.overwrite) as stage:
        expected = parity.expect(parity.FairseqReference(loaded.model), graphs)
        onnx.export_onnx(graphs, stage)
        loaded, graphs = replace(loaded, model=None), graphs.without_modules()
        report = finish_graphs(graphs, stage, options, expected)
        data.copy_into(stage)
        write_manifest(stage, _manifest(loaded, graphs, options, report))
    return open_bundle(output), report


def _check_data(data: DataDirectory, options: ExportOptions) -> None:
    """Say what is assumed, and refuse what `transcribe` would do differently from Fairseq."""
    if data.config.use_audio_input:
        raise fail(data.path, "features of filter banks", "use_audio_input: true")
    if options.transcribes and data.unsupported:
        raise ModelError(
            f"Exporting failed in {str(data.path)!r}: expected features and text that can be made "
            f"without Fairseq, got {'; '.join(data.unsupported)}. Choose a subset with --gen-subset if "
            "it depends on that, or use fairseq-generate --ov-engine, where Fairseq makes them."
        )
    features, text = data.feature_config(), data.text_config()
    if features.sample_rate_assumed:
        logger.warning(
            f"{str(data.path)!r} says no sample_rate: {features.sample_rate_hz} Hz is assumed for the "
            "training audio (Fairseq's default; --sample-rate states another)"
        )
    if text.eos_token is not None and text.eos_token not in data.symbols():
        logger.warning(
            f"eos_token {text.eos_token!r} is not in the dictionary: Fairseq takes <unk>"
        )


def tool_versions() -> dict[str, str]:
    """Versions of the packages that shape a bundle."""
    return {"fairseq-openvino": __version__, **machine.versions(SHAPING)}


def finish_graphs(
    graphs: Graphs, stage: Path, options: ExportOptions, expected: parity.Expected
) -> parity.Report:
    """From the ONNX graphs in a directory to checked ONNX and IR files.

    Args:
        graphs: their dimensions; without modules, so that the torch weights can be freed first.
        stage: the directory.
        options: what to write.
        expected: what the original computes.

    Raises:
        ParityError: a graph does not reproduce the original.
    """
    gc.collect()  # models hold reference cycles
    memory.trim()
    if options.ir:
        ir.write(stage, graphs, options.precision)
        memory.trim()
    report = parity.check(expected, graphs, stage, options.precision, options.ir)
    if options.ir and not options.keep_onnx:
        for path in stage.glob("*.onnx*"):
            path.unlink()
    return report


def _manifest(
    loaded: Loaded, graphs: Graphs, options: ExportOptions, report: parity.Report
) -> Manifest:
    return Manifest(
        family="s2t",
        architecture=graphs.architecture,
        precision=options.precision,
        dimensions=Dimensions.of(graphs),
        limits=Limits(graphs.max_source_frames, graphs.max_target_tokens),
        parity=report.to_json(),
        source=loaded.source,
        versions=tool_versions(),
        **loaded.data.described(),
    )
