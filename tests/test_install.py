"""The package as users get it: a wheel alone, on a system without a checkout and without extras."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import MINI, PACKAGE, ROOT, Shared, child_environment

from fairseq_openvino import __version__
from fairseq_openvino.commands.doctor import EXTRAS

WHISPER = MINI.parent / "whisper" / "mini"
CLIP = MINI / "clips" / "common_voice_en_00004101.mp3"
WITHOUT = """
import sys
for name in ("torch", "fairseq", "nncf"):
    sys.modules[name] = None
from fairseq_openvino import cli
for line in sys.stdin:
    print("exit code", cli.main(line.split()), file=sys.stderr)
"""
NEEDING = {
    "export --path x --data y --output z": "fairseq",
    f"export --source {WHISPER} --output z": "whisper-export",
    "quantize x --calibration y --output z": "quantize",
    f"verify x --path {CLIP}": "fairseq",
}
"""Command to the extra that it asks for."""


def test_a_missing_package_names_its_extra() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], input="\n".join(NEEDING), capture_output=True, text=True,
        env=child_environment(),
    )  # fmt: skip
    lines = [
        line for line in done.stderr.splitlines() if line.startswith(("error: ", "exit code "))
    ]
    for extra, message, code in zip(NEEDING.values(), lines[::2], lines[1::2], strict=True):
        assert f"fairseq-openvino[{extra}]" in message and code == "exit code 5"


# Where --ov-* flags are typed, and what describes commands that have them.
FAIRSEQ_SIDE = ("plugin", "tasks", "models", "measure", "commands/verify.py", "cli.py")


def texts(path: Path) -> Iterator[str]:
    """What a file may print: its texts that are no docstrings."""
    tree = ast.parse(path.read_text())
    plain = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in plain:
            yield node.value


def test_no_message_names_a_flag_of_another_command() -> None:
    """Those who typed `transcribe` or `load_model` have no --ov-* flags."""
    names = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py")}
    ours = [path for name, path in names.items() if not name.startswith(FAIRSEQ_SIDE)]
    found = [(path.name, text) for path in ours for text in texts(path) if "--ov-" in text]
    assert len(ours) > 60 and not found


def test_the_container_file_names_what_exists() -> None:
    text = (ROOT / "examples" / "container" / "Dockerfile").read_text().replace("\\\n", "")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    copied = [name for word, *names, _ in lines if word == "COPY" for name in names]
    assert len(copied) == 5 and all((ROOT / name).exists() for name in copied)
    assert {"setup.py", "README.md", PACKAGE.name} <= set(copied)
    (extras,) = re.findall(r"/source\[(.*)\]", text)
    assert set(extras.split(",")) <= set(EXTRAS.values())


@pytest.fixture(scope="module")
def distributions(shared: Shared) -> Path:
    """A wheel and a source distribution, of the files that are under version control."""

    def make(directory: Path) -> None:
        source = directory / "source"
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file() and not name.startswith("examples/"):
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, source / name)
        quiet = {"cwd": source, "check": True, "stdout": subprocess.DEVNULL}
        subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", directory], **quiet)
        (archive,) = directory.glob("*.tar.gz")
        wheel = ["wheel", "--no-deps", "--no-build-isolation", "-q", "-w", directory, archive]
        subprocess.run([sys.executable, "-m", "pip", *wheel], **quiet)  # as `python -m build` does

    return shared("distributions", make)


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.mark.soak
def test_what_is_in_the_wheel(distributions: Path) -> None:
    (wheel,), (archive,) = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    tracked = subprocess.run(
        ["git", "ls-files", "fairseq_openvino"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in name}
    assert names == {name for name in tracked if (ROOT / name).is_file()}
    with tarfile.open(archive) as source:
        inside = {name.partition("/")[2] for name in source.getnames()}
    assert {"LICENSE", "README.md", "setup.py", *names} <= inside
    found = metadata(wheel)
    assert found["Version"] == __version__ and found["License-File"] == "LICENSE"
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(EXTRAS.values()) <= set(found.get_all("Provides-Extra", []))


@pytest.mark.soak
def test_a_wheel_alone_transcribes(
    distributions: Path, mini_bundle: Path, whisper_bundle: Path, tmp_path: Path
) -> None:
    """In a new environment, with what its extra brings and nothing else."""
    (wheel,) = distributions.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    home = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    home |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": ""}

    def run(*words: str | Path) -> str:
        return subprocess.run(
            [binaries / words[0], *words[1:]], cwd=tmp_path, env=home, capture_output=True, text=True,
            check=True,
        ).stdout  # fmt: skip

    run("pip", "install", "-q", f"{wheel}[whisper,media]")
    command = "fairseq-openvino"
    assert run(command, "--version") == f"{__version__}\n"
    text = run(command, "transcribe", CLIP, "--model", mini_bundle)
    assert text == f"{CLIP}\tDer schwarze Schlüssel ist sehr neu.\n"
    assert run(command, "transcribe", CLIP, "--model", whisper_bundle).startswith(f"{CLIP}\t")
    assert "not installed (extra: fairseq)" in run(command, "doctor")
    assert run(command, "cache", "list").endswith("fairseq_openvino: 0 B\n")
    assert run("python", "-c", "import fairseq_openvino as f; print(f.__file__)").startswith(
        str(tmp_path)
    )
