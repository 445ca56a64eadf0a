"""The figures of an evaluation, from its records and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fairseq_openvino.errors import ModelError
from fairseq_openvino.measure.journal import Records
from fairseq_openvino.metrics import (
    WORD_METRICS,
    Difference,
    Normalizer,
    Score,
    bootstrap_difference,
    score,
    whisper_normalizer,
)

ACCURACY = "accuracy"
PERCENTILES = (50, 95)
INCOMPLETE = "not all utterances were decoded"


@dataclass(frozen=True)
class Figure:
    """A metric as a column."""

    metric: str
    normalized: bool

    @property
    def key(self) -> str:
        """Name in the JSON file."""
        return f"{self.metric}_normalized" if self.normalized else self.metric

    @property
    def title(self) -> str:
        """Name in a table."""
        name = {"bleu": "BLEU", "chrf": "chrF2", "wer": "WER, %"}.get(self.metric, "accuracy, %")
        return f"{name} (normalised)" if self.normalized else name


@dataclass(frozen=True)
class Times:
    """Durations of one engine over all batches."""

    seconds: float
    """Sum over batches of the median over passes."""
    passes: tuple[float, ...]
    """Sum over batches in each pass."""
    percentiles_ms: tuple[float, ...]
    """PERCENTILES of a batch's median."""
    tokens_per_second: float
    real_time_factor: float
    """Seconds by duration of the audio."""


@dataclass(frozen=True)
class Row:
    """One engine."""

    engine: str
    error: str | None
    """Why it has no figures."""
    load_seconds: float | None = None
    """From its files to the first batch, without importing packages."""
    peak_mb: float | None = None
    precision: dict[str, str] = field(default_factory=dict)
    times: Times | None = None
    relative_time: float | None = None
    """By the first engine's."""
    scores: dict[str, Score] = field(default_factory=dict)
    """By `Figure.key`."""
    differences: dict[str, Difference] = field(default_factory=dict)
    """To the first engine's scores."""
    identical: int | None = None
    """Utterances with the first engine's text."""


