"""The gate: the original model itself against the ONNX and IR graphs, step by step.

Each case encodes a padded batch and decodes forced random tokens with random beam reordering, one
token a step, and the tokens that are left once more in a single call. Of a model without a decoder the
encoder's log-probabilities are compared, within the length of each utterance.

Right graphs differ from the original by rounding, and how much depends on the weights. So the original
is its own measure: its logits in float32 are compared with its logits in float64, and a graph may be
a few times as far from the latter. A number that is not finite fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fairseq_openvino import machine
from fairseq_openvino.errors import ParityError
from fairseq_openvino.export.float64 import Float64
from fairseq_openvino.export.forced import Forced, batches
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.runners import IrRunner, OnnxRunner, Runner
from fairseq_openvino.tables import markdown_table, number
from fairseq_openvino.tensors import is_recurrent

OWN_ERRORS = 4.0
"""Accepted logit error of a graph, in errors of the original in float32: both round as often, but in
another order. The largest of all cases counts, as a short case can round well by chance."""
FLOOR = 16 * float(np.finfo(np.float32).eps)
"""Always accepted, in the largest |logit|: a few units in its last place. Relative, as rounding is; for
logits of 10 it is 2e-5."""
CAP = 1e-3
"""Never accepted more, in the largest |logit|, however badly the original rounds."""
HALF_WEIGHTS = 5e-3
"""Accepted error of an IR with weights stored in f16, in the largest |logit|: ten times the rounding of
f16 (2**-11), as such weights are other weights, on purpose."""
SMALL_BYTES = 20_000_000
"""Models smaller than this run on one thread: more threads would only wait for each other."""
Errors = tuple[float | None, float | None]
"""Of a case, one token a call and all tokens in one; None where there is nothing to compare."""
Cases = tuple[tuple[tuple[int, ...], int], ...]
"""(T of each utterance, steps) of each case."""
CASES: Cases = (
    ((37,), 4),
    ((96, 53), 8),
    ((260, 259, 120, 17), 12),
    ((550, 301), 16),
)
"""For features of any length."""


class Reference(Protocol):
    """The original model."""

    name: str

    def logits(self, batch: Forced) -> torch.Tensor:
        """(steps, R, V), those at `batch.nodes`, computed from scratch on `batch.paths`.

        Without a decoder log-probabilities (frames, V), the valid frames of all utterances.
        """
        ...


def at_nodes(hidden: torch.Tensor, batch: Forced) -> torch.Tensor:
    """Decoder states (Q, steps, D) of all paths -> (steps, R, D), of the rows at each step."""
    return hidden[torch.from_numpy(batch.nodes), torch.arange(batch.steps).unsqueeze(1)]


def limit(own_error: float, largest: float) -> float:
    """Accepted error of a graph in f32, if the original's own is `own_error`."""
    return min(max(OWN_ERRORS * own_error, FLOOR * largest), CAP * largest)


@dataclass(frozen=True)
class Case:
    """A batch and what the original makes of it."""

    batch: Forced
    logits: np.ndarray
    """(steps, R, V) or (frames, V), of the original in float64."""
    own_error: float
    """Largest error of the original in float32."""


@dataclass(frozen=True)
class Expected:
    """All cases."""

    reference: str
    """Name of the original's library."""
    cases: tuple[Case, ...]

    @property
    def largest(self) -> float:
        """Largest |logit|."""
        return float(np.max([np.abs(case.logits).max() for case in self.cases]))

    def limit(self, precision: str) -> float:
        """Accepted logit error of graphs with weights stored in `precision`, f32 or f16."""
        if precision == "f16":
            return HALF_WEIGHTS * self.largest
        return limit(max(case.own_error for case in self.cases), self.largest)


@dataclass(frozen=True)
class Row:
    """Largest logit errors of one case against the original in float64."""

    frames: tuple[int, ...]
    steps: int
    """0 without a decoder."""
    own_error: float
    """Of the original in float32."""
    onnx_steps: float | None
    """ONNX logits, one token a call; without a decoder those of the encoder."""
    onnx_sequence: float | None
    """ONNX logits, all tokens in one call."""
    ir_steps: float | None = None
    ir_sequence: float | None = None


