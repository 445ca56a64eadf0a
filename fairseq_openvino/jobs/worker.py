"""A worker of a job: it claims batches, commits their records, and says that it lives."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from typing import Any

from fairseq_openvino.errors import FairseqOpenVINOError
from fairseq_openvino.jobs.answers import Answers, is_long
from fairseq_openvino.jobs.index import BATCH, BEGIN, Index
from fairseq_openvino.jobs.job import Job
from fairseq_openvino.jobs.leases import LEASE_SECONDS, Identity, Lease, Watch, beat, sign_on
from fairseq_openvino.journal import SYNC_SECONDS, Journal

POLL_SECONDS = 0.5
"""Between two looks at what others do, where nothing can be claimed."""
LOOKING_SHARE = 0.1
"""Of the time of a worker that waits; in a job of 100,000 batches a look takes half a second."""


class Worker:
    """A context manager; threads may share it.

    Args:
        job: to work for.
        retry_failed: decode batches with files that failed once more, too.
        lease_seconds: without a heartbeat, after which another worker is taken to be gone.
        isolated: this process looks into no audio file.
    """

    def __init__(
        self, job: Job, retry_failed: bool = False, lease_seconds: float = LEASE_SECONDS,
        isolated: bool = False,
    ) -> None:  # fmt: skip
        self.job, self.stopping = job, threading.Event()
        """Set by `stop`."""
        self._retry_failed, self._isolated = retry_failed, isolated
        self._index, self._watch = Index(job.journals), Watch(job.workers, lease_seconds)
        self._turn = threading.Condition()
        self._open: deque[Lease] = deque()
        """That could be claimed, when we looked."""
        self._held: set[int] = set()
        """Batches that are being decoded here."""
        self._pulse_seconds = min(SYNC_SECONDS, lease_seconds / 5)
        self._failure: FairseqOpenVINOError | None = None
        self._look_at = -inf
        self._is_done = False

    def __enter__(self) -> Worker:
        identity = Identity.mine()
        self.name = identity.worker
        self.journal = Journal(self.job.journals / f"{self.name}.jsonl")
        try:
            self.journal.append({"kind": BEGIN, "time": time.time(), "host": identity.host})
            self._file = sign_on(self.job.workers, self.name, identity)
        except FairseqOpenVINOError:
            self.journal.close()
            raise
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._ended.set()
        self._heart.join()
        try:
            self.journal.close()
        finally:
            with suppress(OSError):  # others see that it is silent
                self._file.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(self._pulse_seconds):
            try:
                beat(self._file)
                self.journal.sync()
            except FairseqOpenVINOError as error:
                self._failure = error
                self.stop()
                return

    def stop(self) -> None:
        """Claim nothing more, and give up what is being decoded."""
        self.stopping.set()
        with self._turn:
            self._turn.notify_all()

    def claim(self) -> Lease | None:
        """A batch to decode, the first ones first; while others decode the rest, what they may leave.

        Returns:
            None: all are done, or the worker stops.

        Raises:
            StorageError: the job's directory cannot be written.
        """
        while not self.stopping.is_set():
            with self._turn:
                lease = self._next()
                if lease is not None or self._is_done:
                    return lease
                self._turn.wait(POLL_SECONDS)
        self.check()
        return None

    def check(self) -> None:
        """Raise StorageError if the worker stops because it cannot say that it lives."""
        if self._failure is not None:
            raise self._failure

    def ledger(self, lease: Lease) -> Answers | None:
        """Of what the model answers in a batch with long recordings; None if it has none."""
        batch = self.job.plan.batches[lease.batch]
        if not any(is_long(each, self._isolated) for each in batch):
            return None
        with self._turn:
            return Answers(lease, self._index.answered(lease.batch), self.journal)

    def claim_batch(self, batch: int, epoch: int = 0) -> Lease | None:
        """This batch, as soon as nobody else decodes it.

        Args:
            batch: its number.
            epoch: the lowest that its record may have to count as done.

        Returns:
            None: it is done, or the worker stops.

        Raises:
            StorageError: the job's directory cannot be written.
        """
        lease = Lease(batch, epoch)
        while not self.stopping.is_set():
            with self._turn:
                if self._take(lease):
                    return lease
                highest = self.job.leases.highest()
                is_free = self._is_free(batch, highest)
                self._index.refresh()
                entry = self._index.done(highest).get(batch)
                if entry is not None and entry.epoch >= epoch:
                    return None
                if is_free:
                    lease = Lease(batch, highest.get(batch, -1) + 1)
                else:
                    self._turn.wait(POLL_SECONDS)
        self.check()
        return None

    def commit(self, lease: Lease, files: Sequence[dict[str, Any]]) -> None:
        """Record what became of the files of a batch; if it was lost meanwhile, that counts for nothing.

        Raises:
            StorageError: it could not be written.
        """
        self.journal.append({
            "kind": BATCH, "batch": lease.batch, "epoch": lease.epoch, "time": time.time(),
            "files": list(files),
        })  # fmt: skip
        with self._turn:
            self._held.discard(lease.batch)
            self._look_at = -inf
            self._turn.notify_all()

    def _next(self) -> Lease | None:
        if not self._open and time.monotonic() >= self._look_at:
            self._look()
        while self._open:
            lease = self._open.popleft()
            if self._take(lease):
                return lease
        return None

    def _take(self, lease: Lease) -> bool:
        if not self.job.leases.take(lease, self.name):
            return False
        self.job.reopen()
        self._held.add(lease.batch)
        return True

    def _look(self) -> None:
        """Find what can be claimed.

        Who is gone is asked before the journals are read: what they hold then is all that those have done.
        """
        began = time.monotonic()
        highest = self.job.leases.highest()
        self._index.refresh()
        known = self._index.done(highest)
        batches = range(len(self.job.plan.batches))
        free = {batch for batch in batches if batch not in known and self._is_free(batch, highest)}
        self._index.refresh()
        done = self._index.done(highest)
        for batch in batches:
            epoch = highest.get(batch, -1) + 1
            if batch not in done and batch in free:
                self._open.append(Lease(batch, epoch))
            elif self._retry_failed and batch in done and done[batch].failed:
                self._open.append(Lease(batch, max(epoch, done[batch].epoch + 1)))
        self._retry_failed = False
        self._is_done = len(done) == len(batches) and not self._open
        now = time.monotonic()
        self._look_at = now + max(POLL_SECONDS, (now - began) / LOOKING_SHARE)

    def _is_free(self, batch: int, highest: dict[int, int]) -> bool:
        if batch not in highest:
            return True
        lease, is_mine = Lease(batch, highest[batch]), batch in self._held
        return not is_mine and self._watch.is_free(self.job.leases.path(lease), self.name)
