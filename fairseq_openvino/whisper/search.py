"""Greedy search, sampling and beam search, identical to transformers' `generate` for Whisper.

Source of the algorithms: transformers `generation/utils.py:_sample, _beam_search`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairseq_openvino.model import Ask, Hypothesis, Step
from fairseq_openvino.whisper.rules import Rules

UNFINISHED = np.float32(-1e9)
"""Score of an empty place among the finished hypotheses."""


class _Search:
    """A `model.Search`: rows and their histories; K = `beam` rows for each open utterance.

    Args:
        prompt: tokens (N, l) that the session is given first.
        rules: what may follow.
        limits: most tokens of each utterance, <|endoftext|> included, (N,).
        beam: K.
        lenpen: scores are divided by length ** lenpen.
    """

    def __init__(
        self, prompt: np.ndarray, rules: Rules, limits: np.ndarray, beam: int, lenpen: float
    ) -> None:
        self.rules, self.limits, self.beam, self.lenpen = rules, limits, beam, lenpen
        self.until = np.zeros(len(prompt), np.int64)
        """Timestamp of each utterance, before which no text ends that has timestamps."""
        self.slots = np.arange(len(prompt))
        """Utterance of each slot of K rows."""
        self.generated = 0
        """Tokens of every row."""
        shape = len(prompt) * beam, int(limits.max())
        self.tokens = np.zeros(shape, np.int64)
        self.scores = np.zeros(shape, np.float32)  # of each token
        self.after = np.zeros(shape, np.float32)  # among the tokens that the rules allow
        self._new = np.repeat(prompt, beam, axis=0)
        self._beam_idx = np.arange(len(self._new), dtype=np.int32)
        self._found: list[list[Hypothesis]] = [[] for _ in prompt]

    @property
    def owners(self) -> np.ndarray:
        """See `model.Search`."""
        return np.repeat(self.slots, self.beam)

    def ask(self) -> Ask | None:
        """See `model.Search`."""
        if not len(self.slots):
            return None
        return Ask(self._new, self._beam_idx, self.rules.bias(self.generated), self._bounds())

    def found(self) -> list[list[Hypothesis]]:
        """See `model.Search`; without <|endoftext|> where the limit ended a hypothesis."""
        return self._found

    def _bounds(self) -> np.ndarray | None:
        """See `Rules.bounds`."""
        return self.rules.bounds(self.tokens[:, : self.generated], self.until[self.owners])

    def _go_on(self, beam_idx: np.ndarray, is_open: np.ndarray) -> np.ndarray | None:
        """Drop the slots that are done; the others' rows continue the rows `beam_idx`."""
        kept = None if is_open.all() else np.flatnonzero(is_open)
        if kept is not None:
            rows = (kept[:, None] * self.beam + np.arange(self.beam)).reshape(-1)
            self.slots, beam_idx = self.slots[kept], beam_idx[rows]
            self.tokens, self.scores = self.tokens[rows], self.scores[rows]
            self.after = self.after[rows]
        self._beam_idx = beam_idx.astype(np.int32)
        self._new = self.tokens[:, self.generated - 1 : self.generated]
        return kept if len(self.slots) else None


class Greedy(_Search):
    """The best token at each step."""

    def __init__(self, prompt: np.ndarray, rules: Rules, limits: np.ndarray, lenpen: float) -> None:
        super().__init__(prompt, rules, limits, 1, lenpen)

    def take(self, step: Step) -> np.ndarray | None:
        """See `model.Search`."""
        last = self.generated
        self.tokens[:, last], self.scores[:, last], self.after[:, last] = self._choose(step)
        self.generated += 1
        ended = self.tokens[:, last] == self.rules.eos
        ended |= self.limits[self.slots] == self.generated
        for row in np.flatnonzero(ended):
            positional, after = (
                values[row, : self.generated].copy() for values in (self.scores, self.after)
            )
            score = float(positional.sum() / self.generated**self.lenpen)
            tokens = self.tokens[row, : self.generated].copy()
            self._found[self.slots[row]].append(Hypothesis(tokens, score, positional, after))
        return self._go_on(np.arange(len(self.slots)), ~ended)

    def _choose(self, step: Step) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token of each row, and its log-probability before and after the rules."""
        assert step.tokens is not None and step.left is not None
        scores = step.scores[:, 0]
        return step.tokens[:, 0], scores, scores - step.left[:, 0]


class Sampling(_Search):
    """K samples of each utterance, drawn at a temperature; the session reports all log-probabilities.

    Each row has its own generator, so that its text does not depend on the batch. Best first by the mean
    log-probability after the rules (openai-whisper `decoding.py:MaximumLikelihoodRanker`).
    """

    def __init__(
        self,
        prompt: np.ndarray,
        rules: Rules,
        limits: np.ndarray,
        beam: int,
        lenpen: float,
        temperature: float,
        randoms: Sequence[np.random.Generator],
    ) -> None:
        super().__init__(prompt, rules, limits, beam, lenpen)
        self.temperature, self.randoms = temperature, randoms
        self.lengths = np.zeros(len(self._new), np.int64)
        """Tokens of each row that has ended, else 0."""

    def ask(self) -> Ask | None:
        """See `model.Search`; the rules are applied here."""
        return Ask(self._new, self._beam_idx) if len(self.slots) else None

    def take(self, step: Step) -> np.ndarray | None:
        """See `model.Search`; rows that have ended go on unseen until all K have."""
        last = self.generated
        self.tokens[:, last], self.scores[:, last], self.after[:, last] = self._choose(step)
        self.generated += 1
        ended = self.tokens[:, last] == self.rules.eos
        ended |= self.limits[self.owners] == self.generated
        self.lengths[ended & (self.lengths == 0)] = self.generated
        is_open = (self.lengths == 0).reshape(-1, self.beam).any(axis=1)
        for place in np.flatnonzero(~is_open):
            rows = range(place * self.beam, (place + 1) * self.beam)
            found = [self._hypothesis(row) for row in rows]
            found.sort(key=lambda each: -each.average_log_probability)  # stable
            self._found[self.slots[place]] = found
        self.lengths = self.lengths[np.repeat(is_open, self.beam)]
        return self._go_on(np.arange(len(self.tokens)), is_open)

    def _hypothesis(self, row: int) -> Hypothesis:
        length = int(self.lengths[row])
        tokens, positional, after = (
            values[row, :length].copy() for values in (self.tokens, self.scores, self.after)
        )
        score = float(positional.sum() / length**self.lenpen)
        return Hypothesis(tokens, score, positional, after)

    def _choose(self, step: Step) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token of each row, and its log-probability before and after the rules."""
        log_probs = step.scores[:, -1]
        allowed = log_probs + self.rules.bias(self.generated)
        if self.rules.mask is not None:
            allowed = self.rules.mask.apply(allowed, np.asarray(self._bounds()))
        width = allowed.shape[1]
        rows = (self.slots[:, None] * self.beam + np.arange(self.beam)).reshape(-1)
        noise = np.stack([self.randoms[row].gumbel(size=width) for row in rows.tolist()])
        chosen = np.argmax(allowed / self.temperature + noise, axis=1)
        left = np.logaddexp.reduce(allowed, axis=1)
        scores = np.take_along_axis(log_probs, chosen[:, None], 1)[:, 0]
        return chosen, scores, scores - left


