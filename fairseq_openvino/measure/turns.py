"""Engines side by side: one process each, all loaded, and only one of them computing at any time.

They take turns, each turn beginning with another one, so that whatever else the machine does falls on
all of them. An engine that fails is given up; the others go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino.errors import AudioError
from fairseq_openvino.measure.engines import PEER, EngineSpec
from fairseq_openvino.measure.process import Conversation, EngineFailed
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


class Turns:
    """The processes of engines and what they are asked."""

    def __init__(
        self,
        timeout: float,
        scratch: Path,
        given_up: Callable[[EngineSpec, str], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            timeout: seconds for one answer.
            scratch: directory for logs and for the waveforms that peers read.
            given_up: told of an engine that failed, and why.
            environment: of the processes, where the caller's does not say otherwise.
        """
        self.timeout, self.scratch, self.given_up = timeout, scratch, given_up
        self.environment = dict(environment or {})
        self.alive: dict[EngineSpec, Conversation] = {}

    def start(self, spec: EngineSpec) -> bool:
        """A process for an engine, in place of the one it has; False after giving it up."""
        self.stop(spec)
        environment = {
            **self.environment, **OFFLINE, **os.environ, "OMP_NUM_THREADS": str(spec.threads),
        }  # fmt: skip
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

    def ask(self, spec: EngineSpec, request: str, **named: Any) -> dict[str, Any] | None:
        """The answer of an engine; None after giving it up."""
        try:
            return self.alive[spec].ask(request, **named)
        except EngineFailed as error:
            self.stop(spec)
            self.given_up(spec, str(error))
            return None

    def order(self, number: int) -> list[EngineSpec]:
        """All engines; the turn's number says who is first."""
        specs = list(self.alive)
        shift = number % max(len(specs), 1)
        return specs[shift:] + specs[:shift]

    def read(self, spec: EngineSpec, paths: Sequence[str]) -> list[dict[str, Any]] | None:
        """What an engine says of clips, whose features it computes; see `process`."""
        given = self._waveforms(paths) if spec.kind == PEER else list(paths)
        answer = self.ask(spec, "read", paths=given)
        return None if answer is None else answer["clips"]

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
