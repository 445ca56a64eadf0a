"""The child's side of `process`: one engine of this package.

A problem is that of an utterance. Before the engine has decoded anything, only errors about audio and
numbers are taken for an utterance's.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.errors import (
    AudioError,
    FairseqOpenVINOError,
    NumericsError,
    concerns_one_clip,
)
from fairseq_openvino.measure.engines import Decoded, Engine, EngineSpec, Search, load
from fairseq_openvino.measure.process import answer_requests, first_line
from fairseq_openvino.model import Clip
from fairseq_openvino.speech.audio import damage_collected


class Child:
    """State between requests."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.spec = EngineSpec(**settings | {"batch_sizes": tuple(settings["batch_sizes"])})
        self.engine: Engine | None = None
        self.clips: list[Clip | None] = []
        self.proven = False

    def make(self, **what: Any) -> dict[str, Any]:
        """Random models and data."""
        from fairseq_openvino.measure.material import forms

        forms.make(self.spec, **what)
        return {}

    def prepare(self) -> dict[str, Any]:
        """What the engine loads, made from the checkpoint."""
        from fairseq_openvino.measure.material import forms

        forms.prepare(self.spec)
        return {}

    def load(self) -> dict[str, Any]:
        """Load the engine."""
        self.engine = load(self.spec)
        return {"load_seconds": self.engine.load_seconds}

    def read(self, paths: list[str]) -> dict[str, Any]:
        """Features of clips; they replace those of the clips before."""
        self.clips = []
        answers: list[dict[str, Any]] = []
        for path in paths:
            clip, answer = self._read(path)
            self.clips.append(clip)
            answers.append(answer)
        return {"clips": answers}

    def generate(
        self,
        positions: list[int],
        search: dict[str, Any],
        language: str | None = None,
        tokens: int | None = None,
    ) -> dict[str, Any]:
        """Decode clips together; the time is that of this alone."""
        how = (Search(**search), language, tokens)
        started = time.perf_counter()
        try:
            found = self._decoded(positions, *how)
        except Exception as error:
            if not self._is_a_clips(error):
                raise
            problems = self._problems(positions, *how)
            return {"problems": problems or [[i, _problem(error)] for i in positions]}
        seconds = time.perf_counter() - started
        self.proven = True
        return {
            "seconds": seconds,
            "outputs": [asdict(output) for output in found.outputs],
            "peak_mb": machine.peak_megabytes(),
            **found.figures,
        }

    def describe(self) -> dict[str, Any]:
        """Precision in use, once something was generated."""
        return {"precision": self._loaded.precision(), "summary": self._loaded.summary}

    def profile(self, beam: int) -> dict[str, Any]:
        """Where a decoder step of `fairseq-generate --ov-engine` spends its time on the batch read."""
        from fairseq_openvino.measure.profile import profile_step

        loaded: Any = self._loaded
        return profile_step(loaded.model.compiled, [clip for clip in self.clips if clip], beam)

    def _read(self, path: str) -> tuple[Clip | None, dict[str, Any]]:
        try:
            with damage_collected() as damage:
                clip = self._loaded.read(path)
        except Exception as error:
            if not concerns_one_clip(error):
                raise
            return None, {"problem": _problem(error).replace(path, Path(path).name)}
        answer = {"seconds": clip.seconds, "frames": len(clip.features)}
        return clip, answer | ({"damage": "; ".join(damage)} if damage else {})

    def _decoded(self, positions: list[int], *how: Any) -> Decoded:
        return self._loaded.generate(self._chosen(positions), *how)

    def _chosen(self, positions: list[int]) -> list[Clip]:
        return [clip for clip in (self.clips[i] for i in positions) if clip is not None]

    def _problems(self, positions: list[int], *how: Any) -> list[list[Any]]:
        """Halves of a batch that fails, down to the clips that fail alone."""
        try:
            self._decoded(positions, *how)
        except Exception as error:
            if len(positions) == 1:
                return [[positions[0], _problem(error)]]
            half = len(positions) // 2
            return [
                *self._problems(positions[:half], *how),
                *self._problems(positions[half:], *how),
            ]
        return []

    def _is_a_clips(self, error: Exception) -> bool:
        known = isinstance(error, (AudioError, NumericsError))
        return known or (self.proven and concerns_one_clip(error))

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
