"""Locks between processes, and what processes that were killed while publishing leave behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from conftest import child_environment, killed_while_staging, staging

from fairseq_openvino import atomic
from fairseq_openvino.atomic import (
    clear_leftovers,
    lock_shared,
    locked,
    remove_directory,
    staged_directory,
)
from fairseq_openvino.errors import StorageError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A directory that is to be replaced."""
    with staged_directory(tmp_path / "x.y") as stage:
        (stage / "a").write_text("old")
    return tmp_path / "x.y"


def test_a_kill_between_the_renames_costs_nothing(target: Path) -> None:
    killed_while_staging(target, "rename 1")
    assert not target.exists()
    with staged_directory(target.with_name("other")):  # whoever publishes beside it
        pass
    assert (target / "a").read_text() == "old"
    assert sorted(path.name for path in target.parent.iterdir()) == ["other", "x.y"]


@pytest.mark.parametrize("moment", ["wait", "rename 0"])
def test_what_a_killed_process_staged_is_removed(target: Path, moment: str) -> None:
    killed_while_staging(target, moment)
    assert (target / "a").read_text() == "old" and len(list(target.parent.iterdir())) > 1
    clear_leftovers(target.parent)
    assert (target / "a").read_text() == "old" and list(target.parent.iterdir()) == [target]


def test_what_a_living_process_stages_stays(target: Path) -> None:
    process = staging(target, "wait")
    before = sorted(target.parent.iterdir())
    clear_leftovers(target.parent)
    assert sorted(target.parent.iterdir()) == before
    process.communicate("go\n")
    assert (target / "a").read_text() == "new" and list(target.parent.iterdir()) == [target]


def test_files_with_other_names_are_left_alone(tmp_path: Path) -> None:
    names = (".x.staging-1", "x.staging-1.lock", ".hidden", ".x.lock")
    for name in names:
        (tmp_path / name).write_text("mine")
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_the_lock_file_is_gone_afterwards_and_one_holds_it_at_a_time(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "deep" / "lock", [0], [0]

    def enter() -> None:
        for _ in range(50):
            with locked(path) as held:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                assert held and path.exists()
                inside[0] -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and not path.exists()


def test_not_waiting_and_sharing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), locked(path, wait=False) as second:
        assert second is False
    assert not path.exists()
    with lock_shared(path), lock_shared(path), locked(path, wait=False) as third:
        assert third is False
    with locked(path, wait=False) as alone:
        assert alone


def test_a_directory_is_removed_as_a_whole(target: Path) -> None:
    remove_directory(target)
    assert list(target.parent.iterdir()) == []


def test_without_locks_nothing_is_cleared_up(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none: publishing goes on, and what may be in use stays."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    killed_while_staging(target, "wait")
    monkeypatch.setattr(atomic.fcntl, "flock", unsupported)
    with staged_directory(target, overwrite=True) as stage:
        (stage / "a").write_text("new")
    assert (target / "a").read_text() == "new" and len(list(target.parent.iterdir())) == 3


@pytest.mark.fault
def test_killed_at_any_time_one_of_the_two_is_there(target: Path) -> None:
    """Ever later: the target is the old one or the new one, whole, once the next run has looked."""
    seen = set[str]()
    for number in count():
        if number >= 40 and "new" in seen:  # however slow this machine is
            break
        process = staging(target, "wait")
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(number * 0.0001)
        process.kill()
        process.communicate()
        clear_leftovers(target.parent)
        assert list(target.parent.iterdir()) == [target]
        seen.add((target / "a").read_text())
        (target / "a").write_text("old")
    assert seen == {"old", "new"}


@pytest.mark.parametrize("use", [locked, lock_shared])
def test_where_no_lock_can_be(use: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another directory"):
        opened = use(tmp_path / "file" / "lock")
        opened.__enter__()  # type: ignore[attr-defined]


EVERYWHERE = """
import importlib, os, pkgutil, sys, tempfile
from pathlib import Path

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "O_NOFOLLOW", "killpg", "getuid", "mkfifo", "fork", "setsid"):
    if hasattr(os, name):
        delattr(os, name)

import fairseq_openvino
from fairseq_openvino import atomic, cli, machine

LIGHT = ("atomic", "bundle", "checkpoint", "commands", "decoding", "errors", "flags", "machine",
         "metrics", "model", "recognizer", "runtime", "s2t", "speech", "tables", "whisper")
found = [importlib.import_module(f"fairseq_openvino.{name}") for name in LIGHT]
for package in found:
    for inner in pkgutil.walk_packages(getattr(package, "__path__", ()), package.__name__ + "."):
        importlib.import_module(inner.name)

assert machine.threads() >= 1
target = Path(tempfile.mkdtemp()) / "x"
for content in ("old", "new"):
    with atomic.staged_directory(target, overwrite=True) as stage:
        (stage / "a").write_text(content)
assert (target / "a").read_text() == "new" and list(target.parent.iterdir()) == [target]
cli.main(["cache", "list", "--cache-dir", str(target)])
print("done")
"""


def test_the_light_part_needs_nothing_that_other_systems_lack() -> None:
    """Windows has no fcntl and resource, macOS no affinity."""
    done = subprocess.run(
        [sys.executable, "-c", EVERYWHERE], capture_output=True, text=True, env=child_environment()
    )
    assert done.stdout.endswith("done\n"), done.stderr


def test_lock_files_are_not_inherited(tmp_path: Path) -> None:
    """A child that outlives the holder keeps nothing locked."""
    with locked(tmp_path / "lock"):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with locked(tmp_path / "lock", wait=False) as held:
            assert held and os.getpid()
    finally:
        child.communicate(b"\n")
