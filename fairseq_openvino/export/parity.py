"""The gate: the original model itself against the ONNX and IR graphs, step by step.

Each case encodes a padded batch and decodes forced random tokens with random beam reordering, one
token a step, and the same tokens once more in a single call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import openvino as ov
import torch

from fairseq_openvino.errors import ParityError
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.onnx import cache_names, cross_names
from fairseq_openvino.runtime.engine import compile_properties

TOLERANCE = {"f32": 1e-4, "f16": 5e-2}
"""Largest accepted logit error, by stored weight precision."""
UNIT = 10.0
"""Up to this size of the largest logit errors are absolute; beyond it they are divided by its multiple
of this, since f32 itself rounds in proportion."""
BEAM = 2
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

    def start(self, features: np.ndarray, lengths: np.ndarray, beam: int) -> None:
        """Encode (N, T, F), (N,) for rows r of utterance r // beam."""
        ...

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """tokens (R, L) -> logits (R, L, V), computed from scratch."""
        ...


class FairseqReference:
    """A Fairseq encoder-decoder model in eval mode."""

    name = "Fairseq"

    def __init__(self, model: Any) -> None:
        self.model = model

    def start(self, features: np.ndarray, lengths: np.ndarray, beam: int) -> None:
        """See `Reference`."""
        encoder = self.model.encoder
        encoded = encoder(torch.from_numpy(features), torch.from_numpy(lengths))
        order = torch.arange(len(features)).repeat_interleave(beam)
        self.encoded = encoder.reorder_encoder_out(encoded, order)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """See `Reference`."""
        found = self.model.decoder(torch.from_numpy(tokens), encoder_out=self.encoded)[0]
        logits: np.ndarray = found.numpy()
        return logits


@dataclass(frozen=True)
class Row:
    """Largest logit errors of one case against the original model, see `UNIT`."""

    frames: tuple[int, ...]
    steps: int
    onnx_steps: float
    """ONNX logits, one token a call."""
    onnx_sequence: float
    """ONNX logits, all tokens in one call."""
    ir_steps: float | None
    ir_sequence: float | None

    @property
    def worst(self) -> float:
        """The largest error of the row."""
        errors = (self.onnx_steps, self.onnx_sequence, self.ir_steps, self.ir_sequence)
        return max(error for error in errors if error is not None)


