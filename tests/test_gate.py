"""What lets a quantized bundle through: what a difference proves, and faults no score excuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fairseq_openvino.model import Transcript
from fairseq_openvino.quantize.faults import Faults
from fairseq_openvino.quantize.options import Options
from fairseq_openvino.quantize.progress import Progress
from fairseq_openvino.quantize.yardstick import PASSED, REFUSED, UNCERTAIN, Loss, Yardstick
from fairseq_openvino.speech.corpus import Utterance

LIMIT = 0.5
WORDS = tuple(f"w{a}{b}{c}" for a in "abdefg" for b in "aiou" for c in "klnprst")
SPEECH = 120
"""Utterances of 4 to 21 words, 1,500 words in all."""


def yardstick(references: list[str], metric: str = "wer", people: int = 0) -> Yardstick:
    utterances = [
        Utterance(str(i), "", text, "en", "en", str(i % people) if people else None)
        for i, text in enumerate(references)
    ]
    return Yardstick(utterances, metric, Options())


def references(random: np.random.Generator) -> list[str]:
    lengths = np.resize(np.arange(4, 22), SPEECH)
    random.shuffle(lengths)
    return [" ".join(WORDS[random.integers(len(WORDS))] for _ in range(n)) for n in lengths]


def spoiled(text: str, count: int) -> str:
    """The text with its first words wrong."""
    words = text.split()
    return " ".join(["wrong"] * min(count, len(words)) + words[count:])


def systems(
    random: np.random.Generator, texts: list[str], changed: float, gain: float
) -> tuple[list[str], list[str]]:
    """An original with 13 % word errors, unevenly spread, and one that differs from it in a share of
    the utterances by one or two words, of which `gain` of 1 are for the worse."""
    before = random.negative_binomial(1, 0.38, len(texts))
    after = before + [
        (random.integers(1, 3) if random.random() < gain else -1)
        if random.random() < changed
        else 0
        for _ in texts
    ]
    return (
        [spoiled(text, n) for text, n in zip(texts, before, strict=True)],
        [spoiled(text, max(n, 0)) for text, n in zip(texts, after, strict=True)],
    )


def test_verdicts_on_1500_words() -> None:
    """A loss of 1.3 points of WER is never let through; a bundle that changes little mostly is."""
    good, bad = [], []
    for seed in range(6):
        random = np.random.default_rng(seed)
        texts = references(random)
        measured = yardstick(texts)
        assert 1400 < measured.words < 1600
        good.append(measured.loss(*systems(random, texts, 0.01, 0.5)))
        bad.append(measured.loss(*systems(random, texts, 0.12, 0.95)))
    assert 1.0 < np.mean([loss.points for loss in bad]) < 1.7
    assert PASSED not in [loss.verdict(LIMIT) for loss in bad]
    assert sum(loss.verdict(LIMIT) == REFUSED for loss in bad) >= 5
    assert sum(loss.verdict(LIMIT) == PASSED for loss in good) >= 5
    assert REFUSED not in [loss.verdict(LIMIT) for loss in good]


def test_the_real_case_would_not_have_passed() -> None:
    """tiny.en in 8 bits: 43 clips said -0.49, 46 others +1.35 [0.36, 2.47]."""
    assert Loss(-0.49, -1.8, 0.9).verdict(LIMIT) == UNCERTAIN
    assert Loss(1.35, 0.36, 2.47).verdict(LIMIT) == REFUSED
    assert Loss(0.49, -0.32, 1.40).verdict(LIMIT) == UNCERTAIN
    assert Loss(0.1, -0.2, 0.5).verdict(LIMIT) == PASSED


def test_words_needed_follow_the_width_of_the_interval() -> None:
    assert Loss(0.0, -1, 1).words_needed(0.5, 1000) == 4000
    assert Loss(0.25, -1, 1.25).words_needed(0.5, 1000) == 16000
    assert Loss(0.5, 0, 1).words_needed(0.5, 1000) is None
    random = np.random.default_rng(1)
    texts = references(random)
    original, candidate = systems(random, texts, 0.3, 0.5)
    few = yardstick(texts).loss(original, candidate)
    many = yardstick(texts * 4).loss(original * 4, candidate * 4)
    assert few.high - few.low == pytest.approx(2 * (many.high - many.low), rel=0.15)


@pytest.mark.parametrize("metric", ["wer", "bleu", "chrf"])
def test_equal_texts_prove_as_much_as_there_are_words(metric: str) -> None:
    """The rule of three: what happens in none of n cases may happen in 3 of n."""
    random = np.random.default_rng(0)
    found = []
    for count in (5, 40, 120):
        texts = references(random)[:count]
        measured = yardstick(texts, metric)
        found.append(measured.loss(texts, texts))
        assert found[-1].points == 0 == found[-1].low
        if metric == "wer":
            assert found[-1].high == pytest.approx(300 / measured.words, rel=0.15)
    assert found[0].high > 4 * found[1].high > 8 * found[2].high > 0
    assert found[0].verdict(LIMIT) == UNCERTAIN


@pytest.mark.parametrize("metric", ["wer", "bleu", "chrf"])
def test_a_loss_is_positive_for_every_metric(metric: str) -> None:
    texts = ["a b c d e f", "g h i j k l", "m n o p q r"]
    measured = yardstick(texts, metric)
    worse = ["a b c d e x", *texts[1:]]
    lost, won = measured.loss(texts, worse), measured.loss(worse, texts)
    assert lost.points > 3 and won.points == pytest.approx(-lost.points)
    for loss in (lost, won):
        assert loss.low <= loss.points <= loss.high
    assert lost.verdict(2) == REFUSED


def test_speakers_are_drawn_whole_if_there_are_enough() -> None:
    """What one person's voice does happens in all their utterances: fewer people, less proof."""
    random = np.random.default_rng(0)
    texts = references(random)
    candidate = [spoiled(text, 1) if i % 30 < 3 else text for i, text in enumerate(texts)]
    by_people, alone, few = (yardstick(texts, "wer", people) for people in (30, 0, 7))
    assert [m.drawn for m in (by_people, alone, few)] == ["speakers", "utterances", "utterances"]
    wide, narrow = (m.loss(texts, candidate) for m in (by_people, alone))
    assert wide.points == narrow.points
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_texts_without_spaces_lose_a_character() -> None:
    utterances = [Utterance(str(i), "", "你好世界", "zh", "zh") for i in range(100)]
    measured = Yardstick(utterances, "wer", Options())
    assert measured.words == 400
    assert measured.loss(measured.references, measured.references).high == pytest.approx(
        0.75, rel=0.1
    )


