"""The child's side: one engine; JSON requests on stdin, answers on stdout.

| request    | answer                                                                   |
|------------|--------------------------------------------------------------------------|
| `load`     | `load_seconds`                                                           |
| `read`     | for each path of a batch: `seconds` of audio, or `problem`               |
| `generate` | `seconds`, and `outputs` of the clips named among those read; or `problem` |
| `describe` | precision in use                                                         |

A `problem` is that of an utterance. An answer with `error` is the end of the engine.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairseq_openvino.benchmark.process import answer_requests, first_line
from fairseq_openvino.errors import AudioError, NumericsError
from fairseq_openvino.evaluate.engines import Engine, load
from fairseq_openvino.evaluate.options import from_plain
from fairseq_openvino.model import Clip

STATUS = Path("/proc/self/status")


class Child:
    """State between requests."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.options, self.name = from_plain(settings["options"]), settings["engine"]
        self.engine: Engine | None = None
        self.clips: list[Clip | None] = []

    def load(self) -> dict[str, Any]:
        """Load the engine."""
        self.engine = load(self.name, self.options)
        return {"load_seconds": self.engine.load_seconds}

    def read(self, paths: list[str]) -> dict[str, Any]:
        """Features of a batch; they replace those of the batch before."""
        self.clips = []
        answers: list[dict[str, Any]] = []
        for path in paths:
            try:
                clip = self._loaded.read(path)
            except AudioError as error:
                self.clips.append(None)
                answers.append({"problem": first_line(error).replace(path, Path(path).name)})
            else:
                self.clips.append(clip)
                answers.append({"seconds": clip.seconds})
        return {"clips": answers}

    def generate(self, positions: list[int], language: str | None) -> dict[str, Any]:
        """Decode clips of the batch together; the time is that of this alone."""
        clips = [clip for clip in (self.clips[i] for i in positions) if clip is not None]
        started = time.perf_counter()
        try:
            outputs = self._loaded.generate(clips, language)
        except (AudioError, NumericsError) as error:
            return {"problem": first_line(error)}
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "outputs": [asdict(output) for output in outputs],
            "peak_mb": peak_mb(),
        }

    def describe(self) -> dict[str, Any]:
        """Precision in use, once something was generated."""
        return {"precision": self._loaded.precision()}

    @property
    def _loaded(self) -> Engine:
        assert self.engine is not None  # the parent asks for `load` first
        return self.engine


def peak_mb() -> float:
    """Peak resident memory of this process, MB (1e6 bytes)."""
    if STATUS.is_file():  # the other figure may be that of the process before exec
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    answer_requests(Child(json.loads(sys.argv[1])))