@dataclass(frozen=True)
class _Continuations:
    """The 2K best of each utterance, (n, 2K) each, best first."""

    total: np.ndarray
    """Accumulated log-probability."""
    tokens: np.ndarray
    rows: np.ndarray
    """The row that is continued."""
    scores: np.ndarray
    """Of the token alone."""
    after: np.ndarray
    """The same after the rules."""


class BeamSearch(_Search):
    """The K best hypotheses of each utterance; the session is opened for 2K candidates."""

    def __init__(
        self, prompt: np.ndarray, rules: Rules, limits: np.ndarray, beam: int, lenpen: float
    ) -> None:
        super().__init__(prompt, rules, limits, beam, lenpen)
        self.running = np.full((len(prompt), beam), UNFINISHED)
        self.running[:, 0] = 0.0  # all beams are alike at first: only one counts

    def take(self, step: Step) -> np.ndarray | None:
        """See `model.Search`."""
        best = self._merge(step)
        full = np.asarray(self.limits[self.slots] == self.generated + 1)
        ended = (best.tokens == self.rules.eos) | full[:, None]
        self._finish(ended[:, : self.beam], best)
        beam_idx = self._advance(ended, best)
        self.generated += 1
        is_open = self._can_improve() & ~full
        self.running = self.running[is_open]
        return self._go_on(beam_idx, is_open)

    def _merge(self, step: Step) -> _Continuations:
        assert step.tokens is not None and step.left is not None
        count, width = len(self.slots), step.scores.shape[1]
        total = step.scores + self.running.reshape(-1, 1)
        order = np.argsort(-total.reshape(count, -1), axis=1, kind="stable")[:, : 2 * self.beam]

        def take(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values.reshape(count, -1), order, 1)

        rows = order // width + (np.arange(count) * self.beam)[:, None]
        tokens = take(step.tokens).astype(np.int64)
        return _Continuations(
            take(total), tokens, rows, take(step.scores), take(step.scores - step.left)
        )

    def _finish(self, ended: np.ndarray, best: _Continuations) -> None:
        """Merge those of the K best candidates that have ended into the finished hypotheses."""
        for slot, rank in zip(*np.nonzero(ended), strict=True):
            row, place = best.rows[slot, rank], (slot, rank)
            tokens, positional, after = (
                np.append(before[row, : self.generated], new[place]).astype(before.dtype)
                for before, new in (
                    (self.tokens, best.tokens),
                    (self.scores, best.scores),
                    (self.after, best.after),
                )
            )
            score = float(best.total[place] / (self.generated + 1) ** self.lenpen)
            self._found[self.slots[slot]].append(Hypothesis(tokens, score, positional, after))
        for slot in np.flatnonzero(ended.any(axis=1)):
            found = self._found[self.slots[slot]]
            found.sort(key=lambda hypothesis: -hypothesis.score)  # stable
            del found[self.beam :]

    def _advance(self, ended: np.ndarray, best: _Continuations) -> np.ndarray:
        """Continue the K best candidates that have not ended; the rows they continue, (R,)."""
        scores = np.where(ended, UNFINISHED, best.total)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.beam]

        def take(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values, order, 1).reshape(-1)

        rows, last = take(best.rows), self.generated
        self.tokens, self.scores, self.after = (
            values[rows] for values in (self.tokens, self.scores, self.after)
        )
        self.tokens[:, last] = take(best.tokens)
        self.scores[:, last], self.after[:, last] = take(best.scores), take(best.after)
        self.running = np.take_along_axis(scores, order, 1)
        return rows

    def _can_improve(self) -> np.ndarray:
        """Whether the best running beam may still beat the worst of K finished ones, (n,)."""
        best = self.running[:, 0] / self.generated**self.lenpen
        worst = [
            found[-1].score if len(found) == self.beam else -np.inf
            for found in (self._found[slot] for slot in self.slots)
        ]
        return np.asarray(best > np.array(worst))
