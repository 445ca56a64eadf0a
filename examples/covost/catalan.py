"""Catalan sides of the miniature corpus: the grammar's English words, their forms and agreement.

Articles and "de" elide before a vowel ("l'ou", "d'agost"), adjectives follow their noun and agree
with it, the past is the periphrastic one ("va comprar").
"""

from __future__ import annotations

from typing import NamedTuple


class Noun(NamedTuple):
    """Singular, plural ("" if there is none) and gender, "m" or "f"."""

    singular: str
    plural: str
    gender: str


class Adjective(NamedTuple):
    """The four forms."""

    m: str
    f: str
    m_plural: str
    f_plural: str


class Verb(NamedTuple):
    """Infinitive and present tense."""

    infinitive: str
    s1: str
    s3: str
    p1: str
    p3: str


def _table(kind: type, text: str) -> dict[str, tuple[str, ...]]:
    rows = (line.strip().split("/") for line in text.strip().splitlines())
    return {english: kind(*forms) for english, *forms in rows}


def _words(text: str) -> dict[str, str]:
    pairs = (entry.split("/") for entry in text.split(";"))
    return {english: catalan for english, catalan in pairs}


NOUNS: dict[str, Noun] = _table(
    Noun,
    """
    apple/poma/pomes/f
    egg/ou/ous/m
    potato/patata/patates/f
    cake/pastís/pastissos/m
    soup/sopa/sopes/f
    coffee/cafè//m
    milk/llet//f
    water/aigua//f
    book/llibre/llibres/m
    letter/carta/cartes/f
    key/clau/claus/f
    lamp/làmpada/làmpades/f
    chair/cadira/cadires/f
    bag/bossa/bosses/f
    bicycle/bicicleta/bicicletes/f
    picture/quadre/quadres/m
    clock/rellotge/rellotges/m
    newspaper/diari/diaris/m
    camera/càmera/càmeres/f
    table/taula/taules/f
    dog/gos/gossos/m
    cat/gat/gats/m
    """,
)

ADJECTIVES: dict[str, Adjective] = _table(
    Adjective,
    """
    old/vell/vella/vells/velles
    new/nou/nova/nous/noves
    big/gran/gran/grans/grans
    small/petit/petita/petits/petites
    red/vermell/vermella/vermells/vermelles
    green/verd/verda/verds/verdes
    white/blanc/blanca/blancs/blanques
    black/negre/negra/negres/negres
    beautiful/bonic/bonica/bonics/boniques
    cheap/barat/barata/barats/barates
    good/bo/bona/bons/bones
    """,
)

VERBS: dict[str, Verb] = _table(
    Verb,
    """
    buy/comprar/compro/compra/comprem/compren
    see/veure/veig/veu/veiem/veuen
    find/trobar/trobo/troba/trobem/troben
    eat/menjar/menjo/menja/mengem/mengen
    cook/cuinar/cuino/cuina/cuinem/cuinen
    drink/beure/bec/beu/bevem/beuen
    need/necessitar/necessito/necessita/necessitem/necessiten
    sell/vendre/venc/ven/venem/venen
    bring/portar/porto/porta/portem/porten
    look for/buscar/busco/busca/busquem/busquen
    forget/oblidar/oblido/oblida/oblidem/obliden
    repair/reparar/reparo/repara/reparem/reparen
    carry/dur/duc/du/duem/duen
    lose/perdre/perdo/perd/perdem/perden
    """,
)

SUBJECTS = _words(
    "I/jo;we/nosaltres;they/ells;he/ell;she/ella;the teacher/el professor;"
    "my sister/la meva germana;my brother/el meu germà;the children/els nens;"
    "our neighbour/el nostre veí;his mother/la seva mare"
)
"""Names are the same in Catalan."""

PERSONS = {"I": "s1", "we": "p1", "they": "p3", "the children": "p3"}
"""The third person singular is not listed."""

PAST = {"s1": "vaig", "s3": "va", "p1": "vam", "p3": "van"}

MODALS = {
    "can": {"s1": "puc", "s3": "pot", "p1": "podem", "p3": "poden"},
    "must": {"s1": "he de", "s3": "ha de", "p1": "hem de", "p3": "han de"},
    "want to": {"s1": "vull", "s3": "vol", "p1": "volem", "p3": "volen"},
}

