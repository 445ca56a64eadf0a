"""From a loaded checkpoint to a bundle: ONNX, IR, parity gate, publish. The same for every family."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.atomic import staged_directory
from fairseq_openvino.bundle import (
    Bundle,
    Dimensions,
    Limits,
    Manifest,
    open_bundle,
    write_manifest,
)
from fairseq_openvino.export import cases, ir, onnx, parity
from fairseq_openvino.export.first_use import tool_versions
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.options import ExportOptions


@dataclass
class Original:
    """A loaded checkpoint of any library."""

    graphs: Graphs | None
    reference: parity.Reference | None
    """The model itself."""
    described: dict[str, Any]
    """Fields of the manifest that do not come from the graphs."""
    write_files: Callable[[Path], None]
    """Puts everything but the graphs into a bundle's directory."""
    cases: parity.Cases = parity.CASES
    """What graphs and model are compared on."""


def export(
    original: Original,
    output: Path,
    options: ExportOptions | None = None,
) -> tuple[Bundle, parity.Report]:
    """Write a bundle.

    Args:
        original: its torch modules are let go of on the way, so that memory holds the weights once.
        output: the bundle directory to create.
        options: what to write.

    Returns:
        The verified bundle and the parity report.

    Raises:
        ParityError: a graph does not reproduce the model; nothing is published.
        StorageError: the bundle could not be written; nothing is left behind.
    """
    import torch

    options = options or ExportOptions()
    graphs, reference = original.graphs, original.reference
    assert graphs is not None and reference is not None
    machine.trim()
    with staged_directory(output, options.overwrite) as stage, torch.no_grad():
        expected = parity.expect(reference, graphs, original.cases)
        onnx.export_onnx(graphs, stage)
        graphs = graphs.without_modules()
        original.graphs = original.reference = reference = None
        gc.collect()  # models hold reference cycles
        machine.trim()
        if not options.onnx_only:
            ir.write(stage, graphs, options.precision)
            machine.trim()
        report = parity.check(expected, graphs, stage, options.precision, not options.onnx_only)
        if not (options.keep_onnx or options.onnx_only):
            for path in stage.glob("*.onnx*"):
                path.unlink()
        original.write_files(stage)
        if not options.onnx_only:
            found = tuple(cases.of_batch(case.batch, case.logits) for case in expected.cases)
            cases.write(stage, cases.Stored(report.largest, report.ir_limit, found))
        write_manifest(stage, _manifest(original.described, graphs, options, report))
    return open_bundle(output), report


def _manifest(
    described: dict[str, Any], graphs: Graphs, options: ExportOptions, report: parity.Report
) -> Manifest:
    return Manifest(
        architecture=graphs.architecture,
        precision=options.precision,
        dimensions=Dimensions.of(graphs),
        limits=Limits(graphs.max_source_frames, graphs.max_target_tokens, graphs.min_source_frames),
        memory=graphs.memory,
        state=graphs.state,
        parity=report.to_json(),
        versions=tool_versions(),
        **described,
    )
