"""R1 and R2: killed at any call or moment, and refused any call, nothing half is published or left behind."""

from __future__ import annotations

import collections
import errno
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import MINI, tone
from faults import CLEANING, Fault, Nursery, Outcome, kills

from fairseq_openvino.atomic import staged_directory, write_file
from fairseq_openvino.bundle import is_bundle, open_bundle
from fairseq_openvino.errors import EXIT_ENVIRONMENT, EXIT_MODEL, EXIT_OK, EXIT_PARTIAL

SEED = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "0"))
KILLS = 200
"""Of each command."""
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE)
ONNXRUNTIME = ".ses"
"""In the directory for temporary files: a session's name."""
KEPT = (".used", ".work")
"""Beside what is published: when a bundle was used last, and recordings that the next run reuses."""


@dataclass(frozen=True)
class Command:
    """A command that writes below the directory `work` and nowhere else."""

    words: Callable[[Path], list[object]]
    """Given that directory."""
    published: Callable[[Path], int]
    """How many results are there, every one of them whole."""
    total: int = 1


def bundles(work: Path) -> int:
    """Verified ones."""
    found = [path for path in work.rglob("*") if path.is_dir() and ".staging-" not in str(path)]
    whole = [open_bundle(path) for path in found if is_bundle(path) and ".work" not in str(path)]
    return len(whole)


def texts(work: Path) -> int:
    """Those of `transcribe`, both formats."""
    found = [*work.glob("*/*.jsonl"), *work.glob("*/*.text"), *work.glob("*/*.txt")]
    assert all(path.read_bytes().endswith(b"\n") for path in found), found
    return len(found)


def words(work: Path) -> list[object]:
    data = work.parent / "in"
    return ["--path", data / "tiny" / "checkpoint.pt", "--data", data / "tiny"]


