"""The loop that decodes: a search asks, a session answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from fairseq_openvino.errors import DeadlineError, NumericsError, concerns_one_clip
from fairseq_openvino.model import Search, Session

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

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


def attempt_each(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result | Exception]:
    """Work on all together; if that fails, on halves, down to the items at fault.

    Returns:
        The result of each item, or its error.

    Raises:
        FairseqOpenVINOError: one that concerns the whole run.
    """
    if not items:
        return []
    try:
        return [*work(items)]
    except Exception as error:
        if not concerns_one_clip(error):
            raise
        if len(items) == 1:
            return [error]
        logger.debug("a batch failed; its halves follow", exc_info=True)
    half = len(items) // 2
    return attempt_each(items[:half], work) + attempt_each(items[half:], work)
