"""Beam search, identical to Fairseq's `SequenceGenerator` with `BeamSearch`, in numpy.

The model returns the C = 2K best tokens of each row under a bias that carries every rule about
single tokens (pad never, unk penalty, length limits, prefixes), so nothing here is as wide as the
vocabulary. Source of the algorithm: Fairseq `sequence_generator.py:_generate` and `search.py`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fairseq_openvino.decoding import drive
from fairseq_openvino.errors import NumericsError, invalid
from fairseq_openvino.model import Ask, Head, Hypothesis, Memory, Model, Step
from fairseq_openvino.s2t.options import S2TOptions

SHRINK_FRACTION = 0.25
"""Finished utterances are dropped from the batch when they make up this share of it."""


@dataclass(frozen=True)
class TokenIds:
    """Special tokens as the search uses them; `eos` also starts a hypothesis unless `bos` is set."""

    pad: int
    eos: int
    unk: int
    bos: int | None = None
    suppressed: tuple[int, ...] = ()


def generate(
    model: Model,
    memory: Memory,
    source_frames: int,
    options: S2TOptions,
    ids: TokenIds,
    prefix: np.ndarray | None = None,
) -> list[list[Hypothesis]]:
    """Decode a batch.

    Args:
        model: any model of the contract.
        memory: what its encoder made of N utterances.
        source_frames: T of the padded batch, for max_len_a.
        options: search options.
        ids: special tokens.
        prefix: forced first tokens, shape (N, length), padded with `pad`.

    Returns:
        For each utterance up to K hypotheses, best first.

    Raises:
        OptionError: min_len exceeds the longest output.
        NumericsError: the model produced NaN.
    """
    dimensions, limits = model.manifest.dimensions, model.manifest.limits
    vocabulary_size = dimensions.vocabulary_size
    longest = int(options.max_len_a * source_frames + options.max_len_b)
    max_len = min(longest, limits.max_target_tokens - 1)
    if options.min_len > max_len:
        raise invalid(
            "Searching", "min_len", f"at most the longest output, {max_len} tokens",
            options.min_len, "Adjust min_len, max_len_a or max_len_b",
        )  # fmt: skip
    beam = min(options.beam, vocabulary_size - 1)
    search = BeamSearch(options, ids, memory.utterances, beam, max_len, vocabulary_size, prefix)
    head = Head(candidate_count(options.beam, vocabulary_size))
    with model.open(memory, beam, head) as session:
        drive(session, search)
    return search.found()


def decode_batch(
    model: Model,
    features: np.ndarray,
    lengths: np.ndarray,
    options: S2TOptions,
    ids: TokenIds,
    prefix: np.ndarray | None = None,
) -> list[list[Hypothesis]]:
    """Encode and decode a padded batch, in parallel parts where the model prefers that.

    Args:
        model: any model of the contract.
        features: shape (N, T, F), zero-padded.
        lengths: frames of each utterance, shape (N,).
        options: search options.
        ids: special tokens.
        prefix: forced first tokens, shape (N, length), padded with `pad`.

    Returns:
        As `generate`. Every part keeps the padding of the whole batch, and rows do not influence
        each other, so the result does not depend on the number of parts.
    """
    streams = model.streams(len(features))
    order = np.arange(len(features))
    parts = [order[i::streams] for i in range(streams)]  # long and short ones evenly

    def run(part: np.ndarray) -> list[list[Hypothesis]]:
        memory = model.encode(features[part], lengths[part], streams)
        forced = None if prefix is None else prefix[part]
        try:
            return generate(model, memory, features.shape[1], options, ids, forced)
        except NumericsError as error:
            affected = tuple(int(part[i]) for i in error.indices)
            raise NumericsError(str(error), affected) from error

    if streams == 1:
        return run(order)
    with ThreadPoolExecutor(streams) as pool:
        found = [hypotheses for part in pool.map(run, parts) for hypotheses in part]
    return [found[i] for i in np.argsort(np.concatenate(parts))]


def candidate_count(beam: int, vocabulary_size: int) -> int:
    """C, the candidates of each row that a search with this beam asks for."""
    return min(2 * min(beam, vocabulary_size - 1), vocabulary_size)


class BeamSearch:
    """A `model.Search`. A finished utterance stays as an idle slot until the batch shrinks."""

    def __init__(
        self,
        options: S2TOptions,
        ids: TokenIds,
        utterances: int,
        beam: int,
        max_len: int,
        vocabulary_size: int,
        prefix: np.ndarray | None,
    ) -> None:
        self.options, self.ids, self.beam, self.max_len = options, ids, beam, max_len
        self.vocabulary_size, self.prefix = vocabulary_size, prefix
        rows = utterances * beam
        self.slots = np.arange(utterances)  # utterance of each slot
        self.open = np.ones(utterances, bool)  # by slot
        self.ignored = np.zeros((utterances, beam), bool)  # cands_to_ignore, by slot
        self.tokens = np.full((rows, max_len + 2), ids.pad, np.int64)
        self.tokens[:, 0] = ids.eos if ids.bos is None else ids.bos
        self.scores = np.zeros((rows, max_len + 1), np.float32)  # cumulative
        self.beam_idx = np.arange(rows, dtype=np.int32)
        self.step = 0
        self.finished: list[list[Hypothesis]] = [[] for _ in range(utterances)]
        self.biases = self._token_biases()

    @property
    def owners(self) -> np.ndarray:
        """See `model.Search`."""
        return np.repeat(self.slots, self.beam)

    @property
    def _over(self) -> bool:
        return self.step > self.max_len or not self.open.any()

    def ask(self) -> Ask | None:
        """See `model.Search`; None once every utterance has K hypotheses or max_len is reached."""
        if self._over:
            return None
        tokens = self.tokens[:, self.step : self.step + 1]
        return Ask(tokens, self.beam_idx, self._bias(self.step))

    def take(self, step: Step) -> np.ndarray | None:
        """See `model.Search`."""
        assert step.tokens is not None
        now, self.step = self.step, self.step + 1
        scores, tokens, beams = self._merge(now, step.scores, step.tokens)
        is_eos = (tokens == self.ids.eos) & (scores > -np.inf)
        is_eos[:, : self.beam] &= ~self.ignored
        ending = is_eos[:, : self.beam] & self.open[:, None]
        if ending.any():
            self._finish(now, ending, scores, beams)
        if self._over:
            return None
        self._advance(now, is_eos, scores, tokens, beams)
        return self._shrink() if self.open.mean() <= 1 - SHRINK_FRACTION else None

    def found(self) -> list[list[Hypothesis]]:
        """See `model.Search`; ordered as by Fairseq's final sort."""
        ordered = []
        for found in self.finished:
            order = np.argsort([-hypothesis.score for hypothesis in found], kind="stable")
            ordered.append([found[i] for i in order])
        return ordered

    def _token_biases(self) -> dict[str, np.ndarray]:
        """Biases (1, V) of an ordinary step, of one before min_len and of the last one."""
        always = np.zeros((1, self.vocabulary_size), np.float32)
        always[0, self.ids.unk] -= self.options.unkpen
        always[0, self.ids.pad] = -np.inf
        last = np.full_like(always, -np.inf)
        last[0, self.ids.eos] = 0.0
        free = always.copy()
        for bias in (free, last):
            bias[0, list(self.ids.suppressed)] = -np.inf
        early = free.copy()
        early[0, self.ids.eos] = -np.inf
        return {"always": always, "free": free, "early": early, "last": last}

    def _bias(self, step: int) -> np.ndarray:
        if self.prefix is not None and step < min(self.prefix.shape[1], self.max_len):
            return self._prefix_bias(self.prefix[self.slots, step])
        if step >= self.max_len:
            return self.biases["last"]
        return self.biases["early" if step < self.options.min_len else "free"]

    def _prefix_bias(self, forced: np.ndarray) -> np.ndarray:
        """Only the forced token (N,) survives in each row; pad forces nothing. (R, V)."""
        bias = np.repeat(self.biases["always"], len(forced), axis=0)
        for slot in np.flatnonzero(forced != self.ids.pad):
            kept = bias[slot, forced[slot]]
            bias[slot] = -np.inf
            bias[slot, forced[slot]] = kept
        return np.repeat(bias, self.beam, axis=0)

    def _merge(
        self, step: int, scores: np.ndarray, tokens: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The 2K best continuations of each utterance: scores, tokens and source beams, (n, 2K)."""
        slots, width = len(self.slots), scores.shape[1]
        if step == 0:  # all beams are alike: only the first counts
            count = min(2 * self.beam, self.vocabulary_size - 1)
            first = scores.reshape(slots, self.beam, width)[:, 0, :count]
            chosen = tokens.reshape(slots, self.beam, width)[:, 0, :count]
            return first.copy(), chosen.astype(np.int64), np.zeros((slots, count), np.int64)
        if self.prefix is not None and step < self.prefix.shape[1]:
            scores, tokens = self._replicate_first_beam(step, scores, tokens)
        total = (scores + self.scores[:, step - 1 : step]).reshape(slots, self.beam * width)
        count = min(2 * self.beam, self.beam * self.vocabulary_size - 1)
        order = np.argsort(-total, axis=1, kind="stable")[:, :count]
        best = np.take_along_axis(total, order, 1)
        chosen = np.take_along_axis(tokens.reshape(slots, -1), order, 1).astype(np.int64)
        return best, chosen, order // width

    def _replicate_first_beam(
        self, step: int, scores: np.ndarray, tokens: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where the prefix ends with eos, all beams continue the first one."""
        assert self.prefix is not None
        ended = self.prefix[self.slots, step] == self.ids.eos
        if not ended.any():
            return scores, tokens
        rows = np.arange(len(self.slots) * self.beam)
        source = np.where(np.repeat(ended, self.beam), rows - rows % self.beam, rows)
        self.tokens, self.scores = self.tokens[source], self.scores[source]
        return scores[source], tokens[source]

    def _finish(self, step: int, ending: np.ndarray, scores: np.ndarray, beams: np.ndarray) -> None:
        slot, rank = np.nonzero(ending)
        rows = slot * self.beam + beams[slot, rank]
        tokens = self.tokens[rows, 1 : step + 2]
        tokens[:, step] = self.ids.eos
        positional = self.scores[rows, : step + 1]
        final = scores[slot, rank]
        positional[:, step] = final
        positional[:, 1:] -= positional[:, :-1].copy()
        if not self.options.unnormalized:
            final = final / (step + 1) ** self.options.lenpen
        for i, owner in enumerate(self.slots[slot]):
            if len(self.finished[owner]) < self.beam:
                self.finished[owner].append(Hypothesis(tokens[i], float(final[i]), positional[i]))
        for each in np.unique(slot):
            full = len(self.finished[self.slots[each]]) == self.beam
            self.open[each] = not (full or step == self.max_len)

    def _advance(
        self,
        step: int,
        is_eos: np.ndarray,
        scores: np.ndarray,
        tokens: np.ndarray,
        beams: np.ndarray,
    ) -> None:
        """Continue the K best candidates of each utterance that are not eos."""
        inactive = is_eos.copy()
        inactive[:, : self.beam] |= self.ignored
        order = np.argsort(inactive, axis=1, kind="stable")[:, : self.beam]
        self.ignored = np.take_along_axis(inactive, order, 1)
        base = (np.arange(len(self.slots)) * self.beam)[:, None]
        rows = (np.take_along_axis(beams, order, 1) + base).reshape(-1)
        self.tokens[:, : step + 1] = self.tokens[rows, : step + 1]
        self.tokens[:, step + 1] = np.take_along_axis(tokens, order, 1).reshape(-1)
        self.scores[:, :step] = self.scores[rows, :step]
        self.scores[:, step] = np.take_along_axis(scores, order, 1).reshape(-1)
        self.beam_idx = rows.astype(np.int32)

    def _shrink(self) -> np.ndarray:
        kept = np.flatnonzero(self.open)
        rows = (kept[:, None] * self.beam + np.arange(self.beam)).reshape(-1)
        self.tokens, self.scores = self.tokens[rows], self.scores[rows]
        self.beam_idx, self.ignored = self.beam_idx[rows], self.ignored[kept]
        self.slots, self.open = self.slots[kept], self.open[kept]
        return kept
