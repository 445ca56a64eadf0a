"""What a model has answered in a batch with long recordings, so that a successor need not ask again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fairseq_openvino.jobs.index import ANSWER, Answered
from fairseq_openvino.jobs.leases import Lease
from fairseq_openvino.jobs.plan import Input
from fairseq_openvino.journal import Journal
from fairseq_openvino.speech.features import FRAMES_PER_SECOND
from fairseq_openvino.speech.stored import frame_count

LONG_SECONDS = 600.0
"""Of a recording whose answers are kept."""
SHORT_BYTES = int(LONG_SECONDS * 4000 / 8)
"""No format of speech has less than 4 kbit/s: below this, a file is not that long."""


class Answers:
    """A `model.Ledger` in the journals of a job.

    Args:
        lease: of the batch.
        known: the calls that were made by those who held it before.
        journal: of the worker.
    """

    def __init__(self, lease: Lease, known: Iterable[Answered], journal: Journal) -> None:
        self._lease, self._known, self._journal = lease, iter(known), journal
        self._call = 0

    def known(self) -> Any:
        """See `model.Ledger`."""
        one = next(self._known, None)
        answer = one and one.read()
        if answer is None:
            self._known = iter(())
        else:
            self._call += 1
        return answer

    def add(self, answer: Any) -> None:
        """See `model.Ledger`.

        Raises:
            StorageError: it could not be written.
        """
        self._journal.append({
            "kind": ANSWER, "batch": self._lease.batch, "epoch": self._lease.epoch,
            "call": self._call, "answer": answer,
        })  # fmt: skip
        self._call += 1


def is_long(one: Input, isolated: bool = False) -> bool:
    """Whether it has more than `LONG_SECONDS`, by its header; if that does not say, it counts as long.

    Args:
        one: of a job's inputs.
        isolated: its header must not be read.
    """
    if one.bytes is None or one.bytes < SHORT_BYTES:
        return False
    frames = None if isolated else frame_count(one.path)
    return frames is None or frames > LONG_SECONDS * FRAMES_PER_SECOND
