"""The driver of a recording against openai-whisper's own loop, with scripted answers in place of a model.

Where the driver means to differ, the script of the reference does what the driver should, and what the
reference returns is put right in `openai_whisper`: each place says so.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fairseq_openvino.bundle import WhisperConfig
from fairseq_openvino.model import Hypothesis
from fairseq_openvino.whisper.longform import Longform
from fairseq_openvino.whisper.options import Request, WhisperOptions
from fairseq_openvino.whisper.questions import Heard, Timing, Window
from fairseq_openvino.whisper.rules import Rules
from fairseq_openvino.whisper.windows import Outcome

EOS, FIRST, FULL, BLANK = 50257, 50364, 3000, 220
RULES = Rules(
    WhisperConfig(50258, 50361, 50362, FIRST - 1, {"en": 50259}, {}, (), (), 50, 448),
    EOS,
    51865,
    timestamps=True,
)
LADDER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Stuck(Exception):
    """The reference decodes a window again that it has decoded."""


@dataclass
class Script:
    """What a model says, whatever it hears: the same to both loops."""

    seed: int
    options: WhisperOptions
    room: int
    frames: int
    heard: list[Window] = field(default_factory=list)
    """What was asked."""
    kept: dict[int, Outcome] = field(default_factory=dict)
    """By first frame: of the attempt that counts."""
    attempts: list[tuple[list[int], Outcome]] = field(default_factory=list)
    """At the present window."""

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def answer(self, window: Window) -> tuple[list[int], Outcome] | None:
        """Tokens without <|endoftext|>; None: nobody can be speaking."""
        self.heard.append(window)
        random = self.random
        may_skip = self.options.no_speech_threshold is not None and window.attempt == 0
        if random.random() < 0.05 and may_skip:
            return None
        outcome = Outcome(
            window.temperature,
            random.choice([-0.3, -0.9, -1.0, -1.4]) + random.uniform(-0.1, 0.1),
            random.choice([1.2, 1.5, 2.4, 3.0]),
            random.choice([0.2, 0.6, 0.9]),
        )
        return tokens(random), outcome

    def timings(self, seek: int, spoken: tuple[int, ...]) -> list[Timing]:
        """When words are said: some at once, some for long, some improbable, some punctuation."""
        random = np.random.default_rng([self.seed, seek])
        found, moment, place = [], random.uniform(0, random.choice([2, 28])), 0
        while place < len(spoken):
            count = int(random.integers(1, 4))
            word = random.choice([" so", " it", "s", " goes ", ",", ".", " (", ' "', ")", "。", ""])
            end = moment + random.choice([0.0, 0.02, 0.2, 0.4, 0.9, 3.0])
            probability = random.choice([0.05, 0.3, 0.99])
            own = spoken[place : place + count]
            found.append(Timing(str(word), own, moment, end, probability))
            moment = max(end + random.choice([0.0, 0.0, 0.0, 0.3, 2.5, -0.4]), 0.0)
            place += count
        return found[:-1] if random.random() < 0.05 else found


def tokens(random: np.random.Generator) -> list[int]:
    """What a window may become: segments with times, the last one complete or not, or no times."""
    kind = random.random()
    if kind < 0.02:
        return []
    if kind < 0.1:
        return random.integers(1000, 2000, random.integers(1, 9)).tolist()
    if kind < 0.11:
        return [FIRST, FIRST]
    found: list[int] = []
    moment = int(random.integers(0, 50))
    for _ in range(random.integers(1, 5)):
        end = min(moment + int(random.choice([0, 1, 20, 150, 600])), 1500)
        text = random.integers(1000, 2000, random.integers(1, 9)).tolist()
        found += [FIRST + moment, *(text if random.random() < 0.9 else [BLANK]), FIRST + end]
        moment = min(end + int(random.integers(0, 2)) * int(random.integers(0, 100)), 1500)
    ending = random.random()
    if ending < 0.3:
        found.pop()  # cut off by the limit
    elif ending < 0.6:
        found.append(found[-1])  # another segment begins
    return found


def case(seed: int) -> tuple[int, WhisperOptions, str, int]:
    """Frames of a recording, options, prompt, and room for it."""
    random = np.random.default_rng([seed, 1])
    frames, room = (
        int(random.integers(1, random.choice([4_000, 16_000]))),
        int(random.choice([31, 223])),
    )
    words = bool(random.random() < 0.5)
    prompt = (
        " ".join(["so"] * int(random.choice([1, 5, room - 1]))) if random.random() < 0.5 else ""
    )
    clips: tuple[float, ...] = ()
    if random.random() < 0.3:
        moments = np.unique(np.round(random.uniform(0, frames / 80, random.integers(1, 6)), 3))
        clips = tuple(moments.tolist())
    options = WhisperOptions(
        temperature=[0.0, 0.6, (0.0, 0.4), LADDER][random.integers(4)],
        compression_ratio_threshold=[2.4, 2.4, None][random.integers(3)],
        logprob_threshold=[-1.0, -1.0, None][random.integers(3)],
        no_speech_threshold=[0.6, 0.6, None][random.integers(3)],
        condition_on_previous_text=bool(random.random() < 0.7),
        prompt=prompt or None,
        carry_initial_prompt=bool(prompt and random.random() < 0.5),
        clip_timestamps=clips,
        word_timestamps=words,
        timestamps=True,
        hallucination_silence_threshold=[None, 0.5, 4.0][random.integers(3)] if words else None,
    )
    return frames, options, prompt, room


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return import_module("whisper.tokenizer").get_tokenizer(True, language="en", task="transcribe")


def request_of(
    options: WhisperOptions,
    prompt: tuple[int, ...] = (),
    room: int = 223,
    hotwords: tuple[int, ...] = (),
) -> Request:
    return Request(options, "en", prompt, hotwords, (), room, (), 224)


def drive(driver: Longform, script: Script) -> None:
    """Until the recording is done, or a window did not advance, which the reference cannot leave."""
    questions, answer = driver.run(), None
    while True:
        try:
            question = questions.send(answer)
        except StopIteration:
            return
        if driver.stuck:
            return
        if isinstance(question, Window):
            found = script.answer(question)
            answer = None if found is None else heard(driver, *found)
        else:
            assert question.seek == script.heard[-1].seek
            assert question.frames == script.heard[-1].frames
            assert question.tokens and max(question.tokens) < EOS
            answer = script.timings(question.seek, question.tokens)


def heard(driver: Longform, found: list[int], outcome: Outcome) -> Heard:
    scores = np.arange(len(found) + 1, dtype=np.float32)
    best = Hypothesis(np.array([*found, EOS]), 0.0, scores, scores)
    return Heard((best,), driver.text(found), outcome)


class Reference:
    """The real `whisper.transcribe` over a script."""

    def __init__(self, script: Script, tokenizer: Any) -> None:
        self.script, self.tokenizer = script, tokenizer
        self.module = import_module("whisper.transcribe")
        self.timing = import_module("whisper.timing")

    def run(self, monkeypatch: pytest.MonkeyPatch, prompt: str) -> list[dict[str, Any]] | None:
        """Segments; None: it could not leave a window."""
        import torch

        script, options = self.script, self.script.options
        size = torch.arange(1, script.frames + 1).float()[None]  # a frame holds its own number
        mel = torch.nn.functional.pad(size, (0, FULL))
        monkeypatch.setattr(self.module, "log_mel_spectrogram", lambda *_, **__: mel)
        monkeypatch.setattr(self.module, "get_tokenizer", lambda *_, **__: self.tokenizer)
        monkeypatch.setattr(self.timing, "find_alignment", self.find_alignment)
        dims = SimpleNamespace(n_mels=1, n_audio_ctx=1500, n_text_ctx=2 * script.room + 2)
        model = SimpleNamespace(
            dims=dims, decode=self.decode, is_multilingual=True, num_languages=99,
            device=torch.device("cpu"),
        )  # fmt: skip
        # Differs: clips end with the recording at the latest.
        clips = [min(each, script.frames / 100) for each in options.clip_timestamps]
        names = (
            "temperature", "compression_ratio_threshold", "logprob_threshold", "no_speech_threshold",
            "condition_on_previous_text", "carry_initial_prompt", "word_timestamps",
            "hallucination_silence_threshold",
        )  # fmt: skip
        try:
            found = self.module.transcribe(
                model, np.zeros(0, np.float32), language="en", fp16=False, clip_timestamps=clips,
                initial_prompt=prompt or None, **{name: getattr(options, name) for name in names},
            )  # fmt: skip
        except Stuck:
            return None
        segments: list[dict[str, Any]] = found["segments"]
        return segments

    def decode(self, segment: Any, options: Any) -> Any:
        """As `Whisper.decode`."""
        script = self.script
        frames, seek = int((segment[0] > 0).sum()), int(segment[0, 0]) - 1
        previous = tuple((options.prompt or [])[-script.room :])  # as `DecodingTask` cuts it
        attempt = script.options.temperatures.index(options.temperature)
        if attempt == 0:
            script.attempts.clear()
            if any(each.seek == seek for each in script.heard):
                raise Stuck
        window = Window(seek, frames, previous, options.temperature, attempt)
        found = script.answer(window)
        if found is None:
            return self.result(segment, [], Outcome(options.temperature, -np.inf, 0.0, 1.0))
        script.attempts.append(found)
        # Differs: if all attempts fail, the best one counts, and keeps its own temperature; the last
        # one's decides about the prompt.
        if attempt + 1 == len(script.options.temperatures) and self.failed(found[1]):
            limit = script.options.compression_ratio_threshold
            fitting = [
                each
                for each in script.attempts
                if limit is None or each[1].compression_ratio <= limit
            ]
            found = max(fitting or script.attempts, key=lambda each: each[1].avg_logprob)
        script.kept[seek] = found[1]
        return self.result(segment, found[0], replace(found[1], temperature=options.temperature))

    def failed(self, outcome: Outcome) -> bool:
        options = self.script.options
        low, silent = options.logprob_threshold, options.no_speech_threshold
        if low is not None and outcome.avg_logprob < low:
            return silent is None or outcome.no_speech_prob <= silent
        limit = options.compression_ratio_threshold
        return limit is not None and outcome.compression_ratio > limit

    def result(self, segment: Any, found: list[int], outcome: Outcome) -> Any:
        result = import_module("whisper.decoding").DecodingResult
        return result(audio_features=segment, language="en", tokens=found, **vars(outcome))

    def find_alignment(
        self, model: Any, tokenizer: Any, spoken: list[int], mel: Any, frames: int
    ) -> list[Any]:
        """As `whisper.timing.find_alignment`."""
        assert frames == self.script.heard[-1].frames
        timings = self.script.timings(int(mel[0, 0]) - 1, tuple(spoken)) if spoken else []
        return [
            self.timing.WordTiming(**{**vars(each), "tokens": [*each.tokens]}) for each in timings
        ]


def reported(segments: list[dict[str, Any]], script: Script) -> list[dict[str, Any]]:
    """Differs: what is empty is left out, and so is what begins behind the recording, unless it is all;
    times lie within it, and none starts before the one in front of it."""
    seconds, latest, latest_word = script.frames / 100, 0.0, 0.0
    said = [each for each in segments if each["tokens"]]
    kept: list[dict[str, Any]] = []
    windows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for each in said:
        windows[each["seek"]].append(each)
    for window in windows.values():
        inside = [each for each in window if each["start"] < seconds]
        kept += inside if inside or kept else window[:1]
    for each in kept:
        latest = each["start"] = min(max(each["start"], latest), seconds)
        each["end"] = min(max(each["end"], latest), seconds)
        for word in each.get("words", ()):
            latest_word = word["start"] = min(max(word["start"], latest_word), seconds)
            word["end"] = min(max(word["end"], latest_word), seconds)
    return kept


def check(seed: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the reference came to an end."""
    frames, options, prompt, room = case(seed)
    theirs, ours = (Script(seed, options, room, frames) for _ in range(2))
    expected = Reference(theirs, tokenizer).run(monkeypatch, prompt)
    encoded = tuple(tokenizer.encode(f" {prompt}")) if prompt else ()

    def text(found: Any) -> str:
        decoded: str = tokenizer.decode([int(token) for token in found if token < EOS])
        return decoded.strip()

    driver = Longform(frames, FULL, RULES, request_of(options, encoded, room), text)
    drive(driver, ours)
    assert ours.heard == theirs.heard
    if expected is None:
        assert driver.stuck == 1
        return False
    expected = reported(expected, theirs)
    assert [each.seek for each in driver.segments] == [each["seek"] for each in expected]
    for mine, other in zip(driver.segments, expected, strict=True):
        assert (mine.start, mine.end) == (other["start"], other["end"])
        assert [*mine.tokens] == other["tokens"] and mine.text == other["text"].strip()
        assert vars(theirs.kept[mine.seek]).items() <= vars(mine).items()
        words = None if mine.words is None else [vars(word) for word in mine.words]
        assert words == other.get("words")
    joined = [t for t in driver.hypotheses()[0].tokens.tolist() if t < EOS and t != BLANK]
    assert joined == [t for each in expected for t in each["tokens"] if t < EOS and t != BLANK]
    return True


@pytest.mark.parametrize("block", range(10))
def test_recordings_equal_openai_whisper(
    block: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = [check(seed, tokenizer, monkeypatch) for seed in range(30 * block, 30 * block + 30)]
    assert sum(ended) > 20


@pytest.mark.soak
def test_many_recordings_equal_openai_whisper(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = [check(seed, tokenizer, monkeypatch) for seed in range(1000, 11_000)]
    assert sum(ended) > 8000
