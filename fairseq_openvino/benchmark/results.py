"""What was measured, and the figures derived from it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from fairseq_openvino.benchmark.plan import BASELINE, Case, Options


@dataclass
class Row:
    """One engine in one configuration."""

    engine: str
    case: Case
    load_cold_seconds: float | None = None
    """To the first two tokens, in the first process, with an empty cache."""
    load_seconds: float | None = None
    """To the first two tokens in a later process; None if there was none."""
    audio_seconds: float = 0.0
    precision: dict[str, str] = field(default_factory=dict)
    """Properties read back from the compiled decoder."""
    warm_up: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """By round, see `workload.measure_round`; shorter than the others' after an error."""
    profile: dict[str, Any] | None = None
    error: str | None = None
    """Why there are no (more) rounds."""
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Time of each round."""
        return [float(each["seconds"]) for each in self.rounds]

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
        return max(float(each["peak_mb"]) for each in self.rounds)


@dataclass
class Results:
    """All rows of a run."""

    options: Options
    engines: tuple[str, ...]
    provenance: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    order: list[tuple[int, int, str]] = field(default_factory=list)
    """(configuration, round, engine) in the order in which they ran."""
    interrupted: bool = False

    def by_case(self) -> list[tuple[Case, list[Row]]]:
        """Rows grouped, in order."""
        cases = list(dict.fromkeys(row.case for row in self.rows))
        return [(case, [row for row in self.rows if row.case == case]) for case in cases]

    def to_json(self) -> dict[str, Any]:
        """Everything, raw rounds included."""
        return {
            "provenance": self.provenance,
            "options": {
                key: _plain(value)
                for key, value in asdict(self.options).items()
                if key not in ("output", "work_dir")  # paths of this machine
            },
            "engines": list(self.engines),
            "interrupted": self.interrupted,
            "order": [list(each) for each in self.order],
            "rows": [asdict(row) for row in self.rows],
        }


def baseline(rows: Iterable[Row]) -> Row | None:
    """The eager row of a configuration, if it was measured."""
    return next((row for row in rows if row.engine == BASELINE and row.rounds), None)


def speedups(row: Row, eager: Row | None) -> list[float]:
    """Eager time by the row's time, in each round both have."""
    if eager is None:
        return []
    return [a / b for a, b in zip(eager.seconds, row.seconds, strict=False)]


def identical_share(row: Row, eager: Row | None) -> float | None:
    """Share of utterances whose 1-best tokens are eager's."""
    if eager is None or not row.rounds:
        return None
    pairs = list(zip(eager.rounds[0]["digests"], row.rounds[0]["digests"], strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, list, tuple, dict)) else str(value)
