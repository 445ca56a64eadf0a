"""The loop that decodes: a search asks, a session answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from fairseq_openvino.errors import DeadlineError, NumericsError
from fairseq_openvino.model import Search, Session

Watcher = Callable[[Search], None]
"""Sees a search after each of its steps."""


def drive(
    session: Session,
    search: Search,
    deadline: float | None = None,
    watch: Watcher = lambda search: None,
) -> None:
    """Decode until the search has nothing more to ask.

    Args:
        session: opened for the search's head and number of rows.
        search: has the results afterwards, or what there is of them after an error.
        deadline: of `time.monotonic()`; it is looked at between two steps.
        watch: called after every step.

    Raises:
        DeadlineError: the deadline passed first.
        NumericsError: scores are not numbers; it names the utterances.
    """
    while (ask := search.ask()) is not None:
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlineError(
                "Decoding failed: expected it to end before its deadline, got no end. Allow more time "
                "or decode fewer utterances together."
            )
        try:
            step = session.step(ask)
        except NumericsError as error:
            affected = sorted({int(search.owners[row]) for row in error.indices})
            raise NumericsError(str(error), tuple(affected)) from error
        kept = search.take(step)
        if kept is not None:
            session.keep(kept)
        watch(search)
