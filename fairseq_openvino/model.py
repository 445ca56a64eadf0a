"""The contract between models and everything that uses them.

A `SpeechModel` is immutable after loading and may be shared between threads. Everything mutable
lives in a `DecoderSession`, which belongs to one batch and one thread; a session that raised is
closed and never used again. Search never touches keys and values: reordering beams is an input.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from fairseq_openvino.bundle import Manifest


@dataclass(frozen=True)
class EncoderOutput:
    """Cross-attention inputs of N utterances, computed once."""

    lengths: np.ndarray
    """Valid encoder frames, shape (N,)."""
    tensors: dict[str, Any]
    """`cross_bias` (N, 1, 1, S), `cross_key.p` and `cross_value.p` (N, H, S, dh)."""
    streams: int = 1
    """Batches in flight when this one is decoded."""

    @property
    def utterances(self) -> int:
        """N."""
        return len(self.lengths)


@dataclass(frozen=True)
class Candidates:
    """The C best next tokens of each row, best first."""

    scores: np.ndarray
    """Biased log-probabilities, shape (R, C), float32."""
    tokens: np.ndarray
    """Token ids, shape (R, C)."""
    probed: np.ndarray | None = None
    """Log-probabilities of the tokens the session was asked to watch, shape (R, G)."""


@dataclass(frozen=True)
class Hypothesis:
    """One finished output."""

    tokens: np.ndarray
    """Token ids including the final eos, shape (n,), int64."""
    score: float
    """Length-normalised log-probability, base e."""
    positional_scores: np.ndarray
    """Log-probability of each token, shape (n,), float32."""


@dataclass(frozen=True)
class Clip:
    """One audio file, ready for the encoder."""

    path: str
    features: np.ndarray
    """Shape (T, F), float32."""
    seconds: float
    """Duration of the audio."""
    damage: str | None = None
    """What is missing of the audio, in words; None if nothing is known to be."""


@dataclass(frozen=True)
class Segment:
    """A stretch of speech between two timestamps."""

    start: float
    """Seconds from the start of the audio."""
    end: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """What one audio file became."""

    path: str
    text: str
    """Detokenised text of the best hypothesis."""
    score: float
    """Its length-normalised log-probability, base e."""
    seconds: float
    """Duration of the audio."""
    hypotheses: tuple[tuple[str, Hypothesis], ...]
    """Text and tokens of the n best, best first."""
    language: str | None = None
    """Code of the spoken language, where the model knows it."""
    language_probabilities: Mapping[str, float] = field(default_factory=dict)
    """By code, most probable first; empty unless the language was detected."""
    no_speech_probability: float | None = None
    """Probability that nobody speaks, where the model has a token for it."""
    segments: tuple[Segment, ...] = ()
    """With timestamps only."""
    decoded_again: str | None = None
    """Why a result with a shorter audio context was given up for one with the whole window."""
    damage: str | None = None
    """What is missing of the audio, in words: the text is that of the rest."""


class DecoderSession(Protocol):
    """Decoding state of one batch."""

    def step(self, tokens: np.ndarray, beam_idx: np.ndarray) -> np.ndarray:
        """Append tokens (R, l) after reordering the rows by beam_idx (R,).

        Returns log-probabilities, shape (R, l, V), float32, valid until the next call.
        """
        ...

    def candidates(
        self,
        tokens: np.ndarray,
        beam_idx: np.ndarray,
        bias: np.ndarray,
        bounds: np.ndarray | None = None,
    ) -> Candidates:
        """As `step`; returns the C best tokens after the last one under log-prob + bias.

        `bias` is (1 or R, V); `bounds`, (R, 3), see `whisper.search.Rules.bounds`.
        """
        ...

    def keep(self, utterances: np.ndarray) -> None:
        """Drop all other utterances; the next `beam_idx` refers to the rows before the drop."""
        ...

    def __enter__(self) -> DecoderSession: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class SpeechModel(Protocol):
    """A loaded model of any family."""

    manifest: Manifest
    vocabulary: Any
    """The family's own; `text(tokens)` gives the detokenised text."""

    def features(self, waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Waveform (samples,) in [-1, 1] to encoder input (T, F)."""
        ...

    def streams(self, utterances: int) -> int:
        """Into how many parts, decoded at the same time, a batch of N is best split."""
        ...

    def prepare(self, beam: int, candidates: int = 0, utterances: Collection[int] = (1,)) -> None:
        """Do one-time work, as compiling, before the first batches of these sizes."""
        ...

    def encode(self, features: np.ndarray, lengths: np.ndarray, streams: int = 1) -> EncoderOutput:
        """Features (N, T, F), zero-padded, and their lengths (N,) in frames.

        `streams` is the number of batches in flight; sessions opened on the result expect the same.
        """
        ...

    def open(self, encoded: EncoderOutput, beam: int, candidates: int = 0) -> DecoderSession:
        """A session with K = `beam` rows an utterance.

        C = `candidates` > 0 opens it for `candidates()`, 0 for `step()`.
        """
        ...
