"""Windows of many recordings, decoded together; what comes of one never depends on the others."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from fairseq_openvino.errors import concerns_one_clip
from fairseq_openvino.whisper.job import Job
from fairseq_openvino.whisper.questions import Alignment, Window

logger = logging.getLogger(__name__)


def run(jobs: Iterable[Job], width: int) -> Iterator[Job]:
    """Answer the questions of at most `width` jobs at a time, in turn, so that none blocks another.

    Args:
        jobs: taken as there is room.
        width: windows decoded together.

    Yields:
        Each job whenever it got an answer; for the last time when it is done or has failed.
    """
    waiting, active = iter(jobs), list[Job]()
    while active := active + list(islice(waiting, width - len(active))):
        for job in active:
            _open_window(job)
        for group in _alike((job for job in active if job.window is not None), _length):
            _attempt(group, _encode)
        for group in _alike((job for job in active if job.question is not None), _kind):
            _attempt(group, _answer)
        yield from active
        active = [job for job in active if job.question is not None]


def _open_window(job: Job) -> None:
    """Read the next window in which somebody may speak, if the job asks for a new one."""
    try:
        while isinstance(job.question, Window) and not job.question.attempt:
            question = job.question
            found = job.source.window(question.seek, question.frames)[: job.size]
            if job.gate(question, found[: question.frames]):
                job.window = np.pad(found, ((0, job.size - len(found)), (0, 0)))
                return
            job.tell(None)
    except Exception as error:
        job.fail(error)


def _alike(jobs: Iterable[Job], key: Callable[[Job], Hashable]) -> Iterable[list[Job]]:
    """Jobs that are answered together."""
    groups: dict[Hashable, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[key(job)].append(job)
    return groups.values()


def _length(job: Job) -> Hashable:
    """Windows of one length are encoded together, so no result depends on other lengths."""
    return id(job.answers), job.size


def _kind(job: Job) -> Hashable:
    """Questions whose prompts are equally long are answered together."""
    question, answers = job.question, id(job.answers)
    if not isinstance(question, Window):
        return answers, Alignment
    return answers, question.temperature, len(question.previous), question.seek == 0


def _encode(jobs: Sequence[Job]) -> None:
    windows = np.stack([job.window for job in jobs if job.window is not None])
    memory = jobs[0].answers.encode(windows)
    for row, job in enumerate(jobs):
        job.memory, job.row, job.window = memory, row, None


def _answer(jobs: Sequence[Job]) -> None:
    answers = jobs[0].answers
    ask = answers.hear if isinstance(jobs[0].question, Window) else answers.align
    for job, answer in zip(jobs, ask(jobs), strict=True):
        job.tell(answer)


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
