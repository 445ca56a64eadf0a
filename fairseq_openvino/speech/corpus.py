"""Corpora as a stream of utterances: five layouts, one iterator.

| layout            | recognised by                            | id                 | reference   |
|-------------------|------------------------------------------|--------------------|-------------|
| Fairseq manifest  | TSV with `id`, `audio`, `tgt_text`       | `id`               | `tgt_text`  |
| Common Voice      | TSV with `path`, `sentence`              | `path`, no suffix  | `sentence`  |
| plain             | TSV with `path`, `text`                  | `path`             | `text`      |
| wav2vec           | TSV of a directory, `.wrd` or `.ltr`     | file, no suffix    | a line of it |
| LibriSpeech       | a directory with `*.trans.txt`           | first word         | the rest    |

Audio is looked up beside the file (Common Voice: in `clips`), for a Fairseq manifest below the
`audio_root` of its YAML first. Every row is checked when it is reached; nothing is skipped.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path

from fairseq_openvino.errors import MissingDependencyError, ModelError, failure, invalid
from fairseq_openvino.speech.audio import AUDIO_EXTENSIONS
from fairseq_openvino.speech.configuration import read_yaml
from fairseq_openvino.speech.slices import NUMBER, Slice

ACTION = "Reading a corpus"
_fail = partial(failure, ModelError, ACTION)

FAIRSEQ, COMMON_VOICE, PLAIN, LIBRISPEECH = "fairseq", "common-voice", "plain", "librispeech"
WAV2VEC = "wav2vec"
LABELS = (".wrd", ".ltr")
"""Words or letters of each utterance, beside the manifest of Fairseq's audio fine-tuning."""
FAIRSEQ_COLUMNS = ("id", "audio")
TEXT_COLUMNS = {FAIRSEQ: "tgt_text", COMMON_VOICE: "sentence", PLAIN: "text"}
LANGUAGE_COLUMNS = {"tgt_text": "tgt_lang", "src_text": "src_lang", "sentence": "locale"}
"""Column that names the language of a column of texts; of any other one: `language`."""
SOURCE_LANGUAGE_COLUMN = "src_lang"
TRANSCRIPTS = "*.trans.txt"
SPEAKER_COLUMNS = {COMMON_VOICE: "client_id"}
"""Of any other layout: `speaker`."""
LIBRISPEECH_LANGUAGE = "en"
CLIPS = "clips"
SLICE_PARTS, ZIP = 3, ".zip"
"""`<zip>:<offset>:<bytes>`."""


@dataclass(frozen=True)
class Utterance:
    """One clip and what it should become."""

    id: str
    """Unique in the corpus."""
    path: str
    """An audio file, `<file>:<first sample>:<samples>` of one, a `.npy` of features, or
    `<zip>:<offset>:<bytes>` of either; it exists."""
    reference: str
    """Not empty."""
    language: str | None = None
    """Code of the reference's language, where the corpus states it."""
    source_language: str | None = None
    """Code of the spoken language, where the corpus states it."""
    speaker: str | None = None
    """Who speaks, where the corpus states it."""


@dataclass(frozen=True)
class _Row:
    """A line of a TSV file."""

    where: str
    """File and line, for messages."""
    values: dict[str, str]


def kind_of(path: str | PathLike[str], text_column: str | None = None) -> str:
    """FAIRSEQ, COMMON_VOICE, PLAIN, WAV2VEC or LIBRISPEECH; a named text column may replace the layout's.

    Raises:
        ModelError: the path is missing or none of these.
    """
    root = Path(path)
    if root.is_dir():
        if next(root.rglob(TRANSCRIPTS), None) is None:
            raise _fail(str(root), f"a folder with {TRANSCRIPTS}", "none", "Give the TSV file")
        return LIBRISPEECH
    columns = next(_rows(root, header_only=True)).values
    if len(columns) == 1 and _labels(root) is not None:
        return WAV2VEC
    if all(name in columns for name in FAIRSEQ_COLUMNS):
        return FAIRSEQ
    for kind in (COMMON_VOICE, PLAIN):
        if "path" in columns and TEXT_COLUMNS[kind] in columns:
            return kind
    if "path" in columns and text_column in columns:
        return PLAIN
    expected = "tab-separated columns id, audio, tgt_text or path, sentence or path, text"
    advice = "Name the columns in line 1, or that of the texts with --text-column"
    raise _fail(str(root), expected, ", ".join(columns) or "none", advice)


