"""The cases of the parity gate in a bundle, to be run again on any device and at any precision.

`cases.json` holds what the original computes: of each position the largest log-probabilities. What a case
is given follows from a seed, and a checksum tells whether it does with this version of NumPy.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.bundle.files import strict_json
from fairseq_openvino.errors import BundleError, ModelError, failure
from fairseq_openvino.export.forced import BEAM, Forced, batches
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.model import LOG_PROBS, Ask, Head, Model
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.tensors import Count

CASES = "cases.json"
KEPT = 5
"""Log-probabilities of a position, the largest."""
MAX_POSITIONS = 200
"""Of a case, spread evenly: with what a position takes, 75 bytes, a file stays below 100 kB."""
MAX_NUMBERS = 1 << 24
"""Of a batch of features; those of the gate have up to 400,000."""
MAX_BYTES, MAX_CASES = 4 << 20, 40
"""Of a file; those of the gate are a twentieth of that, or fewer."""
Steps = Annotated[int, msgspec.Meta(ge=0, le=1_000)]
Checksum = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
BOUNDS = {"f16": 1e-2, "bf16": 0.1, "int8": 0.2, "fast": 0.2}
"""Accepted error of a log-probability, in the largest |logit|, where it is not that of the gate: twice the
largest seen (OpenAI's base: 0.004, 0.043, 0.044), as other weights round otherwise."""


@dataclass(frozen=True)
class Case:
    """What is expected of a batch."""

    frames: tuple[Count, ...]
    """T of each utterance."""
    steps: Steps
    checksum: Checksum
    """CRC-32 of what the model is given."""
    tokens: tuple[tuple[Count, ...], ...]
    """Of each position, most probable first."""
    log_probs: tuple[tuple[float, ...], ...]
    """Theirs."""


@dataclass(frozen=True)
class Stored:
    """Content of `cases.json`."""

    largest: float
    """Largest |logit|."""
    limit: float
    """Accepted error of a logit at f32."""
    cases: Annotated[tuple[Case, ...], msgspec.Meta(min_length=1, max_length=MAX_CASES)]

    def bound(self, precision: str) -> float:
        """Accepted error of a log-probability: at f32 the gate's, twice, as a normaliser errs too."""
        if precision in BOUNDS:
            return BOUNDS[precision] * self.largest
        return 2 * self.limit


@dataclass(frozen=True)
class Comparison:
    """A model against what is expected of it."""

    difference: float
    """Largest of a log-probability; NaN if the model computes one."""
    positions: int
    agreeing: int
    """Positions with the same most probable token."""
    bound: float
    """Largest accepted difference."""

    @property
    def passed(self) -> bool:
        """Whether the difference is a number within its bound; tokens that differ are near-ties then."""
        return self.difference <= self.bound


def of_batch(batch: Forced, logits: np.ndarray) -> Case:
    """A case of the gate, with logits (steps, R, V), or (frames, V) of a model without a decoder."""
    tokens, log_probs = [], []
    rows = logits.reshape(-1, logits.shape[-1])
    for place in _places(len(rows)):  # one at a time, for the sake of memory
        row = rows[place].astype(np.float64)
        row -= np.logaddexp.reduce(row)
        best = np.argsort(-row, kind="stable")[:KEPT]
        tokens.append(tuple(best.tolist()))
        log_probs.append(tuple(float(f"{value:.8g}") for value in row[best]))
    frames = tuple(batch.lengths.tolist())
    return Case(frames, batch.steps, _checksum(batch), tuple(tokens), tuple(log_probs))


def write(directory: Path, stored: Stored) -> None:
    """Put the cases into the directory of a bundle."""
    content = json.dumps(msgspec.to_builtins(stored), separators=(",", ":"))
    (directory / CASES).write_text(content + "\n", "utf-8")


def read(bundle: Bundle) -> Stored | None:
    """The cases of a bundle; None if it was made by a version that stored none.

    Raises:
        BundleError: they are malformed.
    """
    if CASES not in bundle.manifest.files:
        return None
    path, size = bundle.path(CASES), bundle.manifest.files[CASES].bytes
    if size > MAX_BYTES:
        raise _malformed(path, f"{size} bytes, more than {MAX_BYTES}")
    try:
        stored = msgspec.convert(strict_json(path.read_bytes()), Stored)
    except ValueError as error:  # msgspec's are such
        raise _malformed(path, error) from error
    sizes = bundle.manifest.dimensions
    symbols = sizes.vocabulary_size
    for case in stored.cases:
        frames = len(case.frames) * max(case.frames, default=0)
        if not 0 < frames * max(sizes.feature_bins, 1) <= MAX_NUMBERS:
            raise _malformed(path, f"a batch of {frames} frames")
        shapes = [list(map(len, rows)) for rows in (case.tokens, case.log_probs)]
        if shapes[0] != shapes[1] or set(shapes[0]) != {min(KEPT, symbols)}:
            raise _malformed(path, f"not {KEPT} tokens and log-probabilities of each position")
        if max(map(max, case.tokens)) >= symbols:
            raise _malformed(path, f"a token beyond the {symbols} of the vocabulary")
    return stored


def _malformed(path: Path, got: object) -> BundleError:
    return failure(
        BundleError, "Reading cases", path, "cases of the gate", got, "Export the bundle again"
    )


def compare(model: CompiledModel) -> Comparison | None:
    """Run the cases of a model's bundle; None if it has none.

    Raises:
        BundleError: they are malformed.
        ModelError: this version of NumPy makes other inputs.
    """
    stored = read(model.bundle)
    if stored is None:
        return None
    precision = "int8" if model.manifest.quantization else model.engine.options.precision
    difference, positions, agreeing = 0.0, 0, 0
    for case, (_, computed) in zip(stored.cases, _computed(model, stored.cases), strict=True):
        found, tokens = computed[_places(len(computed))], np.array(case.tokens)
        if len(found) != len(tokens):
            return Comparison(math.nan, len(tokens), 0, 0.0)
        errors = np.take_along_axis(found, tokens, -1) - np.array(case.log_probs)
        difference = float(np.max([difference, np.abs(errors).max()]))  # a NaN stays NaN
        positions += len(tokens)
        agreeing += int((found.argmax(-1) == tokens[:, 0]).sum())
    return Comparison(difference, positions, agreeing, stored.bound(precision))


def record(bundle: Bundle) -> None:
    """Replace what is expected by what the bundle itself computes, as of one that was quantized."""
    if stored := read(bundle):
        options = EngineOptions(precision=bundle.manifest.runtime.inference)
        found = _computed(CompiledModel(bundle, options), stored.cases)
        cases = tuple(of_batch(batch, computed) for batch, computed in found)
        write(bundle.directory, replace(stored, cases=cases))


def _computed(model: Model, cases: Sequence[Case]) -> Iterator[tuple[Forced, np.ndarray]]:
    """Each batch and its log-probabilities (positions, V)."""
    shapes = [(case.frames, case.steps) for case in cases]
    for case, batch in zip(cases, batches(Graphs.of(model.manifest), shapes), strict=True):
        if _checksum(batch) != case.checksum:
            version = model.manifest.versions.get("numpy", "of the export")
            raise failure(
                ModelError, "Running cases", CASES, "inputs that follow from their seed", "others",
                f"Use NumPy {version}",
            )  # fmt: skip
        yield batch, _run(model, batch)


def _run(model: Model, batch: Forced) -> np.ndarray:
    memory = model.encode(batch.features, batch.lengths)
    if not model.manifest.has_decoder:
        pairs = zip(memory.tensors[LOG_PROBS], memory.lengths, strict=True)
        return np.concatenate([frames[:length] for frames, length in pairs])
    found = []
    with model.open(memory, BEAM, Head()) as session:
        for step in range(batch.steps):
            answer = session.step(Ask(batch.tokens(step), batch.beams[step]))
            found.append(answer.scores[:, 0].copy())
    return np.concatenate(found)


def _places(count: int) -> np.ndarray:
    """Of so many positions at most `MAX_POSITIONS`, evenly."""
    return np.linspace(0, count - 1, min(count, MAX_POSITIONS)).round().astype(int)


def _checksum(batch: Forced) -> int:
    found = 0
    for array in (batch.features, batch.lengths, batch.paths, batch.nodes, batch.beams):
        found = zlib.crc32(np.ascontiguousarray(array).tobytes(), found)
    return found
