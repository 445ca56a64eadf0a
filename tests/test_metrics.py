"""Scores against the libraries they come from, and the bootstrap on known cases."""

from __future__ import annotations

import sys
from importlib.metadata import version

import jiwer
import numpy as np
import pytest
import sacrebleu

from fairseq_openvino.errors import MissingDependencyError, ModelError, OptionError
from fairseq_openvino.metrics import (
    METRICS,
    bootstrap_difference,
    check,
    default_metrics,
    score,
    whisper_normalizer,
)
from fairseq_openvino.speech.corpus import Utterance

REFERENCES = ["the cat sat on the mat today", "a dog barked at him", "Hello, there my old friend!"]
HYPOTHESES = ["the cat sat on a mat today", "a dog barked loudly at her", "hello there my friend"]


def test_bleu_and_chrf_are_sacrebleus() -> None:
    bleu = score(REFERENCES, HYPOTHESES, "bleu")
    assert bleu.value == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert bleu.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert score(REFERENCES, HYPOTHESES, "bleu", tokenizer="char").value == pytest.approx(
        sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize="char").score
    )
    chrf = score(REFERENCES, HYPOTHESES, "chrf")
    assert chrf.value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert "nc:6|nw:0" in chrf.signature


def test_word_errors_are_jiwers() -> None:
    wer = score(REFERENCES, HYPOTHESES, "wer")
    assert wer.value == pytest.approx(100 * jiwer.wer(REFERENCES, HYPOTHESES))
    assert wer.signature == f"jiwer:{version('jiwer')}|norm:none"
    each = [100 * (1 - jiwer.wer(*pair)) for pair in zip(REFERENCES, HYPOTHESES, strict=True)]
    accuracy = score(REFERENCES, HYPOTHESES, "accuracy").value
    assert accuracy == pytest.approx(np.mean(each))
    assert accuracy != pytest.approx(100 - wer.value)  # long utterances do not count for more


def test_an_empty_hypothesis_counts_all_its_words() -> None:
    assert score(["a b"], [""], "wer").value == 100
    assert score(["a b", "c d"], ["", "c d"], "accuracy").value == 50
    assert score(["a b"], ["a b c d e"], "accuracy").value == pytest.approx(-50)


def test_normalizers_are_openais() -> None:
    english = whisper_normalizer("en", {"colour": "color"})
    assert english("Hmm, the Colour isn't £20, Mr. Smith!") == ("the color is not £20 mister smith")
    assert english.name == "Whisper English (1 spellings)"
    assert whisper_normalizer("en_US").name == "Whisper English (no spelling table)"
    assert whisper_normalizer("de")("Über [laut] Straße, 5!") == "über straße 5 "
    assert whisper_normalizer(None).name == "Whisper basic"
    assert whisper_normalizer("zh-CN")("你好").split() == ["你", "好"]
    found = score(REFERENCES[2:], ["hello there my old friend"], "wer", english)
    assert found.value == 0 and found.signature.endswith(f"norm:{english.name}")


def test_bootstrap_of_known_cases() -> None:
    for metric in METRICS:
        assert bootstrap_difference(REFERENCES, HYPOTHESES, HYPOTHESES, metric) == (0, 0, 0)
        better = bootstrap_difference(REFERENCES, HYPOTHESES, REFERENCES, metric, samples=200)
        assert better.low <= better.difference <= better.high
        assert better.high < 0 if metric == "wer" else better.low > 0
        assert better == bootstrap_difference(REFERENCES, HYPOTHESES, REFERENCES, metric, 200)
        whole = [score(REFERENCES, texts, metric).value for texts in (HYPOTHESES, REFERENCES)]
        assert better.difference == pytest.approx(whole[1] - whole[0])


def test_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    random = np.random.default_rng(0)
    references = ["a b c d"] * 400
    wrong = [" ".join("x" if random.random() < 0.3 else w for w in "abcd") for _ in references]
    found = bootstrap_difference(references, references, wrong, "accuracy", samples=2000)
    each = np.array([100 * (1 - jiwer.wer("a b c d", text)) for text in wrong]) - 100
    error = 1.96 * each.std() / len(each) ** 0.5
    assert found.difference == pytest.approx(each.mean())
    assert found.low == pytest.approx(each.mean() - error, abs=0.15 * error)
    assert found.high == pytest.approx(each.mean() + error, abs=0.15 * error)


def test_nothing_is_scored_that_has_no_score() -> None:
    with pytest.raises(ModelError, match="expected one for each of 3 references, got 2"):
        score(REFERENCES, HYPOTHESES[:2], "bleu")
    with pytest.raises(ModelError, match="at least one utterance, got none"):
        score([], [], "wer")
    for metric in METRICS:
        with pytest.raises(ModelError, match=r"Scoring failed in reference 2: .*got ' '"):
            score(["a", " "], ["a", "b"], metric)
    with pytest.raises(ModelError, match="'clip7'.*'Hmm.', which Whisper English .* to nothing"):
        check(["Hmm."], whisper_normalizer("en"), ["clip7"])
    with pytest.raises(OptionError, match="metrics: expected some of bleu"):
        score(["a"], ["a"], "ter")
    with pytest.raises(OptionError, match="tokenizer: expected one of .*13a"):
        score(["a"], ["a"], "bleu", tokenizer="14a")


@pytest.mark.parametrize(
    ("package", "metric", "extra"),
    [("sacrebleu.metrics.bleu", "bleu", "eval"), ("jiwer", "wer", "eval")],
)
def test_missing_packages_name_their_extra(
    monkeypatch: pytest.MonkeyPatch, package: str, metric: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"fairseq-openvino\[{extra}\]"):
        score(["a"], ["a"], metric)


def test_missing_transformers_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "transformers.models.whisper.english_normalizer"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"\[whisper\].*--normalizer none"):
        whisper_normalizer("en")


def test_metrics_follow_the_corpus() -> None:
    translation = Utterance("a", "a", "x", "de", "en")
    transcript = Utterance("a", "a", "x", "en", "en")
    unknown = Utterance("a", "a", "x")
    words, texts = ("wer", "accuracy"), ("bleu", "chrf")
    assert default_metrics("fairseq", translation) == texts
    assert default_metrics("fairseq", transcript) == words
    assert default_metrics("fairseq", unknown) == texts
    assert default_metrics("plain", unknown) == words
    assert default_metrics("fairseq", translation, "src_text") == words
