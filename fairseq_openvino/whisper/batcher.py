"""Windows of many recordings, decoded together; what comes of one never depends on the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from fairseq_openvino.decoding import attempt_each
from fairseq_openvino.model import Memory
from fairseq_openvino.whisper.job import Job
from fairseq_openvino.whisper.questions import Alignment, Window


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
            for job, found in zip(group, attempt_each(group, _encode), strict=True):
                job.encoded(found)
        for group in _alike((job for job in active if job.question is not None), _kind):
            for job, answer in zip(group, attempt_each(group, _answers), strict=True):
                job.tell(answer)
        yield from active
        active = [job for job in active if job.question is not None]


def _open_window(job: Job) -> None:
    """Read the next window in which somebody may speak, if the job asks for a new one."""
    try:
        while isinstance(job.question, Window) and not job.question.attempt:
            job.window = job.read(job.question)
            if job.window is not None:
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


def _encode(jobs: Sequence[Job]) -> list[tuple[Memory, int]]:
    windows = np.stack([job.window for job in jobs if job.window is not None])
    memory = jobs[0].answers.encode(windows)
    return [(memory, row) for row in range(len(jobs))]


def _answers(jobs: Sequence[Job]) -> Sequence[Any]:
    answers = jobs[0].answers
    return answers.hear(jobs) if isinstance(jobs[0].question, Window) else answers.align(jobs)
