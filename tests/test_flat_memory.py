"""Memory stays flat over many utterances of random length (bar R8), in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MICRO_WHISPER, MINI, ROOT, child_environment

SEED = os.environ.get("FAIRSEQ_OPENVINO_SEED", "8")
PROGRAM = """
import sys

import numpy as np
import soundfile
from growth import Growth

from fairseq_openvino import load_model

bundle, kind, count, seed, *clips = sys.argv[1:]
model, held = load_model(bundle), []
sound = np.concatenate([soundfile.read(clip, dtype="float32")[0] for clip in clips])

def work(number):
    random = np.random.default_rng((int(seed), number))
    seconds = random.uniform(0.1, 3) if number % 10 else 0.1 * 600 ** random.uniform()
    begin = random.integers(len(sound) - 60 * 16000)
    samples = sound[begin : begin + round(16000 * seconds)]
    options = {} if model.manifest.family == "ctc" else {"beam": 1 if number % 4 else 5}
    (found,) = model.transcribe_each([samples], **options)
    assert found.seconds == len(samples) / 16000
    if kind == "leaking":
        held.append(model.read(clips[number % len(clips)]))

print(Growth(warm_up=2000, window=1000).run(work, int(count)).check_flat())
"""
CLIPS = {
    "s2t": sorted((MINI / "clips").glob("*.mp3")),
    "whisper": sorted((MICRO_WHISPER / "clips").iterdir()),
}
CLIPS["ctc"] = CLIPS["s2t"]


def grown(family: str, bundle: Path, kind: str, count: int) -> subprocess.CompletedProcess[str]:
    """The figures of a run."""
    command = [sys.executable, "-c", PROGRAM, str(bundle), kind, str(count), SEED]
    return subprocess.run(
        [*command, *map(str, CLIPS[family])], capture_output=True, text=True,
        env=child_environment(PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}"),
    )  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("family", ["s2t", "whisper", "ctc"])
def test_memory_stays_flat(
    family: str, mini_bundle: Path, micro_whisper: Path, ctc_head: Path
) -> None:
    """10,000 utterances; what is held behind 2,000 of them does not grow."""
    bundle = {"s2t": mini_bundle, "whisper": micro_whisper, "ctc": ctc_head / "bundle"}[family]
    done = grown(family, bundle, "plain", 10_000)
    assert done.returncode == 0, done.stderr
    print(family, done.stdout)


@pytest.mark.soak
def test_a_leak_is_noticed(ctc_head: Path) -> None:
    """Features of one file an utterance are kept, 100 KB."""
    done = grown("ctc", ctc_head / "bundle", "leaking", 4000)
    assert done.returncode == 1 and "more memory: first " in done.stderr