@dataclass(frozen=True)
class Report:
    """All rows and the verdict."""

    tolerance: float
    rows: tuple[Row, ...]
    reference: str = "Fairseq"
    """Name of the original's library."""

    @property
    def passed(self) -> bool:
        """Whether every error is a number within the tolerance."""
        return all(row.worst <= self.tolerance for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {"tolerance": self.tolerance, "rows": [asdict(row) for row in self.rows]}

    def table(self) -> str:
        """Markdown table."""
        lines = [
            "| frames (N utterances) | steps | ONNX step | ONNX sequence | IR step | IR sequence |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            ir = [f"{x:.1e}" if x is not None else "-" for x in (row.ir_steps, row.ir_sequence)]
            frames = "+".join(map(str, row.frames))
            onnx = f"{row.onnx_steps:.1e} | {row.onnx_sequence:.1e}"
            lines.append(f"| {frames} | {row.steps} | {onnx} | {ir[0]} | {ir[1]} |")
        verdict = "passed" if self.passed else "FAILED"
        lines.append(
            f"largest logit error against {self.reference}, tolerance {self.tolerance:g}: {verdict}"
        )
        return "\n".join(lines)


def check(
    reference: Reference,
    graphs: Graphs,
    directory: Path,
    precision: str,
    ir: bool,
    cases: Cases = CASES,
) -> Report:
    """Run all cases on the files of `directory`.

    Args:
        reference: the original model.
        graphs: its graphs (for the dimensions).
        directory: where encoder.onnx, decoder.onnx and, with `ir`, the IR files are.
        precision: stored weight precision, f32 or f16.
        ir: whether there are IR files.
        cases: what to run.

    Raises:
        ParityError: an error exceeds the tolerance or is not a number.
    """
    runners: list[Callable[[], Any]] = [lambda: OnnxRunner(directory, graphs)]
    if ir:
        runners.append(lambda: IrRunner(directory))
    errors = [_errors(reference, graphs, make(), cases) for make in runners]
    rows = []
    for i, (frames, steps) in enumerate(cases):
        measured = errors[1][i] if ir else (None, None)
        rows.append(Row(frames, steps, *errors[0][i], *measured))
    report = Report(TOLERANCE[precision], tuple(rows), reference.name)
    if not report.passed:
        raise ParityError(
            f"The parity gate failed in {graphs.architecture!r}: expected logit errors up to "
            f"{report.tolerance:g}, got the table below. Nothing was published; report this model's "
            f"options.\n{report.table()}"
        )
    return report


class OnnxRunner:
    """Both ONNX graphs under onnxruntime, caches passed explicitly."""

    def __init__(self, directory: Path, graphs: Graphs) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(
                str(directory / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in ("encoder", "decoder")
        )
        self.graphs = graphs

    def encode(self, features: np.ndarray, lengths: np.ndarray, rows: int) -> None:
        """Start a batch with empty caches."""
        outputs = self.encoder.run(None, {"features": features, "lengths": lengths})
        names = ["encoder_lengths", "cross_bias", *cross_names(self.graphs.layers)]
        self.cross = dict(zip(names, outputs, strict=True))
        self.cross.pop("encoder_lengths")
        empty = np.zeros((rows, self.graphs.heads, 0, self.graphs.head_width), np.float32)
        self.past = {name: empty for name in cache_names("past", self.graphs.layers)}

    def step(self, tokens: np.ndarray, beam_idx: np.ndarray, offset: int) -> np.ndarray:
        """tokens (R, l) -> logits (R, l, V)."""
        past = {name: value[beam_idx] for name, value in self.past.items()}
        inputs = {"tokens": tokens, "offset": np.array(offset), **self.cross, **past}
        logits, *present = self.decoder.run(None, inputs)
        self.past = dict(zip(self.past, present, strict=True))
        return np.asarray(logits)


class IrRunner:
    """Both IR models on the CPU at f32, the decoder's caches inside."""

    def __init__(self, directory: Path) -> None:
        core, properties = ov.Core(), compile_properties("f32", "CPU")
        self.encoder = core.compile_model(directory / "encoder.xml", "CPU", properties)
        self.decoder = core.compile_model(directory / "decoder.xml", "CPU", properties)
        self.request = self.decoder.create_infer_request()

    def encode(self, features: np.ndarray, lengths: np.ndarray, rows: int) -> None:
        """Start a batch with empty caches."""
        outputs = self.encoder({"features": features, "lengths": lengths})
        self.cross = {o.get_any_name(): outputs[o] for o in self.encoder.outputs}
        self.cross.pop("encoder_lengths")
        self.request.reset_state()

    def step(self, tokens: np.ndarray, beam_idx: np.ndarray, offset: int) -> np.ndarray:
        """tokens (R, l) -> logits (R, l, V)."""
        inputs = {"tokens": tokens, "beam_idx": beam_idx, "offset": np.array(offset), **self.cross}
        logits: np.ndarray = self.request.infer(inputs)["logits"]
        return logits


def _errors(
    reference: Reference, graphs: Graphs, runner: Any, cases: Cases
) -> list[tuple[float, float]]:
    """(step-wise, whole-sequence) maximum logit error of each case."""
    random = np.random.default_rng(0)
    with torch.no_grad():
        return [_case_errors(reference, graphs, runner, random, *case) for case in cases]


def _case_errors(
    reference: Reference,
    graphs: Graphs,
    runner: Any,
    random: np.random.Generator,
    frames: tuple[int, ...],
    steps: int,
) -> tuple[float, float]:
    lengths = np.array(frames)
    features = random.standard_normal((len(frames), max(frames), graphs.feature_bins))
    features = features.astype(np.float32)
    for row, length in enumerate(lengths):
        features[row, length:] = 0
    rows = len(frames) * BEAM
    runner.encode(features, lengths, rows)
    reference.start(features, lengths, BEAM)
    step_error = 0.0
    tokens = np.full((rows, 1), 2)
    beam_idx = np.arange(rows, dtype=np.int32)
    for step in range(steps):
        expected = reference.logits(tokens)
        found = runner.step(tokens[:, -1:], beam_idx, step)
        step_error = _worst(step_error, found, expected[:, -1:])
        beam_idx = _random_beams(random, len(frames))
        new = random.integers(4, graphs.vocabulary_size, (rows, 1))
        tokens = np.concatenate([tokens[beam_idx], new], 1)
    runner.encode(features, lengths, rows)
    found = runner.step(tokens, np.arange(rows, dtype=np.int32), 0)
    return step_error, _worst(0.0, found, reference.logits(tokens))


def _random_beams(random: np.random.Generator, utterances: int) -> np.ndarray:
    """Each row continues a random row of its own utterance; (R,) int32."""
    first = np.arange(utterances)[:, None] * BEAM
    return (first + random.integers(0, BEAM, (utterances, BEAM))).reshape(-1).astype(np.int32)


def _worst(so_far: float, found: np.ndarray, expected: np.ndarray) -> float:
    """Larger of the two, in units of the logits (`UNIT`); a NaN stays NaN and fails the gate."""
    scale = max(1.0, float(np.abs(expected).max()) / UNIT)
    return float(np.maximum(so_far, np.abs(found - expected).max() / scale))
