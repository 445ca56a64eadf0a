"""The tables of CoVoST 2 and Common Voice: which clip belongs to which split, with its texts."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from covost_problems import Kind, Problem

from fairseq_openvino.errors import OptionError

SPLITS = ("train", "dev", "test")
TRAIN_SPLITS = ("train", "train_covost")
COVOST_URL = "https://dl.fbaipublicfiles.com/covost/covost_v2.{source}_{target}.tsv.tar.gz"


def clip_id(path: str) -> str:
    """Fairseq's utterance id of a clip."""
    return path.replace(".mp3", "")


@dataclass(frozen=True)
class Utterance:
    """One clip of the corpus; `path` is a file name below `clips/`."""

    path: str
    sentence: str
    translation: str
    speaker: str
    split: str

    @property
    def id(self) -> str:
        """The id in manifests and feature files."""
        return clip_id(self.path)


@dataclass(frozen=True)
class Direction:
    """Languages of a run; `target` is None for speech recognition."""

    source: str
    target: str | None

    @property
    def pair(self) -> str:
        """`en_de`, or `en` for recognition."""
        return self.source if self.target is None else f"{self.source}_{self.target}"

    @property
    def task(self) -> str:
        """The part of Fairseq's file names that names the task: `st_en_de` or `asr_en`."""
        return f"{'asr' if self.target is None else 'st'}_{self.pair}"

    @property
    def table_target(self) -> str:
        """Recognition borrows the splits of one translation table, as Fairseq does."""
        return self.target or ("de" if self.source == "en" else "en")


@dataclass
class Corpus:
    """Clips of one direction in the order of `validated.tsv`, and the rows that are none."""

    utterances: list[Utterance] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def joint_task(directions: list[Direction]) -> str:
    """The task of one model for all directions: `st_en_deca` for en-de and en-ca."""
    if len(directions) == 1:
        return directions[0].task
    return f"st_{directions[0].source}_{''.join(str(item.target) for item in directions)}"


def read_corpus(root: Path, direction: Direction) -> Corpus:
    """Join `validated.tsv` and `covost_v2.*.tsv` on the clip, in the order of `validated.tsv`.

    Source: Fairseq `examples/speech_to_text/prep_covost_data.py:CoVoST`.
    """
    table = _covost_table(root, direction)
    validated = _existing(root / "validated.tsv")
    corpus = Corpus()
    translations = _by_path(table, ("path", "translation", "split"), corpus.problems)
    clips = _by_path(validated, ("path", "sentence", "client_id"), corpus.problems)
    for path, clip in clips.items():
        entry = translations.get(path)
        if entry is None:
            corpus.problems.append(Problem(Kind.NO_TRANSLATION, "", path, f"not in {table.name}"))
        elif (split := _split(entry["split"])) is None:
            reason = f"split {entry['split']!r} in {table.name}"
            corpus.problems.append(Problem(Kind.OTHER_SPLIT, "", path, reason))
        else:
            texts = (clip["sentence"], entry["translation"])
            corpus.utterances.append(Utterance(path, *texts, clip["client_id"], split))
    for path in translations.keys() - clips.keys():
        split = _split(translations[path]["split"]) or ""
        reason = f"not in {validated.name}"
        corpus.problems.append(Problem(Kind.NO_CLIP, split, path, reason))
    counts = {split: sum(item.split == split for item in corpus.utterances) for split in SPLITS}
    if not all(counts.values()):
        raise OptionError(
            f"Reading the corpus failed in {root}: expected clips for train, dev and test, "
            f"got {counts}. Check that validated.tsv and {table.name} belong together."
        )
    return corpus


def _split(name: str) -> str | None:
    if name in TRAIN_SPLITS:
        return "train"
    return name if name in SPLITS else None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise OptionError(
            f"Reading the corpus failed in {path.parent}: expected {path.name}, got no such file. "
            "Unpack a Common Voice download there or run synthesize.py."
        )
    return path


def _covost_table(root: Path, direction: Direction) -> Path:
    url = COVOST_URL.format(source=direction.source, target=direction.table_target)
    archive = root / url.rsplit("/", 1)[1]
    table = root / archive.name.removesuffix(".tar.gz")
    if not table.is_file() and archive.is_file():
        with tarfile.open(archive) as packed:
            member = packed.extractfile(table.name)
            if member is not None:
                table.write_bytes(member.read())
    if not table.is_file():
        raise OptionError(
            f"Reading the corpus failed in {root}: expected {table.name}, got no such file. "
            f"Download {url} into that directory."
        )
    return table


def _by_path(
    table: Path, columns: tuple[str, ...], problems: list[Problem]
) -> dict[str, dict[str, str]]:
    """Rows of a table by clip; of several rows for one clip the first."""
    rows: dict[str, dict[str, str]] = {}
    for line, row in _rows(table, columns, problems):
        if row["path"] in rows:
            reason = f"again in line {line} of {table.name}"
            problems.append(Problem(Kind.DUPLICATE, "", row["path"], reason))
        else:
            rows[row["path"]] = row
    return rows


def _rows(
    path: Path, columns: tuple[str, ...], problems: list[Problem]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a table without quoting, as Fairseq's `load_df_from_tsv` reads it."""
    with open(path, "rb") as file:
        header = file.readline().decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
        missing = [column for column in columns if column not in header]
        if missing:
            raise OptionError(
                f"Reading the corpus failed in {path}: expected the columns {', '.join(columns)}, "
                f"got none named {', '.join(missing)}. Download the file again."
            )
        for number, line in enumerate(file, start=2):
            try:
                fields = _fields(line, len(header))
            except ValueError as error:
                where = f"line {number} of {path.name}"
                problems.append(Problem(Kind.DAMAGED_ROW, "", where, str(error)))
                continue
            yield number, dict(zip(header, fields, strict=True))


def _fields(line: bytes, count: int) -> list[str]:
    """The fields of one line.

    Raises:
        ValueError: the line is not UTF-8 text of so many fields.
    """
    text = line.decode("utf-8").rstrip("\r\n")
    if "\0" in text:
        raise ValueError("a NUL byte")
    reader = csv.reader([text], dialect="excel-tab", quoting=csv.QUOTE_NONE, escapechar="\\")
    fields = next(reader, [""])
    if len(fields) != count:
        raise ValueError(f"{len(fields)} fields instead of {count}")
    return fields


def write_rows(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table without quoting under a temporary name, then publish it."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(
            file,
            "excel-tab",
            quoting=csv.QUOTE_NONE,
            quotechar=None,
            escapechar="\\",
            lineterminator="\n",
        )
        writer.writerow(columns)
        writer.writerows(rows)
    partial.replace(path)
