"""A recording, a clip or a piece under way: its driver, its frames, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from fairseq_openvino.model import Memory
from fairseq_openvino.whisper.longform import Longform, Question
from fairseq_openvino.whisper.options import Request
from fairseq_openvino.whisper.questions import Heard, Timing, Window

Voice = Callable[[Window], bool]
"""Whether a voice detector hears anybody in a window."""


Origin = Callable[[], tuple[int, ...]]
"""What tells a recording, or a piece of one, from others by its content: numbers that seed its samples."""


class Answers(Protocol):
    """What answers questions; jobs that share one are answered together."""

    request: Request

    def encode(self, windows: np.ndarray) -> Memory:
        """Windows (N, T, F)."""
        ...

    def hear(self, jobs: Sequence[Job]) -> list[Heard | None]:
        """Answers to `Window` of one temperature and one length of `previous`."""
        ...

    def align(self, jobs: Sequence[Job]) -> list[list[Timing]]:
        """Answers to `Alignment`."""
        ...


class Frames(Protocol):
    """Log-mel frames of 10 ms."""

    def window(self, seek: int, frames: int) -> np.ndarray:
        """At least `frames` of them from `seek` on, (T, F), float32."""
        ...


class Encoding:
    """Windows (N, T, F) that are encoded together, once the result is needed."""

    def __init__(self, encode: Callable[[np.ndarray], Memory], windows: np.ndarray) -> None:
        self._encode, self._windows, self.count = encode, windows, len(windows)

    @cached_property
    def memory(self) -> Memory:
        """Of all of them."""
        memory = self._encode(self._windows)
        del self._windows
        return memory


class Job:
    """What is decoded by one driver.

    Args:
        answers: to its questions.
        source: its frames.
        driver: of its windows.
        size: T that is encoded of a window.
        limit: most tokens of a window.
        gate: whether anybody may be speaking in the frames (n, F) of a window; if not, it is answered
            by None.
        voice: whether a voice detector hears anybody in a window.
        origin: is called when it is decoded at a temperature above 0.
        judge: is called when it is done and may `restart` it.
    """

    def __init__(
        self,
        answers: Answers,
        source: Frames,
        driver: Longform,
        size: int,
        limit: int,
        gate: Callable[[Window, np.ndarray], bool],
        voice: Voice | None = None,
        origin: Origin = tuple,
        judge: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self.answers, self._gate, self._judge = answers, gate, judge
        self._source: Frames | None = source
        self.voice, self.origin = voice, origin
        self.error: Exception | None = None
        self.decoded_again: str | None = None
        """Why."""
        self.restart(driver, size, limit)

    def restart(self, driver: Longform, size: int, limit: int) -> None:
        """From the beginning, with other windows."""
        self.driver, self.size, self.limit = driver, size, limit
        self.language = self.answers.request.language
        """Code; None: to be detected."""
        self.language_probabilities: dict[str, float] = {}
        self.window: np.ndarray | None = None
        """That is to be encoded, (T, F)."""
        self.encoding: Encoding | None = None
        """Of the window heard last, and of others with it."""
        self.row = 0
        """Its place in `encoding`."""
        self._questions = driver.run()
        self.question: Question | None = next(self._questions, None)
        """That waits for its answer; None: done."""

    def read(self, window: Window) -> np.ndarray | None:
        """Its frames (T, F), zero-padded; None if nobody can be speaking in them."""
        assert self._source is not None
        found = self._source.window(window.seek, window.frames)[: self.size]
        if not self._gate(window, found[: window.frames]):
            return None
        return np.pad(found, ((0, self.size - len(found)), (0, 0)))

    def encoded(self, found: tuple[Encoding, int] | Exception) -> None:
        """The batch with which the window is encoded, and its place there; or why it is not."""
        self.window = None
        if isinstance(found, Exception):
            self.fail(found)
        else:
            self.encoding, self.row = found

    def tell(self, answer: Any) -> None:
        """Answer the question; with an error, give up."""
        if isinstance(answer, Exception):
            return self.fail(answer)
        try:
            self.question = self._questions.send(answer)
        except StopIteration:
            self.question = None
            self._judge(self)
            if self.question is None:
                self._let_go()
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Give up; what was found so far stays."""
        self.error, self.question = error, None
        self._let_go()

    def _let_go(self) -> None:
        """Of frames: there may be thousands of pieces."""
        self.encoding = self.window = self._source = None
        self._gate, self._judge = lambda window, frames: False, lambda job: None
        self.origin = tuple

    def detected(self, probabilities: dict[str, float]) -> None:
        """Languages by code, most probable first; none: nobody speaks."""
        self.language_probabilities = probabilities
        self.language = next(iter(probabilities), None)
