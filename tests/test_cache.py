"""The cache of exported bundles and compiled models: what is kept, used, listed and removed."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Shared, child_environment, generate, killed_while_staging

from fairseq_openvino import cli, load_model
from fairseq_openvino.bundle import MANIFEST, is_bundle
from fairseq_openvino.export.cache import default_cache_dir, entries, key
from fairseq_openvino.tables import human_bytes

DAY_SECONDS = 86_400
USE = """
import sys
from pathlib import Path
from fairseq_openvino.export.cache import cached

print(cached("checkpoint", {"a": 1}, Path(sys.argv[1]), None).directory, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def cache(tiny_bundle: Path, shared: Shared, tmp_path: Path) -> Path:
    """A cache with one bundle that no process uses, and what its graphs compiled to."""

    def make(root: Path) -> None:
        shutil.copytree(tiny_bundle, root / "bundles" / f"checkpoint-{key({'a': 1})}")
        for precision in ("f32", "bf16"):
            model = load_model(tiny_bundle, precision=precision, cache_dir=root / "compiled")
            model.prepare([1], beam=1)

    return Path(shutil.copytree(shared("filled-cache", make), tmp_path / "cache"))


def using(cache: Path) -> subprocess.Popen[str]:
    """A process that uses the bundle until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", USE, str(cache)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment(),
    )  # fmt: skip
    assert process.stdout is not None and is_bundle(process.stdout.readline().strip())
    return process


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[str]:
    assert cli.main(["cache", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def bundles(cache: Path) -> list[str]:
    return [entry.path.name for entry in entries(cache) if entry.is_bundle]


def test_what_is_listed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = bundles(cache)
    assert os.path.getmtime(cache / "bundles" / name / MANIFEST) < time.time()
    total, header, *rows = run(capsys, "list", "--cache-dir", cache)
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert total == f"{cache}: {human_bytes(size)}"
    assert header.split() == ["SOURCE", "SIZE", "LAST", "USED", "DIRECTORY"]
    assert [row.split()[-1] for row in rows] == [
        f"bundles/{name}", "compiled/bf16", "compiled/f32",
    ]  # fmt: skip
    assert rows[0].startswith("  checkpoint.pt (s2t_transformer)  ")
    assert run(capsys, "list", "--cache-dir", cache / "none") == [f"{cache / 'none'}: 0 B"]


def test_a_bundle_in_use_stays_and_its_use_is_noted(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = bundles(cache)
    os.utime(cache / "bundles" / name / MANIFEST, (0, 0))
    process = using(cache)
    lines = run(capsys, "prune", "--all", "--cache-dir", cache)
    assert bundles(cache) == [name] and any(line.startswith("kept, in use") for line in lines)
    run(capsys, "prune", "--older-than", "1", "--cache-dir", cache)
    process.communicate("\n")
    run(capsys, "prune", "--older-than", "1", "--cache-dir", cache)
    assert bundles(cache) == [name]  # it was used a moment ago
    run(capsys, "prune", "--all", "--cache-dir", cache)
    assert [path for path in cache.rglob("*") if not path.is_dir()] == []


def test_prune_by_age_and_by_size(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = bundles(cache)
    (cache / "bundles" / "notes.txt").write_text("mine")
    (cache / "bundles" / "directory").mkdir()
    run(capsys, "prune", "--cache-dir", cache)
    run(capsys, "prune", "--older-than", "3", "--max-size", "1", "--cache-dir", cache)
    assert len(list(entries(cache))) == 5
    old = time.time() - 4 * DAY_SECONDS
    os.utime(cache / "bundles" / name / MANIFEST, (old, old))
    lines = run(capsys, "prune", "--older-than", "3", "--cache-dir", cache)
    assert lines[0].startswith(f"removed: bundles/{name} (") and lines[1].endswith(" kept")
    first, *others = sorted(entries(cache), key=lambda entry: entry.bytes)
    os.utime(first.path, (old, old))
    size = sum(entry.bytes for entry in others) / 1e9
    run(capsys, "prune", "--max-size", str(size), "--cache-dir", cache)
    assert {entry.path for entry in entries(cache)} == {entry.path for entry in others}
    assert (cache / "bundles" / "notes.txt").exists() and (cache / "bundles" / "directory").exists()
    assert cli.main(["cache", "prune", "--older-than", "-1"]) == 2
    assert "Pruning failed in --older-than: expected at least 0" in capsys.readouterr().err


def test_prune_clears_up_after_killed_processes(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_while_staging(cache / "bundles" / "x", "wait")
    assert len(list((cache / "bundles").iterdir())) == 3
    run(capsys, "prune", "--cache-dir", cache)
    assert len(list((cache / "bundles").iterdir())) == 1


def test_who_finds_a_bundle_clears_up_after_killed_processes(cache: Path) -> None:
    (name,) = bundles(cache)
    killed_while_staging(cache / "bundles" / name, "wait")
    using(cache).communicate("\n")
    assert sorted(os.listdir(cache / "bundles")) == [name, f"{name}.used"]


def test_an_unwritable_cache_is_one_warning(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    flags = ("--ov-engine", "--max-len-b", "5", "--ov-cache-dir", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO):
        generate(tiny, *flags)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    (line,) = [text for text in warnings if "nothing is kept for the next run" in text]
    assert str(tmp_path / "file") in line and not [x for x in warnings if "without the cache" in x]
    exported = [record for record in caplog.records if "for the first use" in record.message]
    assert len(exported) == 1


def test_a_cache_that_can_only_be_read_is_used(cache: Path) -> None:
    (cache / ".lock").mkdir()  # as an administrator's directory, also for root
    process = using(cache)
    process.communicate("\n")
    assert not list((cache / "bundles").glob("*.used"))


def test_compiling_without_a_cache_is_one_warning(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    model = load_model(tiny_bundle, cache_dir=tmp_path / "file")
    model.prepare([1], beam=1)
    assert len(model.model.engine.compiled) > 1
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


@pytest.mark.parametrize(
    ("stated", "expected"), [("/x", "/x"), ("", None), ("relative", None), ("./x", None)]
)
def test_where_the_cache_is(
    stated: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", stated)
    assert default_cache_dir() == Path(expected or "/home/me/.cache") / "fairseq_openvino"


def test_sizes_for_people() -> None:
    shown = [human_bytes(size) for size in (0, 7, 999, 1000, 12_340_000, 5 * 10**9, 10**16)]
    assert shown == ["0 B", "7 B", "999 B", "1.0 kB", "12.3 MB", "5.0 GB", "10000.0 TB"]
