"""Greedy search, beam search and sampling, identical to transformers' `generate` for Whisper.

Rules about single tokens are a bias (1, V); the timestamp rules, which depend on each row's history,
are three bounds a row that the decoder graph applies (`Bounds`). Source of the algorithms:
transformers `generation/utils.py:_sample, _beam_search` and `generation/logits_process.py:
WhisperTimeStampLogitsProcessor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairseq_openvino.bundle import WhisperConfig
from fairseq_openvino.errors import NumericsError
from fairseq_openvino.model import Candidates, DecoderSession, Hypothesis

UNFINISHED = np.float32(-1e9)
"""Score of an empty place among the finished hypotheses."""
NOWHERE = np.iinfo(np.int32).max


@dataclass(frozen=True)
class WhisperOptions:
    """How one window is decoded."""

    beam: int
    """K; 1 is greedy search."""
    lenpen: float
    """Length penalty: scores are divided by length ** lenpen."""
    min_tokens: int
    """Fewest tokens before <|endoftext|>."""
    max_tokens: int
    """Most tokens, <|endoftext|> included."""
    timestamps: bool
    """Apply the timestamp rules."""
    temperature: float
    """0: search; above: sample."""


class Rules:
    """What may follow, by token and by history."""

    def __init__(self, config: WhisperConfig, eos: int, vocabulary_size: int) -> None:
        self.config, self.eos = config, eos
        bias = np.zeros((1, vocabulary_size), np.float32)
        bias[0, list(config.suppressed)] = -np.inf
        self.later, self.first = bias, bias.copy()
        self.first[0, list(config.suppressed_at_start)] = -np.inf

    def bias(self, generated: int, options: WhisperOptions) -> np.ndarray:
        """Bias (1, V) of the token after `generated` others."""
        bias = self.later if generated else self.first
        forbidden = [self.config.no_timestamps] if options.timestamps else []
        if generated < options.min_tokens:
            forbidden.append(self.eos)
        if forbidden:
            bias = bias.copy()
            bias[0, forbidden] = -np.inf
        return bias

    def bounds(self, tokens: np.ndarray) -> np.ndarray:
        """Timestamp rules for generated tokens (R, n): int32 (R, 3).

        Forbidden are tokens below the first bound, timestamps below the second, and tokens from the
        third on.
        """
        first = self.config.first_timestamp
        bounds = np.tile(np.array([0, first, NOWHERE], np.int32), (len(tokens), 1))
        if tokens.shape[1] == 0:
            bounds[:, 0] = first
            if self.config.max_initial_timestamp is not None:
                bounds[:, 2] = first + self.config.max_initial_timestamp + 1
            return bounds
        last = tokens[:, -1] >= first
        before = tokens[:, -2] >= first if tokens.shape[1] > 1 else np.ones_like(last)
        bounds[last & before, 2] = first  # a pair is complete: text follows
        bounds[last & ~before, 0] = (
            self.eos
        )  # a segment has ended: another begins, or the text ends
        newest = tokens.max(axis=1)  # timestamps never decrease
        seen = newest >= first
        bounds[seen, 1] = newest[seen] + 1
        repeat = last & ~before  # the same moment may end one segment and begin the next
        bounds[repeat, 1] = newest[repeat]
        return bounds


def apply_rules(scores: np.ndarray, bounds: np.ndarray, first_timestamp: int) -> np.ndarray:
    """Scores (R, V) under bounds (R, 3), and text hidden where a timestamp is more likely.

    The graph built by `runtime/rewrite.py:append_candidates` does the same.
    """
    token = np.arange(scores.shape[1])
    allowed = (token >= bounds[:, :1]) & (token < bounds[:, 2:])
    allowed &= (token < first_timestamp) | (token >= bounds[:, 1:2])
    scores = np.where(allowed, scores, -np.inf)
    scale = np.exp(scores - scores.max(axis=1, keepdims=True))
    timestamp = scale[:, first_timestamp:].sum(axis=1) > scale[:, :first_timestamp].max(axis=1)
    scores[timestamp, :first_timestamp] = -np.inf
    return scores


class _Decoding:
    """One batch under way: the rows' histories, and the step that asks the session."""

    def __init__(self, session: DecoderSession, rules: Rules, options: WhisperOptions) -> None:
        self.session, self.rules, self.options = session, rules, options

    def candidates(
        self, tokens: np.ndarray, beam_idx: np.ndarray, generated: np.ndarray, slots: np.ndarray
    ) -> Candidates:
        """The best continuations of each row.

        Args:
            tokens: what the session has not seen yet, (R, l).
            beam_idx: source rows, (R,).
            generated: tokens after the prompt, (R, n).
            slots: utterance of each row, (R,).
        """
        bias = self.rules.bias(generated.shape[1], self.options)
        bounds = self.rules.bounds(generated) if self.options.timestamps else None
        try:
            return self.session.candidates(tokens, beam_idx, bias, bounds)
        except NumericsError as error:
            affected = sorted({int(slots[row]) for row in error.indices})
            raise NumericsError(str(error), tuple(affected)) from error


