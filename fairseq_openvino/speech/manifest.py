"""Fairseq's manifests, checked row by row: an error names the file and the line."""

from __future__ import annotations

import csv
import re
from functools import partial
from pathlib import Path

from fairseq_openvino.errors import ModelError, failure

_fail = partial(failure, ModelError, "Reading a manifest")

COLUMNS = ("id", "audio", "n_frames", "tgt_text")
"""Those that Fairseq needs; to generate, the first two are enough."""
NEEDED = COLUMNS[:2]
WHOLE_NUMBER = re.compile(r"\s*([0-9]{1,18})(\.0*)?\s*")
MAX_COLUMNS = 256


def read_manifest(root: str, split: str, unknown_frames: str = "0") -> list[dict[str, str]]:
    """As Fairseq's `SpeechToTextDatasetCreator._load_samples_from_tsv`; a BOM is no part of a name.

    Args:
        root: the data directory.
        split: name of the manifest without `.tsv`; of one to train on nothing may be missing.
        unknown_frames: `n_frames` of a row that does not say.

    Raises:
        ModelError: the file is missing or empty, or lacks a column or a value.
    """
    needed = COLUMNS if split.startswith("train") else NEEDED
    path = Path(root) / f"{split}.tsv"
    if not path.is_file():
        others = ", ".join(sorted(each.stem for each in path.parent.glob("*.tsv"))) or "no manifest"
        raise _fail(
            str(path), f"a manifest (there: {others})", "no such file", "Check --gen-subset"
        )
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if {*needed} - {*(rows.fieldnames or ())}:
                got = ", ".join(rows.fieldnames or ()) or "an empty file"
                raise _fail(str(path), f"columns {', '.join(needed)}", got, "Name them in line 1")
            if len(rows.fieldnames or ()) > MAX_COLUMNS:
                got = f"{len(rows.fieldnames or ())}"
                raise _fail(str(path), f"at most {MAX_COLUMNS} columns", got, "Name them in line 1")
            samples = [
                _sample(row, f"{path}, line {rows.line_num}", needed, unknown_frames)
                for row in rows
            ]
    except (OSError, UnicodeError, csv.Error) as error:
        raise _fail(str(path), "readable UTF-8 text", str(error), "Check the file") from error
    if not samples:
        raise _fail(str(path), "at least one utterance", "none", "Give another --gen-subset")
    return samples


def _sample(
    row: dict[str, str | None], where: str, needed: tuple[str, ...], unknown_frames: str
) -> dict[str, str]:
    """A row with all of Fairseq's columns."""
    filled = {name: text for name, text in row.items() if name is not None and text is not None}
    for name in COLUMNS:
        if name not in filled and (name in row or name in needed):
            raise _fail(where, f"a value in column {name}", "a shorter row", "Repair the row")
    frames = filled.get("n_frames", "")
    if not frames.strip() and "n_frames" not in needed:
        frames = unknown_frames
    number = WHOLE_NUMBER.fullmatch(frames)
    if number is None:
        got = repr(frames)
        raise _fail(where, "a whole number in column n_frames", got, "Repair the row")
    return {"tgt_text": ""} | filled | {"n_frames": number[1]}
