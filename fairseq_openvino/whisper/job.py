"""A recording, a clip or a piece under way: its driver, its frames, and what it waits for."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fairseq_openvino.model import Memory
from fairseq_openvino.whisper.longform import Longform
from fairseq_openvino.whisper.questions import Alignment, Window


class Frames(Protocol):
    """Log-mel frames of 10 ms."""

    def window(self, seek: int, frames: int, size: int) -> np.ndarray:
        """`frames` of them from `seek` on and what stands for silence behind them, (size, F), float32."""
        ...


class Job:
    """What is decoded by one driver.

    Args:
        path: what to call it.
        source: its frames.
        driver: of its windows.
        size: T that is encoded of a window.
        limit: most tokens of a window.
        language: code, or None if it is to be detected.
    """

    def __init__(
        self,
        path: str,
        source: Frames,
        driver: Longform,
        size: int,
        limit: int,
        language: str | None,
    ) -> None:
        self.path, self.source, self.driver, self.size, self.limit = path, source, driver, size, limit
        self.language = language
        self.language_probabilities: dict[str, float] = {}
        self.memory: Memory | None = None
        """Of the window heard last, and of others that were encoded with it."""
        self.row = 0
        """Its place in `memory`."""
        self.window: np.ndarray | None = None
        """That is to be encoded, (T, F)."""
        self.error: Exception | None = None
        self._questions = driver.run()
        self.question: Window | Alignment | None = next(self._questions, None)
        """That waits for its answer; None: done."""

    def tell(self, answer: Any) -> None:
        """Answer the question."""
        try:
            self.question = self._questions.send(answer)
        except StopIteration:
            self.question = self.memory = None
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Give up; what was found so far stays."""
        self.error = error
        self.question = self.memory = self.window = None

    def detected(self, probabilities: dict[str, float]) -> None:
        """Languages by code, most probable first."""
        self.language_probabilities = probabilities
        self.language = next(iter(probabilities))
