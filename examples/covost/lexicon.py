"""Words of the miniature English-German corpus, with the forms its grammar needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """A subject in the nominative; `person` is "s1", "s3" or "p" (both plurals inflect alike)."""

    english: str
    german: str
    person: str


@dataclass(frozen=True)
class Verb:
    """A transitive verb; the German plural form equals the infinitive for all of them."""

    english: tuple[str, str, str]
    """Base, third person singular, past."""
    german: tuple[str, str, str, str]
    """Infinitive, first person, third person, participle (all perfects use "haben")."""
    objects: str
    """Which noun classes it takes: letters out of "f" food, "d" drink, "t" thing, "a" animal."""


@dataclass(frozen=True)
class Noun:
    """A noun; `gender` is "m", "f" or "n", `kind` one noun class letter."""

    english: tuple[str, str]
    german: tuple[str, str]
    gender: str
    kind: str


def _subjects(text: str) -> tuple[Subject, ...]:
    return tuple(Subject(*line.split("/")) for line in text.split(";"))


def _verbs(text: str) -> tuple[Verb, ...]:
    rows = (line.strip().split("/") for line in text.strip().splitlines())
    return tuple(Verb((r[0], r[1], r[2]), (r[3], r[4], r[5], r[6]), r[7]) for r in rows)


def _nouns(text: str) -> tuple[Noun, ...]:
    rows = (line.strip().split("/") for line in text.strip().splitlines())
    return tuple(Noun((r[0], r[1]), (r[2], r[3]), r[4], r[5]) for r in rows)


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = (entry.split("/") for entry in text.split(";"))
    return tuple((english, german) for english, german in pairs)


NAMES = ("Anna", "Peter", "Maria", "Thomas", "Laura", "Paul")

SUBJECTS = _subjects(
    "I/ich/s1;we/wir/p;they/sie/p;he/er/s3;she/sie/s3;the teacher/der Lehrer/s3;"
    "my sister/meine Schwester/s3;my brother/mein Bruder/s3;the children/die Kinder/p;"
    "our neighbour/unser Nachbar/s3;his mother/seine Mutter/s3"
) + tuple(Subject(name, name, "s3") for name in NAMES)

VERBS = _verbs(
    """
    buy/buys/bought/kaufen/kaufe/kauft/gekauft/fdta
    see/sees/saw/sehen/sehe/sieht/gesehen/fta
    find/finds/found/finden/finde/findet/gefunden/fdta
    eat/eats/ate/essen/esse/isst/gegessen/f
    cook/cooks/cooked/kochen/koche/kocht/gekocht/f
    drink/drinks/drank/trinken/trinke/trinkt/getrunken/d
    need/needs/needed/brauchen/brauche/braucht/gebraucht/fdt
    sell/sells/sold/verkaufen/verkaufe/verkauft/verkauft/ft
    bring/brings/brought/bringen/bringe/bringt/gebracht/fdt
    look for/looks for/looked for/suchen/suche/sucht/gesucht/ta
    forget/forgets/forgot/vergessen/vergesse/vergisst/vergessen/dt
    repair/repairs/repaired/reparieren/repariere/repariert/repariert/t
    carry/carries/carried/tragen/trage/trägt/getragen/ta
    lose/loses/lost/verlieren/verliere/verliert/verloren/t
    """
)

NOUNS = _nouns(
    """
    apple/apples/Apfel/Äpfel/m/f
    egg/eggs/Ei/Eier/n/f
    potato/potatoes/Kartoffel/Kartoffeln/f/f
    cake/cakes/Kuchen/Kuchen/m/f
    soup/soups/Suppe/Suppen/f/f
    coffee//Kaffee//m/d
    milk//Milch//f/d
    water//Wasser//n/d
    book/books/Buch/Bücher/n/t
    letter/letters/Brief/Briefe/m/t
    key/keys/Schlüssel/Schlüssel/m/t
    lamp/lamps/Lampe/Lampen/f/t
    chair/chairs/Stuhl/Stühle/m/t
    bag/bags/Tasche/Taschen/f/t
    bicycle/bicycles/Fahrrad/Fahrräder/n/t
    picture/pictures/Bild/Bilder/n/t
    clock/clocks/Uhr/Uhren/f/t
    newspaper/newspapers/Zeitung/Zeitungen/f/t
    camera/cameras/Kamera/Kameras/f/t
    table/tables/Tisch/Tische/m/t
    dog/dogs/Hund/Hunde/m/a
    cat/cats/Katze/Katzen/f/a
    """
)

ADJECTIVES = _pairs(
    "old/alt;new/neu;big/groß;small/klein;red/rot;green/grün;white/weiß;"
    "black/schwarz;beautiful/schön;cheap/billig;good/gut"
)

PLACES = _pairs(
    "in the kitchen/in der Küche;in the garden/im Garten;at the station/am Bahnhof;"
    "at the market/auf dem Markt;in the city/in der Stadt;at school/in der Schule;"
    "in Berlin/in Berlin;in the office/im Büro;at home/zu Hause;"
    "in front of the house/vor dem Haus;behind the church/hinter der Kirche;"
    "under the bridge/unter der Brücke;in the hotel/im Hotel"
)

DAYS = _pairs(
    "Monday/Montag;Tuesday/Dienstag;Wednesday/Mittwoch;Thursday/Donnerstag;"
    "Friday/Freitag;Saturday/Samstag;Sunday/Sonntag"
)

MONTHS = _pairs("January/Januar;May/Mai;August/August;October/Oktober")

ORDINALS = _pairs("first/ersten;second/zweiten;third/dritten;tenth/zehnten;twelfth/zwölften")

NUMBERS = _pairs(
    "two/zwei;three/drei;four/vier;five/fünf;six/sechs;seven/sieben;eight/acht;nine/neun;"
    "ten/zehn;eleven/elf;twelve/zwölf;twenty/zwanzig"
)

HOURS = NUMBERS[:11]

TIMES = _pairs(
    "today/heute;every day/jeden Tag;in the morning/am Morgen;in the evening/am Abend;"
    "in summer/im Sommer;in winter/im Winter"
)
PRESENT_TIMES = _pairs("now/jetzt;tomorrow/morgen")
PAST_TIMES = _pairs("yesterday/gestern;last week/letzte Woche")

MODALS = (
    # English for s1 and p, English for s3, German singular, German plural
    ("can", "can", "kann", "können"),
    ("must", "must", "muss", "müssen"),
    ("want to", "wants to", "will", "wollen"),
)

GREETINGS = _pairs(
    "Good morning/Guten Morgen;Good evening/Guten Abend;Thank you/Vielen Dank;Welcome/Willkommen"
)