PLACES = _words(
    "in the kitchen/a la cuina;in the garden/al jardí;at the station/a l'estació;"
    "at the market/al mercat;in the city/a la ciutat;at school/a l'escola;in Berlin/a Berlín;"
    "in the office/a l'oficina;at home/a casa;in front of the house/davant de la casa;"
    "behind the church/darrere de l'església;under the bridge/sota el pont;in the hotel/a l'hotel"
)

DAYS = _words(
    "Monday/dilluns;Tuesday/dimarts;Wednesday/dimecres;Thursday/dijous;Friday/divendres;"
    "Saturday/dissabte;Sunday/diumenge"
)
MONTHS = _words("January/gener;May/maig;August/agost;October/octubre")
ORDINALS = _words("first/primer;second/dos;third/tres;tenth/deu;twelfth/dotze")
"""Days of a month; Catalan counts all but the first with cardinals."""

NUMBERS = _words(
    "two/dos;three/tres;four/quatre;five/cinc;six/sis;seven/set;eight/vuit;nine/nou;ten/deu;"
    "eleven/onze;twelve/dotze;twenty/vint"
)

TIMES = _words(
    "today/avui;every day/cada dia;in the morning/al matí;in the evening/al vespre;"
    "in summer/a l'estiu;in winter/a l'hivern;now/ara;tomorrow/demà;yesterday/ahir;"
    "last week/la setmana passada"
)

DEGREES = {"very": "és molt", "too": "és massa", "not": "no és"}

GREETINGS = _words(
    "Good morning/Bon dia;Good evening/Bon vespre;Thank you/Moltes gràcies;Welcome/Benvingut"
)

POSSESSIVES = {"m": "el meu", "f": "la meva"}
ARTICLES = {"m": "el", "f": "la"}


def of(word: str) -> str:
    """Put "de" before the word."""
    return f"d'{word}" if _elides(word) else f"de {word}"


def _elides(word: str) -> bool:
    return word[0] in "aeiouhàèéíòóú"


def subject(english: str) -> str:
    """A subject of the grammar."""
    return SUBJECTS.get(english, english)


def verb_group(subject: str, verb: str, tense: str, modal: str = "") -> str:
    """What an English subject does; `tense` is "present", "past" or "modal"."""
    person = PERSONS.get(subject, "s3")
    forms = VERBS[verb]
    if tense == "past":
        return f"{PAST[person]} {forms.infinitive}"
    if tense == "modal":
        auxiliary = MODALS[modal][person]
        if auxiliary.endswith(" de"):
            return f"{auxiliary.removesuffix(' de')} {of(forms.infinitive)}"
        return f"{auxiliary} {forms.infinitive}"
    return str(getattr(forms, person))


def phrase(determiner: str, adjective: str, noun: str) -> str:
    """A singular noun phrase: `determiner` is "the", "my" or "a", `adjective` "" or English."""
    word = NOUNS[noun]
    if determiner == "my":
        text = f"{POSSESSIVES[word.gender]} {word.singular}"
    elif determiner == "the":
        article = ARTICLES[word.gender]
        text = f"l'{word.singular}" if _elides(word.singular) else f"{article} {word.singular}"
    else:
        text = f"{'un' if word.gender == 'm' else 'una'} {word.singular}"
    return f"{text} {getattr(ADJECTIVES[adjective], word.gender)}" if adjective else text


def counted(number: str, adjective: str, noun: str) -> str:
    """A noun phrase of several: "dues pomes vermelles"."""
    word = NOUNS[noun]
    text = f"{_number(number, word.gender)} {word.plural}"
    return (
        f"{text} {getattr(ADJECTIVES[adjective], word.gender + '_plural')}" if adjective else text
    )


def _number(english: str, gender: str) -> str:
    return "dues" if (english, gender) == ("two", "f") else NUMBERS[english]


def hour(number: str) -> str:
    """The hours of the clock are feminine: "les dues"."""
    return f"les {_number(number, 'f')}"


def date(day: str, month: str) -> str:
    """A day of a month from its English ordinal and name."""
    return f"el {ORDINALS[day]} {of(MONTHS[month])}"


def degree(word: str, quality: str, noun: str) -> str:
    """Say "is very red" of an English noun; `word` is a key of `DEGREES`."""
    return f"{DEGREES[word]} {getattr(ADJECTIVES[quality], NOUNS[noun].gender)}"


def greeting(english: str, name: str) -> str:
    """Greet; "Welcome" agrees with the person: the women's names of the lexicon end in "a"."""
    text = GREETINGS[english]
    if english == "Welcome" and name.endswith("a"):
        text = "Benvinguda"
    return f"{text}, {name}"
