"""The figures of a benchmark, from its records and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairseq_openvino import metrics
from fairseq_openvino.errors import ModelError
from fairseq_openvino.measure.journal import lines
from fairseq_openvino.measure.plan import BASELINES, Case


@dataclass
class Row:
    """One engine in one case."""

    engine: str
    case: Case
    is_ours: bool = False
    load_cold_seconds: float | None = None
    """To the first two tokens, in the first process, with an empty cache."""
    load_seconds: float | None = None
    """To the first two tokens in a later process; None if there was none."""
    audio_seconds: float = 0.0
    precision: dict[str, str] = field(default_factory=dict)
    """Properties read back from our compiled decoder."""
    summary: str = ""
    """What it computes in."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages of a peer."""
    batches: bool = True
    """False: clips of a batch run one after the other."""
    warm_up: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Records of the rounds, with `tokens` and `bleu`; fewer than the others' after an error."""
    profile: dict[str, Any] | None = None
    error: str | None = None
    """Why there are no (more) rounds."""
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Time of each round; scaled to the tokens asked for if others were generated."""
        return [float(each["seconds"]) * self._scale(each["counts"]) for each in self.rounds]

    @property
    def median(self) -> float:
        """Median time of a round, s."""
        return statistics.median(self.seconds)

    @property
    def step_ms(self) -> float | None:
        """Median time of a decoder step with its search, ms."""
        if any(each["encode_seconds"] is None for each in self.rounds):
            return None
        steps = [
            1e3 * (each["seconds"] - each["encode_seconds"]) / each["steps"] for each in self.rounds
        ]
        return statistics.median(steps)

    @property
    def encode_ms(self) -> float | None:
        """Median time of the encoder in a round, ms."""
        if any(each["encode_seconds"] is None for each in self.rounds):
            return None
        return 1e3 * statistics.median(each["encode_seconds"] for each in self.rounds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the 1-best hypotheses by time."""
        return statistics.median(each["tokens"] / each["seconds"] for each in self.rounds)

    @property
    def real_time_factor(self) -> float:
        """Time of a round by duration of its audio."""
        return self.median / self.audio_seconds

    @property
    def peak_mb(self) -> float:
        """Peak resident memory, MB."""
        return max((float(each["peak_mb"]) for each in self.rounds), default=0.0)

    @property
    def counts(self) -> list[int]:
        """Different numbers of tokens that were generated for a clip."""
        return sorted({count for each in self.rounds for count in each["counts"]})

    def ratios(self, other: Row | None) -> list[float]:
        """The other's time by this one's, in each round both have."""
        pairs = zip(other.seconds, self.seconds, strict=False) if other is not None else ()
        return [theirs / own for theirs, own in pairs]

    def speed_against(self, other: Row | None) -> float | None:
        """Median of the ratios."""
        found = self.ratios(other)
        return statistics.median(found) if found else None

    def same_as(self, other: Row | None) -> float | None:
        """Share of utterances whose best hypothesis is the other's."""
        if other is None or not other.rounds or not self.rounds:
            return None
        pairs = zip(other.rounds[0]["digests"], self.rounds[0]["digests"], strict=True)
        return statistics.mean(theirs == own for theirs, own in pairs)

    def _scale(self, counts: list[int]) -> float:
        asked = self.case.tokens
        return 1.0 if asked is None else asked * len(counts) / max(sum(counts), 1)


@dataclass
class Results:
    """What the tables show."""

    options: dict[str, Any]
    engines: list[tuple[str, str, bool]]
    """Name, meaning, and whether it is ours."""
    provenance: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    order: list[tuple[int, int, str]] = field(default_factory=list)
    """(case, round, engine) in the order in which they ran."""
    interrupted: bool = False

    def by_case(self) -> list[tuple[Case, list[Row]]]:
        """Rows grouped, in order."""
        cases = dict.fromkeys(row.case for row in self.rows)
        return [(case, [row for row in self.rows if row.case == case]) for case in cases]

    def to_json(self) -> dict[str, Any]:
        """Everything, raw rounds included."""
        return {
            "provenance": self.provenance,
            "options": self.options,
            "engines": [name for name, _, _ in self.engines],
            "interrupted": self.interrupted,
            "order": [list(each) for each in self.order],
            "rows": [asdict(row) for row in self.rows],
        }


def baseline(rows: Iterable[Row]) -> Row | None:
    """The row that all others are compared with, if it was measured."""
    return next((row for row in rows if row.engine in BASELINES and row.rounds), None)


def fastest(rows: Iterable[Row], ours: bool) -> Row | None:
    """Of ours, or of the others, the row with the lowest median time."""
    found = [row for row in rows if row.is_ours == ours and row.rounds]
    return min(found, key=lambda row: row.median, default=None)


def compute(path: Path) -> Results:
    """All figures of a benchmark's records.

    Raises:
        ModelError: the file is missing or damaged.
    """
    records = [record for _, record in lines(path)]
    try:
        return _computed(records)
    except (KeyError, TypeError, IndexError) as error:
        raise ModelError(
            f"Reading records failed in {str(path)!r}: expected lines as `benchmark` writes them, got "
            f"one with another {error}. Restore the file."
        ) from error


def _computed(records: list[dict[str, Any]]) -> Results:
    run = records[0]
    engines = [(name, meaning, is_ours) for name, meaning, is_ours in run["engines"]]
    found = Results(run["options"], engines, dict(run["provenance"]), interrupted=True)
    rows: dict[tuple[int, str], Row] = {}
    references: dict[int, list[str] | None] = {}
    for record in records[1:]:
        kind = record.pop("kind")
        if kind == "end":
            found.interrupted = False
        elif kind == "case":
            number = record.pop("number")
            references[number] = record.pop("references")
            case = Case(**record)
            rows |= {(number, name): Row(name, case, ours) for name, _, ours in engines}
        else:
            numbers = record.pop("cases", None) or [record.pop("case")]
            for number in numbers:
                row = rows[number, record["engine"]]
                _add(row, kind, record, references[number])
            if kind == "round" and record["round"] >= 0:
                found.order.append((numbers[0], record["round"], record["engine"]))
    found.rows = list(rows.values())
    versions = {name: text for row in found.rows for name, text in row.versions.items()}
    if versions:
        stated = ", ".join(f"{name} {text}" for name, text in sorted(versions.items()))
        found.provenance["of the peers"] = stated
    return found


def _add(row: Row, kind: str, record: dict[str, Any], references: list[str] | None) -> None:
    """What a record says of a row."""
    if kind == "load":
        row.load_cold_seconds, row.load_seconds = record["cold_seconds"], record["seconds"]
        row.audio_seconds = sum(record["clip_seconds"][: row.case.utterances])
    elif kind == "describe":
        row.precision = record["precision"] if row.is_ours else {}
        row.summary = record["summary"]
        row.versions, row.batches = record.get("versions", {}), record.get("batches", True)
    elif kind == "failed":
        row.error = record["error"]
    elif kind == "profile" and "note" in record:
        row.notes.append(record["note"])
    elif kind == "profile":
        row.profile = {name: value for name, value in record.items() if name != "engine"}
    elif kind == "round":
        figures = {name: value for name, value in record.items() if name not in ("engine", "round")}
        eos = len(record["counts"]) if record["steps"] is not None else 0  # Fairseq counts them
        figures["tokens"] = sum(record["counts"]) + eos
        texts = figures.pop("texts", None)
        figures["bleu"] = None
        if references is not None and texts is not None:
            figures["bleu"] = metrics.score(references, texts, "bleu").value
        if record["round"] < 0:
            row.warm_up = figures
        else:
            row.rounds.append(figures)