def read(
    path: str | PathLike[str],
    config_yaml: str | PathLike[str] | None = None,
    text_column: str | None = None,
    limit: int | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Iterator[Utterance]:
    """The utterances of a corpus, one row in memory at a time.

    Args:
        path: a TSV file or a LibriSpeech folder.
        config_yaml: Fairseq's data configuration, for its `audio_root`.
        text_column: column of the references, as `src_text` to score transcripts of a translation
            corpus; default: that of the layout.
        limit: take the first so many.
        shard: (i, n), 1 <= i <= n: of those, every n-th from the i-th on.

    Raises:
        ModelError: a file is missing, a row is malformed, a reference is empty or an id repeated.
        OptionError: limit or shard is out of range.
    """
    if limit is not None and limit < 1:
        raise invalid(ACTION, "limit", "at least 1", limit, "Raise it")
    number, count = shard
    if not 1 <= number <= count:
        raise invalid(ACTION, "shard", "i/n with 1 <= i <= n", f"{number}/{count}")
    kind, root = kind_of(path, text_column), Path(path)
    if kind in (LIBRISPEECH, WAV2VEC):
        if text_column is not None:
            expected = f"it unset for {str(root)!r}, which has no columns"
            raise invalid(ACTION, "text_column", expected, repr(text_column), "Leave it out")
        found = _librispeech(root) if kind == LIBRISPEECH else _wav2vec(root)
    else:
        found = _table(kind, root, config_yaml, text_column)
    yield from islice(_unique(root, found), number - 1, limit, count)


def audio(
    path: str | PathLike[str], config_yaml: str | PathLike[str] | None = None
) -> Iterator[tuple[str, str | None]]:
    """Paths of the audio that a TSV file lists, and the ids of a Fairseq manifest; no text is needed.

    A file that is missing is listed too: whoever opens it says so.

    Args:
        path: with a column `audio`, or else `path`, of which a file in `clips` comes first.
        config_yaml: as in `read`.

    Raises:
        ModelError: a row is malformed, or there is none.
    """
    root = Path(path)
    columns = next(_rows(root, header_only=True)).values
    column = next((name for name in ("audio", "path") if name in columns), None)
    if column is None:
        got = ", ".join(columns) or "none"
        raise _fail(str(root), "a column audio or path", got, "Name the columns in line 1")
    roots = [root.parent]
    if column == "path":
        roots.insert(0, root.parent / CLIPS)
    elif config_yaml is not None:
        roots.insert(0, _audio_root(Path(config_yaml)))
    is_empty = True
    for row in _rows(root):
        is_empty, audio = False, row.values[column]
        found = _existing(row.where, audio, roots) or str(roots[-1] / audio)
        yield found, row.values["id"] if column == "audio" and row.values.get("id") else None
    if is_empty:
        raise _fail(str(root), "at least one row", "none", "Give another file")


def _unique(root: Path, utterances: Iterator[Utterance]) -> Iterator[Utterance]:
    seen: set[str] = set()
    for utterance in utterances:
        if utterance.id in seen:
            raise _fail(str(root), "each id once", f"{utterance.id!r} again", "Drop the repetition")
        seen.add(utterance.id)
        yield utterance
    if not seen:
        raise _fail(str(root), "at least one utterance", "none", "Give another file")


def _table(
    kind: str,
    path: Path,
    config_yaml: str | PathLike[str] | None,
    text_column: str | None,
) -> Iterator[Utterance]:
    """Rows of the three TSV layouts."""
    column = text_column or TEXT_COLUMNS[kind]
    language = LANGUAGE_COLUMNS.get(column, "language")
    roots = [path.parent]
    if kind == COMMON_VOICE:
        roots.insert(0, path.parent / CLIPS)
    elif kind == FAIRSEQ and config_yaml is not None:
        roots.insert(0, _audio_root(Path(config_yaml)))
    name: Callable[[str], str] = str
    if kind == COMMON_VOICE:
        name = _without_suffix
    for row in _rows(path):
        values = row.values
        audio = values["audio" if kind == FAIRSEQ else "path"]
        if column not in values:
            raise _fail(row.where, f"a column {column}", "none", "Check --text-column")
        yield Utterance(
            id=_filled(row, "id") if kind == FAIRSEQ else name(_filled(row, "path")),
            path=_locate(row.where, audio, roots),
            reference=_filled(row, column),
            language=values.get(language) or None,
            source_language=values.get(SOURCE_LANGUAGE_COLUMN) or None,
            speaker=values.get(SPEAKER_COLUMNS.get(kind, "speaker")) or None,
        )


def _rows(path: Path, header_only: bool = False) -> Iterator[_Row]:
    """Lines of a TSV file by column name; of the header alone if asked for.

    Quotes are characters like any other, as in Fairseq and Common Voice.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            columns = next(lines, [])
            if header_only:
                yield _Row(str(path), dict.fromkeys(columns, ""))
                return
            for cells in lines:
                where = f"{path}, line {lines.line_num}"
                if len(cells) != len(columns):
                    advice = "Repair the row: it may hold a tab or a line break"
                    raise _fail(where, f"{len(columns)} columns", str(len(cells)), advice)
                yield _Row(where, dict(zip(columns, cells, strict=True)))
    except (OSError, UnicodeError, csv.Error) as error:
        raise _fail(str(path), "a readable UTF-8 TSV file", str(error), "Check the path") from error


def _labels(manifest: Path) -> Path | None:
    """The file of labels beside a manifest."""
    found = (manifest.with_suffix(suffix) for suffix in LABELS)
    return next((path for path in found if path.is_file()), None)


def _wav2vec(manifest: Path) -> Iterator[Utterance]:
    """`<file><TAB><samples>` below a line with their directory; a line of labels for each.

    Source: Fairseq `data/audio/raw_audio_dataset.py:FileAudioDataset`.
    """
    labels = _labels(manifest)
    assert labels is not None  # `kind_of`
    try:
        root, *files = manifest.read_text("utf-8").splitlines()
        lines = labels.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise _fail(str(manifest), "readable UTF-8 text", str(error), "Check the files") from error
    if len(files) != len(lines):
        advice = "Give the labels of this manifest"
        raise _fail(str(labels), f"{len(files)} lines", str(len(lines)), advice)
    for number, (file, line) in enumerate(zip(files, lines, strict=True), 2):
        where, (audio, _, _) = f"{manifest}, line {number}", file.partition("\t")
        is_words = labels.suffix == LABELS[0]
        text = line if is_words else line.replace(" ", "").replace("|", " ").strip()
        row = _Row(where, {"path": audio, "labels": text})
        yield Utterance(
            id=_without_suffix(_filled(row, "path")),
            path=_locate(where, audio, [manifest.parent / root]),
            reference=_filled(row, "labels"),
        )


def _librispeech(root: Path) -> Iterator[Utterance]:
    """`<id> <TEXT>` lines beside `<id>.flac`."""
    for path in sorted(root.rglob(TRANSCRIPTS)):
        try:
            with open(path, encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    where = f"{path}, line {number}"
                    name, _, text = line.strip().partition(" ")
                    row = _Row(where, {"id": name, "text": text.strip()})
                    files = [f"{_filled(row, 'id')}{suffix}" for suffix in AUDIO_EXTENSIONS]
                    audio = next((f for f in files if (path.parent / f).is_file()), f"{name}.flac")
                    yield Utterance(
                        id=name,
                        path=_locate(where, audio, [path.parent]),
                        reference=_filled(row, "text"),
                        language=LIBRISPEECH_LANGUAGE,
                        source_language=LIBRISPEECH_LANGUAGE,
                        speaker=name.partition("-")[0],  # <reader>-<chapter>-<number>
                    )
        except (OSError, UnicodeError) as error:
            raise _fail(str(path), "readable UTF-8 text", str(error), "Check the file") from error


def _filled(row: _Row, column: str) -> str:
    text = row.values[column]
    if not text.strip():
        raise _fail(row.where, f"a text in column {column}", repr(text), "Fill it or drop the row")
    return text


def _locate(where: str, audio: str, roots: list[Path]) -> str:
    """The first root's file that exists, with its slice."""
    found = _existing(where, audio, roots)
    if found is None:
        places = " or ".join(dict.fromkeys(str(root) for root in roots))
        expected = f"the audio {_sliced(where, audio)[0]!r} in {places}"
        raise _fail(where, expected, "no such file", "Check the paths")
    return found


def _existing(where: str, audio: str, roots: list[Path]) -> str | None:
    name, offset, size = _sliced(where, audio)
    for root in roots:
        path = root / name  # an absolute name stands for itself
        if os.path.isfile(path):  # not pathlib's, which raises for a name that is too long
            if offset is None:
                return str(path)
            if path.suffix == ZIP and offset + size > path.stat().st_size:
                end = f"a file of at least {offset + size} bytes"
                raise _fail(where, end, f"{path.stat().st_size} in {str(path)!r}", "Repack it")
            return f"{path}:{offset}:{size}"
    return None


def _sliced(where: str, audio: str) -> tuple[str, int | None, int]:
    """File, offset and size, in bytes of a ZIP, in samples of audio; offset None for a whole file."""
    part = Slice.parse(audio)
    if part is not None:
        return part.file, part.first, part.samples
    parts = audio.rsplit(":", SLICE_PARTS - 1)
    if len(parts) < SLICE_PARTS or not parts[0].endswith(ZIP):
        if not audio.strip():
            raise _fail(where, "the path of an audio file", repr(audio), "Fill it or drop the row")
        return audio, None, 0
    name, offset, size = parts
    if not (NUMBER.fullmatch(offset) and NUMBER.fullmatch(size)):
        raise _fail(where, "<zip>:<offset>:<bytes>", repr(audio), "Repair the row")
    return name, int(offset), int(size)


def _audio_root(config_yaml: Path) -> Path:
    """`audio_root`, as Fairseq with the shim `audio_root` takes it: relative to the YAML too."""
    try:
        content = read_yaml(config_yaml)
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading a corpus failed in {str(config_yaml)!r}: expected PyYAML, got {error}. "
            "Install fairseq-openvino[fairseq]."
        ) from error
    except (OSError, ValueError) as error:
        advice = "Check --data and --config-yaml"
        raise _fail(str(config_yaml), "a readable YAML file", str(error), advice) from error
    stated = str(content.get("audio_root") or "") if isinstance(content, dict) else ""
    beside = config_yaml.parent / stated
    return beside if stated and (stated == "." or not os.path.isdir(stated)) else Path(stated)


def _without_suffix(path: str) -> str:
    return str(Path(path).with_suffix(""))
