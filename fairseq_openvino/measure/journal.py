"""Everything that was measured, one JSON line as it happens; all figures come from these records alone.

| kind        | when                            | holds                                             |
|-------------|---------------------------------|---------------------------------------------------|
| `run`       | at the start, and at a --resume | options, machine, versions; metrics, or engines   |
| `case`      | of a benchmark, before it       | what is decoded                                   |
| `engine`    | loaded, or given up             | load times, precision, versions; or error         |
| `utterance` | every engine has decoded it     | reference; text, tokens and times of each         |
| `failed`    | one engine could not            | the problem by engine; no engine counts it        |
| `profile`   | of a benchmark, after a case    | see `profile`, or a note why there is none        |
| `end`       | of a benchmark, at its end      | nothing: without it, the run was interrupted      |

The times of an utterance are those of the batch it was decoded in, which `batch` names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_openvino.errors import ModelError, OptionError, StorageError, failure
from fairseq_openvino.journal import Lines
from fairseq_openvino.measure.options import IMMATERIAL
from fairseq_openvino.measure.turns import Answer, Batch

FILE = "utterances.jsonl"
SPELLINGS = "normalizer.json"
RUN, ENGINE, UTTERANCE, FAILED = KINDS = ("run", "engine", "utterance", "failed")
CASE, PROFILE, END = ("case", "profile", "end")


class Journal(Lines):
    """Appends records; a killed process loses none that was written, a loss of power those of a second."""

    def __init__(self, path: Path, anew: bool = False) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if anew:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error
        super().__init__(path)

    def write(self, kind: str, **content: Any) -> None:
        """One line.

        Raises:
            StorageError: it could not be written.
        """
        self.append_lines(_line(kind, content))

    def write_batch(
        self,
        batch: Batch,
        number: int,
        engines: Collection[str],
        figures: Collection[str] = (),
        done: Collection[str] = (),
        **more: Any,
    ) -> None:
        """A line for each utterance, all of them or none.

        Args:
            batch: decoded.
            number: of the batch.
            engines: whose outputs count.
            figures: names of what is kept of the answers, where an engine tells it.
            done: ids that have a line already.
            more: content of every line.
        """
        found: list[tuple[str, dict[str, Any]]] = []
        for rank, i in enumerate(batch.good):
            one, clip = batch.utterances[i], batch.clips[i]
            content = {
                "id": one.id,
                "file": Path(one.path).name,
                "language": one.language,
                "seconds": clip["seconds"],
                "reference": one.reference,
                "batch": number,
                "damage": clip.get("damage"),
                "engines": {
                    name: _entry(batch.passes[name], rank, figures)
                    for name in engines
                    if name in batch.passes
                },
            }
            found.append((UTTERANCE, content))
        for i, problems in batch.problems.items():
            one = batch.utterances[i]
            content = {"id": one.id, "file": Path(one.path).name, "problems": problems}
            found.append((FAILED, content))
        new = (_line(kind, each | more) for kind, each in found if each["id"] not in done)
        self.append_lines(b"".join(new))

    def _unwritable(self, error: OSError) -> StorageError:
        return _unwritable(self.path, error)


def _line(kind: str, content: dict[str, Any]) -> bytes:
    return (json.dumps({"kind": kind, **content}, ensure_ascii=False) + "\n").encode()


def _unwritable(path: Path, error: OSError) -> StorageError:
    return failure(
        StorageError, "Writing the records", path.parent, "a writable directory with free space", error,
        "Give another --output, or make room and --resume",
    )  # fmt: skip


def _entry(passes: list[Answer], rank: int, figures: Collection[str]) -> dict[str, Any]:
    """What one engine made of one utterance."""
    by_pass = [name for name in ("seconds", *figures) if name in passes[0]]
    return {
        **passes[-1]["outputs"][rank],
        **{name: [each[name] for each in passes] for name in by_pass},
        "peak_mb": passes[-1]["peak_mb"],
    }


def lines(path: Path, kinds: Collection[str]) -> Iterator[dict[str, Any]]:
    """Every complete line of one of these kinds; the last one may have been cut off.

    Raises:
        ModelError: the file is missing, or a line is none of these.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise _damaged(path, "the records of an evaluation", error) from error
    for number, line in enumerate(text.split("\n")[:-1], 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise _damaged(where, "a JSON object", error) from error
        if not isinstance(record, dict):
            raise _damaged(where, "a JSON object", type(record).__name__)
        if record.get("kind") not in kinds:
            raise _damaged(where, f"a kind of {', '.join(kinds)}", repr(record.get("kind")))
        yield record


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
    lists = (found.runs, found.engines, found.utterances, found.failures)
    by_kind = dict(zip(KINDS, lists, strict=True))
    for number, directory in enumerate(directories):
        for record in lines(directory / FILE, KINDS):
            if record["kind"] == UTTERANCE:
                record["batch"] = f"{number}.{record['batch']}"
            by_kind[record["kind"]].append(record)
        if not found.runs:
            raise _damaged(directory / FILE, "a line of kind run", "none")
    where, seen = ", ".join(map(str, directories)), set[str]()
    for record in [*found.utterances, *found.failures]:
        if record["id"] in seen:
            raise _damaged(where, "each utterance once", f"{record['id']!r} again")
        seen.add(record["id"])
    for run in found.runs[1:]:
        difference = changed(found.runs[0]["options"], run["options"])
        if difference:
            others = f"others in {', '.join(difference)}"
            raise _damaged(where, "runs with the same options", others)
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
    if not any(record["kind"] in (UTTERANCE, FAILED) for record in lines(path, KINDS)):
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
    path, expected = directory / SPELLINGS, "a JSON table of spellings"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeError, json.JSONDecodeError) as error:
        raise _damaged(path, expected, error) from error
    if not isinstance(content, dict):
        raise _damaged(path, expected, type(content).__name__)
    return {str(key): str(value) for key, value in content.items()}


def _damaged(where: str | Path, expected: str, got: object) -> ModelError:
    advice = "Give the --output directories of one evaluation"
    return failure(ModelError, "Reading records", str(where), expected, got, advice)
