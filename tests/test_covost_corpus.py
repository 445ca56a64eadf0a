"""The synthetic corpus of examples/covost: its grammar, its splits, its voices."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fairseq_openvino.errors import MissingDependencyError, OptionError

RECIPE = Path(__file__).parents[1] / "examples" / "covost"
MINI = RECIPE / "mini"
sys.path.insert(0, str(RECIPE))

import grammar  # noqa: E402
import synthesize  # noqa: E402

TRANSLATIONS = {
    "On Saturday we want to eat my cheap apple under the bridge.": (
        "Am Samstag wollen wir meinen billigen Apfel unter der Brücke essen."
    ),
    "They forget the table behind the church on the third of October.": (
        "Sie vergessen am dritten Oktober den Tisch hinter der Kirche."
    ),
    "Laura repairs the lamp in the morning.": "Laura repariert am Morgen die Lampe.",
    "She saw twenty lamps on the tenth of January.": (
        "Sie hat am zehnten Januar zwanzig Lampen gesehen."
    ),
    "Where is the beautiful chair?": "Wo ist der schöne Stuhl?",
    "I found a red dog.": "Ich habe einen roten Hund gefunden.",
    "There are three beautiful cameras at school.": "Es gibt drei schöne Kameras in der Schule.",
}
"""Sentences the grammar draws with seed 1: inversion, verb-final clauses, case and gender."""


def test_grammar_is_seeded_and_translates() -> None:
    pairs = grammar.sentences(4200, 1)
    assert pairs == grammar.sentences(4200, 1)
    assert pairs[:200] != grammar.sentences(200, 2)
    assert len({pair.english for pair in pairs}) == 4200
    known = {pair.english: pair.german for pair in pairs}
    for english, german in TRANSLATIONS.items():
        assert known[english] == german


def test_exhausted_grammar_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        grammar, "_sentence", lambda random: grammar.Pair(str(random.randrange(9)), "")
    )
    assert len(grammar.sentences(9, 1)) == 9
    with pytest.raises(OptionError, match="expected 10 different ones, got 9"):
        grammar.sentences(10, 1)


def test_splits_share_no_sentence() -> None:
    clips = synthesize.plan(300, 40, 40, 5)
    by_split = {
        split: {clip.sentence for clip in clips if clip.split == split}
        for split in ("train", "dev", "test")
    }
    assert [len(by_split[split]) for split in ("train", "dev", "test")] == [300, 40, 40]
    assert not by_split["train"] & (by_split["dev"] | by_split["test"])
    assert len({clip.speaker for clip in clips}) == len(synthesize.SPEAKERS)


def test_missing_espeak_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="apt-get install espeak-ng"):
        synthesize.write_corpus(tmp_path, synthesize.plan(1, 1, 1, 1))
