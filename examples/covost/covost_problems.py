"""What is wrong with the rows and clips of a corpus: counted by kind, listed one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from fairseq_openvino.errors import EXIT_OK, EXIT_PARTIAL
from fairseq_openvino.tables import aligned

MIN_FRAMES = 5
MAX_TRAIN_FRAMES = 3000
"""Fairseq's filters (`data_utils.py:filter_manifest_df`)."""


class Kind(Enum):
    """Kinds of problems: what the table says, and whether data is lost that should be there."""

    DAMAGED_ROW = ("damaged row", True)
    DUPLICATE = ("duplicate row", True)
    NO_CLIP = ("translation without clip", True)
    MISSING = ("missing file", True)
    EMPTY_FILE = ("empty file", True)
    UNDECODABLE = ("not decodable", True)
    TRUNCATED = ("truncated, used as far as it goes", False)
    SHORT = (f"filtered: shorter than {MIN_FRAMES} frames", False)
    LONG = (f"filtered: longer than {MAX_TRAIN_FRAMES} frames", False)
    NO_TEXT = ("filtered: no text", False)
    OTHER_SPLIT = ("of no split of CoVoST", False)
    NO_TRANSLATION = ("clip without translation", False)

    def __init__(self, title: str, is_loss: bool) -> None:
        self.title = title
        self.is_loss = is_loss


class Problem(NamedTuple):
    """One row or clip; `split` is "" where it has none, `path` the clip or the line of a table."""

    kind: Kind
    split: str
    path: str
    reason: str


def summary(problems: Iterable[Problem], splits: Sequence[str]) -> list[str]:
    """Lines of a table that counts the problems by kind and split; none without problems."""
    counts = Counter((problem.kind, problem.split) for problem in problems)
    rows = [
        [kind.title, *(str(counts[kind, split]) for split in (*splits, ""))]
        for kind in Kind
        if any(counts[kind, split] for split in (*splits, ""))
    ]
    return aligned([["problem", *splits, "no split"], *rows]) if rows else []


def exit_code(problems: Iterable[Problem]) -> int:
    """1 if data is lost: what Fairseq's recipe filters, and what is not CoVoST's, is not."""
    return EXIT_PARTIAL if any(problem.kind.is_loss for problem in problems) else EXIT_OK
