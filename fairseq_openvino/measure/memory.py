"""Resident memory over many transcriptions: a leak would show as a slope."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.errors import FairseqOpenVINOError, StorageError
from fairseq_openvino.export.whisper import export_whisper
from fairseq_openvino.measure.plan import BenchmarkOptions
from fairseq_openvino.measure.subject import (
    digest,
    exporter_digest,
    whisper_checkpoint,
    write_clips,
)
from fairseq_openvino.recognizer import load_model

CLIPS, WARM_UP, EVERY = 2000, 500, 20
"""Transcriptions after the warm-up, before it, and between two samples."""
PRECISION = "bf16"
RANDOM_SIZE = "tiny"


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

    def write(self, directory: Path) -> Path:
        """Write whisper-memory.json, with the provenance.

        Raises:
            StorageError: the directory cannot be written.
        """
        path = directory / "whisper-memory.json"
        content: dict[str, Any] = {**vars(self), "provenance": machine.provenance()}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"Writing the benchmark failed in {str(directory)!r}: expected a writable directory, "
                f"got {error}. Give another --output."
            ) from error
        return path


def measure_memory(
    options: BenchmarkOptions,
    progress: Callable[[str], None],
    clips: int = CLIPS,
    warm_up: int = WARM_UP,
) -> Curve:
    """Transcribe short clips one after the other, of changing lengths.

    Args:
        options: models, work directory and threads.
        progress: called with one line whenever something begins.
        clips: transcriptions that are observed.
        warm_up: transcriptions before them.

    Raises:
        FairseqOpenVINOError: the model cannot be exported, or the system says nothing of memory.
    """
    work_dir = (options.work_dir or options.output / "whisper-work").absolute()
    model = load_model(
        _bundle(options, work_dir, progress), precision=PRECISION, threads=options.threads
    )
    speech = options.trained / "clips" if options.trained is not None else None
    paths = sorted(speech.glob("*.mp3")) if speech is not None else []
    ready = [
        model.read(path) for path in paths or sorted(write_clips(work_dir, None).glob("*.wav"))
    ]
    trained = options.trained_whisper
    name = f"whisper-{RANDOM_SIZE}, random weights" if trained is None else trained.absolute().name
    limit = {"max_tokens": options.tokens} if trained is None else {}  # random weights never stop
    curve = Curve(name, clips, EVERY, warm_up, PRECISION)
    progress(f"transcribing {warm_up} + {clips} clips")
    for number, clip in enumerate(islice(cycle(ready), warm_up + clips), 1 - warm_up):
        model.transcribe_clips([clip], beam=1, language="en", **limit)
        if number > 0 and number % EVERY == 0:
            curve.rss_mb.append(_resident_megabytes())
    return curve


def _bundle(options: BenchmarkOptions, work_dir: Path, progress: Callable[[str], None]) -> Path:
    """Of the trained model, or of a random one; exported once."""
    source = options.trained_whisper
    if source is None:
        source = whisper_checkpoint(work_dir / f"whisper-{RANDOM_SIZE}-memory", RANDOM_SIZE)
    weights = digest([source / "model.safetensors"])
    target = work_dir / f"memory-bundle-{weights}-{exporter_digest()}"
    if not target.exists():
        progress(f"exporting {source.name}")
        export_whisper(source, target)
    return target


def _resident_megabytes() -> float:
    resident = machine.resident_megabytes()
    if resident is None:
        raise FairseqOpenVINOError(
            "Measuring memory failed in /proc/self/status: expected a line VmRSS, got none. "
            "Run it on Linux."
        )
    return resident
