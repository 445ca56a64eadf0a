"""A seeded grammar of English sentences and their German translations."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

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
class Pair:
    """One sentence and its translation."""

    english: str
    german: str


def sentences(count: int, seed: int) -> list[Pair]:
    """Draw `count` pairs with different English sides; the same seed gives the same list."""
    random = Random(seed)
    pairs: dict[str, Pair] = {}
    repeats = 0
    while len(pairs) < count:
        pair = _sentence(random)
        repeats = repeats + 1 if pair.english in pairs else 0
        pairs.setdefault(pair.english, pair)
        if repeats > MAX_REPEATS:
            raise OptionError(
                f"Drawing sentences failed in the grammar: expected {count} different ones, "
                f"got {len(pairs)}. Ask for fewer clips."
            )
    return list(pairs.values())


def _sentence(random: Random) -> Pair:
    kinds = (_statement, _two_statements, _description, _question, _exists, _short)
    kind = random.choices(kinds, weights=(52, 8, 13, 11, 7, 9))[0]
    english, german = kind(random)
    return Pair(english[0].upper() + english[1:], german[0].upper() + german[1:])


def _statement(random: Random) -> tuple[str, str]:
    english, german = _clause(random)
    return f"{english}.", f"{german}."


def _two_statements(random: Random) -> tuple[str, str]:
    first, second = _clause(random), _clause(random)
    if _happens(random, 0.5):
        return f"{first[0]} and {second[0]}.", f"{first[1]} und {second[1]}."
    return f"{first[0]}, but {second[0]}.", f"{first[1]}, aber {second[1]}."


def _clause(random: Random) -> tuple[str, str]:
    """A transitive clause: German puts the finite verb second and the other verb last."""
    subject, verb = random.choice(lex.SUBJECTS), random.choice(lex.VERBS)
    tense = random.choices(("present", "past", "modal"), weights=(4, 3, 3))[0]
    english_verb, finite, last = _verb_forms(random, subject, verb, tense)
    nouns = [noun for noun in lex.NOUNS if noun.kind in verb.objects]
    english_object, german_object = _object(random, random.choice(nouns))
    time = _time(random, tense) if _happens(random, 0.5) else None
    place = random.choice(lex.PLACES) if _happens(random, 0.4) else ("", "")
    english = [subject.english, english_verb, english_object, place[0]]
    german = [subject.german, finite, "", german_object, place[1], last]
    if time is not None and _happens(random, 0.4):
        english.insert(0, time[0])
        german[:3] = [time[1], finite, subject.german]
    elif time is not None:
        english.append(time[0])
        german[2] = time[1]
    return _join(english), _join(german)


def _verb_forms(
    random: Random, subject: lex.Subject, verb: lex.Verb, tense: str
) -> tuple[str, str, str]:
    """The English verb group, the German finite verb and the German final verb ("" if none)."""
    third = subject.person == "s3"
    infinitive, first_form, third_form, participle = verb.german
    if tense == "past":
        auxiliary = {"s1": "habe", "s3": "hat", "p": "haben"}[subject.person]
        return verb.english[2], auxiliary, participle
    if tense == "modal":
        base, base_third, singular, plural = random.choice(lex.MODALS)
        modal = base_third if third else base
        finite = plural if subject.person == "p" else singular
        return f"{modal} {verb.english[0]}", finite, infinitive
    finite = {"s1": first_form, "s3": third_form, "p": infinitive}[subject.person]
    return verb.english[1 if third else 0], finite, ""


def _object(random: Random, noun: lex.Noun) -> tuple[str, str]:
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


def _counted(
    number: tuple[str, str], adjective: tuple[str, str] | None, noun: lex.Noun
) -> tuple[str, str]:
    english, german = adjective or ("", "")
    ending = "e" if german else ""
    return (
        _join([number[0], english, noun.english[1]]),
        _join([number[1], german + ending, noun.german[1]]),
    )


def _phrase(
    english: str, german: str, adjective: tuple[str, str] | None, ending: str, noun: lex.Noun
) -> tuple[str, str]:
    if adjective is None:
        return f"{english} {noun.english[0]}", f"{german} {noun.german[0]}"
    return (
        f"{english} {adjective[0]} {noun.english[0]}",
        f"{german} {adjective[1]}{ending} {noun.german[0]}",
    )


def _subject_phrase(random: Random) -> tuple[str, str]:
    """A singular noun phrase in the nominative."""
    noun = random.choice(lex.NOUNS)
    adjective = random.choice(lex.ADJECTIVES) if _happens(random, 0.5) else None
    if _happens(random, 0.5):
        return _phrase("the", NOMINATIVE[noun.gender], adjective, "e", noun)
    german = "mein" + EIN_NOMINATIVE[noun.gender]
    return _phrase("my", german, adjective, STRONG_NOMINATIVE[noun.gender], noun)


def _description(random: Random) -> tuple[str, str]:
    english, german = _subject_phrase(random)
    if _happens(random, 0.5):
        place = random.choice(lex.PLACES)
        return f"{english} is {place[0]}.", f"{german} ist {place[1]}."
    degree = random.choice((("very", "sehr"), ("too", "zu"), ("not", "nicht")))
    quality = random.choice(lex.ADJECTIVES)
    return f"{english} is {degree[0]} {quality[0]}.", f"{german} ist {degree[1]} {quality[1]}."


def _question(random: Random) -> tuple[str, str]:
    english, german = _subject_phrase(random)
    kind = random.choice(("where", "cost", "whether"))
    if kind == "where":
        return f"where is {english}?", f"wo ist {german}?"
    if kind == "cost":
        return f"how much does {english} cost?", f"was kostet {german}?"
    place = random.choice(lex.PLACES)
    return f"is {english} {place[0]}?", f"ist {german} {place[1]}?"


def _exists(random: Random) -> tuple[str, str]:
    noun = random.choice([noun for noun in lex.NOUNS if noun.english[1]])
    adjective = random.choice(lex.ADJECTIVES) if _happens(random, 0.5) else None
    english, german = _counted(random.choice(lex.NUMBERS), adjective, noun)
    place = random.choice(lex.PLACES)
    return f"there are {english} {place[0]}.", f"es gibt {german} {place[1]}."


def _short(random: Random) -> tuple[str, str]:
    """One to three words, so that clips of about a second occur."""
    kind = random.choice(("greeting", "clock", "sighting"))
    if kind == "greeting":
        greeting, name = random.choice(lex.GREETINGS), random.choice(lex.NAMES)
        return f"{greeting[0]}, {name}.", f"{greeting[1]}, {name}."
    if kind == "clock":
        number = random.choice(lex.NUMBERS)
        return f"it is {number[0]} o'clock.", f"es ist {number[1]} Uhr."
    subject = random.choice(lex.SUBJECTS)
    english, finite, last = _verb_forms(random, subject, random.choice(lex.VERBS[:3]), "past")
    noun = random.choice([noun for noun in lex.NOUNS if noun.kind == "a"])
    english_object, german_object = _object(random, noun)
    return (
        f"{subject.english} {english} {english_object}.",
        f"{subject.german} {finite} {german_object} {last}.",
    )


def _time(random: Random, tense: str) -> tuple[str, str]:
    kind = random.choice(("day", "clock", "date", "other"))
    if kind == "day":
        english, german = random.choice(lex.DAYS)
        return f"on {english}", f"am {german}"
    if kind == "clock":
        english, german = random.choice(lex.HOURS)
        return f"at {english} o'clock", f"um {german} Uhr"
    if kind == "date":
        month, day = random.choice(lex.MONTHS), random.choice(lex.ORDINALS)
        return f"on the {day[0]} of {month[0]}", f"am {day[1]} {month[1]}"
    return random.choice(lex.TIMES + (lex.PAST_TIMES if tense == "past" else lex.PRESENT_TIMES))


def _happens(random: Random, probability: float) -> bool:
    return random.random() < probability


def _join(words: list[str]) -> str:
    return " ".join(word for word in words if word)
