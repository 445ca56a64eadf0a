"""Reading on while what was read is worked on."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextvars import copy_context
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
WAIT_SECONDS = 0.1


def ahead(items: Iterable[Item], count: int) -> Generator[Item, None, None]:
    """The same items; a thread takes at most `count` of them before they are asked for.

    It ends with the items, or when the iterator is closed. An error of the items is raised in its turn.
    """
    taken: Queue[tuple[Item | None, BaseException | None]] = Queue(count)
    closed = Event()

    def put(item: Item | None, error: BaseException | None = None) -> bool:
        while not closed.is_set():
            try:
                taken.put((item, error), timeout=WAIT_SECONDS)
                return True
            except Full:
                pass
        return False

    def take() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = Thread(target=copy_context().run, args=(take,), daemon=True)
    thread.start()
    try:
        while True:
            item, error = taken.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()