def greedy(
    session: DecoderSession,
    prompt: np.ndarray,
    rules: Rules,
    options: WhisperOptions,
    limits: np.ndarray,
) -> list[list[Hypothesis]]:
    """The best token at each step.

    Args:
        session: one row an utterance, opened for one candidate.
        prompt: tokens (N, l) the session has not seen yet.
        rules: what may follow.
        options: with beam 1.
        limits: most tokens of each utterance, <|endoftext|> included, (N,).

    Returns:
        One hypothesis for each utterance; without <|endoftext|> where the limit ended it.
    """
    utterances, longest = len(prompt), int(limits.max())
    decoding = _Decoding(session, rules, options)
    tokens = np.zeros((utterances, longest), np.int64)
    scores = np.zeros((utterances, longest), np.float32)
    found: list[list[Hypothesis]] = [[] for _ in range(utterances)]
    slots, beam_idx, new = np.arange(utterances), np.arange(utterances, dtype=np.int32), prompt
    for step in range(longest):
        best = decoding.candidates(new, beam_idx, tokens[:, :step], slots)
        tokens[:, step], scores[:, step] = best.tokens[:, 0], best.scores[:, 0]
        ended = (tokens[:, step] == rules.eos) | (step + 1 == limits[slots])
        for row in np.flatnonzero(ended):
            positional = scores[row, : step + 1].copy()
            score = float(positional.sum() / (step + 1) ** options.lenpen)
            hypothesis = Hypothesis(tokens[row, : step + 1].copy(), score, positional)
            found[slots[row]].append(hypothesis)
        kept = np.flatnonzero(~ended)
        if not len(kept):
            break
        if len(kept) < len(slots):
            session.keep(kept)
            slots, tokens, scores = slots[kept], tokens[kept], scores[kept]
        beam_idx, new = kept.astype(np.int32), tokens[:, step : step + 1]
    return found


def sample(
    session: DecoderSession,
    prompt: np.ndarray,
    rules: Rules,
    options: WhisperOptions,
    limits: np.ndarray,
    randoms: Sequence[np.random.Generator],
) -> list[list[Hypothesis]]:
    """Tokens drawn from the distribution at a temperature; arguments as `greedy`.

    The session is opened for `step`, not for candidates; each utterance has its own generator, so
    that it does not depend on the batch.
    """
    utterances = len(prompt)
    tokens = np.zeros((utterances, 0), np.int64)
    scores = np.zeros((utterances, 0), np.float32)
    beam_idx, new = np.arange(utterances, dtype=np.int32), prompt
    open_rows = np.ones(utterances, bool)
    while open_rows.any():
        log_probs = session.step(new, beam_idx)[:, -1]
        biased = log_probs + rules.bias(tokens.shape[1], options)
        if options.timestamps:
            biased = apply_rules(biased, rules.bounds(tokens), rules.config.first_timestamp)
        noise = np.stack([random.gumbel(size=biased.shape[1]) for random in randoms])
        new = np.argmax(biased / options.temperature + noise, axis=1)[:, None]
        new[~open_rows] = rules.eos
        tokens = np.concatenate([tokens, new], 1)
        scores = np.concatenate([scores, np.take_along_axis(log_probs, new, 1)], 1)
        open_rows &= (new[:, 0] != rules.eos) & (tokens.shape[1] < limits)
    found = []
    for row in range(utterances):
        ends = np.flatnonzero(tokens[row] == rules.eos)
        length = min(int(ends[0]) + 1 if len(ends) else tokens.shape[1], int(limits[row]))
        score = float(scores[row, :length].sum() / length**options.lenpen)
        found.append([Hypothesis(tokens[row, :length], score, scores[row, :length])])
    return found


def beam_search(
    session: DecoderSession,
    prompt: np.ndarray,
    rules: Rules,
    options: WhisperOptions,
    limits: np.ndarray,
) -> list[list[Hypothesis]]:
    """The K best hypotheses of each utterance, best first; arguments as `greedy`, prompt (N, l).

    The session has K rows an utterance and is opened for 2K candidates.
    """
    search = _BeamSearch(session, rules, options, limits)
    search.run(np.repeat(prompt, options.beam, axis=0))
    return [found[: options.beam] for found in search.finished]