@dataclass(frozen=True)
class Results:
    """What the tables show."""

    model: str
    options: dict[str, Any]
    provenance: dict[str, str]
    utterances: int
    audio_seconds: float
    failures: list[dict[str, Any]]
    damaged: list[dict[str, Any]]
    """Id and damage of utterances that were scored although audio is missing."""
    missing: int
    """Utterances an interrupted run did not reach."""
    runs: int
    """Times the run was begun or resumed, over all shards."""
    figures: tuple[Figure, ...]
    normalizer: str
    """Of the normalised figures; empty without them."""
    rows: tuple[Row, ...]

    @property
    def primary(self) -> Figure:
        """The accuracy of the first table and of the chart: the article's, else the first metric."""
        articles = [figure for figure in self.figures if figure.metric == ACCURACY]
        return (*articles, *self.figures)[0]

    @property
    def complete(self) -> bool:
        """Every engine has decoded every utterance, and all of it."""
        incomplete = self.failures or self.damaged or self.missing
        return not (incomplete or any(row.error for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """Everything but the utterances."""
        plain = asdict(self)
        plain["figures"] = [figure.key for figure in self.figures]
        plain["primary"] = self.primary.key
        for row, plain_row in zip(self.rows, plain["rows"], strict=True):
            plain_row["differences"] = {
                key: value._asdict() for key, value in row.differences.items()
            }
        return plain


def compute(records: Records, spellings: Mapping[str, str]) -> Results:
    """All figures.

    Args:
        records: of one evaluation.
        spellings: for the English normaliser.

    Raises:
        ModelError: nothing was decoded, or a record is damaged.
    """
    run = records.runs[0]
    if not records.utterances:
        raise ModelError(
            "Scoring failed in the records: expected at least one decoded utterance, got "
            f"{len(records.failures)} that failed. Correct the corpus or the models."
        )
    normalizer = None
    if run["normalizer"] is not None:
        normalizer = whisper_normalizer(run["normalizer"]["language"], spellings)
    figures = tuple(  # the normalised one of a metric first
        Figure(metric, normalized)
        for metric in run["metrics"]
        for normalized in (True, False)
        if not normalized or (normalizer is not None and metric in WORD_METRICS)
    )
    try:
        rows = _rows(records, figures, normalizer)
        audio_seconds = sum(float(record["seconds"]) for record in records.utterances)
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"Scoring failed in the records: expected lines as `evaluate` writes them, got one "
            f"with another {error}. Restore the file."
        ) from error
    return Results(
        model=run["model"],
        options=run["options"],
        provenance=run["provenance"],
        utterances=len(records.utterances),
        audio_seconds=audio_seconds,
        failures=records.failures,
        damaged=[
            {"id": record["id"], "damage": record["damage"]}
            for record in records.utterances
            if record.get("damage")
        ],
        missing=records.missing,
        runs=len(records.runs),
        figures=figures,
        normalizer=normalizer.name if normalizer is not None else "",
        rows=rows,
    )


@dataclass(frozen=True)
class _Scoring:
    """Every figure of a text list, against the same references."""

    references: list[str]
    figures: tuple[Figure, ...]
    normalizer: Normalizer | None
    tokenizer: str

    def scores(self, texts: list[str]) -> dict[str, Score]:
        return {
            figure.key: score(
                self.references, texts, figure.metric, self._applied(figure), self.tokenizer
            )
            for figure in self.figures
        }

    def differences(self, base: list[str], texts: list[str]) -> dict[str, Difference]:
        return {
            figure.key: bootstrap_difference(
                self.references, base, texts, figure.metric,
                normalizer=self._applied(figure), tokenizer=self.tokenizer,
            )
            for figure in self.figures
        }  # fmt: skip

    def _applied(self, figure: Figure) -> Normalizer | None:
        return self.normalizer if figure.normalized else None


def _rows(
    records: Records, figures: tuple[Figure, ...], normalizer: Normalizer | None
) -> tuple[Row, ...]:
    options = records.runs[0]["options"]
    references = [record["reference"] for record in records.utterances]
    scoring = _Scoring(references, figures, normalizer, options["tokenizer"])
    rows, texts = [], {}
    for name in options["engines"]:
        row = _measured(records, name)
        if row.times is not None:
            texts[name] = [record["engines"][name]["text"] for record in records.utterances]
            row = replace(row, scores=scoring.scores(texts[name]))
        rows.append(row)
    return tuple(_compared(row, rows[0], texts, scoring) for row in rows)


def _compared(row: Row, first: Row, texts: Mapping[str, list[str]], scoring: _Scoring) -> Row:
    """With what refers to the first engine, if both have figures."""
    if row.times is None or first.times is None:
        return row
    base, own = texts[first.engine], texts[row.engine]
    return replace(
        row,
        relative_time=row.times.seconds / first.times.seconds,
        differences={} if row.engine == first.engine else scoring.differences(base, own),
        identical=sum(a == b for a, b in zip(base, own, strict=True)),
    )


def _measured(records: Records, name: str) -> Row:
    """Times and memory of an engine, if it has decoded everything."""
    entries = [record["engines"].get(name) for record in records.utterances]
    stated = [record for record in records.engines if record["engine"] == name]
    errors = [record["error"] for record in stated if "error" in record]
    if None in entries:
        decoded = len(entries) - entries.count(None)
        reason = errors[0] if errors else INCOMPLETE
        return Row(name, f"{decoded} of {len(entries)} utterances decoded, then: {reason}")
    loads = [record for record in stated if "load_seconds" in record]
    return Row(
        name,
        None,
        float(loads[0]["load_seconds"]),
        max(float(entry["peak_mb"]) for entry in entries),
        loads[0]["precision"],
        _times(records, name),
    )


def _times(records: Records, name: str) -> Times:
    batches: dict[str, list[float]] = {}
    tokens = 0
    for record in records.utterances:
        entry = record["engines"][name]
        batches[record["batch"]] = entry["seconds"]
        tokens += int(entry["tokens"])
    medians = [statistics.median(seconds) for seconds in batches.values()]
    total, audio = sum(medians), sum(float(record["seconds"]) for record in records.utterances)
    return Times(
        seconds=total,
        passes=tuple(sum(each) for each in zip(*batches.values(), strict=True)),
        percentiles_ms=tuple(1e3 * float(np.percentile(medians, p)) for p in PERCENTILES),
        tokens_per_second=tokens / total,
        real_time_factor=total / audio,
    )
