"""What a run needs on disk, made once: checkpoint, clips, our bundle, the files of the peers.

Directory names end with a digest of what made them, so that nothing outdated is measured.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairseq_openvino.benchmark.plan import TRAINED_DIRECTORY
from fairseq_openvino.benchmark.process import package_environment
from fairseq_openvino.benchmark.whisper import checkpoint, peer_ggml
from fairseq_openvino.benchmark.whisper.checkpoint import SIZES, write_checkpoint
from fairseq_openvino.benchmark.whisper.peer_child import RATE_HZ
from fairseq_openvino.benchmark.whisper.plan import (
    PEERS_PYTHON,
    ROOT,
    SECONDS,
    WORKLOADS,
    Engine,
    Options,
)
from fairseq_openvino.errors import MissingDependencyError
from fairseq_openvino.speech.audio import read_audio

DIGEST_DIGITS = 8
CONVERSION_SECONDS = 900.0
MAX_ERROR_CHARACTERS = 300
NOISE_SEED = 3
PEER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""No network, and a log that ends with what went wrong."""
FORMATS = {
    "bundle": ["-m", "fairseq_openvino.benchmark.whisper.own_child", "export", "{source}", "{target}"],
    "bundle-nncf": ["-m", "fairseq_openvino.benchmark.whisper.own_child", "quantize", "{source}",
                    "{target}"],
    "openvino": ["-I", "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model",
                 "{source}", "--task", "automatic-speech-recognition-with-past", "{target}"],
    "openvino-int8": ["-I", "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model",
                      "{source}", "--task", "automatic-speech-recognition-with-past",
                      "--weight-format", "int8", "{target}"],
    "ctranslate2": ["-I", "-m", "ctranslate2.converters.transformers", "--model", "{source}",
                    "--output_dir", "{target}", "--copy_files", "tokenizer.json",
                    "preprocessor_config.json"],
    "ctranslate2-int8": ["-I", "-m", "ctranslate2.converters.transformers", "--model", "{source}",
                         "--output_dir", "{target}", "--copy_files", "tokenizer.json",
                         "preprocessor_config.json", "--quantization", "int8"],
    "ggml-f16": ["-I", peer_ggml.__file__, "{source}", "{target}", "f16"],
    "ggml-q8_0": ["-I", peer_ggml.__file__, "{source}", "{target}", "q8_0"],
}  # fmt: skip
"""Python arguments that convert a checkpoint; bundles by this Python, all others by the peers'."""


class ConversionFailed(Exception):  # noqa: N818  not an error of this program: a finding
    """A converter did not do it; the text is the last line of its output."""


@dataclass(frozen=True)
class Material:
    """The files of one size."""

    options: Options
    size: str
    progress: Callable[[str], None]

    @property
    def source(self) -> Path:
        """The checkpoint, a Hugging Face directory."""
        return self._directory("checkpoint", [Path(checkpoint.__file__)])

    @property
    def clips(self) -> Path:
        """float32 at 16 kHz, shape (8, samples)."""
        return self.options.material / f"clips-{SECONDS}s.npy"

    def prepare(self) -> None:
        """Write checkpoint and clips unless they are there.

        Raises:
            MissingDependencyError: safetensors is not installed.
        """
        self.options.material.mkdir(parents=True, exist_ok=True)
        if not self.clips.exists():
            partial = self.clips.with_suffix(".partial.npy")
            np.save(partial, make_clips(max(workload.clips for workload in WORKLOADS)))
            os.replace(partial, self.clips)
        if not self.source.exists():
            self.progress(f"{self.size}: writing a random checkpoint")
            partial = _partial(self.source)
            partial.mkdir(parents=True)
            try:
                write_checkpoint(partial, SIZES[self.size])
            except ImportError as error:
                raise MissingDependencyError(
                    f"Benchmarking failed: expected the package safetensors, got {error}. "
                    "Install fairseq-openvino[whisper]."
                ) from error
            os.replace(partial, self.source)

    def path(self, engine: Engine) -> Path:
        """What the engine loads, converted now if it is not there.

        Raises:
            ConversionFailed: with the converter's last line.
        """
        if not engine.format:
            return self.source
        made_by = exporter_files() if is_bundle(engine.format) else [ROOT / ".ci" / "peers.txt"]
        target = self._directory(engine.format, [Path(checkpoint.__file__), *made_by])
        if not target.exists():
            self.progress(f"{self.size}: converting to {engine.format}")
            convert(engine.format, self.source, target, self.options.threads)
        return target

    def _directory(self, kind: str, made_by: Iterable[Path]) -> Path:
        return self.options.material / f"{self.size}-{kind}-{digest(made_by)}"


def is_bundle(name: str) -> bool:
    """Whether a format is one of ours."""
    return name.startswith("bundle")


def exporter_files() -> list[Path]:
    """What decides how a bundle looks."""
    package = ROOT / "fairseq_openvino"
    return [*sorted(package.glob("export/*.py")), *sorted(package.glob("quantize/*.py"))]


def digest(paths: Iterable[Path]) -> str:
    """Of the contents of files; those that do not exist count as empty."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes() if path.exists() else b"")
    return found.hexdigest()[:DIGEST_DIGITS]


def convert(name: str, source: Path, target: Path, threads: int) -> None:
    """Convert a checkpoint to one of `FORMATS`.

    Raises:
        ConversionFailed: with the converter's last line.
    """
    partial = _partial(target)
    python = sys.executable if is_bundle(name) else str(PEERS_PYTHON)
    places = {"source": str(source), "target": str(partial)}
    command = [python, *(word.format(**places) for word in FORMATS[name])]
    try:
        done = subprocess.run(
            command, env=package_environment(threads) | PEER_ENVIRONMENT,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=CONVERSION_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConversionFailed(f"converting to {name}: {error}") from error
    if done.returncode or not partial.exists():
        lines = done.stdout.decode(errors="replace").strip().splitlines() or ["no message"]
        raise ConversionFailed(f"converting to {name}: {lines[-1][:MAX_ERROR_CHARACTERS]}")
    os.replace(partial, target)


def make_clips(count: int) -> np.ndarray:
    """Shape (count, samples): shipped clips, each repeated; noise in syllables without them."""
    samples = SECONDS * RATE_HZ
    paths = sorted((TRAINED_DIRECTORY / "clips").glob("*.mp3"))[:count]
    if len(paths) == count:
        return np.stack([np.resize(read_audio(path, RATE_HZ)[0], samples) for path in paths])
    generator, time = np.random.default_rng(NOISE_SEED), np.arange(samples) / RATE_HZ
    rates_hz = generator.uniform(2.0, 5.0, (count, 1))
    loudness = np.clip(np.sin(2.0 * np.pi * rates_hz * time) + 0.3, 0.0, 1.0)
    noise = generator.standard_normal((count, samples))
    return (0.1 * loudness * noise).astype(np.float32)


def _partial(target: Path) -> Path:
    """Beside the target, not existing."""
    partial = target.with_name(f"{target.name}.partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.unlink(missing_ok=True)
    return partial
