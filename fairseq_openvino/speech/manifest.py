"""Fairseq's manifests, checked row by row: an error names the file and the line."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from fairseq_openvino.errors import ModelError, failure

_fail = partial(failure, ModelError, "Reading a manifest")

COLUMNS = ("id", "audio", "n_frames", "tgt_text")
"""Those that Fairseq needs."""


def read_manifest(
    root: str, split: str, defaults: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """As Fairseq's `SpeechToTextDatasetCreator._load_samples_from_tsv`; a BOM is no part of a name.

    Args:
        root: the data directory.
        split: name of the manifest without `.tsv`.
        defaults: values of columns that may be missing.

    Raises:
        ModelError: the file is missing or empty, or lacks a column or a value.
    """
    path = Path(root) / f"{split}.tsv"
    if not path.is_file():
        others = ", ".join(sorted(each.stem for each in path.parent.glob("*.tsv"))) or "no manifest"
        raise _fail(
            str(path), f"a manifest (there: {others})", "no such file", "Check --gen-subset"
        )
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = {*COLUMNS} - {*(rows.fieldnames or ()), *(defaults or ())}
            if missing:
                got = ", ".join(rows.fieldnames or ()) or "an empty file"
                raise _fail(str(path), f"columns {', '.join(COLUMNS)}", got, "Name them in line 1")
            samples = [
                _sample(row, f"{path}, line {rows.line_num}", defaults or {}) for row in rows
            ]
    except (OSError, UnicodeError, csv.Error) as error:
        raise _fail(str(path), "readable UTF-8 text", str(error), "Check the file") from error
    if not samples:
        raise _fail(str(path), "at least one utterance", "none", "Give another --gen-subset")
    return samples


def _sample(row: dict[str, str | None], where: str, defaults: Mapping[str, str]) -> dict[str, str]:
    """A row with all its columns."""
    filled = {**defaults, **{name: text for name, text in row.items() if text is not None}}
    for name in COLUMNS:
        if name not in filled:
            raise _fail(where, f"a value in column {name}", "a shorter row", "Repair the row")
    if not filled["n_frames"].strip().isdecimal():
        number = repr(filled["n_frames"])
        raise _fail(where, "a whole number in column n_frames", number, "Repair the row")
    return filled
