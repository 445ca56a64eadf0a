"""The journal: what was appended is read again, whatever happened to the file."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from fairseq_openvino.errors import StorageError
from fairseq_openvino.journal import Journal, records


def test_records_come_back(tmp_path: Path) -> None:
    wanted = [{"id": i, "text": "grün\n\u2028\udc80", "score": 0.1 * i} for i in range(100)]
    journal = Journal(tmp_path / "a")
    for record in wanted:
        journal.append(record)
    journal.close()
    assert list(records(tmp_path / "a")) == wanted


def test_every_cut_and_flip_costs_only_the_lines_it_hits(tmp_path: Path) -> None:
    path, chance = tmp_path / "a", random.Random(0)
    journal = Journal(path)
    for i in range(6):
        journal.append({"id": i})
    journal.close()
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends)
        assert [each["id"] for each in records(path)] == list(range(whole))
        again = Journal(path)
        again.append({"id": "new"})
        again.close()
        assert [each["id"] for each in records(path)] == [*range(whole), "new"]
    for _ in range(500):
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        line = sum(end <= place for end in ends)
        hit = {line, line + 1} if content[place] == ord("\n") else {line}
        found = [each["id"] for each in records(path)]
        assert found == [i for i in range(6) if i not in hit]


def test_a_record_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "a")
    journal.append({"id": 0})
    write = os.write

    def half(file: int, content: bytes) -> int:
        if len(content) < 10:
            raise OSError(28, "No space left on device")
        return write(file, content[: len(content) - 5])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(StorageError, match="No space left"):
        journal.append({"id": 1})
    monkeypatch.undo()
    journal.append({"id": 2})
    journal.close()
    assert [each["id"] for each in records(tmp_path / "a")] == [0, 2]


def test_a_closed_journal_writes_nowhere(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a")
    journal.close()
    with (
        open(tmp_path / "b", "wb"),  # has its descriptor
        pytest.raises(StorageError, match="Bad file descriptor"),
    ):
        journal.append({"id": 1})
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes() == b""


def test_a_removed_journal_keeps_nothing(tmp_path: Path) -> None:
    """Who writes it is told: nobody will read its records."""
    journal = Journal(tmp_path / "a")
    journal.append({"id": 1})
    journal.sync()
    (tmp_path / "a").unlink()
    journal.append({"id": 2})
    with pytest.raises(StorageError, match="it was removed"):
        journal.sync()
    with pytest.raises(StorageError, match="it was removed"):
        journal.close()


def test_threads_share_a_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a")
    threads = [
        threading.Thread(target=lambda n=n: [journal.append({"n": n, "i": i}) for i in range(200)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    found = list(records(tmp_path / "a"))
    assert all([e["i"] for e in found if e["n"] == n] == list(range(200)) for n in range(8))
