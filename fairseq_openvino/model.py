"""The contract between compiled models, searches and everything that uses them.

A `Model` is immutable and may be shared between threads. What changes lives in a `Session`, which
belongs to one batch and one thread; a session that raised is closed and never used again. A `Search`
decides which tokens follow and sees no session: `decoding.drive` brings the two together. Search
never touches keys and values: reordering rows is an input.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fairseq_openvino.bundle import Manifest
from fairseq_openvino.errors import FairseqOpenVINOError
from fairseq_openvino.tensors import TensorSpec

LOG_PROBS = "log_probs"
"""The only memory tensor of a model without a decoder, (N, S, V)."""


@dataclass(frozen=True)
class Memory:
    """What the encoder leaves for the decoder of N utterances, computed once."""

    lengths: np.ndarray
    """Valid encoder frames, shape (N,)."""
    tensors: Mapping[str, np.ndarray]
    """By `TensorSpec.name`, leading axis N; float32, or uint16 for the bits of bf16."""
    streams: int = 1
    """Batches in flight when this one is decoded."""
    together: int = 0
    """Utterances of a full batch, which decides precisions; 0: N."""

    @property
    def utterances(self) -> int:
        """N."""
        return len(self.lengths)

    def take(self, utterances: np.ndarray | slice) -> Memory:
        """Some of the utterances, in the order of these indices; a slice shares their memory."""
        tensors = {
            name: np.ascontiguousarray(tensor[utterances]) for name, tensor in self.tensors.items()
        }
        return Memory(self.lengths[utterances], tensors, self.streams, self.together)

    @staticmethod
    def join(parts: Sequence[Memory], specs: Sequence[TensorSpec]) -> Memory:
        """One batch out of several, each tensor padded along S as its spec says."""
        if len(parts) == 1:
            return parts[0]
        tensors = {
            spec.name: _padded([part.tensors[spec.name] for part in parts], spec) for spec in specs
        }
        lengths = np.concatenate([part.lengths for part in parts])
        return Memory(lengths, tensors, together=parts[0].together)


def _padded(parts: Sequence[np.ndarray], spec: TensorSpec) -> np.ndarray:
    """Arrays with another N and S each, behind each other along N."""
    if "S" not in spec.dims:
        return np.concatenate(parts)
    axis = spec.dims.index("S")
    shape = list(parts[0].shape)
    shape[0], shape[axis] = sum(map(len, parts)), max(part.shape[axis] for part in parts)
    joined = np.full(shape, spec.fill, parts[0].dtype)
    row = 0
    for part in parts:
        target = joined[row : row + len(part)]
        np.moveaxis(target, axis, 1)[:, : part.shape[axis]] = np.moveaxis(part, axis, 1)
        row += len(part)
    return joined


class Mask(Protocol):
    """Rules about the next token that depend on what a row has generated; hashable.

    The rules arrive as a few numbers a row, (R, `width`) int32, and are applied by the decoder graph,
    or by `apply` where log-probabilities of all tokens are at hand.
    """

    @property
    def width(self) -> int:
        """Numbers a row."""
        ...

    def graph(self, scores: Any, bounds: Any) -> Any:
        """OpenVINO nodes: scores (R, V) and bounds to scores with forbidden tokens at -inf."""
        ...

    def apply(self, scores: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """The same in numpy."""
        ...


@dataclass(frozen=True)
class Head:
    """What every call of a session returns; part of the compiled variant."""

    candidates: int = 0
    """C best tokens of each row; 0: log-probabilities of all tokens."""
    watched: tuple[int, ...] = ()
    """G tokens whose log-probabilities every call reports."""
    mask: Mask | None = None
    renormalised: bool = False
    """Report how much probability bias and mask leave."""
    attention: tuple[tuple[int, int], ...] = ()
    """A heads, (layer, head), of a transformer decoder whose cross-attention every call reports."""
    last: bool = False
    """Without candidates: log-probabilities of the last token only, (R, 1, V)."""
    following: int = 0
    """Without candidates: log-probabilities of the tokens that follow within the call only, among so many
    first tokens of the vocabulary. For times of words, which 16 or 8 bits would move: always in f32."""


@dataclass(frozen=True)
class Ask:
    """One call: the tokens to append, and what may follow them."""

    tokens: np.ndarray
    """What the rows have not been given yet, (R, l)."""
    beam_idx: np.ndarray
    """The earlier row that each row continues, (R,)."""
    bias: np.ndarray | None = None
    """Added to the log-probabilities, (1 or R, V); needed for candidates."""
    bounds: np.ndarray | None = None
    """Of the head's mask, (R, width); needed if it has one."""


