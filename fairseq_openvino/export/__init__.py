"""Fairseq checkpoints to bundles: load, build graphs, ONNX, IR, parity gate, publish."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino import __version__
from fairseq_openvino.atomic import staged_directory
from fairseq_openvino.bundle import (
    Bundle,
    Dimensions,
    Limits,
    Manifest,
    SpecialTokens,
    open_bundle,
    write_manifest,
)
from fairseq_openvino.errors import ArchitectureError, OptionError
from fairseq_openvino.export import ir, memory, onnx, parity, s2t_transformer
from fairseq_openvino.export.data import DataDirectory
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.loading import Loaded, load

logger = logging.getLogger(__name__)

ARCHITECTURES = {s2t_transformer.ARCHITECTURE: s2t_transformer.build}
"""Fairseq model name to exporter."""
STORED_PRECISIONS = ("f32", "f16")
VERSIONED = ("fairseq-openvino", "openvino", "torch", "onnx", "onnxruntime", "fairseq-fixed")


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
    if loaded.architecture not in ARCHITECTURES:
        raise unknown_architecture(loaded.architecture)
    graphs = ARCHITECTURES[loaded.architecture](loaded.model, loaded.arguments)
    memory.trim()
    with staged_directory(output, options.overwrite) as stage:
        expected = parity.expect(parity.FairseqReference(loaded.model), graphs)
        onnx.export_onnx(graphs, stage)
        loaded, graphs = replace(loaded, model=None), graphs.without_modules()
        report = finish_graphs(graphs, stage, options, expected)
        text, features = data.copy_into(stage)
        manifest = _manifest(loaded, graphs, options, report)
        write_manifest(stage, replace(manifest, text=text, features=features))
    return open_bundle(output), report


def unknown_architecture(name: str) -> ArchitectureError:
    """The error for a Fairseq model without an exporter."""
    return ArchitectureError(
        f"Exporting failed: expected one of the architectures {', '.join(ARCHITECTURES)} (all sizes),"
        f" got {name!r}. Generate without --ov-engine."
    )


def tool_versions() -> dict[str, str]:
    """Versions of the packages that shape a bundle."""
    found = {"fairseq-openvino": __version__, "numpy": np.__version__}
    for package in VERSIONED[1:]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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
    data = loaded.data
    return Manifest(
        family="s2t",
        architecture=graphs.architecture,
        precision=options.precision,
        dimensions=Dimensions.of(graphs),
        limits=Limits(graphs.max_source_frames, graphs.max_target_tokens),
        tokens=SpecialTokens(bos=0, pad=1, eos=2, unk=3),
        features=data.feature_config(),
        text=data.text_config(),
        parity=report.to_json(),
        source=loaded.source,
        versions=tool_versions(),
    )
