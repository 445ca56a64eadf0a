"""Windows of many recordings, decoded together; what comes of one never depends on the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from fairseq_openvino.decoding import attempt_each
from fairseq_openvino.replay import Replay
from fairseq_openvino.whisper.job import Encoding, Job
from fairseq_openvino.whisper.questions import Alignment, Heard, Timing, Window


@dataclass(frozen=True)
class _Kept:
    """What became of a job when a window was heard."""

    heard: Heard | None
    language: str | None
    language_probabilities: dict[str, float]


def run(jobs: Iterable[Job], width: int, replay: Replay | None = None) -> Iterator[Job]:
    """Answer the questions of at most `width` jobs at a time, in turn, so that none blocks another.

    Args:
        jobs: taken as there is room.
        width: windows decoded together.
        replay: of the calls of the model.

    Yields:
        Each job whenever it got an answer; for the last time when it is done or has failed.
    """
    waiting, active, replay = iter(jobs), list[Job](), replay or Replay()
    encode, answer = partial(_encode, replay), partial(_answers, replay)
    while active := active + list(islice(waiting, width - len(active))):
        for job in active:
            _open_window(job)
        for group in _alike((job for job in active if job.window is not None), _length):
            for job, found in zip(group, attempt_each(group, encode), strict=True):
                job.encoded(found)
        for group in _alike((job for job in active if job.question is not None), _kind):
            for job, told in zip(group, attempt_each(group, answer), strict=True):
                job.tell(told)
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


def _encode(replay: Replay, jobs: Sequence[Job]) -> list[tuple[Encoding, int]]:
    """Now; or, if a call that was made before needed the windows, when a new call needs them again."""
    windows = np.stack([job.window for job in jobs if job.window is not None])
    encoding = Encoding(jobs[0].answers.encode, windows)
    replay(int, lambda: encoding.memory.utterances)
    return [(encoding, row) for row in range(len(jobs))]


def _answers(replay: Replay, jobs: Sequence[Job]) -> Sequence[Any]:
    answers = jobs[0].answers
    if isinstance(jobs[0].question, Alignment):
        return replay(list[list[Timing]], lambda: answers.align(jobs))

    def hear() -> list[_Kept]:
        found = zip(jobs, answers.hear(jobs), strict=True)
        return [_Kept(heard, job.language, job.language_probabilities) for job, heard in found]

    kept = replay(list[_Kept], hear)
    for job, each in zip(jobs, kept, strict=True):
        job.language, job.language_probabilities = each.language, each.language_probabilities
    return [each.heard for each in kept]
