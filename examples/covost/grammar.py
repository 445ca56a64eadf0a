"""A seeded grammar of English sentences and their German and Catalan translations."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import catalan as ca
import lexicon as lex

from fairseq_openvino.errors import OptionError

MAX_REPEATS = 10_000
"""Give up when this many draws in a row produced no new sentence."""

NOMINATIVE = {"m": "der", "f": "die", "n": "das"}
ACCUSATIVE = {"m": "den", "f": "die", "n": "das"}
EIN_NOMINATIVE = {"m": "", "f": "e", "n": ""}
EIN_ACCUSATIVE = {"m": "en", "f": "e", "n": ""}
STRONG_NOMINATIVE = {"m": "er", "f": "e", "n": "es"}
STRONG_ACCUSATIVE = {"m": "en", "f": "e", "n": "es"}


@dataclass(frozen=True)
class Sentence:
    """One sentence and its translations."""

    english: str
    german: str
    catalan: str


Texts = tuple[str, str, str]
"""English, German and Catalan of a part of a sentence."""


def sentences(count: int, seed: int) -> list[Sentence]:
    """Draw `count` different English sentences; the same seed gives the same list."""
    random = Random(seed)
    drawn: dict[str, Sentence] = {}
    repeats = 0
    while len(drawn) < count:
        sentence = _sentence(random)
        repeats = repeats + 1 if sentence.english in drawn else 0
        drawn.setdefault(sentence.english, sentence)
        if repeats > MAX_REPEATS:
            raise OptionError(
                f"Drawing sentences failed in the grammar: expected {count} different ones, "
                f"got {len(drawn)}. Ask for fewer clips."
            )
    return list(drawn.values())


def _sentence(random: Random) -> Sentence:
    kinds = (_statement, _two_statements, _description, _question, _exists, _short)
    kind = random.choices(kinds, weights=(52, 8, 13, 11, 7, 9))[0]
    return Sentence(*(text[0].upper() + text[1:] for text in kind(random)))


def _statement(random: Random) -> Texts:
    return _each("{}.", _clause(random))


def _two_statements(random: Random) -> Texts:
    first, second = _clause(random), _clause(random)
    links = (" and ", " und ", " i ") if _happens(random, 0.5) else (", but ", ", aber ", ", però ")
    return _each("{}{}{}.", first, links, second)


def _each(pattern: str, *parts: Texts) -> Texts:
    """Fill the pattern in every language."""
    english, german, catalan = (pattern.format(*words) for words in zip(*parts, strict=True))
    return english, german, catalan


def _clause(random: Random) -> Texts:
    """A transitive clause: German puts the finite verb second and the other verb last."""
    subject, verb = random.choice(lex.SUBJECTS), random.choice(lex.VERBS)
    tense = random.choices(("present", "past", "modal"), weights=(4, 3, 3))[0]
    english_verb, finite, last, catalan_verb = _verb_forms(random, subject, verb, tense)
    nouns = [noun for noun in lex.NOUNS if noun.kind in verb.objects]
    english_object, german_object, catalan_object = _object(random, random.choice(nouns))
    time = _time(random, tense) if _happens(random, 0.5) else None
    place = _place(random) if _happens(random, 0.4) else ("", "", "")
    english = [subject.english, english_verb, english_object, place[0]]
    german = [subject.german, finite, "", german_object, place[1], last]
    catalan = [ca.subject(subject.english), catalan_verb, catalan_object, place[2]]
    if time is not None and _happens(random, 0.4):
        english.insert(0, time[0])
        german[:3] = [time[1], finite, subject.german]
        catalan.insert(0, time[2])
    elif time is not None:
        english.append(time[0])
        german[2] = time[1]
        catalan.append(time[2])
    return _join(english), _join(german), _join(catalan)


def _verb_forms(
    random: Random, subject: lex.Subject, verb: lex.Verb, tense: str
) -> tuple[str, str, str, str]:
    """English verb group, German finite verb and final verb ("" if none), Catalan verb group."""
    third = subject.person == "s3"
    base = verb.english[0]
    infinitive, first_form, third_form, participle = verb.german
    if tense == "modal":
        modal, modal_third, singular, plural = random.choice(lex.MODALS)
        catalan = ca.verb_group(subject.english, base, tense, modal)
        finite = plural if subject.person == "p" else singular
        return f"{modal_third if third else modal} {base}", finite, infinitive, catalan
    catalan = ca.verb_group(subject.english, base, tense)
    if tense == "past":
        auxiliary = {"s1": "habe", "s3": "hat", "p": "haben"}[subject.person]
        return verb.english[2], auxiliary, participle, catalan
    finite = {"s1": first_form, "s3": third_form, "p": infinitive}[subject.person]
    return verb.english[1 if third else 0], finite, "", catalan


def _object(random: Random, noun: lex.Noun) -> Texts:
    """A noun phrase in the accusative."""
    adjective = random.choice(lex.ADJECTIVES) if _happens(random, 0.4) else None
    if noun.english[1] and _happens(random, 0.3):
        return _counted(random.choice(lex.NUMBERS), adjective, noun)
    determiner = random.choice(("the", "my") if noun.kind == "d" else ("the", "my", "a"))
    if determiner == "the":
        return _phrase("the", ACCUSATIVE[noun.gender], adjective, _weak_accusative(noun), noun)
    german = ("mein" if determiner == "my" else "ein") + EIN_ACCUSATIVE[noun.gender]
    if determiner == "a":
        first_word = adjective[0] if adjective else noun.english[0]
        determiner = "an" if first_word[0] in "aeiou" else "a"
    return _phrase(determiner, german, adjective, STRONG_ACCUSATIVE[noun.gender], noun)


def _weak_accusative(noun: lex.Noun) -> str:
    return "en" if noun.gender == "m" else "e"


def _counted(number: tuple[str, str], adjective: tuple[str, str] | None, noun: lex.Noun) -> Texts:
    english, german = adjective or ("", "")
    ending = "e" if german else ""
    return (
        _join([number[0], english, noun.english[1]]),
        _join([number[1], german + ending, noun.german[1]]),
        ca.counted(number[0], english, noun.english[0]),
    )


def _phrase(
    english: str, german: str, adjective: tuple[str, str] | None, ending: str, noun: lex.Noun
) -> Texts:
    catalan = ca.phrase(english, adjective[0] if adjective else "", noun.english[0])
    if adjective is None:
        return f"{english} {noun.english[0]}", f"{german} {noun.german[0]}", catalan
    return (
        f"{english} {adjective[0]} {noun.english[0]}",
        f"{german} {adjective[1]}{ending} {noun.german[0]}",
        catalan,
    )


def _subject_phrase(random: Random) -> tuple[lex.Noun, Texts]:
    """A singular noun and its phrase in the nominative."""
    noun = random.choice(lex.NOUNS)
    adjective = random.choice(lex.ADJECTIVES) if _happens(random, 0.5) else None
    if _happens(random, 0.5):
        return noun, _phrase("the", NOMINATIVE[noun.gender], adjective, "e", noun)
    german = "mein" + EIN_NOMINATIVE[noun.gender]
    return noun, _phrase("my", german, adjective, STRONG_NOMINATIVE[noun.gender], noun)


def _description(random: Random) -> Texts:
    noun, subject = _subject_phrase(random)
    if _happens(random, 0.5):
        return _each("{} {} {}.", subject, ("is", "ist", "és"), _place(random))
    degree = random.choice((("very", "sehr"), ("too", "zu"), ("not", "nicht")))
    quality = random.choice(lex.ADJECTIVES)
    predicate = (
        f"is {degree[0]} {quality[0]}",
        f"ist {degree[1]} {quality[1]}",
        ca.degree(degree[0], quality[0], noun.english[0]),
    )
    return _each("{} {}.", subject, predicate)


def _question(random: Random) -> Texts:
    _, subject = _subject_phrase(random)
    kind = random.choice(("where", "cost", "whether"))
    english, german, catalan = subject
    if kind == "where":
        return f"where is {english}?", f"wo ist {german}?", f"on és {catalan}?"
    if kind == "cost":
        return f"how much does {english} cost?", f"was kostet {german}?", f"quant costa {catalan}?"
    place = _place(random)
    return (
        f"is {english} {place[0]}?",
        f"ist {german} {place[1]}?",
        f"{catalan} és {place[2]}?",
    )


def _exists(random: Random) -> Texts:
    noun = random.choice([noun for noun in lex.NOUNS if noun.english[1]])
    adjective = random.choice(lex.ADJECTIVES) if _happens(random, 0.5) else None
    things = _counted(random.choice(lex.NUMBERS), adjective, noun)
    return _each("{} {} {}.", ("there are", "es gibt", "hi ha"), things, _place(random))


def _short(random: Random) -> Texts:
    """One to three words, so that clips of about a second occur."""
    kind = random.choice(("greeting", "clock", "sighting"))
    if kind == "greeting":
        greeting, name = random.choice(lex.GREETINGS), random.choice(lex.NAMES)
        texts = (*(f"{text}, {name}" for text in greeting), ca.greeting(greeting[0], name))
        return _each("{}.", texts)
    if kind == "clock":
        english, german = random.choice(lex.NUMBERS)
        return f"it is {english} o'clock.", f"es ist {german} Uhr.", f"són {ca.hour(english)}."
    subject = random.choice(lex.SUBJECTS)
    english, finite, last, catalan = _verb_forms(
        random, subject, random.choice(lex.VERBS[:3]), "past"
    )
    noun = random.choice([noun for noun in lex.NOUNS if noun.kind == "a"])
    english_object, german_object, catalan_object = _object(random, noun)
    return (
        f"{subject.english} {english} {english_object}.",
        f"{subject.german} {finite} {german_object} {last}.",
        f"{ca.subject(subject.english)} {catalan} {catalan_object}.",
    )


def _place(random: Random) -> Texts:
    english, german = random.choice(lex.PLACES)
    return english, german, ca.PLACES[english]


def _time(random: Random, tense: str) -> Texts:
    kind = random.choice(("day", "clock", "date", "other"))
    if kind == "day":
        english, german = random.choice(lex.DAYS)
        return f"on {english}", f"am {german}", ca.DAYS[english]
    if kind == "clock":
        english, german = random.choice(lex.HOURS)
        return f"at {english} o'clock", f"um {german} Uhr", f"a {ca.hour(english)}"
    if kind == "date":
        month, day = random.choice(lex.MONTHS), random.choice(lex.ORDINALS)
        catalan = ca.date(day[0], month[0])
        return f"on the {day[0]} of {month[0]}", f"am {day[1]} {month[1]}", catalan
    more = lex.PAST_TIMES if tense == "past" else lex.PRESENT_TIMES
    english, german = random.choice(lex.TIMES + more)
    return english, german, ca.TIMES[english]


def _happens(random: Random, probability: float) -> bool:
    return random.random() < probability


def _join(words: list[str]) -> str:
    return " ".join(word for word in words if word)
