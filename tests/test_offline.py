"""The runtime alone: no connection, nothing heavy, a quick import (bar R18)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from conftest import MICRO_WHISPER, MINI, child_environment
from test_layers import HEAVY, modules, room

from fairseq_openvino.commands.doctor import EXTRAS

CLIP = sorted((MINI / "clips").glob("*.mp3"))[0]
WHISPER_CLIP = sorted((MICRO_WHISPER / "clips").iterdir())[0]
MAX_IMPORT_SECONDS = 0.5
NO_CI = {"CI": "", "TF_BUILD": "", "JENKINS_URL": ""}
"""There openvino_telemetry is silent."""
ALONE = """
import sys

def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print("reached", event, *arguments[1:], file=sys.stderr, flush=True)  # forked children, too
        raise OSError(f"offline: {event} {arguments[1:]}")

sys.addaudithook(hook)
from fairseq_openvino import cli, load_model

bundle, clip, whisper, clip_of_whisper, output = sys.argv[1:]
assert load_model(bundle, cache_dir=f"{output}/cache").transcribe(clip).text
for command in (
    ["transcribe", clip, "--model", bundle, "--format", "jsonl", "--isolate-audio"],
    ["transcribe", clip_of_whisper, "--model", whisper, "--output-dir", output, "--format", "srt"],
    ["cache", "list"],
):
    assert cli.main(command) == 0, command
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_the_runtime_alone(mini_bundle: Path, micro_whisper: Path, tmp_path: Path) -> None:
    """No name is looked up, nothing connected to, where that is possible without any network at all."""
    without = ["unshare", "--map-root-user", "--net"]
    can = shutil.which("unshare") and not subprocess.run([*without, "true"]).returncode
    words = [mini_bundle, CLIP, micro_whisper, WHISPER_CLIP, tmp_path]
    done = subprocess.run(
        [*(without if can else ()), sys.executable, "-c", ALONE, *map(str, words)],
        capture_output=True, text=True, env=child_environment(HOME=str(tmp_path), **NO_CI),
    )  # fmt: skip
    assert done.returncode == 0 and "reached" not in done.stderr, done.stderr
    *_, loaded = done.stdout.splitlines()
    assert set(loaded.split()) & set(HEAVY) == {"openvino"}
    assert not (tmp_path / "intel").exists(), "an identifier of openvino_telemetry"


QUICK = """
import sys, time
import fairseq_openvino.cli
assert "openvino" not in sys.modules
print(time.process_time())
"""


def test_every_command_is_known_within_half_a_second() -> None:
    """Of computing; the best of three."""
    seconds = []
    while len(seconds) < 3 and min(seconds, default=1.0) > MAX_IMPORT_SECONDS:
        command = [sys.executable, "-c", QUICK]
        done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) <= MAX_IMPORT_SECONDS, seconds


EACH = """
import importlib, sys

extras, *names = (line.split() for line in sys.stdin)
for name in extras:
    sys.modules[name] = None
for (name,) in names:
    try:
        importlib.import_module(f"fairseq_openvino.{name}".removesuffix(".__init__"))
    except ModuleNotFoundError as error:
        print(name, error.name.partition(".")[0])
"""
NEEDING = {
    "checkpoint",
    "compat",
    "export",
    "measure",
    "models",
    "plugin",
    "quantize",
    "server",
    "tasks",
}
"""Rooms with files that no runtime needs. All others can be imported without any extra."""


def test_every_file_can_be_imported_or_names_what_it_needs() -> None:
    """`cli.main` says by which extra it comes (`test_install`)."""
    names = [name for name in sorted(modules()) if name != "__main__"]
    lines = [" ".join(EXTRAS), *names]
    done = subprocess.run(
        [sys.executable, "-c", EACH], input="\n".join(lines), capture_output=True, text=True,
        env=child_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    missing = [line.split() for line in done.stdout.splitlines()]
    assert missing and {room(name) for name, _ in missing} <= NEEDING
    assert {package for _, package in missing} <= EXTRAS.keys()