@dataclass(frozen=True)
class Step:
    """What came of a call; arrays are valid until the next one."""

    scores: np.ndarray
    """Of the C candidates, best first: log-probability + bias, (R, C); without candidates
    log-probabilities of all tokens, (R, l, V), or of those that follow, (R, l - 1). float32."""
    tokens: np.ndarray | None = None
    """The candidates, (R, C)."""
    watched: np.ndarray | None = None
    """Log-probabilities of the head's watched tokens, without bias, (R, G)."""
    left: np.ndarray | None = None
    """Log of the probability that bias and mask leave, (R, 1): score - left is the log-probability
    after the rules."""
    attention: np.ndarray | None = None
    """Weights of the head's cross-attention heads over the encoder's frames, (R, l, A, S)."""


@dataclass(frozen=True)
class Hypothesis:
    """One finished output."""

    tokens: np.ndarray
    """Token ids including the final eos, shape (n,), int64."""
    score: float
    """Length-normalised log-probability, base e."""
    positional_scores: np.ndarray
    """Log-probability of each token, shape (n,), float32."""
    after_rules: np.ndarray | None = None
    """The same among the tokens that the rules allowed, where a family has rules that take much away."""

    @property
    def average_log_probability(self) -> float:
        """Mean over the tokens, after the rules."""
        found = self.positional_scores if self.after_rules is None else self.after_rules
        return float(found.mean())


@dataclass(frozen=True)
class Clip:
    """One audio file, ready for the encoder."""

    path: str
    features: np.ndarray
    """Shape (T, F), float32; of a text token ids (T,), int64."""
    seconds: float
    """Duration of the audio."""
    damage: str | None = None
    """What is missing of the audio, in words; None if nothing is known to be."""


@dataclass(frozen=True)
class Word:
    """A word and when it is said."""

    start: float
    """Seconds from the start of the audio."""
    end: float
    word: str
    """With the blank in front of it, where the language has blanks, and its punctuation."""
    probability: float
    """Mean of its tokens'."""


@dataclass(frozen=True)
class Segment:
    """A stretch of speech between two timestamps, with the fields of openai-whisper's.

    None is what a family does not know.
    """

    start: float
    """Seconds from the start of the audio."""
    end: float
    text: str
    temperature: float | None = None
    """At which its window was decoded; this and what follows is the same for all segments of a window,
    and as in openai-whisper."""
    avg_logprob: float | None = None
    """Of the window's tokens, after the rules."""
    compression_ratio: float | None = None
    """Bytes of the window's text by bytes of it compressed; above 2.4 it repeats itself."""
    no_speech_prob: float | None = None
    """Probability that nobody speaks in the window."""
    seek: int = 0
    """First frame of the window, of 10 ms."""
    tokens: tuple[int, ...] = ()
    """Timestamps included."""
    words: tuple[Word, ...] | None = None
    """Where they were asked for."""


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
    skipped: str | None = None
    """Why there is no text, where nobody was taken to speak."""
    decoded_again: str | None = None
    """Why a result with a shorter audio context was given up for one with the whole window."""
    damage: str | None = None
    """What is missing of the audio, in words: the text is that of the rest."""
    uncovered: tuple[tuple[float, float], ...] = ()
    """Stretches of speech that no segment covers: start and end in seconds."""

    @property
    def parts(self) -> tuple[Segment, ...]:
        """The segments; where there are none, all of the text as one."""
        if self.segments or not self.text:
            return self.segments
        best, content = self.hypotheses[0][1], self.text.encode()
        whole = Segment(
            0.0, self.seconds, self.text, 0.0, best.average_log_probability,
            len(content) / len(zlib.compress(content)), self.no_speech_probability or 0.0,
            tokens=tuple(best.tokens.tolist()),
        )  # fmt: skip
        return (whole,)

    @classmethod
    def of(cls, clip: Clip, texts: Sequence[str], found: Sequence[Hypothesis]) -> Transcript:
        """Of the n best hypotheses of a clip."""
        pairs = tuple(zip(texts, found, strict=True))
        return cls(clip.path, texts[0], found[0].score, clip.seconds, pairs, damage=clip.damage)


