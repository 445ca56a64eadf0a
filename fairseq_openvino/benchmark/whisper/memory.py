"""Resident memory over many transcriptions: a leak would show as a slope."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from fairseq_openvino.benchmark.plan import TRAINED_DIRECTORY
from fairseq_openvino.benchmark.whisper.material import (
    ConversionFailed,
    Material,
    convert,
    digest,
    exporter_files,
    make_clips,
)
from fairseq_openvino.benchmark.whisper.peer_child import RATE_HZ
from fairseq_openvino.benchmark.whisper.plan import ENGINES, ROOT, WORKLOADS, Options
from fairseq_openvino.errors import FairseqOpenVINOError, StorageError
from fairseq_openvino.machine import provenance
from fairseq_openvino.recognizer import load_model

MICRO = ROOT / "examples" / "covost" / "whisper" / "mini"
"""The trained micro-Whisper, where it is shipped."""
CLIPS, WARM_UP, EVERY = 2000, 500, 20
"""Transcriptions after the warm-up, before it, and between two samples."""
PRECISION = "bf16"
MB = 1e6


@dataclass
class Curve:
    """Resident memory, sampled after the warm-up."""

    model: str
    clips: int
    every: int
    """Clips between samples."""
    warm_up: int
    precision: str
    rss_mb: list[float] = field(default_factory=list)
    """Resident memory of the process, MB (1e6 bytes)."""

    @property
    def spread(self) -> float:
        """(max - min) / min."""
        return (max(self.rss_mb) - min(self.rss_mb)) / min(self.rss_mb)

    def line(self) -> str:
        """For the terminal."""
        return (
            f"{self.model}, {self.precision}: resident memory over {self.clips} transcriptions after "
            f"{self.warm_up}: min {min(self.rss_mb):.1f} MB, max {max(self.rss_mb):.1f} MB "
            f"({self.spread:.1%} apart), first {self.rss_mb[0]:.1f} MB, last {self.rss_mb[-1]:.1f} MB"
        )

    def to_json(self) -> dict[str, Any]:
        """With the provenance."""
        return {**vars(self), "provenance": provenance()}


def measure_memory(
    options: Options, progress: Callable[[str], None], clips: int = CLIPS, warm_up: int = WARM_UP
) -> Curve:
    """Transcribe short clips one after the other, of changing lengths.

    Args:
        options: work directory and threads.
        progress: called with one line whenever something begins.
        clips: transcriptions that are observed.
        warm_up: transcriptions before them.
    """
    trained = (MICRO / "config.json").is_file()
    bundle = _bundle(options, progress, trained)
    model = load_model(bundle, precision=PRECISION, threads=options.threads)
    paths = sorted((TRAINED_DIRECTORY / "clips").glob("*.mp3"))
    ready = [model.read(path) for path in paths]
    ready = ready or [model.clip(clip, RATE_HZ) for clip in make_clips(WORKLOADS[-1].clips)]
    name = "micro-Whisper" if trained else "whisper-tiny, random weights"
    limit = {} if trained else {"max_tokens": options.tokens}  # random weights never stop
    curve = Curve(name, clips, EVERY, warm_up, PRECISION)
    progress(f"transcribing {warm_up} + {clips} clips")
    for number, clip in enumerate(islice(cycle(ready), warm_up + clips), 1 - warm_up):
        model.transcribe_clips([clip], beam=1, language="en", **limit)
        if number > 0 and number % EVERY == 0:
            curve.rss_mb.append(resident_mb())
    return curve


def _bundle(options: Options, progress: Callable[[str], None], trained: bool) -> Path:
    """Of the micro-Whisper if it is there, else of a random tiny one."""
    material = Material(options, "tiny", progress)
    try:
        if not trained:
            material.prepare()
            return material.path(next(engine for engine in ENGINES if engine.format == "bundle"))
        weights = MICRO / "model.safetensors"
        target = options.material / f"micro-bundle-{digest([weights, *exporter_files()])}"
        if not target.exists():
            options.material.mkdir(parents=True, exist_ok=True)
            progress(f"exporting {MICRO.relative_to(ROOT)}")
            convert("bundle", MICRO, target, options.threads)
    except ConversionFailed as error:
        raise FairseqOpenVINOError(
            f"Benchmarking failed: expected a bundle, got {error}. Correct what it names."
        ) from error
    return target


def write_curve(curve: Curve, directory: Path) -> Path:
    """Write whisper-memory.json.

    Raises:
        StorageError: the directory cannot be written.
    """
    path = directory / "whisper-memory.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(curve.to_json(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"Writing the benchmark failed in {str(directory)!r}: expected a writable directory, got "
            f"{error}. Give another --output."
        ) from error
    return path


def resident_mb() -> float:
    """Resident memory of this process now, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / MB
    raise FairseqOpenVINOError(
        "Measuring memory failed in /proc/self/status: expected a line VmRSS, got none. Run it on Linux."
    )
