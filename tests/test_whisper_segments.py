"""Windows of one clip against openai-whisper's own loop, with scripted outputs in place of a model."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fairseq_openvino.bundle import WhisperConfig
from fairseq_openvino.model import Hypothesis
from fairseq_openvino.whisper.rules import Rules
from fairseq_openvino.whisper.windows import Outcome, Progress

EOS, FIRST = 50257, 50364
RULES = Rules(
    WhisperConfig(50258, 50361, 50362, FIRST - 1, {"en": 50259}, {}, (), (), 50, 448),
    EOS,
    51865,
    timestamps=True,
)


def script(random: np.random.Generator) -> list[int]:
    """What a window may become: segments with times, the last one complete or not, or no times."""
    if random.random() < 0.1:
        return random.integers(1000, 2000, random.integers(1, 9)).tolist()
    tokens: list[int] = []
    moment = int(random.integers(0, 50))
    for _ in range(random.integers(1, 5)):
        end = moment + int(random.integers(1, 500))
        text = random.integers(1000, 2000, random.integers(1, 9)).tolist()
        tokens += [FIRST + moment, *text, FIRST + min(end, 1500)]
        moment = end + int(random.integers(0, 2)) * int(random.integers(0, 100))
        if moment >= 1499:
            break
    ending = random.random()
    if ending < 0.3:
        tokens.pop()  # cut off by the limit
    elif ending < 0.6:
        tokens.append(tokens[-1])  # another segment begins
    return tokens


def scripts(seed: int) -> Iterator[list[int]]:
    """Of one window after another."""
    random = np.random.default_rng(seed)
    while True:
        yield script(random)


def outcome(random: np.random.Generator) -> Outcome:
    """How the decoding of a window may go: around both thresholds of the no-speech rule."""
    return Outcome(0.0, random.uniform(-2, 0), random.uniform(0, 4), random.choice([0.2, 0.6, 0.9]))


def hypothesis(tokens: list[int]) -> Hypothesis:
    scores = np.zeros(len(tokens))
    return Hypothesis(np.array(tokens), 0.0, scores, scores)


def openai_whisper(seed: int, samples: int, **thresholds: Any) -> tuple[list[Any], int]:
    """Segments, and how many windows were decoded."""
    import torch
    from whisper.decoding import DecodingResult
    from whisper.transcribe import transcribe

    remaining, windows, random = scripts(seed), 0, np.random.default_rng(seed)

    def decode(segment: Any, options: Any) -> Any:
        nonlocal windows
        windows += 1
        return DecodingResult(
            audio_features=segment, language="en", tokens=next(remaining), **vars(outcome(random))
        )

    model = SimpleNamespace(
        dims=SimpleNamespace(n_mels=80, n_audio_ctx=1500, n_text_ctx=448), decode=decode,
        is_multilingual=True, num_languages=99, device=torch.device("cpu"),
    )  # fmt: skip
    found = transcribe(
        model, np.zeros(samples, np.float32), language="en", temperature=0.0, fp16=False,
        condition_on_previous_text=False, **thresholds,
    )  # fmt: skip
    return found["segments"], windows


THRESHOLDS = ((None, None), (0.6, None), (0.6, -1.0), (None, -1.0))
"""Of the no-speech probability and of the average log-probability."""


@pytest.mark.parametrize("seed", range(60))
def test_segments_and_windows_equal_openai_whisper(seed: int) -> None:
    samples = int(np.random.default_rng(seed).integers(1_600, 480_000))
    thresholds = THRESHOLDS[seed % 4]
    expected, windows = openai_whisper(
        seed, samples, no_speech_threshold=thresholds[0], logprob_threshold=thresholds[1]
    )
    seconds = samples // 160 / 100
    progress = Progress(samples // 160, "en", 1)
    remaining, random = scripts(seed), np.random.default_rng(seed)
    while not progress.done:
        windows -= 1
        found, how = [hypothesis([*next(remaining), EOS])], outcome(random)
        if how.is_silence(*thresholds):
            progress.skip(how)
        else:
            progress.add(found, RULES, how)
    assert windows == 0 and progress.skipped == (not expected)
    kept = [each for each in expected if each["start"] < seconds] or expected[:1]
    times = [(min(each["start"], seconds), min(each["end"], seconds)) for each in kept]
    np.testing.assert_allclose([(s.start, s.end) for s, _ in progress.segments], times, atol=1e-6)
    for (_, how), each in zip(progress.segments, kept, strict=True):
        assert vars(how).items() <= each.items()
    tokens = progress.hypotheses(EOS)[0].tokens.tolist()
    assert [token for token in tokens if token != EOS] == [t for e in kept for t in e["tokens"]]
    assert EOS not in tokens[:-1]


def test_nothing_is_invented_behind_the_audio() -> None:
    """10 s of audio, then what the padding seemed to say; and speech before the end only."""
    progress = Progress(1000, "en", 1)
    ghost = [FIRST, 1000, FIRST + 400, FIRST + 600, 1001, FIRST + 700, EOS]
    progress.add([hypothesis(ghost)], RULES, Outcome(0.0, 0.0, 1.0, 0.0))
    assert progress.done and [(s.start, s.end) for s, _ in progress.segments] == [(0.0, 8.0)]
    assert progress.hypotheses(EOS)[0].tokens.tolist() == [FIRST, 1000, FIRST + 400]
