"""Engines side by side: one process each, all loaded, and only one of them computing at any time.

They take turns in the passes over a batch, each pass beginning with another one, so that whatever else
the machine does falls on all of them. An engine that fails is given up; the others go on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino.errors import AudioError
from fairseq_openvino.measure.engines import PEER, EngineSpec
from fairseq_openvino.measure.process import Conversation, EngineFailed
from fairseq_openvino.speech.corpus import Utterance
from fairseq_openvino.speech.stored import waveform

PACKAGE = Path(__file__).parents[1]
PEER_RATE_HZ = 16_000
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""No network, and a log that ends with what went wrong."""
Answer = dict[str, Any]
"""See `process`."""


@dataclass
class Batch:
    """Utterances that all engines have read, and what they made of them."""

    utterances: list[Utterance]
    clips: list[Answer]
    """What the engines say of each clip: `seconds`, maybe `damage`."""
    problems: dict[int, dict[str, str]] = field(default_factory=dict)
    """Why an utterance cannot be decoded, by position and engine; it counts for no engine."""
    passes: dict[str, list[Answer]] = field(default_factory=dict)
    """Answers to `generate`, by engine."""

    @property
    def good(self) -> list[int]:
        """Positions of the utterances no engine has a problem with."""
        return [i for i in range(len(self.utterances)) if i not in self.problems]


class Turns:
    """The processes of engines and what they are asked."""

    def __init__(
        self,
        timeout: float,
        scratch: Path,
        given_up: Callable[[EngineSpec, str], None],
        environment: Mapping[str, str] | None = None,
        pause: float = 0.0,
    ) -> None:
        """Nothing runs yet.

        Args:
            timeout: seconds for one answer.
            scratch: directory for logs and for the waveforms that peers read.
            given_up: told of an engine that failed, and why.
            environment: of the processes, where the caller's does not say otherwise.
            pause: seconds before every turn.
        """
        self.timeout, self.scratch, self.given_up, self.pause = timeout, scratch, given_up, pause
        self.environment = {**(environment or {}), **OFFLINE, **os.environ}
        self.alive: dict[EngineSpec, Conversation] = {}

    def start(self, spec: EngineSpec) -> bool:
        """A process for an engine, in place of the one it has; False after giving it up."""
        self.stop(spec)
        environment = self.environment | {"OMP_NUM_THREADS": str(spec.threads)}
        if spec.kind != PEER:
            path = os.environ.get("PYTHONPATH")
            root = str(PACKAGE.parent)
            environment["PYTHONPATH"] = root if not path else f"{root}{os.pathsep}{path}"
        if spec.cache_dir is not None:
            environment["TORCHINDUCTOR_CACHE_DIR"] = str(Path(spec.cache_dir) / "inductor")
        log = self.scratch / f"{spec.name}.log"
        try:
            self.alive[spec] = Conversation(spec.command(), environment, log, self.timeout)
        except OSError as error:
            self.given_up(spec, f"not started: {error}")
            return False
        return True

    def ask(self, spec: EngineSpec, request: str, **named: Any) -> Answer | None:
        """The answer of an engine; None after giving it up."""
        try:
            return self.alive[spec].ask(request, **named)
        except EngineFailed as error:
            self.stop(spec)
            self.given_up(spec, str(error))
            return None

    def read(
        self, utterances: Sequence[Utterance], specs: Collection[EngineSpec] | None = None
    ) -> Batch:
        """Let all engines, or some, compute their features."""
        batch = Batch(list(utterances), [{} for _ in utterances])
        paths = [one.path for one in utterances]
        for spec in list(self.alive if specs is None else specs):
            given = self._waveforms(paths) if spec.kind == PEER else paths
            answer = self.ask(spec, "read", paths=given) or {"clips": ()}
            for position, clip in enumerate(answer["clips"]):
                if "problem" in clip:
                    batch.problems.setdefault(position, {})[spec.name] = clip["problem"]
                else:
                    batch.clips[position] |= clip | batch.clips[position]
        return batch

    def decode(
        self, batch: Batch, number: int, without: Collection[str] = (), **named: Any
    ) -> bool:
        """One pass over what is good of a batch; False if it has to begin anew without a clip.

        Args:
            batch: read before; the answers are added to its `passes`.
            number: of the pass: it says which engine is first.
            without: names of engines that are left out.
            named: arguments of the request `generate`.
        """
        specs = list(self.alive)
        shift = number % max(len(specs), 1)
        for spec in specs[shift:] + specs[:shift]:
            if spec.name in without:
                continue
            time.sleep(self.pause)
            answer = self.ask(spec, "generate", positions=batch.good, **named)
            if answer is None:
                continue
            if "problems" in answer:
                for position, problem in answer["problems"]:
                    batch.problems.setdefault(position, {})[spec.name] = problem
                batch.passes.clear()
                return False
            batch.passes.setdefault(spec.name, []).append(answer)
        return True

    def stop(self, spec: EngineSpec | None = None) -> None:
        """End the process of an engine, or all of them."""
        for each in [spec] if spec is not None else list(self.alive):
            if each in self.alive:
                self.alive.pop(each).stop()

    def _waveforms(self, paths: Sequence[str]) -> list[str]:
        """The clips as `.npy` files, float32 at PEER_RATE_HZ: peers decode no audio."""
        written = []
        for number, path in enumerate(paths):
            target = self.scratch / f"waveform-{number}.npy"
            target.unlink(missing_ok=True)
            try:
                audio = waveform(path, PEER_RATE_HZ)
            except AudioError:
                audio = None
            if audio is not None:  # else our engines say why, and a peer that there is no file
                np.save(target, audio[0])
            written.append(str(target))
        return written
