"""Every architecture of `architectures.ROWS`: the engine's hypotheses are eager Fairseq's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import pytest
from architectures import BEAMS, ROWS, Counts, Generation, Row, compare
from conftest import Shared

from fairseq_openvino.export.fairseq import ARCHITECTURES


@pytest.mark.soak
@pytest.mark.parametrize(
    ("row", "size"), [(row, size) for row in ROWS for size in row.sizes],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_hypotheses_of_every_size_are_identical(row: Row, size: str, tmp_path: Path) -> None:
    """The export of the engine's run is the parity gate."""
    if row.model not in ARCHITECTURES or not row.generates:
        pytest.skip(f"fairseq-generate --ov-engine does not run {row.model}")
    row.checkpoint(tmp_path, size)
    engine = Generation(row, tmp_path, "--ov-engine", "--ov-cache-dir", str(tmp_path / "cache"))
    counts = compare(Generation(row, tmp_path), engine)
    print(f"{row.name}, {size}: {counts}")
    assert not counts.differences, counts.differences


class Swapped(Generation):
    """An engine whose first two hypotheses of every utterance are in the wrong order."""

    def decode(self, batch: int, beam: int) -> Any:
        """As eager Fairseq otherwise."""
        for sample, lists in super().decode(batch, beam):
            yield sample, [[found[1], found[0], *found[2:]] for found in lists]


def test_only_near_ties_are_excused(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS[0]
    data = shared("architectures", lambda at: row.checkpoint(at, batches=(3,)))
    eager, swapped = Generation(row, data), Swapped(row, data)
    swapped.loaded = eager.loaded
    only: tuple[tuple[int, ...], ...] = ((3,), (5,))
    assert compare(eager, eager, *only) == Counts(identical=6)
    counts = compare(eager, swapped, *only)
    assert len(counts.differences) == 6 and not counts.identical + counts.near_ties
    monkeypatch.setattr(architectures, "MARGIN", 100.0)
    assert compare(eager, swapped, *only) == Counts(near_ties=6)
    sample, lists = next(eager.decode(3, 5))
    for position, found in enumerate(lists):  # what is compared is what Fairseq's search computed
        for hypothesis in found[: BEAMS[5]]:
            score = eager.score(sample, position, hypothesis["tokens"].long())
            assert abs(score - float(hypothesis["score"])) < 1e-5
