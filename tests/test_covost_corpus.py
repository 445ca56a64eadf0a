"""The synthetic corpus of examples/covost: its grammar, its splits, its voices."""

from __future__ import annotations

import hashlib
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

CATALAN = {
    "On the first of October my brother needs the milk in the garden.": (
        "El primer d'octubre el meu germà necessita la llet al jardí."
    ),
    "The teacher repaired two good keys at home on the third of May.": (
        "El professor va reparar dues claus bones a casa el tres de maig."
    ),
    "The children must need my beautiful table in the morning.": (
        "Els nens han de necessitar la meva taula bonica al matí."
    ),
    "The red water is in the hotel.": "L'aigua vermella és a l'hotel.",
    "My key is not cheap.": "La meva clau no és barata.",
    "How much does the good dog cost?": "Quant costa el gos bo?",
    "It is twelve o'clock.": "Són les dotze.",
    "There are ten new chairs in front of the house.": "Hi ha deu cadires noves davant de la casa.",
}
"""Elided articles and "de", agreement with the noun, the periphrastic past, feminine hours."""

TABLES_SHA256 = {
    "validated.tsv": "8e861c30d930be0d67e070f7c2b0462a0d11c6e1b29cac99c0675a3859956801",
    "covost_v2.en_de.tsv": "9de131d0cf4a8fadacd6cbeaa3252c52969951e9d314ac5be4c5e268a4facc4d",
}
"""English and German of `--train 40 --dev 4 --test 4 --seed 1`: the shipped models' texts."""


def test_grammar_is_seeded_and_translates() -> None:
    pairs = grammar.sentences(4200, 1)
    assert pairs == grammar.sentences(4200, 1)
    assert pairs[:200] != grammar.sentences(200, 2)
    assert len({pair.english for pair in pairs}) == 4200
    known = {pair.english: pair for pair in pairs}
    assert {english: known[english].german for english in TRANSLATIONS} == TRANSLATIONS
    assert {english: known[english].catalan for english in CATALAN} == CATALAN


def test_exhausted_grammar_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        grammar, "_sentence", lambda random: grammar.Sentence(str(random.randrange(9)), "", "")
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


def test_english_and_german_tables_never_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesize, "_speak", lambda clip, directory: None)
    clips = synthesize.plan(40, 4, 4, 1)
    synthesize.write_corpus(tmp_path, clips)
    written = {
        name: hashlib.sha256((tmp_path / "en" / name).read_bytes()).hexdigest()
        for name in TABLES_SHA256
    }
    assert written == TABLES_SHA256
    catalan = (tmp_path / "en/covost_v2.en_ca.tsv").read_text("utf-8").splitlines()
    assert catalan[1].split("\t") == [clips[0].path, clips[0].translations["ca"], "train"]


def test_missing_espeak_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="apt-get install espeak-ng"):
        synthesize.write_corpus(tmp_path, synthesize.plan(1, 1, 1, 1))
