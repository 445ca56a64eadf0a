"""Windows of many recordings, decoded together; what comes of one never depends on the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from fairseq_openvino.errors import concerns_one_clip
from fairseq_openvino.whisper.answers import Answers
from fairseq_openvino.whisper.job import Job
from fairseq_openvino.whisper.questions import Alignment, Window

logger = logging.getLogger(__name__)

Gate = Callable[[Job, np.ndarray], bool]
"""Whether anybody may be speaking in a window (T, F) of a job."""


def run(jobs: Iterable[Job], answers: Answers, width: int, gate: Gate) -> Iterator[Job]:
    """Answer the questions of at most `width` jobs at a time, in turn, so that none blocks another.

    Args:
        jobs: taken as there is room.
        answers: of the model.
        width: windows decoded together.
        gate: windows that it does not pass are answered by None, without the model.

    Yields:
        Each job whenever it got an answer; for the last time when it is done or has failed.
    """
    waiting, active = iter(jobs), list[Job]()
    while active := active + list(islice(waiting, width - len(active))):
        for job in active:
            _open_window(job, gate)
        for size in sorted({job.size for job in active if job.window is not None}):
            group = [job for job in active if job.window is not None and job.size == size]
            _attempt(group, lambda some: _encode(some, answers))
        for key in sorted({_key(job) for job in active if job.question is not None}):
            group = [job for job in active if job.question is not None and _key(job) == key]
            _attempt(group, lambda some: _answer(some, answers))
        yield from active
        active = [job for job in active if job.question is not None]


def _open_window(job: Job, gate: Gate) -> None:
    """Read the next window in which somebody may speak, if the job asks for a new one."""
    try:
        while isinstance(job.question, Window) and not job.question.attempt:
            window = job.source.window(job.question.seek, job.question.frames, job.size)
            if gate(job, window):
                job.window = window
                return
            job.tell(None)
    except Exception as error:
        job.fail(error)


def _encode(jobs: Sequence[Job], answers: Answers) -> None:
    memory = answers.encode(np.stack([job.window for job in jobs if job.window is not None]))
    for row, job in enumerate(jobs):
        job.memory, job.row, job.window = memory, row, None


def _answer(jobs: Sequence[Job], answers: Answers) -> None:
    ask = answers.align if isinstance(jobs[0].question, Alignment) else answers.hear
    found: Sequence[Any] = ask(jobs, [job.question for job in jobs])
    for job, answer in zip(jobs, found, strict=True):
        job.tell(answer)


def _key(job: Job) -> tuple[bool, float, int, bool]:
    """Questions with equal ones can be answered together."""
    question = job.question
    if not isinstance(question, Window):
        return True, 0.0, 0, False
    return False, question.temperature, len(question.previous), question.seek == 0


def _attempt(jobs: Sequence[Job], work: Callable[[Sequence[Job]], None]) -> None:
    """All together; if that fails, in halves, down to the jobs at fault."""
    try:
        if jobs:
            work(jobs)
    except Exception as error:
        if not concerns_one_clip(error):
            raise
        if len(jobs) == 1:
            jobs[0].fail(error)
            return
        logger.debug("a batch failed; its halves follow", exc_info=True)
        half = len(jobs) // 2
        _attempt(jobs[:half], work)
        _attempt(jobs[half:], work)
