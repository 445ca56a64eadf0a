"""What was measured, and the figures derived from it."""

from __future__ import annotations

import hashlib
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from fairseq_openvino.benchmark.whisper.plan import (
    BASELINE,
    OURS,
    WORKLOADS,
    Engine,
    Options,
    Workload,
)

DIGEST_DIGITS = 12


@dataclass
class Loaded:
    """One engine with one size, apart from its workloads."""

    size: str
    engine: Engine
    cold_seconds: float | None = None
    """To the first two tokens without imports, with an empty cache of compiled models."""
    warm_seconds: float | None = None
    """The same in a second process."""
    precision: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    peak_mb: float = 0.0
    """Peak resident memory over all workloads, MB."""
    error: str | None = None
    """Why it did not load."""


@dataclass
class Row:
    """One engine in one workload."""

    size: str
    engine: Engine
    workload: Workload
    tokens: int
    """Tokens asked for."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """`seconds`, `counts` (tokens of each clip) and `digests` (of each text), by round."""
    error: str | None = None

    @property
    def ours(self) -> bool:
        """Whether it is an engine of this project."""
        return self.engine.package == OURS

    @property
    def counts(self) -> list[int]:
        """Different numbers of tokens that were generated for a clip."""
        return sorted({count for each in self.rounds for count in each["counts"]})

    @property
    def exact(self) -> bool:
        """Whether every hypothesis has the tokens asked for."""
        return self.counts == [self.tokens]

    @property
    def seconds(self) -> list[float]:
        """Time of each round; scaled to the tokens asked for if others were generated."""
        return [
            float(each["seconds"]) * self.tokens * len(each["counts"]) / max(sum(each["counts"]), 1)
            for each in self.rounds
        ]

    @property
    def median(self) -> float:
        """Median time of a round, s."""
        return statistics.median(self.seconds)

    def speed_against(self, other: Row | None) -> float | None:
        """Median over the rounds both have of the other's time by this one's."""
        pairs = list(zip(other.seconds, self.seconds, strict=False)) if other else []
        return statistics.median(theirs / own for theirs, own in pairs) if pairs else None

    def same_text(self, other: Row | None) -> float | None:
        """Share of clips whose text is the other's."""
        if other is None or not other.rounds or not self.rounds:
            return None
        pairs = zip(other.rounds[0]["digests"], self.rounds[0]["digests"], strict=True)
        return statistics.mean(theirs == own for theirs, own in pairs)


@dataclass
class Results:
    """All of a run."""

    options: Options
    provenance: dict[str, str]
    loaded: list[Loaded] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    order: list[tuple[str, str, int, str]] = field(default_factory=list)
    """(size, workload, round, engine) in the order in which they ran."""
    interrupted: bool = False

    def of(self, size: str, workload: Workload) -> list[Row]:
        """Rows of a table."""
        return [row for row in self.rows if (row.size, row.workload) == (size, workload)]

    def tables(self) -> list[tuple[str, Workload, list[Row]]]:
        """All of them, in order."""
        found = [
            (size, each, self.of(size, each)) for size in self.options.sizes for each in WORKLOADS
        ]
        return [table for table in found if table[2]]

    def to_json(self) -> dict[str, Any]:
        """Everything; no paths of this machine."""
        options = asdict(self.options)
        del options["output"], options["work_dir"]
        return {
            "provenance": self.provenance,
            "options": options,
            "interrupted": self.interrupted,
            "loaded": [asdict(each) for each in self.loaded],
            "rows": [asdict(row) for row in self.rows],
            "order": [list(each) for each in self.order],
        }


def baseline(rows: list[Row]) -> Row | None:
    """transformers in f32."""
    return next((row for row in rows if row.engine.name == BASELINE and row.rounds), None)


def fastest_peer(rows: list[Row]) -> Row | None:
    """The peer with the lowest median time, at whatever precision."""
    found = [row for row in rows if not row.ours and row.rounds]
    return min(found, key=lambda row: row.median, default=None)


def fastest_of_ours(rows: list[Row]) -> Row | None:
    """Ours with the lowest median time."""
    found = [row for row in rows if row.ours and row.rounds]
    return min(found, key=lambda row: row.median, default=None)


def round_of(answer: dict[str, Any], spelled: dict[int, str]) -> dict[str, Any]:
    """A child's answer with the number of tokens and a digest of the text of each clip.

    Engines that return no token ids return text; the text tokens of the random checkpoints that
    can occur are plain letters, so that both are comparable.
    """
    counts, digests = [], []
    for output in answer["outputs"]:
        tokens = [token for token in output.get("tokens", ()) if token in spelled]
        counts.append(output.get("count", len(tokens)))
        text = output.get("text", "".join(spelled[token] for token in tokens)).strip()
        digests.append(hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS])
    return {"seconds": answer["seconds"], "counts": counts, "digests": digests}
