"""The figures of a benchmark, from its records and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairseq_openvino import metrics
from fairseq_openvino.errors import ModelError, failure
from fairseq_openvino.measure.journal import CASE, END, KINDS, PROFILE, RUN, UTTERANCE, lines
from fairseq_openvino.measure.plan import BASELINES, TRAINED, Case

NOTED = ("cold_seconds", "load_seconds", "precision", "summary", "versions", "batches", "error")
"""What records of an engine say of its rows."""


@dataclass
class Row:
    """One engine in one case; without `rounds` it has no figures but those of loading."""

    engine: str
    case: Case
    is_ours: bool
    cold_seconds: float | None = None
    """To load, up to the first two tokens, in the first process, with an empty cache."""
    load_seconds: float | None = None
    """The same in a later process; None if there was none."""
    precision: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    """What it computes in."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages of a peer."""
    batches: bool = True
    """False: clips of a batch run one after the other."""
    rounds: list[float] = field(default_factory=list)
    """Seconds of each: encoder, search and decoder; scaled to the tokens asked for, if others were
    generated. Fewer than the others' after an error."""
    encode_ms: float | None = None
    """Median time of the encoder in a round."""
    step_ms: float | None = None
    """Median time of a decoder step with its search."""
    counts: list[int] = field(default_factory=list)
    """Tokens of each best hypothesis."""
    audio_seconds: float = 0.0
    peak_mb: float = 0.0
    """Peak resident memory, MB."""
    texts: list[str] = field(default_factory=list)
    bleu: float | None = None
    profile: dict[str, Any] | None = None
    error: str | None = None
    """Why there are no (more) rounds."""
    notes: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median time of a round, s."""
        return statistics.median(self.rounds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the best hypotheses by time; eos included, as Fairseq counts it."""
        tokens = sum(self.counts) + len(self.counts)
        return statistics.median(tokens / seconds for seconds in self.rounds)

    def ratios(self, other: Row | None) -> list[float]:
        """The other's time by this one's, in each round both have."""
        pairs = zip(other.rounds, self.rounds, strict=False) if other is not None else ()
        return [theirs / own for theirs, own in pairs]

    def speed_against(self, other: Row | None) -> float | None:
        """Median of the ratios."""
        found = self.ratios(other)
        return statistics.median(found) if found else None

    def same_as(self, other: Row | None) -> float | None:
        """Share of utterances whose best hypothesis is the other's."""
        if other is None or not other.rounds or not self.rounds:
            return None
        return statistics.mean(a == b for a, b in zip(other.texts, self.texts, strict=True))


@dataclass
class Results:
    """What the tables show."""

    options: dict[str, Any]
    engines: list[tuple[str, str, bool]]
    """Name, meaning, and whether it is ours."""
    provenance: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = True

    def by_case(self) -> list[tuple[Case, list[Row]]]:
        """Rows grouped, in order."""
        cases = dict.fromkeys(row.case for row in self.rows)
        return [(case, [row for row in self.rows if row.case == case]) for case in cases]

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)


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
    records = list(lines(path, (*KINDS, CASE, PROFILE, END)))
    try:
        return _computed(records)
    except (KeyError, TypeError, IndexError) as error:
        raise failure(
            ModelError, "Reading records", path, "lines as `benchmark` writes them",
            f"one with another {error}", "Restore the file",
        ) from error  # fmt: skip


def _computed(records: list[dict[str, Any]]) -> Results:
    run = records[0]
    found = Results(run["options"], [tuple(each) for each in run["engines"]], run["provenance"])
    rows: dict[tuple[int, str], Row] = {}
    utterances: dict[int, list[dict[str, Any]]] = {}
    for record in records[1:]:
        kind = record.pop("kind")
        if kind == CASE:
            case = Case(**record)
            rows |= {(case.number, name): Row(name, case, ours) for name, _, ours in found.engines}
        elif kind == UTTERANCE:
            utterances.setdefault(record["case"], []).append(record)
        elif kind not in (RUN, END):  # of an engine
            name = record.pop("engine", None)
            for number in record.pop("cases", None) or [record.pop("case")]:
                if name is not None:
                    _note(rows[number, name], kind, record)
    for (number, name), row in rows.items():
        _measure(row, [one for one in utterances.get(number, ()) if name in one["engines"]])
    found.rows, found.interrupted = list(rows.values()), kind != END
    versions = {name: text for row in found.rows for name, text in row.versions.items()}
    if versions:
        stated = ", ".join(f"{name} {text}" for name, text in sorted(versions.items()))
        found.provenance["of the peers"] = stated
    return found


def _note(row: Row, kind: str, record: dict[str, Any]) -> None:
    """What a record says of an engine."""
    if kind == PROFILE and "note" in record:
        row.notes.append(record["note"])
    elif kind == PROFILE:
        row.profile = record
    else:
        for name in NOTED:
            setattr(row, name, record.get(name, getattr(row, name)))


def _measure(row: Row, utterances: list[dict[str, Any]]) -> None:
    """Sums over batches in each round."""
    if not utterances:
        return
    entries = [one["engines"][row.engine] for one in utterances]
    batches = {one["batch"]: one["engines"][row.engine] for one in utterances}.values()

    def by_round(name: str) -> list[float]:
        return [sum(each) for each in zip(*(batch[name] for batch in batches), strict=False)]

    row.texts = [entry["text"] for entry in entries]
    row.counts = [int(entry["tokens"]) for entry in entries]
    row.audio_seconds = sum(float(one["seconds"]) for one in utterances)
    row.peak_mb = max(float(entry["peak_mb"]) for entry in entries)
    asked = row.case.tokens
    scale = 1.0 if asked is None else asked * len(row.counts) / max(sum(row.counts), 1)
    by_fairseq = "steps" in entries[0]
    seconds = by_round("generation_seconds" if by_fairseq else "seconds")
    row.rounds = [each * scale for each in seconds]
    if by_fairseq:
        encode = by_round("encode_seconds")
        rounds = zip(seconds, encode, by_round("steps"), strict=True)
        row.step_ms = statistics.median(1e3 * (all_ - of) / steps for all_, of, steps in rounds)
        row.encode_ms = 1e3 * statistics.median(encode)
    if row.case.model == TRAINED:
        references = [one["reference"] for one in utterances]
        row.bleu = metrics.score(references, row.texts, "bleu").value
