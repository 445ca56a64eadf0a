"""Where the records of each batch are; the records themselves stay in their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_openvino.errors import StorageError, failure
from fairseq_openvino.journal import located, record_at

BEGIN, BATCH, ANSWER = "begin", "batch", "answer"
"""Kinds of records: a worker has signed on; it has decoded a batch; the model has answered a call of one."""


@dataclass(frozen=True)
class Entry:
    """The record of a batch."""

    epoch: int
    """Of the lease that it was decoded with."""
    journal: Path
    begin: int
    """Its first byte there."""
    files: int
    failed: int
    seconds: float
    """Of audio."""


@dataclass(frozen=True)
class Answered:
    """The record of a call."""

    epoch: int
    journal: Path
    begin: int
    """Its first byte there."""

    def read(self) -> Any:
        """The answer; None if it has been damaged since."""
        record = record_at(self.journal, self.begin)
        return record and record["answer"]


@dataclass
class Pace:
    """What a worker has done, by its own clock, in s since 1970."""

    began: float
    last: float
    audio_seconds: float = 0.0


@dataclass
class Index:
    """Of all journals of a job, which may be growing."""

    directory: Path
    batches: dict[int, Entry] = field(default_factory=dict)
    """The record of the highest epoch of each batch."""
    paces: dict[str, Pace] = field(default_factory=dict)
    """By worker."""
    _answers: dict[int, dict[int, Answered]] = field(default_factory=dict)
    """By batch and number of the call; only what is younger than the batch's record."""
    _ends: dict[Path, int] = field(default_factory=dict)
    """How far each journal was read, in bytes."""

    def refresh(self) -> None:
        """Read what is new.

        Raises:
            StorageError: a journal cannot be read.
        """
        try:
            for path in sorted(self.directory.glob("*.jsonl")):
                for begin, end, record in located(path, self._ends.get(path, 0)):
                    self._ends[path] = end
                    if record["kind"] == BATCH:
                        self._take(path, begin, record)
                    elif record["kind"] == ANSWER:
                        self._add(path, begin, record)
                    elif record["kind"] == BEGIN:
                        self.paces[path.stem] = Pace(record["time"], record["time"])
        except OSError as error:
            raise failure(
                StorageError,
                "Reading a job",
                self.directory,
                "readable files",
                error,
                "Check the disk",
            ) from error

    def _take(self, path: Path, begin: int, record: Mapping[str, Any]) -> None:
        files, batch, epoch = record["files"], record["batch"], record["epoch"]
        failed = sum(each["error"] is not None for each in files)
        seconds = sum(each["seconds"] for each in files)
        before = self.batches.get(batch)
        if before is None or before.epoch < epoch:
            self.batches[batch] = Entry(epoch, path, begin, len(files), failed, seconds)
            calls = self._answers.pop(batch, {})
            self._answers[batch] = {n: each for n, each in calls.items() if each.epoch > epoch}
        pace = self.paces.get(path.stem)
        if pace is not None:
            pace.last = record["time"]
            pace.audio_seconds += seconds

    def _add(self, path: Path, begin: int, record: Mapping[str, Any]) -> None:
        batch, call, epoch = record["batch"], record["call"], record["epoch"]
        calls, entry = self._answers.setdefault(batch, {}), self.batches.get(batch)
        is_older = call in calls and calls[call].epoch > epoch
        if not is_older and (entry is None or entry.epoch < epoch):
            calls[call] = Answered(epoch, path, begin)

    def answered(self, batch: int) -> list[Answered]:
        """Where the first calls of a batch are, in order: what each of its holders has added to.

        A stopped holder may have gone on, for nothing, when another one had its batch.
        """
        calls, found, epoch = self._answers.get(batch, {}), list[Answered](), 0
        while (one := calls.get(len(found))) is not None and one.epoch >= epoch:
            found.append(one)
            epoch = one.epoch
        return found

    def done(self, leases: Mapping[int, int]) -> dict[int, Entry]:
        """The records that count: nobody has claimed their batch since, by the highest epochs."""
        return {
            batch: entry
            for batch, entry in self.batches.items()
            if entry.epoch >= leases.get(batch, -1)
        }

    @staticmethod
    def files(entry: Entry) -> list[dict[str, Any]]:
        """The records of the files of a batch.

        Raises:
            StorageError: it has been damaged since it was first read.
        """
        record = record_at(entry.journal, entry.begin)
        if record is None:
            raise failure(
                StorageError, "Reading a job", entry.journal, f"a record at byte {entry.begin}",
                "a damaged one", "Repeat the command: its batch is decoded again",
            )  # fmt: skip
        files: list[dict[str, Any]] = record["files"]
        return files
