"""Every architecture of `architectures.ROWS`: the engine's hypotheses are eager Fairseq's."""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import ROWS, Counts, Generation, Row, compare
from conftest import Shared

from fairseq_openvino.export.fairseq import ARCHITECTURES


def compared(row: Row, data: Path, cache: Path, *how: tuple[int, ...]) -> Counts:
    """Of f32, exported into the cache."""
    engine = Generation(row, data, "--ov-engine", "--ov-cache-dir", str(cache))
    return compare(Generation(row, data), engine, *how)


by_name = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def exported(row: Row) -> None:
    """Skip what has no exporter; the export itself is the parity gate."""
    if row.model not in ARCHITECTURES:
        pytest.skip(f"{row.model} has no exporter")


@by_name
def test_hypotheses_of_padded_batches_are_identical(
    row: Row, shared: Shared, cache_dir: Path
) -> None:
    exported(row)
    data = shared(f"architecture-{row.name}", lambda at: row.checkpoint(at, batches=(3,)))
    counts = compared(row, data, cache_dir, (3,), (5,))
    assert counts.total == 6 and not counts.differences, counts.differences


@pytest.mark.soak
@pytest.mark.parametrize(
    ("row", "size"), [(row, size) for row in ROWS for size in row.sizes],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_hypotheses_of_every_size_are_identical(row: Row, size: str, tmp_path: Path) -> None:
    exported(row)
    row.checkpoint(tmp_path, size)
    counts = compared(row, tmp_path, tmp_path / "cache")
    print(f"{row.name}, {size}: {counts}")
    assert not counts.differences, counts.differences
