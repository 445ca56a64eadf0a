"""When each word of a window is said: attention that follows the audio, and the best path through it.

Source: openai-whisper `timing.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fairseq_openvino.bundle import Manifest
from fairseq_openvino.model import Ask, Head, Memory, Model
from fairseq_openvino.speech.features import FRAMES_PER_SECOND
from fairseq_openvino.whisper.context import FRAMES_PER_POSITION
from fairseq_openvino.whisper.options import start_sequence
from fairseq_openvino.whisper.questions import Alignment, Timing
from fairseq_openvino.whisper.tokenizer import WhisperTokenizer

logger = logging.getLogger(__name__)

POSITIONS_PER_SECOND = FRAMES_PER_SECOND / FRAMES_PER_POSITION
MEDIAN_WIDTH = 7
MEDIAN_NETWORK = (
    (0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4),
)  # fmt: skip
"""Pairs put in order one after the other: then the fourth of seven values is their median.
Source: N. Devillard, "Fast median search: an ANSI C implementation" (opt_med7)."""


class Aligner:
    """Word times of one model.

    Args:
        manifest: of its bundle.
        vocabulary: its tokenizer.
    """

    def __init__(self, manifest: Manifest, vocabulary: WhisperTokenizer) -> None:
        assert manifest.whisper is not None
        self.config, self.vocabulary = manifest.whisper, vocabulary
        self.eos, self.positions = manifest.tokens.eos, manifest.limits.max_target_tokens
        self.head = Head(following=self.eos, attention=alignment_heads(manifest))
        """What its sessions report."""

    def align(
        self,
        model: Model,
        memory: Memory,
        questions: Sequence[Alignment],
        languages: Sequence[str | None],
        task: str,
    ) -> list[list[Timing]]:
        """The words of N windows; each is a call of its own, so that none depends on the others.

        Args:
            model: of the same bundle.
            memory: of the windows.
            questions: one for each of them.
            languages: code of each, or None if the model knows one only.
            task: transcribe or translate.

        Returns:
            Words in order, all of the text; their times never decrease and are inside the window.

        Source: openai-whisper `timing.py:find_alignment`.
        """
        return [
            self._words(model, memory.take(slice(i, i + 1)), question, languages[i], task)
            for i, question in enumerate(questions)
        ]

    def _words(
        self, model: Model, memory: Memory, question: Alignment, language: str | None, task: str
    ) -> list[Timing]:
        words, word_tokens = self.vocabulary.split_to_words(question.tokens, language)
        if not words:
            return []
        start = start_sequence(self.config, language, task)
        seconds, probabilities = self._tokens(model, memory, question, start)
        ends = np.cumsum([len(part) for part in word_tokens])
        return [
            Timing(
                word,
                tuple(part),
                float(seconds[end - len(part)]),
                float(seconds[end]),
                float(probabilities[end - len(part) : end].mean()),
            )
            for word, part, end in zip(words, word_tokens, ends, strict=True)
        ]

    def _tokens(
        self, model: Model, memory: Memory, question: Alignment, start: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Seconds at which each of the n tokens begins and the last one ends, (n + 1,); probabilities, (n,).

        Tokens that the decoder has no positions for are all at the end, with probability 0.
        """
        tokens = question.tokens[: self.positions - len(start) - 2]
        fed = np.array([[*start, self.config.no_timestamps, *tokens, self.eos]])
        frames = max(question.frames // FRAMES_PER_POSITION, 1)
        with model.open(memory, 1, self.head) as session:
            step = session.step(Ask(fed, np.zeros(1, np.int32)))
            assert step.attention is not None
            weights = step.attention[0, :, :, :frames].transpose(1, 0, 2)  # (A, l, frames)
            probabilities = np.exp(step.scores[0, len(start) : -1])
            rows, columns = best_path(-standout(weights)[len(start) : -1])
        seconds = columns[np.diff(rows, prepend=-1) > 0] / POSITIONS_PER_SECOND
        missing = len(question.tokens) - len(tokens)
        return np.pad(seconds, (0, missing), mode="edge"), np.pad(probabilities, (0, missing))


def alignment_heads(manifest: Manifest) -> tuple[tuple[int, int], ...]:
    """(layer, head) of the cross-attention that follows the audio.

    Where the bundle names none, or some that its decoder does not have, all of the upper half of the
    layers stand for them, which a warning says.

    Source: openai-whisper `model.py:Whisper.__init__`.
    """
    assert manifest.whisper is not None
    named = manifest.whisper.alignment_heads
    keys = [spec.dims for spec in manifest.memory if spec.name.startswith("cross_key.")]
    heads = [count for dims in keys for count in dims[1:2] if isinstance(count, int)]
    every = [(layer, head) for layer, count in enumerate(heads) for head in range(count)]
    if named and set(named) <= set(every):
        return named
    logger.warning(
        "the bundle does not say which attention heads follow the audio: words are timed by all heads of "
        "the upper half of the decoder, less exactly"
    )
    return tuple(each for each in every if each[0] >= len(heads) // 2)


def standout(weights: np.ndarray) -> np.ndarray:
    """How far each token's attention to a frame stands out among the tokens', (l, frames).

    Args:
        weights: of A heads to some of the frames, (A, l, frames); they become shares of these.

    Source: openai-whisper `timing.py:find_alignment`.
    """
    total = np.zeros(weights.shape[1:], np.float32)
    for each in weights:  # one head at a time stays in the cache
        shares = each / np.maximum(each.sum(-1, keepdims=True), np.finfo(np.float32).tiny)
        shares -= shares.mean(0)
        deviation = np.sqrt(np.square(shares).mean(0))
        shares /= np.where(deviation > 0, deviation, 1)
        total += median_filter(shares)
    return total / np.float32(len(weights))


def median_filter(values: np.ndarray) -> np.ndarray:
    """Median of `MEDIAN_WIDTH` values along the last axis, which is mirrored at its ends.

    Source: openai-whisper `timing.py:median_filter`.
    """
    margin = MEDIAN_WIDTH // 2
    if values.shape[-1] <= margin:
        return values
    padded = np.pad(values, [*[(0, 0)] * (values.ndim - 1), (margin, margin)], mode="reflect")
    places = [*np.moveaxis(sliding_window_view(padded, values.shape[-1], -1), -2, 0)]
    for a, b in MEDIAN_NETWORK:
        places[a], places[b] = np.minimum(places[a], places[b]), np.maximum(places[a], places[b])
    return places[margin]


def best_path(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cheapest way from the first to the last cell of (rows, columns), down, right or both at each step.

    Diagonal after diagonal: cell (i, j) is element i of diagonal i + j.

    Returns:
        Rows and columns of its cells, in order.

    Source: openai-whisper `timing.py:dtw_cpu, backtrace`, whose choice among equals it has.
    """
    rows, columns = costs.shape
    totals = np.full((rows + columns + 1, rows + 1), np.inf, np.float32)
    totals[0, 0] = 0
    own = np.full((rows + columns + 1, rows), np.inf, np.float32)
    for i, row in enumerate(costs):
        own[i + 2 : i + 2 + columns, i] = row
    before, later = totals[:, :-1], totals[:, 1:]
    for total, cost, diagonal, up, left in zip(
        later[2:], own[2:], before[:-2], before[1:-1], later[1:-1], strict=True
    ):
        cheapest = np.minimum(np.minimum(diagonal, up), left)
        np.add(np.where(diagonal == up, left, cheapest), cost, out=total)
    i, j = rows, columns
    path = []
    while i > 0 and j > 0:
        path.append((i - 1, j - 1))
        diagonal, (up, left) = totals[i + j - 2, i - 1], totals[i + j - 1, i - 1 : i + 1]
        if diagonal < up and diagonal < left:
            i, j = i - 1, j - 1
        elif j == 1 or (up < diagonal and up < left):
            i -= 1
        else:
            j -= 1
    cells = np.array(path[::-1])
    return cells[:, 0], cells[:, 1]
