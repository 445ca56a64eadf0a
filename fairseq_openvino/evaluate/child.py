"""The child's side: one engine; JSON requests on stdin, answers on stdout.

| request    | answer                                                                   |
|------------|--------------------------------------------------------------------------|
| `load`     | `load_seconds`                                                           |
| `read`     | for each path of a batch: `seconds` of audio, `damage` if any; or `problem` |
| `generate` | `seconds`, and `outputs` of the clips named among those read; or `problems`, |
|            | pairs of the position of a clip that fails and why                       |
| `describe` | precision in use                                                         |

A problem is that of an utterance. An answer with `error` is the end of the engine. Before it has
decoded anything, only errors about audio and numbers are taken for an utterance's.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.benchmark.process import answer_requests, first_line
from fairseq_openvino.errors import (
    AudioError,
    FairseqOpenVINOError,
    NumericsError,
    concerns_one_clip,
)
from fairseq_openvino.evaluate.engines import Engine, Output, load
from fairseq_openvino.evaluate.options import from_plain
from fairseq_openvino.model import Clip
from fairseq_openvino.speech.audio import damage_collected

STATUS = Path("/proc/self/status")


class Child:
    """State between requests."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.options, self.name = from_plain(settings["options"]), settings["engine"]
        self.engine: Engine | None = None
        self.clips: list[Clip | None] = []
        self.proven = False

    def load(self) -> dict[str, Any]:
        """Load the engine."""
        self.engine = load(self.name, self.options)
        return {"load_seconds": self.engine.load_seconds}

    def read(self, paths: list[str]) -> dict[str, Any]:
        """Features of a batch; they replace those of the batch before."""
        self.clips = []
        answers: list[dict[str, Any]] = []
        for path in paths:
            clip, answer = self._read(path)
            self.clips.append(clip)
            answers.append(answer)
        return {"clips": answers}

    def generate(self, positions: list[int], language: str | None) -> dict[str, Any]:
        """Decode clips of the batch together; the time is that of this alone."""
        started = time.perf_counter()
        try:
            outputs = self._outputs(positions, language)
        except Exception as error:
            if not self._is_a_clips(error):
                raise
            found = self._problems(positions, language)
            return {"problems": found or [[i, _problem(error)] for i in positions]}
        seconds = time.perf_counter() - started
        self.proven = True
        return {
            "seconds": seconds,
            "outputs": [asdict(output) for output in outputs],
            "peak_mb": machine.peak_megabytes(),
        }

    def _read(self, path: str) -> tuple[Clip | None, dict[str, Any]]:
        try:
            with damage_collected() as damage:
                clip = self._loaded.read(path)
        except Exception as error:
            if not concerns_one_clip(error):
                raise
            return None, {"problem": _problem(error).replace(path, Path(path).name)}
        return clip, {"seconds": clip.seconds} | ({"damage": "; ".join(damage)} if damage else {})

    def _outputs(self, positions: list[int], language: str | None) -> list[Output]:
        clips = [clip for clip in (self.clips[i] for i in positions) if clip is not None]
        return self._loaded.generate(clips, language)

    def _problems(self, positions: list[int], language: str | None) -> list[list[Any]]:
        """Halves of a batch that fails, down to the clips that fail alone."""
        try:
            self._outputs(positions, language)
        except Exception as error:
            if len(positions) == 1:
                return [[positions[0], _problem(error)]]
            half = len(positions) // 2
            return [
                *self._problems(positions[:half], language),
                *self._problems(positions[half:], language),
            ]
        return []

    def _is_a_clips(self, error: Exception) -> bool:
        known = isinstance(error, (AudioError, NumericsError))
        return known or (self.proven and concerns_one_clip(error))

    def describe(self) -> dict[str, Any]:
        """Precision in use, once something was generated."""
        return {"precision": self._loaded.precision()}

    @property
    def _loaded(self) -> Engine:
        assert self.engine is not None  # the parent asks for `load` first
        return self.engine


def _problem(error: Exception) -> str:
    """One line; of an error that is not ours, with its type."""
    ours = isinstance(error, FairseqOpenVINOError)
    return first_line(error) if ours else f"{type(error).__name__}: {first_line(error)}"


if __name__ == "__main__":
    answer_requests(Child(json.loads(sys.argv[1])))