def transcript(text: str, *tokens: int) -> Transcript:
    best: Any = SimpleNamespace(tokens=np.array(tokens))
    return Transcript("a", text, 0.0, 1.0, ((text, best),))


def test_faults_beyond_the_originals() -> None:
    sentence = "a sentence of some words that is said once"
    said, eos = [sentence] * 5, 2
    original = [
        transcript(sentence, 7, eos), transcript("a", 7, eos), transcript(sentence, 7, eos),
        transcript(sentence, 7, eos), replace(transcript("", eos), hypotheses=()),
    ]  # fmt: skip
    candidate = [
        transcript(sentence, 7, 7), transcript(sentence, 7, eos), transcript("a " * 200, 7, 7),
        transcript(f"{sentence} {sentence[::-1]} xyz uvw rst", 7, eos), transcript("", eos),
    ]  # fmt: skip
    before, after = (Faults.of(said, texts, eos) for texts in (original, candidate))
    assert before == Faults(shorter=2)
    assert after == Faults(shorter=1, longer=2, unfinished=2, repeating=1)
    assert after.beyond(before) == {"longer": 2, "unfinished": 2, "repeating": 1}
    assert before.beyond(before) == {} and before.beyond(after) == {"shorter": 1}


def test_progress_says_the_total_from_the_first_step() -> None:
    lines: list[str] = []
    progress = Progress(100, "25 recordings and more", lines.append)
    assert lines == ["25 recordings and more: at most 100 steps"]
    with progress.stage("recording") as step:
        step(25)
        step()
    _, line = lines  # the next one is due in a while
    assert line.startswith("recording: step 25 of at most 100, at most ")
    with progress.stage("decoding") as step:
        step(80)
    assert str(progress).startswith("step 106 of at most 106, at most 0 s left")
    progress.close()


def test_an_interval_is_given_for_every_bundle(tmp_path: Path) -> None:
    """A candidate without a text in sight is refused, not divided by zero."""
    texts = references(np.random.default_rng(0))
    loss = yardstick(texts, "bleu").loss(texts, [""] * len(texts))
    assert loss.points == pytest.approx(100) and loss.verdict(LIMIT) == REFUSED