@dataclass(frozen=True)
class Report:
    """All rows and the verdict."""

    reference: str
    """Name of the original's library."""
    largest: float
    """Largest |logit|."""
    limit: float
    """Largest accepted error of ONNX, and of IR unless its weights are stored in f16."""
    ir_limit: float
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every error is a number within its limit."""
        return all(
            error is None or error <= limit
            for row in self.rows
            for error, limit in (
                (row.onnx_steps, self.limit), (row.onnx_sequence, self.limit),
                (row.ir_steps, self.ir_limit), (row.ir_sequence, self.ir_limit),
            )
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    def table(self) -> str:
        """Markdown table."""
        header = (
            "frames (N utterances)", "steps", f"{self.reference} in f32", "ONNX step",
            "ONNX sequence", "IR step", "IR sequence",
        )  # fmt: skip
        rows = []
        for row in self.rows:
            errors = (
                row.own_error,
                row.onnx_steps,
                row.onnx_sequence,
                row.ir_steps,
                row.ir_sequence,
            )
            cells = [number(error, ".1e") for error in errors]
            rows.append(["+".join(map(str, row.frames)), str(row.steps), *cells])
        lines = markdown_table(header, rows)
        limits = f"{self.limit:.1e}"
        if self.ir_limit != self.limit:
            limits += f" (IR with f16 weights {self.ir_limit:.1e})"
        lines.append(
            f"largest error against {self.reference} in f64 of logits up to {self.largest:.1f}, "
            f"limit {limits}: {'passed' if self.passed else 'FAILED'}"
        )
        return "\n".join(lines)


def expect(reference: Reference, graphs: Graphs, cases: Cases = CASES) -> Expected:
    """Run the original on all cases, in float32 and in float64.

    Args:
        reference: the original model.
        graphs: its graphs, for the dimensions and the number of parameters.
        cases: what to run.

    Raises:
        ParityError: a logit of the original is not a finite number.
    """
    found = []
    with torch.no_grad(), _threads(_bytes(graphs)):
        for batch in batches(graphs, cases):
            own = reference.logits(batch).numpy()
            with Float64():
                logits = reference.logits(batch).numpy()
            if not (np.isfinite(own).all() and np.isfinite(logits).all()):
                raise ParityError(
                    f"The parity gate failed in {graphs.architecture!r}: expected finite logits of "
                    f"{reference.name} itself, got NaN or infinity. Nothing was published; the "
                    "weights are damaged or training diverged, take another checkpoint."
                )
            found.append(Case(batch, logits, _distance(own, logits)))
    return Expected(reference.name, tuple(found))


def check(expected: Expected, graphs: Graphs, directory: Path, precision: str, ir: bool) -> Report:
    """Run all cases on the files of `directory`.

    Args:
        expected: what the original computes, from `expect`.
        graphs: its graphs, for the dimensions.
        directory: where encoder.onnx, decoder.onnx and, with `ir`, the IR files are.
        precision: weight precision of the IR, f32 or f16.
        ir: whether there are IR files.

    Raises:
        ParityError: an error exceeds its limit or is not a number.
    """
    size = sum(path.stat().st_size for path in directory.glob("*.onnx*"))
    threads = 1 if size < SMALL_BYTES else 0
    batches = [case.batch for case in expected.cases]
    onnx_errors = _measure(OnnxRunner(directory, graphs, batches, threads), expected, graphs)
    ir_errors: list[Errors] = [(None, None)] * len(batches)
    machine.trim()
    if ir:
        ir_errors = _measure(IrRunner(directory, graphs, batches, threads), expected, graphs)
    rows = tuple(
        Row(tuple(case.batch.lengths.tolist()), case.batch.steps, case.own_error, *errors, *others)
        for case, errors, others in zip(expected.cases, onnx_errors, ir_errors, strict=True)
    )
    limits = expected.limit("f32"), expected.limit(precision)
    report = Report(expected.reference, expected.largest, *limits, rows)
    if not report.passed:
        raise ParityError(
            f"The parity gate failed in {graphs.architecture!r}: expected logit errors up to "
            f"{report.limit:.1e}, got the table below. Nothing was published; generate with "
            f"{report.reference} itself and report this model's options with the table.\n"
            f"{report.table()}"
        )
    return report


def _measure(runner: Runner, expected: Expected, graphs: Graphs) -> list[Errors]:
    """Largest error one token a call, and all tokens in one call, of each case."""
    errors: list[Errors] = []
    for index, case in enumerate(expected.cases):
        if not graphs.has_decoder:
            errors.append((_distance(runner.encoded(index), case.logits), None))
            continue
        runner.start(index)
        by_step = _step_error(runner, case)
        runner.start(index)
        errors.append((by_step, _sequence_error(runner, case, is_recurrent(graphs.state))))
    return errors


def _step_error(runner: Runner, case: Case) -> float:
    batch = case.batch
    found = (
        runner.step(batch.tokens(step), batch.beams[step], step)[:, 0]
        for step in range(batch.steps)
    )
    return _largest(map(_distance, found, case.logits))


def _sequence_error(runner: Runner, case: Case, one_by_one: bool) -> float:
    """All tokens in one call, or as many as the decoder takes."""
    batch, tokens = case.batch, case.batch.sequences()
    width, same = 1 if one_by_one else batch.steps, np.arange(batch.rows, dtype=np.int32)
    parts = [runner.step(tokens[:, i : i + width], same, i) for i in range(0, batch.steps, width)]
    found = np.concatenate(parts, 1).swapaxes(0, 1)  # (steps, R, V)
    expected = (logits[rows] for logits, rows in zip(case.logits, batch.ancestors(), strict=True))
    return _largest(map(_distance, found, expected))


def _largest(distances: Iterable[float]) -> float:
    return float(np.max(list(distances)))  # a NaN stays NaN


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference; NaN if there is one, or if the shapes differ."""
    same = found.shape == expected.shape
    return float(np.abs(found - expected).max()) if same else math.nan


def _bytes(graphs: Graphs) -> int:
    """Size of the encoder and of the decoder in f32."""
    modules = [module for module in (graphs.encoder, graphs.decoder) if module is not None]
    return 4 * sum(weights.numel() for module in modules for weights in module.parameters())


@contextmanager
def _threads(model_bytes: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if model_bytes < SMALL_BYTES else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
