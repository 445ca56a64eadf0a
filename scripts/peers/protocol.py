"""The child's side of `fairseq_openvino.measure.process`, for engines in an environment of their own.

A peer is a program `python <peer>.py [PRECISION]` that ends with `serve(Peer)`; what it is to run stands in
the JSON object that follows. Clips are `.npy` files, float32 at 16 kHz; time runs from these samples
to text, log-mel included.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ = 16000
END = 50257
"""<|endoftext|> of multilingual checkpoints: text tokens come before it."""
MAX_ERROR_CHARACTERS = 300


class Peer:
    """One engine: `load` makes it ready, `transcribe` is timed."""

    module = ""
    """What has to be imported; not part of the time to load."""
    packages: tuple[str, ...] = ()
    """Whose versions are stated."""
    batches = True
    """False: clips of a batch run one after the other."""

    def __init__(self, precision: str, settings: dict[str, Any]) -> None:
        self.precision, self.threads = precision, int(settings["threads"])
        self.source = Path(settings["checkpoint"])
        self.work, self.cache = Path(settings["work_dir"]), settings["cache_dir"]
        self.clips: list[np.ndarray] = []

    def convert(self) -> None:
        """Make what it loads from the checkpoint, unless it is in `work`."""

    def construct(self) -> None:
        """Load the model."""
        raise NotImplementedError

    def transcribe(
        self, clips: list[np.ndarray], search: dict[str, Any], language: str, tokens: int | None
    ) -> list[tuple[str, int]]:
        """Text of each clip and number of its tokens."""
        raise NotImplementedError

    def summary(self) -> str:
        """What it computes in."""
        return self.precision

    def prepare(self) -> dict[str, Any]:
        """See the protocol."""
        self._import()
        self.work.mkdir(parents=True, exist_ok=True)
        self.convert()
        return {}

    def load(self) -> dict[str, Any]:
        """See the protocol."""
        self._import()
        started = time.perf_counter()
        self.construct()
        return {"load_seconds": time.perf_counter() - started}

    def read(self, paths: list[str]) -> dict[str, Any]:
        """See the protocol."""
        answers: list[dict[str, Any]] = []
        self.clips = []
        for path in paths:
            try:
                self.clips.append(np.load(path))
                answers.append({"seconds": len(self.clips[-1]) / RATE_HZ})
            except OSError as error:
                self.clips.append(np.zeros(0, np.float32))
                answers.append({"problem": f"no waveform: {error}"})
        return {"clips": answers}

    def generate(
        self, positions: list[int], search: dict[str, Any], language: str | None = None,
        tokens: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """See the protocol."""
        clips = [self.clips[i] for i in positions]
        code = search["language"] or (language or "en").replace("_", "-").partition("-")[0]
        started = time.perf_counter()
        found = self.transcribe(clips, search, code, tokens)
        seconds = time.perf_counter() - started
        outputs = [{"text": text.strip(), "tokens": n, "score": None} for text, n in found]
        return {"seconds": seconds, "outputs": outputs, "peak_mb": _peak_mb()}

    def describe(self) -> dict[str, Any]:
        """See the protocol."""
        versions = {name: version(name) for name in self.packages}
        summary = self.summary()
        stated = {"asked": self.precision, "computes": summary}
        return {
            "precision": stated | versions, "summary": summary, "versions": versions,
            "batches": self.batches,
        }  # fmt: skip

    def _import(self) -> None:
        """A package left out when the environment was made says why."""
        try:
            __import__(self.module)
        except ImportError as error:
            reason = Path(sys.prefix) / "left-out" / self.packages[0]
            if reason.is_file():
                raise ImportError(f"not installed: {reason.read_text().strip()}") from error
            raise


def serve(kind: type[Peer]) -> None:
    """Answer requests until stdin ends."""
    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to the log
    peer = kind(sys.argv[1] if len(sys.argv) > 2 else "f32", json.loads(sys.argv[-1]))  # noqa: PLR2004
    for line in sys.stdin:
        name, named = json.loads(line)
        try:
            answer = getattr(peer, name)(**named)
        except Exception as error:  # noqa: BLE001  an engine may fail in any way: report it
            traceback.print_exc()
            text = " ".join(str(error).split())[:MAX_ERROR_CHARACTERS]
            answer = {"error": f"{type(error).__name__}: {text}"}
        print(json.dumps(answer), file=answers, flush=True)


def _peak_mb() -> float:
    """Peak resident memory of this process, MB (1e6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
