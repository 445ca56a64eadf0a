"""The parent's side of an engine's process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fairseq_openvino.benchmark.process import Conversation, package_environment
from fairseq_openvino.evaluate.options import Options

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""PyTorch's idle threads sleep: spinning on, they would slow down the engine whose turn it is. What
the caller's environment says goes first. It costs PyTorch about 5 % at one utterance a batch."""


class EngineProcess(Conversation):
    """The child of one engine."""

    def __init__(self, engine: str, options: Options, log: Path) -> None:
        self.engine = engine
        settings = json.dumps({"engine": engine, "options": options.plain()})
        command = [sys.executable, "-m", "fairseq_openvino.evaluate.child", settings]
        environment = {
            **WAITING,
            **package_environment(options.threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        super().__init__(command, environment, log, options.timeout)
