"""How far a job is, from what is in its directory; nothing there is changed."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from fairseq_openvino.jobs.index import Index
from fairseq_openvino.jobs.job import Job
from fairseq_openvino.jobs.leases import Lease, holder, identity


@dataclass(frozen=True)
class WorkerStatus:
    """A worker that lives, as far as is known, or holds batches."""

    name: str
    host: str
    is_dead: bool
    """Its process is known to be; of another machine's, nothing is known."""
    heartbeat_seconds: float
    """Since its last one, by this machine's clock."""
    holds: tuple[int, ...]
    """Batches."""


@dataclass(frozen=True)
class Status:
    """Of a job."""

    inputs: int
    skipped: int
    done: int
    """Inputs, those that failed too."""
    failed: int
    batches: int
    batches_done: int
    merged: bool
    audio_seconds: float
    """Of the inputs done."""
    speed: float | None
    """Seconds of audio a second, of the workers that live; None: none does, or has done anything."""
    eta_seconds: float | None
    """Until all is done at this speed, if the rest is as long as what is done; None: nobody knows."""
    workers: tuple[WorkerStatus, ...]

    @property
    def total(self) -> int:
        """Inputs that are to be decoded."""
        return self.inputs - self.skipped

    @property
    def is_complete(self) -> bool:
        """Whether it is merged, and no record has been lost since."""
        return self.merged and self.batches_done == self.batches


def status(job: Job) -> Status:
    """Of now."""
    leases, index = job.leases.highest(), Index(job.journals)
    index.refresh()
    done = index.done(leases)
    workers = _workers(job, {b: epoch for b, epoch in leases.items() if b not in done})
    living = {each.name for each in workers if not each.is_dead}
    paces = [pace for name, pace in index.paces.items() if name in living]
    speed = sum(p.audio_seconds / (p.last - p.began) for p in paces if p.last > p.began) or None
    inputs, files = len(job.plan.inputs), sum(entry.files for entry in done.values())
    skipped = sum(each.skipped for each in job.plan.inputs)
    audio_seconds = sum(entry.seconds for entry in done.values())
    left = inputs - skipped - files
    eta = audio_seconds / files * left / speed if speed and files else None
    return Status(
        inputs=inputs, skipped=skipped, done=files,
        failed=sum(entry.failed for entry in done.values()),
        batches=len(job.plan.batches), batches_done=len(done), merged=job.results.exists(),
        audio_seconds=audio_seconds, speed=speed, eta_seconds=eta if left else 0.0, workers=workers,
    )  # fmt: skip


def _workers(job: Job, held: dict[int, int]) -> tuple[WorkerStatus, ...]:
    """Those that have not signed off, and what they hold of these batches, by their epochs.

    Of the dead only those whose batches nobody has taken over yet.
    """
    holds: dict[str | None, list[int]] = {}
    for batch, epoch in sorted(held.items()):
        holds.setdefault(holder(job.leases.path(Lease(batch, epoch))), []).append(batch)
    found = []
    for path in sorted(job.workers.glob("[!.]*")):
        who = identity(path)
        with suppress(FileNotFoundError):  # it has signed off
            silent = max(time.time() - path.stat().st_mtime, 0.0)
            mine = tuple(holds.get(path.name, ()))
            if who is not None and (mine or not who.is_dead()):
                found.append(WorkerStatus(path.name, who.host, who.is_dead(), silent, mine))
    return tuple(found)
