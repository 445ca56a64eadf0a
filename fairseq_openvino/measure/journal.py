"""Everything that was measured, one JSON line as it happens; all figures come from these records alone.

`utterances.jsonl` of an evaluation:

| kind        | when                            | holds                                           |
|-------------|---------------------------------|-------------------------------------------------|
| `run`       | at the start, and at a --resume | options, metrics, normaliser, machine, versions |
| `engine`    | loaded, or given up             | load time, precision, or error                  |
| `utterance` | every engine has decoded it     | reference; text, tokens and times of each       |
| `failed`    | one engine could not            | the problem by engine; no engine counts it      |

The times of an utterance are those of the batch it was decoded in, which `batch` names.

`benchmark.jsonl` and `whisper.jsonl`:

| kind        | when                            | holds                                           |
|-------------|---------------------------------|-------------------------------------------------|
| `run`       | at the start                    | options, engines, machine, versions             |
| `case`      | before anything of it           | what is decoded, with references if there are   |
| `load`      | loaded                          | times to load for the cases it serves           |
| `describe`  | all rounds are done             | precision, versions                             |
| `round`     | an engine has decoded all of it | times, tokens, digests of the hypotheses        |
| `profile`   | after the rounds                | see `profile`; or why there is none             |
| `failed`    | an engine is given up           | the error, and the cases it does not decode     |
| `end`       | at the end                      | nothing: without it, the run was interrupted    |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_openvino.errors import ModelError, OptionError, StorageError
from fairseq_openvino.measure.options import IMMATERIAL

FILE = "utterances.jsonl"
SPELLINGS = "normalizer.json"
RUN, ENGINE, UTTERANCE, FAILED = "run", "engine", "utterance", "failed"
KINDS = (RUN, ENGINE, UTTERANCE, FAILED)


class Journal:
    """Appends records; a line is on its way to the disk when `write` returns."""

    def __init__(self, path: Path, anew: bool = False) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w" if anew else "a", encoding="utf-8")  # noqa: SIM115
            _drop_cut_line(path)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, kind: str, **content: Any) -> None:
        """One line.

        Raises:
            StorageError: it could not be written.
        """
        try:
            self._file.write(json.dumps({"kind": kind, **content}, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """End writing."""
        self._file.close()

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            f"Writing the records failed in {str(self.path.parent)!r}: expected a writable directory "
            f"with free space, got {error}. Give another --output, or make room and --resume."
        )


def lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of every complete line; the last one may have been cut off.

    Raises:
        ModelError: the file is missing, or a line is no JSON object.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise _fail(str(path), "the records of an evaluation", str(error)) from error
    for number, line in enumerate(text.split("\n")[:-1], 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise _fail(where, "a JSON object", str(error)) from error
        if not isinstance(record, dict):
            raise _fail(where, "a JSON object", type(record).__name__)
        yield where, record


@dataclass
class Records:
    """The lines of one evaluation, by kind."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    engines: list[dict[str, Any]] = field(default_factory=list)
    utterances: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Utterances there are, over all shards given."""
        return sum({run["shard"]: int(run["total"]) for run in self.runs}.values())

    @property
    def missing(self) -> int:
        """Utterances neither decoded nor failed: the run was interrupted."""
        return self.total - len(self.utterances) - len(self.failures)

    def done(self) -> set[str]:
        """Ids that need not be decoded again."""
        return {record["id"] for record in [*self.utterances, *self.failures]}


def read(directories: Sequence[Path]) -> Records:
    """The records in one or several output directories, shards of one evaluation.

    Raises:
        ModelError: a file is missing or damaged, they do not belong together, or hold an utterance
            twice.
    """
    found = Records()
    lists = dict(
        zip(KINDS, (found.runs, found.engines, found.utterances, found.failures), strict=True)
    )
    for number, directory in enumerate(directories):
        path = directory / FILE
        for where, record in lines(path):
            kind = record.get("kind")
            if kind not in lists:
                raise _fail(where, f"a kind of {', '.join(KINDS)}", repr(kind))
            if kind == UTTERANCE:
                record["batch"] = f"{number}.{record['batch']}"
            lists[kind].append(record)
        if not found.runs:
            raise _fail(str(path), "a line of kind run", "none")
    _check(found, directories)
    return found


def begun(directory: Path, resume: bool) -> Records:
    """The records an output directory already has, if anything was measured.

    Raises:
        OptionError: there are some and `resume` is off.
        ModelError: they are damaged.
    """
    path = directory / FILE
    if not path.exists():
        return Records()
    if not any(record.get("kind") in (UTTERANCE, FAILED) for _, record in lines(path)):
        path.unlink()  # nothing was measured: begin anew
        return Records()
    if resume:
        return read([directory])
    raise OptionError(
        f"Evaluating failed in --output {str(directory)!r}: expected a directory without {FILE}, "
        "got one. Choose another one, go on with --resume, or count again with --score-only."
    )


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of recorded options that differ and matter."""
    return [key for key in before if key not in IMMATERIAL and before[key] != after.get(key)]


def spellings(directory: Path) -> dict[str, str]:
    """The table of spellings kept with the records; empty if there was none.

    Raises:
        ModelError: it is damaged.
    """
    path = directory / SPELLINGS
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeError, json.JSONDecodeError) as error:
        raise _fail(str(path), "a JSON table of spellings", str(error)) from error
    if not isinstance(content, dict):
        raise _fail(str(path), "a JSON table of spellings", type(content).__name__)
    return {str(key): str(value) for key, value in content.items()}


def _check(found: Records, directories: Sequence[Path]) -> None:
    where = ", ".join(str(directory) for directory in directories)
    seen: set[str] = set()
    for record in [*found.utterances, *found.failures]:
        if record["id"] in seen:
            raise _fail(where, "each utterance once", f"{record['id']!r} again")
        seen.add(record["id"])
    for run in found.runs[1:]:
        difference = changed(found.runs[0]["options"], run["options"])
        if difference:
            raise _fail(where, "runs with the same options", f"others in {', '.join(difference)}")


def _drop_cut_line(path: Path) -> None:
    """Remove what a killed process left after the last line break."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _fail(where: str, expected: str, got: str) -> ModelError:
    return ModelError(
        f"Reading records failed in {where}: expected {expected}, got {got}. "
        "Give the --output directories of one evaluation."
    )
