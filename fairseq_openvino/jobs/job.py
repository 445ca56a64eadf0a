"""A job's directory: begun once, resumed by the same plan only, merged when all is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fairseq_openvino.atomic import clear_leftovers, locked, staged_file, unwritable, write_file
from fairseq_openvino.errors import ModelError, OptionError, StorageError, failure
from fairseq_openvino.jobs.index import Entry, Index
from fairseq_openvino.jobs.leases import Leases
from fairseq_openvino.jobs.plan import Input, Plan, stored
from fairseq_openvino.speech.writers import JSONL

FORMAT = 1
PLAN, INPUTS, RESULTS = "job.json", "inputs.jsonl", "results.jsonl"
WORKERS, LEASES, JOURNALS = ROOMS = ("workers", "leases", "journals")
LOCK = ".lock"


class Job:
    """Made by `begin` or `read`."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory, self.plan = directory, plan
        self.workers, self.journals = directory / WORKERS, directory / JOURNALS
        self.results = directory / RESULTS
        self.leases = Leases(directory / LEASES)

    def done(self, index: Index) -> dict[int, Entry]:
        """By batch, the records that count, after a look at what is new."""
        leases = self.leases.highest()
        index.refresh()
        return index.done(leases)

    def merge(self) -> bool:
        """Write `results.jsonl` if it is not there and all is done; whether it is there.

        Whoever retries a batch takes the lease and then removes the file: whoever merges at that time
        sees the file go, or the lease.

        Raises:
            StorageError: it cannot be written, or a record is damaged.
        """
        if self.results.exists():
            return True
        with locked(self.directory / LOCK):
            leases, index = self.leases.highest(), Index(self.journals)
            index.refresh()
            if len(index.done(leases)) < len(self.plan.batches):
                return False
            if not self.results.exists():
                for place in (self.directory, self.workers):
                    clear_leftovers(place)
                with staged_file(self.results) as file:
                    for record in self.records(index):
                        file.write(_lines(record))
            if self.leases.highest() != leases:
                self.reopen()
                return False
            self.leases.remove(leases)
        return True

    def reopen(self) -> None:
        """Something will be decoded anew: there are no results until it is merged again."""
        try:
            self.results.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable("Working", self.results, error) from error

    def records(self, index: Index | None = None) -> Iterator[dict[str, Any]]:
        """Those of all files, in the order of the inputs; of batches that are not done, none.

        Raises:
            StorageError: one is damaged.
        """
        if index is None:
            index = Index(self.journals)
        done = self.done(index)
        for batch in sorted(done):
            yield from index.files(done[batch])


def begin(directory: Path, plan: Plan, retry_failed: bool = False) -> Job:
    """The job in this directory, which is made if it is not there.

    Args:
        directory: of the job.
        plan: what it is to compute.
        retry_failed: inputs that failed may have been repaired since.

    Raises:
        OptionError: it was begun with another plan; the message names what has changed.
        ModelError: what is there is damaged, or no job.
        StorageError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / LOCK):
            if not (directory / PLAN).exists():
                return _made(directory, plan)
            _make_rooms(directory)
    except StorageError:
        raise
    except OSError as error:
        raise unwritable("Beginning a job", directory, error) from error
    job = read(directory)
    if retry_failed:
        job = _repaired(job, plan.inputs)
    if changed := job.plan.differences(plan):
        advice = "Repeat it as it was begun, or begin another job in another directory"
        raise failure(
            OptionError, "Resuming a job", directory, "what it was begun with", "; ".join(changed), advice
        )  # fmt: skip
    return job


def _made(directory: Path, plan: Plan) -> Job:
    others = [
        each.name
        for each in directory.iterdir()
        if not (each.name == INPUTS or each.name.startswith(".") or _is_empty_room(each))
    ]
    if others:
        raise failure(
            OptionError, "Beginning a job", directory, "an empty directory, or one of a job",
            f"one with {min(others)!r}", "Choose another",
        )  # fmt: skip
    _make_rooms(directory)
    inputs = stored(plan.inputs)
    write_file(directory / INPUTS, inputs)
    content = {
        "format": FORMAT, "bundle": plan.bundle, "options": plan.options, "inputs": len(plan.inputs),
        "inputs_sha256": hashlib.sha256(inputs).hexdigest(), "repaired": [],
    }  # fmt: skip
    _write(directory, content)
    return Job(directory, plan)


def _is_empty_room(path: Path) -> bool:
    """Records without the plan that they follow from are not touched, and not gone on with."""
    return path.name in ROOMS and not any(path.iterdir())


def _make_rooms(directory: Path) -> None:
    """Those that are not there: some ways to copy a job leave out empty directories."""
    for name in ROOMS:
        (directory / name).mkdir(exist_ok=True)


def _write(directory: Path, content: dict[str, Any]) -> None:
    write_file(directory / PLAN, json.dumps(content, indent=1).encode() + b"\n")


def _repaired(job: Job, inputs: Sequence[Input]) -> Job:
    """With those that failed as they are now."""
    failed = {each["path"] for each in job.records() if each["error"] is not None}
    now = {each.path: each for each in inputs if each.path in failed}
    changed = [each for each in job.plan.inputs if now.get(each.path, each) != each]
    if not changed:
        return job
    content = json.loads((job.directory / PLAN).read_bytes())
    known = {each["path"]: each for each in content["repaired"]}
    known |= {each.path: asdict(now[each.path]) for each in changed}
    _write(job.directory, content | {"repaired": list(known.values())})
    return read(job.directory)


def read(directory: Path) -> Job:
    """The job in this directory.

    Raises:
        ModelError: there is none, or its plan is damaged.
    """
    fail = partial(failure, ModelError, "Reading a job", directory)
    advice = "Begin another one in another directory"
    if not (directory / PLAN).is_file():
        raise fail(f"a file {PLAN}", "none", "Check the path")
    try:
        content = json.loads((directory / PLAN).read_bytes())
        inputs = (directory / INPUTS).read_bytes()
        if content["format"] != FORMAT:
            raise fail(f"format {FORMAT}", content["format"], "Use the version that began it")
        if hashlib.sha256(inputs).hexdigest() != content["inputs_sha256"]:
            raise fail(f"the {INPUTS} that {PLAN} names", "other content", advice)
        repaired = {each["path"]: Input(**each) for each in content["repaired"]}
        begun = (Input(**json.loads(line)) for line in inputs.splitlines())
        found = tuple(repaired.get(each.path, each) for each in begun)
        return Job(directory, Plan(content["bundle"], content["options"], found))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise fail("a plan", f"{type(error).__name__}: {error}", advice) from error


def threads(directory: Path) -> int | None:
    """CPU threads that a job was begun with; None if there is none."""
    with suppress(ModelError):
        found: int = read(directory).plan.options["threads"]
        return found
    return None


def _lines(record: dict[str, Any]) -> bytes:
    """Of a file in the results: of each channel, or its error."""
    lines = "".join(each["documents"][JSONL] for each in record["results"])
    if record["error"] is not None:
        failed = {"path": record["path"], "error": record["error"]}
        lines += json.dumps(failed, ensure_ascii=False) + "\n"
    return lines.encode("utf-8", "backslashreplace")
