"""The tables of CoVoST 2 and Common Voice: which clip belongs to which split, with its texts."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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


def read_corpus(root: Path, direction: Direction) -> list[Utterance]:
    """Join `validated.tsv` and `covost_v2.*.tsv` on the clip, in the order of `validated.tsv`.

    Source: Fairseq `examples/speech_to_text/prep_covost_data.py:CoVoST`.
    """
    table = _covost_table(root, direction)
    splits = {row["path"]: row for row in _rows(table, ("path", "translation", "split"))}
    utterances = []
    validated = _rows(_existing(root / "validated.tsv"), ("path", "sentence", "client_id"))
    for row in validated:
        entry = splits.get(row["path"])
        split = _split(entry["split"]) if entry else None
        if split is not None:
            utterances.append(
                Utterance(
                    path=row["path"],
                    sentence=row["sentence"],
                    translation=entry["translation"],
                    speaker=row["client_id"],
                    split=split,
                )
            )
    counts = {split: sum(item.split == split for item in utterances) for split in SPLITS}
    if not all(counts.values()):
        raise OptionError(
            f"Reading the corpus failed in {root}: expected clips for train, dev and test, "
            f"got {counts}. Check that validated.tsv and {table.name} belong together."
        )
    return utterances


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


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows of a table without quoting, as Fairseq's `load_df_from_tsv` reads it."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE, escapechar="\\")
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise OptionError(
                f"Reading the corpus failed in {path}: expected the columns {', '.join(columns)}, "
                f"got none named {', '.join(missing)}. Download the file again."
            )
        yield from reader


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