@dataclass(frozen=True)
class News:
    """How far the transcription of a recording has come."""

    path: str
    seconds: float
    """Of its audio that are done."""
    duration: float
    """Of its audio in seconds."""
    segments: tuple[Segment, ...] = ()
    """Found since the last news of this recording."""
    result: Transcript | FairseqOpenVINOError | None = None
    """Once it is done."""


class Ledger(Protocol):
    """Answers of a model that a stopped process has computed already, in the order of the calls.

    What a model is asked follows from the audio and its answers so far, so the answers kept lead a new
    process to the call at which the other one stopped.
    """

    def known(self) -> Any:
        """The answer of the next call, which then counts as made; None: it is to be computed."""
        ...

    def add(self, answer: Any) -> None:
        """Keep the answer of a call that was computed; of JSON's types."""
        ...


class Session(Protocol):
    """Decoding state of one batch."""

    def step(self, ask: Ask) -> Step:
        """Reorder the rows, append the tokens, and report as the head says.

        Raises:
            NumericsError: scores are not numbers; it names the rows.
        """
        ...

    def keep(self, utterances: np.ndarray) -> None:
        """Drop all other utterances; the next `beam_idx` refers to the rows before the drop."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(self, *_: object) -> None: ...


class Model(Protocol):
    """A loaded encoder and decoder; knows no files and no text."""

    manifest: Manifest

    def streams(self, utterances: int) -> int:
        """Into how many parts, decoded at the same time, a batch of N is best split."""
        ...

    def prepare(self, sizes: Collection[int], beam: int, head: Head) -> None:
        """Do one-time work, as compiling, before the first batches of these numbers of utterances."""
        ...

    def encode(
        self, features: np.ndarray, lengths: np.ndarray, streams: int = 1, together: int = 0
    ) -> Memory:
        """Features (N, T, F), zero-padded, and their lengths (N,) in frames.

        Where F is 0 they are token ids (N, T), padded behind.

        `streams` is the number of batches in flight; sessions opened on the result expect the same.
        Precisions are chosen for `together` utterances (0: N), so that a last, smaller batch is
        computed as the others are.
        """
        ...

    def open(self, memory: Memory, beam: int, head: Head) -> Session:
        """A session with K = `beam` rows an utterance."""
        ...


class Search(Protocol):
    """Which tokens follow, for all utterances of a batch; numpy only."""

    @property
    def owners(self) -> np.ndarray:
        """Utterance of each row of the last `ask`, (R,)."""
        ...

    def ask(self) -> Ask | None:
        """What to give the session next; None: all utterances are finished."""
        ...

    def take(self, step: Step) -> np.ndarray | None:
        """Go on with what came of it; returns the utterances that stay, if others are dropped."""
        ...

    def found(self) -> list[list[Hypothesis]]:
        """The hypotheses of each utterance so far, best first."""
        ...
