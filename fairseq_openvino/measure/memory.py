"""Resident memory over many transcriptions: a leak would show as a slope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path

from fairseq_openvino import machine
from fairseq_openvino.errors import FairseqOpenVINOError, failure
from fairseq_openvino.loading import load_model
from fairseq_openvino.measure.engines import EngineSpec
from fairseq_openvino.measure.material import forms
from fairseq_openvino.measure.material.whisper import SIZES
from fairseq_openvino.measure.plan import ACTION, BenchmarkOptions
from fairseq_openvino.measure.subject import digest, exporter_digest, write_clips
from fairseq_openvino.tables import write_json

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
        return write_json(path, asdict(self) | {"provenance": machine.provenance()})


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
    work_dir, trained = options.kept_work_dir, options.trained_whisper
    progress("exporting")
    recognizer = load_model(
        _bundle(work_dir, trained), precision=PRECISION, threads=options.threads
    )
    spoken = [] if options.trained is None else sorted((options.trained / "clips").glob("*.mp3"))
    paths = spoken or sorted(write_clips(work_dir, None).parent.glob("*.wav"))
    ready = [recognizer.read(path) for path in paths]
    name = f"whisper-{RANDOM_SIZE}, random weights" if trained is None else trained.absolute().name
    limit = {"max_tokens": options.tokens} if trained is None else {}  # random weights never stop
    curve = Curve(name, clips, EVERY, warm_up, PRECISION)
    progress(f"transcribing {warm_up} + {clips} clips")
    for number, clip in enumerate(islice(cycle(ready), warm_up + clips), 1 - warm_up):
        recognizer.transcribe_clips([clip], beam=1, language="en", **limit)
        if number > 0 and number % EVERY == 0:
            curve.rss_mb.append(_resident_megabytes())
    return curve


def _bundle(work_dir: Path, source: Path | None) -> str:
    """Of the trained model, or of a random one; exported once."""
    checkpoint = source or work_dir / f"whisper-{RANDOM_SIZE}-memory"
    spec = EngineSpec("ours", "", "ours", form="bundle", checkpoint=str(checkpoint))
    if source is None:
        forms.make(spec, whisper=asdict(SIZES[RANDOM_SIZE]))
    weights = digest([checkpoint / "model.safetensors"])
    bundle = str(work_dir / f"memory-bundle-{weights}-{exporter_digest()}")
    forms.prepare(EngineSpec(**asdict(spec) | {"bundle": bundle}))
    return bundle


def _resident_megabytes() -> float:
    resident = machine.resident_megabytes()
    if resident is None:
        raise failure(
            FairseqOpenVINOError, ACTION, Path("/proc/self/status"), "a line VmRSS", "none",
            "Run it on Linux",
        )  # fmt: skip
    return resident