COMMANDS = {
    "export": Command(
        lambda work: ["export", *words(work), "--output", work / "bundle"], bundles
    ),
    "cache": Command(
        lambda work: [
            "transcribe", work.parent / "in" / "audio" / "0.wav", "--model", words(work)[1],
            "--data", words(work)[3], "--cache-dir", work / "cache", "--max-len-b", "5",
        ],
        bundles,
    ),
    "quantize": Command(
        lambda work: [
            "quantize", work.parent / "in" / "mini", "--calibration", MINI / "test_st_en_de.tsv",
            "--output", work / "int8", "--mode", "int8", "--calibration-size", 2, "--held-out-size", 1,
            "--validation-size", 4, "--max-drop", 100, "--alphas", -1, "--beam", 1,
        ],
        bundles,
    ),
    "transcribe": Command(
        lambda work: [
            "transcribe", work.parent / "in" / "audio", "--model", work.parent / "in" / "bundle",
            "--output-dir", work / "texts", "--format", "text,jsonl", "--max-len-b", "5",
        ],
        texts,
        total=6,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def nursery(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, tiny_bundle: Path, mini_bundle: Path
) -> Iterator[Nursery]:
    """Of real commands, with what they read below `in`."""
    root = tmp_path_factory.mktemp("faults")
    for name, path in (("tiny", tiny), ("bundle", tiny_bundle), ("mini", mini_bundle)):
        shutil.copytree(path, root / "in" / name)
    for number in range(3):
        tone(root / "in" / "audio" / f"{number}.wav", 0.4 + 0.1 * number)
    found = Nursery(root)
    yield found
    found.close()


def attempt(nursery: Nursery, command: Command, fault: Fault | None = None) -> Outcome:
    """A run from the beginning."""
    shutil.rmtree(nursery.root / "work", ignore_errors=True)
    (nursery.root / "work").mkdir()
    for path in (nursery.root / "tmp").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return nursery.run(command.words(nursery.root / "work"), fault)


def strays(root: Path) -> list[str]:
    """What should be gone when a command ends."""
    found = [path for path in (root / "work").rglob("*") if path.name.startswith(".")]
    inside = [path for kept in (root / "work").glob(".*.work") for path in kept.rglob("*")]
    wanted = [path for path in found if not path.name.endswith(KEPT)]
    wanted += [path for path in inside if path.suffix != ".npz" and "recordings-" not in path.name]
    wanted += [path for path in (root / "tmp").iterdir() if path.name != ONNXRUNTIME]
    return sorted(map(str, wanted))


def finish(nursery: Nursery, command: Command, story: object) -> None:
    """The next run succeeds, and clears up."""
    work = nursery.root / "work"
    again = nursery.run(command.words(work))
    assert again.exit_code == EXIT_OK and command.published(work) == command.total, (story, again)
    assert not strays(nursery.root), (story, strays(nursery.root))


def judge(nursery: Nursery, command: Command, fault: Fault, outcome: Outcome) -> None:
    """After a call was refused."""
    root, story = nursery.root, (fault, outcome)
    assert not outcome.raised and not outcome.signal, story
    assert outcome.exit_code in (EXIT_OK, EXIT_PARTIAL, EXIT_MODEL, EXIT_ENVIRONMENT), story
    assert "Traceback" not in outcome.said and not outcome.left_open, story
    done = command.published(root / "work")
    assert outcome.exit_code or done == command.total, story
    if strays(root):
        assert outcome.calls[fault.at].split()[0] in CLEANING, (story, strays(root))


@pytest.mark.fault
@pytest.mark.parametrize("reads", [False, True], ids=["writing", "reading"])
@pytest.mark.parametrize("name", COMMANDS)
def test_each_call_refused(nursery: Nursery, name: str, reads: bool) -> None:
    """R2: the i-th call fails, for every i, with every reason there is."""
    command, exits = COMMANDS[name], collections.Counter[object]()
    calls = attempt(nursery, command, Fault(reads=reads)).calls
    for number in ERRNOS if not reads else (errno.EIO, errno.EMFILE):
        at = 0
        while True:
            fault = Fault(at=at, errno=number, reads=reads)
            outcome = attempt(nursery, command, fault)
            if len(outcome.calls) <= at:
                break  # the last fault has fired
            judge(nursery, command, fault, outcome)
            exits[errno.errorcode[number], outcome.exit_code] += 1
            if outcome.exit_code and os.listdir(nursery.root / "work"):
                finish(nursery, command, (fault, outcome))
            at += 1
        assert at >= len(calls) // 2
    print(name, "reading" if reads else "writing", len(calls), "calls", dict(exits))


@pytest.mark.fault
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_200_instants(nursery: Nursery, name: str) -> None:
    """R1: at each of the calls that write, and at any time."""
    print(f"seed={SEED}")
    command, chance = COMMANDS[name], random.Random(SEED)
    undisturbed = attempt(nursery, command)
    planned = kills(undisturbed.calls, SEED)
    chance.shuffle(planned)
    del planned[KILLS * 3 // 4 :]
    while len(planned) < KILLS:
        planned.append(Fault(seconds=chance.uniform(0, undisturbed.took)))
    states = collections.Counter[str]()
    for fault in planned:
        outcome = attempt(nursery, command, fault)
        if not outcome.signal:
            continue  # it was faster than the clock
        assert outcome.signal in (signal.SIGKILL, signal.SIGXFSZ), (fault, outcome)
        done = command.published(nursery.root / "work")
        left = bool(strays(nursery.root))
        states[f"{done} published, {'something' if left else 'nothing'} left"] += 1
        if left:
            finish(nursery, command, (fault, outcome))
    print(name, len(undisturbed.calls), "calls", dict(states))


def publish(given: list[str]) -> int:
    """What all commands publish with: a directory, over one that is there, and a file."""
    for content in (b"old", b"new"):
        with staged_directory(Path(given[0]) / "directory", overwrite=True) as stage:
            (stage / "a").write_bytes(content)
        write_file(Path(given[0]) / "file", content)
    return 0
