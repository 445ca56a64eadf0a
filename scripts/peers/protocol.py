"""What every peer is: a program `python <peer>.py PRECISION` with the loop of `measure.process`.

Its environment needs numpy and its own packages. Clips are `.npy` files, float32 at 16 kHz; time runs
from these samples to text, log-mel included. Recordings of any length are WAV files (`scripts/longform.py`):

| request     | arguments          | answer                                                        |
|-------------|--------------------|---------------------------------------------------------------|
| `recording` | `path`, `language`,| `seconds`; `segments`: of each `start`, `end`, `text`,        |
|             | `how` (`Long`)     | `words`: pairs of start and text, if asked for; `peak_mb`     |
"""

from __future__ import annotations

import json
import sys
import time
import wave
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from fairseq_openvino import machine  # noqa: E402
from fairseq_openvino.measure.process import answer_requests  # noqa: E402

RATE_HZ = 16000
END = 50257
"""<|endoftext|> of multilingual checkpoints: text tokens come before it."""


TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
BEST_OF = 5
"""Samples a window above temperature 0."""


@dataclass(frozen=True)
class Long:
    """How recordings are transcribed; conditioned on the text before, with fallback."""

    beam: int = 1
    batch: int = 0
    """Pieces of speech decoded together; 0: one window after the other."""
    timestamps: bool = True
    words: bool = False


@dataclass(frozen=True)
class Segment:
    """Of a recording; seconds."""

    start: float
    end: float
    text: str
    words: list[tuple[float, str]] | None = None
    """Start and text of each."""


class Peer:
    """One engine; requests are described in the protocol."""

    module = ""
    """What has to be imported; not part of the time to load."""
    packages: tuple[str, ...] = ()
    """Whose versions are stated; a file `left-out/<first>` says why it could not be installed."""
    batches = True
    """False: clips of a batch run one after the other."""

    def __init__(self, precision: str, settings: dict[str, Any]) -> None:
        self.precision, self.threads = precision, int(settings["threads"])
        self.source = Path(settings["checkpoint"])
        self.work, self.cache = Path(settings["work_dir"]), settings["cache_dir"]
        self.clips: list[np.ndarray] = []

    def convert(self) -> Path:
        """What it loads: `source`, or what is made of it in `work`, once."""
        return self.source

    def construct(self) -> None:
        """Load the model."""
        raise NotImplementedError

    def transcribe(
        self, clips: list[np.ndarray], search: dict[str, Any], language: str, tokens: int | None
    ) -> list[tuple[str, int]]:
        """Text of each clip and number of its tokens."""
        raise NotImplementedError

    def hear(self, path: Path, how: Long, language: str) -> list[Segment]:
        """What is said in a recording."""
        return self.hear_samples(read_wav(path), how, language)

    def hear_samples(self, samples: np.ndarray, how: Long, language: str) -> list[Segment]:
        """The same; `samples` float32 at 16 kHz."""
        raise NotImplementedError

    def summary(self) -> str:
        """What it computes in."""
        return self.precision

    def prepare(self) -> dict[str, Any]:
        """A request."""
        try:
            __import__(self.module)
        except ImportError as error:
            reason = Path(sys.prefix) / "left-out" / self.packages[0]
            if reason.is_file():
                raise ImportError(f"not installed: {reason.read_text().strip()}") from error
            raise
        self.work.mkdir(parents=True, exist_ok=True)
        self.convert()
        return {}

    def load(self) -> dict[str, Any]:
        """A request."""
        __import__(self.module)
        started = time.perf_counter()
        self.construct()
        return {"load_seconds": time.perf_counter() - started}

    def read(self, paths: list[str]) -> dict[str, Any]:
        """A request; a clip that our engines cannot read has no file."""
        there = [Path(path).is_file() for path in paths]
        empty = np.zeros(0, np.float32)
        self.clips = [
            np.load(path) if is_there else empty
            for path, is_there in zip(paths, there, strict=True)
        ]
        return {
            "clips": [
                {"seconds": len(clip) / RATE_HZ} if is_there else {"problem": "no waveform"}
                for clip, is_there in zip(self.clips, there, strict=True)
            ]
        }

    def generate(
        self, positions: list[int], search: dict[str, Any], language: str | None = None,
        tokens: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A request."""
        code = search["language"] or (language or "en").replace("_", "-").partition("-")[0]
        started = time.perf_counter()
        found = self.transcribe([self.clips[i] for i in positions], search, code, tokens)
        return {
            "seconds": time.perf_counter() - started,
            "outputs": [{"text": t.strip(), "tokens": n, "score": None} for t, n in found],
            "peak_mb": machine.peak_megabytes(),
        }

    def recording(self, path: str, how: dict[str, Any], language: str) -> dict[str, Any]:
        """A request; the time includes reading the file."""
        started = time.perf_counter()
        segments = self.hear(Path(path), Long(**how), language)
        return {
            "seconds": time.perf_counter() - started,
            "segments": [asdict(segment) for segment in segments],
            "peak_mb": machine.peak_megabytes(),
        }

    def describe(self) -> dict[str, Any]:
        """A request."""
        versions, summary = machine.versions(self.packages), self.summary()
        stated = {"asked": self.precision, "computes": summary, **versions}
        described = {"precision": stated, "summary": summary, "versions": versions}
        return described | {"batches": self.batches}


def read_wav(path: Path) -> np.ndarray:
    """Samples of a 16-bit file at 16 kHz, one channel."""
    with wave.open(str(path)) as file:
        content = file.readframes(file.getnframes())
    return np.frombuffer(content, "<i2").astype(np.float32) / 32768


def serve(kind: type[Peer]) -> None:
    """Answer requests until stdin ends."""
    precision = sys.argv[1] if len(sys.argv) > 2 else "f32"  # noqa: PLR2004
    answer_requests(kind(precision, json.loads(sys.argv[-1])))
