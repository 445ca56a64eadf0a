"""What a model needs on disk and in memory, at true size with random weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MINI, child_environment

from fairseq_openvino.bundle import open_bundle
from fairseq_openvino.measure.material.whisper import true_size, write_whisper

pytestmark = pytest.mark.soak

BASE = true_size(512, 6, 8)
CLIP = sorted((MINI / "clips").glob("*.mp3"))[0]
TRANSCRIBE = """
import sys
from fairseq_openvino import load_model
from fairseq_openvino.machine import peak_megabytes

model = load_model(sys.argv[1], precision=sys.argv[2])
for _ in range(2):
    model.transcribe(sys.argv[3], max_tokens=20, temperature=0.0)  # retries compile another decoder
print(peak_megabytes())
"""
OTHERS_MB = 250
"""Python, OpenVINO and activations."""
OF_WEIGHTS = 1.3
"""Most of a model's weights that may be in memory, at the precision in which each is kept."""


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 16-bit numbers, `source`, and its `bundle`."""
    import torch

    from fairseq_openvino.compat.transformers import transformers
    from fairseq_openvino.export.whisper import export_whisper

    directory = tmp_path_factory.mktemp("half")
    source = write_whisper(directory / "source", BASE)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        source, dtype=torch.float16
    )
    model.save_pretrained(source)
    export_whisper(source, directory / "bundle")
    return directory


def test_a_bundle_is_as_large_as_its_checkpoint(half: Path) -> None:
    files = open_bundle(half / "bundle").manifest.files
    stored = sum(file.bytes for file in files.values())
    assert stored < 1.1 * (half / "source" / "model.safetensors").stat().st_size


@pytest.mark.parametrize("precision", ["f32", "bf16", "int8"])
def test_transcribing_holds_the_weights_once(half: Path, precision: str) -> None:
    command = [sys.executable, "-c", TRANSCRIBE, str(half / "bundle"), precision, str(CLIP)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    assert done.returncode == 0, done.stderr
    print(f"{precision}: {float(done.stdout):.0f} MB")
    halves = (half / "source" / "model.safetensors").stat().st_size / 1e6
    table = 2 * BASE.width * 51_865 / 1e6  # rows of the embedding are looked up in 16 bits
    made = 2 * halves / 2  # 8-bit weights stay as they were made beside the device's form of them
    weights = {"f32": 2 * halves, "bf16": halves, "int8": made + table}[precision]
    assert float(done.stdout) < OTHERS_MB + OF_WEIGHTS * weights
