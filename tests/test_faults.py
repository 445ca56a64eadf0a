"""R1, R2, R14: killed at any moment, refused any call or memory, nothing half is published or left behind."""

from __future__ import annotations

import collections
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import openvino as ov
import pytest
from conftest import MINI, TINY, tone
from fault_calls import NATIVE_BYTES, Fault
from faults import CLEANING, NEW, Nursery, Outcome, kills

from fairseq_openvino import cli
from fairseq_openvino.atomic import writable_directory
from fairseq_openvino.bundle import ENCODER_IR, is_bundle, open_bundle
from fairseq_openvino.errors import (
    EXIT_ENVIRONMENT,
    EXIT_MODEL,
    EXIT_OK,
    EXIT_PARTIAL,
    BundleError,
    CheckpointError,
    DeviceError,
    StorageError,
    concerns_one_clip,
)
from fairseq_openvino.export.fairseq import export_checkpoint
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.journal import records
from fairseq_openvino.measure.material.s2t import write_checkpoint
from fairseq_openvino.runtime.graphs import compile_graph, read_graph, save_graph

SEED = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "0"))
STEPS_MB = (1024, 512, 384, 256, 192, 128, 96, 64, 32, 8)
"""Of address space beyond what a process has when its imports are done."""
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE)
ONNXRUNTIME = ".ses"
"""In the directory for temporary files: a session's name."""
STAGE = re.compile(r"\.staging-[0-9a-f]{8}$")
"""What is opened to remove what is in it."""
NOT_KEPT = "nothing is kept for the next run"
"""The warning of a cache that cannot be written."""
KEPT = (".used", ".work")
"""Beside what is published: when a bundle was used last, and recordings that the next run reuses."""
BRIEF = TINY | {
    "vocabulary": 60, "encoder_layers": 1, "decoder_layers": 1, "max_target_positions": 16,
}  # fmt: skip
"""Of a model that NNCF quantizes in seconds: it takes time for every node, and every token is a sample."""


@dataclass(frozen=True)
class Command:
    """A command that writes below the directory `work` and nowhere else."""

    words: Callable[[Path], list[object]]
    """Given that directory."""
    published: Callable[[Path], int]
    """How many results are there, every one of them whole."""
    total: int = 1
    kills: int = 200


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


def merged(work: Path) -> int:
    """1 if a job has its results, of all files."""
    results = work / "job" / "results.jsonl"
    if not results.exists():
        return 0
    found = [json.loads(line) for line in results.read_bytes().splitlines()]
    assert [Path(each["path"]).name for each in found] == ["0.wav", "1.wav", "2.wav"]
    return int(all("error" not in each for each in found))


def words(work: Path) -> list[object]:
    data = work.parent / "in"
    return ["--path", data / "tiny" / "checkpoint.pt", "--data", data / "tiny"]