class _BeamSearch(_Decoding):
    """State of one batch; arrays by slot (n utterances still open) and beam."""

    def __init__(
        self, session: DecoderSession, rules: Rules, options: WhisperOptions, limits: np.ndarray
    ) -> None:
        super().__init__(session, rules, options)
        utterances = len(limits)
        self.limits, shape = limits, (utterances * options.beam, int(limits.max()))
        self.slots = np.arange(utterances)
        self.tokens = np.zeros(shape, np.int64)
        self.scores = np.zeros(shape, np.float32)  # of each token
        self.running = np.full((utterances, options.beam), UNFINISHED)
        self.running[:, 0] = 0.0  # all beams are alike at first: only one counts
        self.finished: list[list[Hypothesis]] = [[] for _ in range(utterances)]

    def run(self, prompt: np.ndarray) -> None:
        """Decode from the prompt (R, l) until no utterance can improve."""
        beam, new = self.options.beam, prompt
        beam_idx = np.arange(len(prompt), dtype=np.int32)
        for step in range(self.tokens.shape[1]):
            owners = np.repeat(self.slots, beam)
            best = self.candidates(new, beam_idx, self.tokens[:, :step], owners)
            scores, tokens, rows, single = self._merge(best)
            full = np.asarray(self.limits[self.slots] == step + 1)
            ended = (tokens == self.rules.eos) | full[:, None]
            self._finish(step, ended[:, :beam], scores, tokens, rows, single)
            beam_idx = self._advance(step, ended, scores, tokens, rows, single)
            open_slots = self._can_improve(step + 1) & ~full
            if not open_slots.any():
                return
            if not open_slots.all():
                beam_idx = self._shrink(np.flatnonzero(open_slots), beam_idx)
            new = self.tokens[:, step : step + 1]

    def _merge(self, best: Candidates) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The 2K best continuations of each utterance.

        Returns:
            Accumulated scores, tokens, source rows, and scores of the tokens alone, (n, 2K) each.
        """
        count, beam, width = len(self.slots), self.options.beam, best.scores.shape[1]
        total = best.scores + self.running.reshape(-1, 1)
        order = np.argsort(-total.reshape(count, -1), axis=1, kind="stable")[:, : 2 * beam]
        rows = order // width + (np.arange(count) * beam)[:, None]

        def take(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values.reshape(count, -1), order, 1)

        return take(total), take(best.tokens).astype(np.int64), rows, take(best.scores)

    def _finish(
        self,
        step: int,
        ended: np.ndarray,
        scores: np.ndarray,
        tokens: np.ndarray,
        rows: np.ndarray,
        single: np.ndarray,
    ) -> None:
        """Merge those of the K best candidates that have ended into the finished hypotheses."""
        for slot, rank in zip(*np.nonzero(ended), strict=True):
            row = rows[slot, rank]
            history = np.append(self.tokens[row, :step], tokens[slot, rank])
            positional = np.append(self.scores[row, :step], single[slot, rank]).astype(np.float32)
            score = float(scores[slot, rank] / (step + 1) ** self.options.lenpen)
            self.finished[self.slots[slot]].append(Hypothesis(history, score, positional))
        for slot in np.flatnonzero(ended.any(axis=1)):
            found = self.finished[self.slots[slot]]
            found.sort(key=lambda hypothesis: -hypothesis.score)  # stable
            del found[self.options.beam :]

    def _advance(
        self,
        step: int,
        ended: np.ndarray,
        scores: np.ndarray,
        tokens: np.ndarray,
        rows: np.ndarray,
        single: np.ndarray,
    ) -> np.ndarray:
        """Continue the K best candidates that have not ended; their source rows, (R,) int32."""
        order = np.argsort(-np.where(ended, UNFINISHED, scores), axis=1, kind="stable")
        order = order[:, : self.options.beam]

        def take(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values, order, 1).reshape(-1)

        sources = take(rows)
        self.tokens, self.scores = self.tokens[sources], self.scores[sources]
        self.tokens[:, step], self.scores[:, step] = take(tokens), take(single)
        self.running = np.take_along_axis(np.where(ended, UNFINISHED, scores), order, 1)
        return sources.astype(np.int32)

    def _can_improve(self, generated: int) -> np.ndarray:
        """Whether the best running beam may still beat the worst of K finished ones, (n,)."""
        best = self.running[:, 0] / generated**self.options.lenpen
        worst = [
            found[-1].score if len(found) == self.options.beam else -np.inf
            for found in (self.finished[slot] for slot in self.slots)
        ]
        return np.asarray(best > np.array(worst))

    def _shrink(self, kept: np.ndarray, beam_idx: np.ndarray) -> np.ndarray:
        rows = (kept[:, None] * self.options.beam + np.arange(self.options.beam)).reshape(-1)
        self.session.keep(kept)
        self.tokens, self.scores = self.tokens[rows], self.scores[rows]
        self.running, self.slots = self.running[kept], self.slots[kept]
        return beam_idx[rows]
