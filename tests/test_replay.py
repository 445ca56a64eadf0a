"""A long recording whose process was stopped after any call of the model: the same results, to the bit.

In the full form also real Whisper weights on more than ten minutes of people, see `test_whisper_real`.
"""

from __future__ import annotations

import copy
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import MINI, ROOT, Shared
from test_whisper_mini import MINI as MINI_WHISPER
from test_whisper_mini import rows
from test_whisper_real import SOURCES, SPEECH

from fairseq_openvino import load_model
from fairseq_openvino.errors import NumericsError
from fairseq_openvino.model import Transcript
from fairseq_openvino.replay import _plain
from fairseq_openvino.speech.audio import read_audio

sys.path.insert(0, str(ROOT / "scripts"))
from recordings import join, read_clips  # noqa: E402

RATE_HZ = 16_000
SEED = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "1"))
REAL_SECONDS = 630.0
REAL_STOPS = 3
SECOND_TRIES: dict[str, Any] = {
    "temperature": (0.0, 0.3, 0.7), "logprob_threshold": -0.2, "best_of": 2,
}  # fmt: skip
"""Which micro-Whisper, and real ones, need in some windows."""
CASES: dict[str, dict[str, Any]] = {
    "words": {
        "beam": 1,
        "word_timestamps": True,
        "language_windows": 3,
        "multilingual": True,
        **SECOND_TRIES,
    },  # fmt: skip
    "pieces": {"beam": 1, "chunked": True, **SECOND_TRIES},
}


class Stopped(BaseException):
    """The process ends."""


class Kept:
    """A ledger that was read from a file; the process ends after so many new answers."""

    def __init__(self, answers: list[Any], new: int | None = None) -> None:
        self.answers: list[Any] = json.loads(json.dumps(answers))
        self.new, self._next = new, 0

    def known(self) -> Any:
        self._next += 1
        return self.answers[self._next - 1] if self._next <= len(self.answers) else None

    def add(self, answer: Any) -> None:
        self.answers.append(json.loads(json.dumps(answer)))
        if self.new is not None:
            self.new -= 1
            if self.new == 0:
                raise Stopped


@contextmanager
def calls(model: Any) -> Iterator[list[str]]:
    """What the model is asked."""
    made: list[str] = []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: (made.append(name), call(*args, **named))[1]

    with pytest.MonkeyPatch.context() as patch:
        for name in ("encode", "open"):
            patch.setattr(model.model, name, counted(name, getattr(model.model, name)))
        yield made


def exact(value: Any) -> Any:
    return repr(value) if isinstance(value, Exception) else _plain(value)


def told(model: Any, audios: list[Any], ledger: Kept | None = None, **options: Any) -> list[str]:
    """All news, exactly."""
    news = model.follow(audios, 4, ledger=ledger, **options)
    return [json.dumps(msgspec.to_builtins(each, enc_hook=exact)) for each in news]


def check_every_stop(model: Any, audios: list[Any], stops: int | None, **options: Any) -> None:
    """Stop after each of the calls, or some of them, and go on in another process."""
    with calls(model) as made:
        wanted = told(model, audios, **options)
    whole = Kept([])
    assert told(model, audios, whole, **options) == wanted
    count = len(whole.answers)
    chance = random.Random(SEED)
    every = range(1, count)
    for stop in every if stops is None else sorted(chance.sample(every, min(stops, count - 1))):
        first = Kept([], stop)
        with pytest.raises(Stopped):
            told(model, audios, first, **options)
        assert first.answers == whole.answers[:stop], f"{stop} of {count}, seed {SEED}"
        second = Kept(first.answers)
        with calls(model) as after:
            assert told(model, audios, second, **options) == wanted, f"{stop} of {count}"
        assert second.answers == whole.answers and len(after) <= len(made)
    with calls(model) as after:
        assert told(model, audios, Kept(whole.answers), **options) == wanted
    assert not after, "a call whose answer is known"
    print(f"{count} calls, seed {SEED}")


def pauses(clips: list[np.ndarray]) -> np.ndarray:
    """Clips with a second of room between them."""
    room = 3e-4 * np.random.default_rng(1).standard_normal(RATE_HZ).astype(np.float32)
    return np.concatenate([part for clip in clips for part in (clip, room)])


@pytest.fixture(scope="module")
def whisper_model(micro_whisper: Path) -> Any:
    return load_model(micro_whisper)


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    """Two recordings longer than a window, and a short one."""
    clips = [read_audio(MINI_WHISPER / row["path"], RATE_HZ)[0] for row in rows("en")[:10]]
    return [pauses(clips[:4]), clips[4], pauses(clips[5:])]


EVERY_CALL = pytest.mark.parametrize(
    "full", [False, pytest.param(True, marks=pytest.mark.fault)], ids=["quick", "full"]
)


@EVERY_CALL
@pytest.mark.parametrize("case", CASES)
def test_whisper_goes_on_after_every_call(
    whisper_model: Any, speech: list[np.ndarray], case: str, full: bool
) -> None:
    audios, stops = (speech, None) if full else (speech[:1], 1)
    check_every_stop(whisper_model, audios, stops, **CASES[case])


@EVERY_CALL
def test_s2t_goes_on_after_every_call(recognizer: Any, full: bool) -> None:
    model = copy.copy(recognizer)  # as if it took 15 s at once, where it takes a minute
    model.family = copy.copy(recognizer.family)
    model.family.front_end = replace(model.family.front_end, max_frames=1500)
    paths = sorted((MINI / "clips").glob("*.mp3"))[: 24 if full else 6]
    clips = [read_audio(path, RATE_HZ)[0] for path in paths]
    assert len(long := pauses(clips)) > 15 * RATE_HZ
    check_every_stop(model, [long, clips[0]], None if full else 1, beam=1)


def test_a_call_that_failed_ends_what_is_kept(
    whisper_model: Any, speech: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made again, and may succeed."""
    model, speech, options = whisper_model, speech[:1], {"beam": 1}
    wanted, whole = told(model, speech, **options), Kept([])
    told(model, speech, whole, **options)
    decode, left = model.model.open, [2]

    def failing(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise NumericsError("scores are not numbers")
        return decode(*args)

    monkeypatch.setattr(model.model, "open", failing)
    ledger = Kept([])
    told(model, speech, ledger, **options)
    assert 0 < len(ledger.answers) < len(whole.answers)
    assert ledger.answers == whole.answers[: len(ledger.answers)]
    monkeypatch.undo()
    assert told(model, speech, Kept(ledger.answers), **options) == wanted


@pytest.mark.soak
@pytest.mark.skipif(not SOURCES or not SPEECH, reason="no weights or no speech named")
@pytest.mark.parametrize("case", ["words", "pieces"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.parent.name)
def test_real_weights_go_on(source: Path, case: str, shared: Shared, tmp_path: Path) -> None:
    from fairseq_openvino.export.whisper import export_whisper

    made = shared(source.parent.name, lambda at: export_whisper(source.parent, at / "bundle"))
    model: Any = load_model(made / "bundle")
    clips = [row for each in read_clips(Path(SPEECH)).values() for row in each]
    chance = random.Random(SEED)
    chosen: list[dict[str, str]] = []
    while sum(float(row["seconds"]) for row in chosen) < REAL_SECONDS:
        chosen.append(chance.choice(clips))
    path = join(chosen, tmp_path / "joined.wav", seed=SEED).path
    result = model.transcribe(path, **CASES[case])
    assert isinstance(result, Transcript) and result.seconds > 600
    check_every_stop(model, [path], REAL_STOPS, **CASES[case])