COMMANDS = {
    "average": Command(
        lambda work: [
            "average-checkpoints", "--inputs", *2 * [words(work)[1]], "--output", work / "average.pt",
        ],
        lambda work: [zipfile.is_zipfile(path) for path in work.glob("*.pt")].count(True),
        kills=60,
    ),
    "export": Command(
        lambda work: ["export", *words(work), "--output", work / "bundle", "--overwrite"], bundles
    ),
    "cache": Command(
        lambda work: [
            "transcribe", work.parent / "in" / "audio" / "0.wav", "--model", words(work)[1],
            "--data", words(work)[3], "--cache-dir", work / "cache", "--max-len-b", "5",
        ],
        bundles,
        kills=60,
    ),
    "quantize": Command(
        lambda work: [
            "quantize", work.parent / "in" / "brief", "--calibration", MINI / "test_st_en_de.tsv",
            "--output", work / "int8", "--mode", "mixed", "--calibration-size", 2, "--held-out-size", 1,
            "--validation-size", 1, "--max-drop", 100, "--alphas", -1, "--beam", 1, "--overwrite",
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
        kills=60,
    ),
    "job": Command(
        lambda work: [
            "transcribe", work.parent / "in" / "audio", "--model", work.parent / "in" / "bundle",
            "--job", work / "job", "--batch-size", 1, "--retry-failed", "--max-len-b", "5",
        ],
        merged,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def nursery(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, tiny_bundle: Path
) -> Iterator[Nursery]:
    """Of real commands, with what they read below `in`."""
    root = tmp_path_factory.mktemp("faults")
    for name, path in (("tiny", tiny), ("bundle", tiny_bundle)):
        shutil.copytree(path, root / "in" / name)
    made = write_checkpoint(root / "in" / "tiny", "s2t_transformer_s", "brief.pt", **BRIEF)
    export_checkpoint(made, DataDirectory(made.parent), root / "in" / "brief")
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


def undisturbed(nursery: Nursery, command: Command, fault: Fault | None = None) -> Outcome:
    """A run from the beginning that succeeds; the fault says which calls are counted."""
    outcome = attempt(nursery, command, fault)
    assert outcome.exit_code == EXIT_OK, outcome
    assert command.published(nursery.root / "work") == command.total, outcome
    return outcome


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
    assert "Traceback" not in outcome.said, story
    assert not [name for name in outcome.left_open if not name.endswith(KEPT)], story
    done = command.published(root / "work")
    assert outcome.exit_code or done == command.total or NOT_KEPT in outcome.said, story
    if strays(root):
        call = outcome.calls[fault.at]
        assert call.split()[0] in CLEANING or STAGE.search(call), (story, strays(root))


def state(work: Path) -> tuple[bytes | None, bytes | None, int]:
    """What `faults.publish` has done: the directory and the report, both whole, and records."""
    parts = [path.read_bytes() for path in sorted((work / "directory").glob("*"))]
    assert not parts or (len(parts) == 3 and len(set(parts)) == 1), parts
    report = work / "report.json"
    stated = json.loads(report.read_bytes())["is"].encode() if report.exists() else None
    found = list(records(work / "journal")) if (work / "journal").exists() else []
    assert [each["number"] for each in found] == [*range(len(found))]
    return (parts or [None])[0], stated, len(found)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.fault)])
def test_what_publishes_survives_every_call(tmp_path: Path, every: bool) -> None:
    """A directory, a report and a journal: killed at each call, or refused it."""
    print(f"seed={SEED}")
    nursery = Nursery(tmp_path, ("fairseq_openvino.journal",), "faults:publish")
    command = Command(lambda work: [work], lambda work: state(work)[:2].count(NEW), total=2)
    calls = undisturbed(nursery, command).calls
    assert state(tmp_path / "work") == (NEW, NEW, 6)
    telling = [at for at, call in enumerate(calls) if every or at % 3 == 0 or call.startswith("re")]
    faults = [kills(calls, SEED)[at] for at in telling] if not every else [
        Fault(at=i, kill=kill) for i in range(len(calls)) for kill in ("before", "half", "after")
    ]  # fmt: skip
    for fault in faults:
        outcome = attempt(nursery, command, fault)
        assert outcome.signal == signal.SIGKILL, (fault, outcome)
        writable_directory(tmp_path / "work")  # as whoever publishes there next
        directory, report, count = state(tmp_path / "work")
        assert (directory is not None or report is None) and not strays(tmp_path), (fault, outcome)
        assert directory is not NEW or count > 2, (fault, outcome)
        finish(nursery, command, (fault, outcome))
    for number in ERRNOS if every else ERRNOS[:1]:
        for at in telling:
            fault = Fault(at=at, errno=number)
            outcome = attempt(nursery, command, fault)
            judge(nursery, command, fault, outcome)
            directory, report, _ = state(tmp_path / "work")
            assert directory is not None or report is None, (fault, outcome)
            finish(nursery, command, (fault, outcome))
    nursery.close()


