"""A worker's loop: some batches at a time, so that audio, encoder and decoder have work at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Queue
from typing import Any

from fairseq_openvino.jobs.transcribe import Transcribe
from fairseq_openvino.jobs.worker import Worker
from fairseq_openvino.model import News

LANES = 2
"""Batches that are decoded at the same time; they share the compiled model."""


class Stopped(Exception):
    """A batch was given up, as the worker stops."""


def work(worker: Worker, transcribe: Transcribe) -> Iterator[list[dict[str, Any]]]:
    """Decode what can be claimed, until the job is done.

    Yields:
        The records of each batch that was decoded here, once they are committed.

    Raises:
        FairseqOpenVINOError: the model, the machine or the job's directory is at fault.
    """
    done: Queue[list[dict[str, Any]] | BaseException | None] = Queue(maxsize=LANES)
    threads = [
        threading.Thread(target=_lane, args=(worker, transcribe, done), daemon=True)
        for _ in range(LANES)
    ]
    for thread in threads:
        thread.start()
    running = LANES
    try:
        while running:
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                running -= 1
            else:
                yield found
        worker.check()
    finally:
        worker.stop()
        for thread in threads:
            while thread.is_alive():
                with suppress(Empty):  # make room, so that it can end
                    done.get_nowait()
                thread.join(0.05)


def _lane(worker: Worker, transcribe: Transcribe, done: Queue[Any]) -> None:
    def heard(_: News) -> None:
        if worker.stopping.is_set():
            raise Stopped

    try:
        while (lease := worker.claim()) is not None:
            batch = worker.job.plan.batches[lease.batch]
            files = transcribe.follow([each.path for each in batch], heard, worker.ledger(lease))
            worker.commit(lease, files)
            done.put(files)
        done.put(None)
    except Stopped:
        done.put(None)
    except BaseException as error:
        done.put(error)
