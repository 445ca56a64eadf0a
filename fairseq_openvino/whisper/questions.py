"""What the transcription of a recording asks of a model, window by window, and what it is told.

A driver (`whisper.longform`) yields questions and is sent their answers; it sees neither audio nor model,
so that windows of many recordings can be answered together.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_openvino.model import Hypothesis
from fairseq_openvino.whisper.windows import Outcome


@dataclass(frozen=True)
class Window:
    """What is said in these frames? Answered by `Heard`, or None if nobody can be speaking in them."""

    seek: int
    """First frame, of 10 ms."""
    frames: int
    """How many hold audio, at most those of the model's window."""
    previous: tuple[int, ...] = ()
    """Tokens behind <|startofprev|>; empty: none, without that token."""
    temperature: float = 0.0
    attempt: int = 0
    """0: a new window; n: the same again, at the n-th temperature that follows."""


@dataclass(frozen=True)
class Heard:
    """What a model hears in a window."""

    hypotheses: tuple[Hypothesis, ...]
    """The n best, best first."""
    text: str
    """Of the best, without special tokens, timestamps and surrounding blanks."""
    outcome: Outcome


@dataclass(frozen=True)
class Alignment:
    """When are these words said? Asked of the window heard last; answered by a list of `Timing`."""

    seek: int
    frames: int
    tokens: tuple[int, ...]
    """Of text only: below <|endoftext|>."""


@dataclass(frozen=True)
class Timing:
    """A word of a window (openai-whisper `timing.py:WordTiming`)."""

    word: str
    tokens: tuple[int, ...]
    start: float
    """Seconds from the start of the window."""
    end: float
    probability: float