@pytest.mark.fault
@pytest.mark.parametrize("reads", [False, True], ids=["writing", "reading"])
@pytest.mark.parametrize("name", COMMANDS)
def test_each_call_refused(nursery: Nursery, name: str, reads: bool) -> None:
    """R2: the i-th call fails, for every i; four seeds give each call every reason."""
    print(f"seed={SEED}")
    command, exits = COMMANDS[name], collections.Counter[object]()
    calls, at = undisturbed(nursery, command, Fault(reads=reads)).calls, 0
    while True:
        number = ERRNOS[(at + SEED) % len(ERRNOS)]
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
def test_killed_at_any_instant(nursery: Nursery, name: str) -> None:
    """R1: at each of the calls that write, and at any time."""
    print(f"seed={SEED}")
    command, chance = COMMANDS[name], random.Random(SEED)
    calls = undisturbed(nursery, command).calls
    took = undisturbed(nursery, command).took  # all that the first has loaded is in memory now
    planned = kills(calls, SEED)
    chance.shuffle(planned)
    del planned[command.kills * 3 // 4 :]
    states = collections.Counter[str]()
    while states.total() < command.kills:
        fault = planned.pop() if planned else Fault(seconds=chance.uniform(0, took))
        outcome = attempt(nursery, command, fault)
        if not outcome.signal:
            assert outcome.exit_code == EXIT_OK, (fault, outcome)
            took = outcome.took  # it was faster than the clock
            continue
        assert outcome.signal in (signal.SIGKILL, signal.SIGXFSZ), (fault, outcome)
        done = command.published(nursery.root / "work")
        left = bool(strays(nursery.root))
        states[f"{done} published, {'something' if left else 'nothing'} left"] += 1
        if os.listdir(nursery.root / "work"):
            finish(nursery, command, (fault, outcome))
    print(name, len(calls), "calls", dict(states))


@pytest.mark.fault
@pytest.mark.parametrize("name", ["export", "transcribe", "job"])
def test_little_memory(nursery: Nursery, name: str) -> None:
    """R14: success or exit code 5, and nothing half; where OpenVINO itself dies or waits, we say so."""
    command, ends = COMMANDS[name], list[str]()
    for size in STEPS_MB:
        fault = Fault(memory_bytes=size << 20)
        outcome = attempt(nursery, command, fault)
        done, story = command.published(nursery.root / "work"), (fault, outcome)
        if outcome.exit_code is None and not outcome.raised:
            where = re.search(r"File .*/site-packages/.*|.*: ABORT", outcome.said)  # glibc's word
            assert where is not None, story
            ends.append(f"{size} MB: native code, signal {outcome.signal}: {where[0]}")
        else:
            exits = [EXIT_OK, EXIT_ENVIRONMENT]
            if "IR" in outcome.said and "FAILED" in outcome.said:
                exits.append(EXIT_MODEL)  # a library computed nonsense, and the parity gate saw it
            assert not outcome.raised and outcome.exit_code in exits, story
            assert outcome.exit_code == EXIT_OK or "error: " in outcome.said, story
            ends.append(f"{size} MB: exit {outcome.exit_code}")
        assert outcome.exit_code != EXIT_OK or done == command.total, story
        if outcome.exit_code != EXIT_OK:
            finish(nursery, command, story)
    print(name, *ends, sep="\n")
    assert ends[0].endswith("exit 0") and not ends[-1].endswith("exit 0")


def test_what_native_code_refuses_is_typed(tiny_bundle: Path, tmp_path: Path) -> None:
    model = read_graph(tiny_bundle / ENCODER_IR)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (NATIVE_BYTES, before[1]))
    try:
        with pytest.raises(StorageError, match="Writing failed in '.*encoder.xml'"):
            save_graph(model, tmp_path / ENCODER_IR)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(BundleError, match="Reading a graph failed in '.*none.xml'"):
        read_graph(tmp_path / "none.xml")
    with pytest.raises(DeviceError, match="Compiling failed on device 'NONE': expected one of CPU"):
        compile_graph(ov.Core(), model, "NONE", {})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "doctor failed: expected enough memory, got MemoryError."),
        (RuntimeError("std::bad_alloc"), "expected enough memory, got std::bad_alloc."),
        (CheckpointError("can't allocate memory"), "expected enough memory, got can't"),
        (OSError(errno.EIO, "Input/output error", "x"), "files that can be read and written, got"),
    ],
)
def test_refused_memory_and_files_end_a_command(
    error: Exception,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(cli.doctor, "run", fail)
    assert cli.main(["doctor"]) == EXIT_ENVIRONMENT
    assert expected in capsys.readouterr().err
    assert not isinstance(error, (MemoryError, RuntimeError)) or not concerns_one_clip(error)
