"""What stops in the middle of a search leaves nothing behind for the next one (bar R10)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MICRO_WHISPER, MINI, child_environment

import fairseq_openvino.s2t.search as s2t_search
import fairseq_openvino.whisper.search as whisper_search
from fairseq_openvino import load_model
from fairseq_openvino.model import Ask, Clip, Head
from fairseq_openvino.runtime.engine import MAX_IDLE, Lease
from fairseq_openvino.runtime.session import Session

SEED = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "10"))
CLIPS = {
    "s2t": sorted((MINI / "clips").glob("*.mp3"))[:4],
    "whisper": sorted((MICRO_WHISPER / "clips").iterdir())[:4],
}
BEAMS = (1, 5)
FRESH = """
import sys
from fairseq_openvino import load_model

model, clip = load_model(sys.argv[1]), sys.argv[2]
for beam in (1, 5):
    for _, found in model.transcribe_clips([model.read(clip)], beam=beam)[0].hypotheses:
        print(found.score.hex(), found.tokens.tolist(), found.positional_scores.tobytes().hex())
"""
PLACES = [
    (Session, "step"),
    (Session, "keep"),
    (Lease, "infer"),
    (Lease, "release"),
    (s2t_search.BeamSearch, "take"),
    (whisper_search.BeamSearch, "take"),
    (whisper_search.Greedy, "take"),
]
"""Methods that raise: before they do anything, or behind all they do."""
ERRORS = (RuntimeError, MemoryError, KeyboardInterrupt, ValueError)


class Subject:
    """A model, the clips it hears, and what a fresh process makes of the first of them."""

    def __init__(self, family: str, bundle: Path) -> None:
        self.model: Any = load_model(bundle)
        self.clips: list[Clip] = [self.model.read(clip) for clip in CLIPS[family]]
        command = [sys.executable, "-c", FRESH, str(bundle), str(CLIPS[family][0])]
        self.expected = subprocess.run(
            command, capture_output=True, text=True, check=True, env=child_environment()
        ).stdout

    def found(self) -> str:
        """As the fresh process prints it."""
        lines = []
        for beam in BEAMS:
            (transcript,) = self.model.transcribe_clips(self.clips[:1], beam=beam)
            for _, each in transcript.hypotheses:
                positional = each.positional_scores.tobytes().hex()
                lines.append(f"{each.score.hex()} {each.tokens.tolist()} {positional}\n")
        return "".join(lines)

    def idle(self) -> list[int]:
        """Requests that wait in each pool."""
        engine = self.model.model.engine
        return [engine.idle(variant) for variant in engine.compiled]

    def decode(self, random: np.random.Generator) -> None:
        """Something, in a batch of any size."""
        some = random.choice(len(self.clips), random.integers(1, 4), replace=False)
        self.model.transcribe_clips([self.clips[i] for i in some], beam=int(random.choice(BEAMS)))


def raised(subject: Subject, random: np.random.Generator) -> None:
    """An error at one call of one method."""
    owner, name = PLACES[random.integers(len(PLACES))]
    error, left, early = random.choice(ERRORS), int(random.integers(1, 20)), random.random() < 0.5
    original: Callable[..., Any] = getattr(owner, name)

    def raising(self: Any, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and early:
            raise error("early")
        result = original(self, *arguments)
        if left == 0:
            raise error("late")
        return result

    with pytest.MonkeyPatch.context() as patch, suppress(*ERRORS):
        patch.setattr(owner, name, raising)
        subject.decode(random)


def interrupted(subject: Subject, random: np.random.Generator) -> None:
    """Ctrl-C at any instant."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 0.03))
            subject.decode(random)
            time.sleep(0.04)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def stepped(subject: Subject, random: np.random.Generator) -> Iterator[None]:
    """A session that is used a little and never closed."""
    clip, model = subject.clips[random.integers(len(subject.clips))], subject.model.model
    memory = model.encode(clip.features[None], np.array([len(clip.features)]))
    session = model.open(memory, 2, Head())
    for _ in range(random.integers(1, 5)):
        session.step(Ask(random.integers(4, 50, (2, 1)), random.permutation(2)))
        yield


def abandoned(subject: Subject, random: np.random.Generator) -> None:
    """Two sessions that take turns; neither is closed, and one may be given what it cannot take."""
    sessions = [stepped(subject, random), stepped(subject, random)]
    for _ in range(4):
        for each in sessions:
            next(each, None)
        if random.random() < 0.2:
            assert subject.found() == subject.expected
    clip = subject.clips[0]
    model = subject.model.model
    memory = model.encode(clip.features[None], np.array([len(clip.features)]))
    session = model.open(memory, 2, Head())
    with suppress(RuntimeError):
        session.step(Ask(np.full((3, 1), 4), np.arange(3)))  # 3 rows are not 1 utterance of 2
        session.step(Ask(np.full((3, 1), 4), np.arange(5)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("family", "count"),
    [
        ("s2t", 6),
        pytest.param("s2t", 1000, marks=pytest.mark.fault),
        pytest.param("whisper", 1000, marks=pytest.mark.fault),
    ],
)
def test_the_next_result_is_that_of_a_fresh_process(
    family: str, count: int, mini_bundle: Path, micro_whisper: Path
) -> None:
    """An interrupt within a finalizer is reported by the interpreter and goes no further."""
    subject = Subject(family, mini_bundle if family == "s2t" else micro_whisper)
    assert subject.found() == subject.expected
    random = np.random.default_rng(SEED)
    for number in range(count):
        disturb = (raised, interrupted, abandoned)[number % 3]
        disturb(subject, random)
        message = f"behind {disturb.__name__}, number {number} of seed {SEED}"
        assert subject.found() == subject.expected, message
        assert max(subject.idle()) <= MAX_IDLE, message
