"""`make covost-train`: what it needs, what it skips, and a small run of every step."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "examples" / "covost"
MODELS = {"mini", "asr_en", "st_en_de_conformer", "st_en_de_berard", "st_en_deca", "mt_en_de"}


def _run(script: Path, root: Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path or search, "PYTHONPATH": str(ROOT)}
    command = ["/bin/sh", str(script), str(root)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _outputs(root: Path) -> list[Path]:
    """What the steps of the script say they write."""
    text = (RECIPE / "train.sh").read_text("utf-8")
    places = {"data": root / "en", "run": root / "run", "models": root / "models"}
    found = re.findall(r'^ *step "\$(\w+)/([^"]+)"', text, re.MULTILINE)
    return [places[place] / name for place, name in found]


def test_missing_programs_are_named_before_anything_starts(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("dirname", "mkdir"):
        (tools / name).symlink_to(shutil.which(name) or name)
    done = _run(RECIPE / "train.sh", tmp_path / "root", str(tools))
    assert done.returncode == 5
    assert "expected espeak-ng, got no such program. Run apt-get install" in done.stderr
    assert not (tmp_path / "root" / "en").exists()


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_steps_whose_output_exists_are_skipped(tmp_path: Path) -> None:
    outputs = _outputs(tmp_path)
    assert {path.name for path in outputs if path.parent.name == "models"} == MODELS
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    done = _run(RECIPE / "train.sh", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{path} exists: skipped" for path in outputs]


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_every_step_on_a_small_corpus(tmp_path: Path) -> None:
    recipe = tmp_path / "covost"
    shutil.copytree(RECIPE, recipe, ignore=shutil.ignore_patterns("models", "mini", "results"))
    text = (recipe / "train.sh").read_text("utf-8")
    text = text.replace("--train 4000 --dev 100 --test 100", "--train 200 --dev 10 --test 10")
    text = re.sub(r"((?:speech|translation) ?\w*) \d+", r"\1 1", text)
    text = re.sub(r"--vocab-size \d+", "--vocab-size 120", text).replace("bpe600", "bpe120")
    (recipe / "train.sh").write_text(text, "utf-8")
    root = tmp_path / "root"
    for _ in range(2):
        done = _run(recipe / "train.sh", root)
        assert done.returncode == 0, done.stderr[-3000:]
    models = root / "models"
    assert {path.name for path in models.iterdir()} == MODELS
    assert all((path / "checkpoint.pt").is_file() for path in models.iterdir())
    assert done.stdout.count("exists: skipped") == len(_outputs(tmp_path))
