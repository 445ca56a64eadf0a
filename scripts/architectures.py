"""The table of architectures: parity of the exported graphs, and hypotheses beside eager Fairseq's.

For each row of `tests/architectures.py` random weights of true size go through `fairseq-generate` with and
without --ov-engine, beam 1 and 5, n-best 5, batches of 1, 3, 8 and 32. Parity: Fairseq itself in f32, ONNX
under onnxruntime and the IR on the CPU in f32 against Fairseq in f64, worst logit error over all cases of
the export gate, and the largest accepted one.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the table is that of the tests

from architectures import ROWS, Counts, Generation, Row, compare  # noqa: E402

from fairseq_openvino import machine  # noqa: E402
from fairseq_openvino.atomic import write_file  # noqa: E402
from fairseq_openvino.errors import ParityError  # noqa: E402
from fairseq_openvino.tables import markdown_table, one_line  # noqa: E402

OUTPUT = ROOT / "examples" / "covost" / "results" / "architectures.md"
HEADER = (
    "architecture", "size", "Fairseq in f32", "ONNX", "IR", "limit", "identical", "near-ties",
    "n-best lists",
)  # fmt: skip
TEXT = """\
# Architectures

Made by `make architectures`. Random weights; Fairseq in f32, ONNX, IR: largest logit error against
Fairseq in f64; limit: the largest accepted one. n-best lists of `fairseq-generate --ov-engine` beside those
of eager Fairseq, beam 1 and 5, n-best 5, batches of 1, 3, 8 and 32 padded utterances; near-ties: lists whose
differing hypotheses the model in f64 scores within 1e-5 of each other.
"""


def main() -> int:
    """Print and write a row for each size; return 1 if one fails the gate or differs."""
    names = [row.name for row in ROWS]
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help=f"some of {'; '.join(names)}, parted by ';'")
    parser.add_argument("--sizes", default="true", help="tiny, odd, true, all, or an architecture")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="Markdown file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    chosen = arguments.rows.split(";") if arguments.rows else names
    cells, good = [], True
    for row in ROWS:
        if row.name not in chosen:
            continue
        for size in _sizes(row, arguments.sizes.split(",")):
            cells.append(_measured(row, size))
            failed = cells[-1][2].startswith("FAILED") or "different" in cells[-1][-1]
            good = good and not failed
            print(markdown_table(HEADER, cells[-1:])[-1], flush=True)
    provenance = "; ".join(f"{name} {value}" for name, value in machine.provenance().items())
    lines = [TEXT, *markdown_table(HEADER, cells), "", provenance]
    write_file(arguments.output, ("\n".join(lines) + "\n").encode())
    return 0 if good else 1


def _sizes(row: Row, asked: Iterable[str]) -> list[str]:
    """Those of a row that were asked for."""
    return [size for size in row.sizes if {"all", size, size.split("-")[0]} & {*asked}]


def _measured(row: Row, size: str) -> list[str]:
    """Cells of one row."""
    from fairseq_openvino.export.fairseq import ARCHITECTURES

    arch = row.archs[0] if size == "true" else size
    named = [row.name, f"{arch} ({row.archs[0]})" if size.startswith(("tiny", "odd")) else arch]
    if row.model not in ARCHITECTURES or not row.generates:
        return [*named, "not in fairseq-generate"]
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        row.checkpoint(data, size)
        try:
            counts, parity = _compared(row, data)
        except ParityError as error:
            return [*named, f"FAILED: {one_line(str(error))}"]
    errors = [f"{value:.1e}" for value in _worst(parity)]
    different = f", {len(counts.differences)} different" if counts.differences else ""
    lists = (str(counts.identical), str(counts.near_ties), f"{counts.total}{different}")
    return [*named, *errors, *lists]


def _compared(row: Row, data: Path) -> tuple[Counts, dict[str, Any]]:
    """Hypotheses, and the parity report of the bundle."""
    engine = Generation(row, data, "--ov-engine", "--ov-cache-dir", str(data / "cache"))
    counts = compare(Generation(row, data), engine)
    return counts, engine.loaded[2][0].compiled.manifest.parity


def _worst(parity: dict[str, Any]) -> tuple[float, float, float, float]:
    """Largest errors of Fairseq in f32, ONNX and IR, and the limit."""
    rows = parity["rows"]
    own = max(row["own_error"] for row in rows)
    onnx = max(max(row["onnx_steps"], row["onnx_sequence"]) for row in rows)
    ir = max(max(row["ir_steps"], row["ir_sequence"]) for row in rows)
    return own, onnx, ir, parity["limit"]


if __name__ == "__main__":
    sys.exit(main())
