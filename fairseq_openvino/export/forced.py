"""Batches with forced random tokens and random beam reordering, for the parity gate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fairseq_openvino.export.graphs import Graphs

SEED = 0
BEAM = 2
"""K, rows of each utterance."""
PAD, START, FIRST = 1, 2, 4
"""Behind a source; the first token of every row; the smallest other one (Fairseq's special ones are
below)."""


@dataclass(frozen=True)
class Forced:
    """One batch: N utterances, R = N*K rows, one token a step; no steps for a model without decoder.

    A row may continue the other row of its utterance, and both may continue the same one. The Q
    distinct histories are `paths`, so that the original needs to be called only once.
    """

    features: np.ndarray
    """(N, T, F) f32, zero behind each length; or ids (N, T) i64, `PAD` behind it."""
    lengths: np.ndarray
    """(N,) i64."""
    paths: np.ndarray
    """(Q, steps) i64, those of an utterance together; behind the end of a given-up one is `START`."""
    utterances: np.ndarray
    """(Q,) i64, the utterance of each path, ascending."""
    nodes: np.ndarray
    """(steps, R) i64, the path on which each row is at each step."""
    beams: np.ndarray
    """(steps, R) i32, the row that each row continues at each step."""

    @property
    def steps(self) -> int:
        """Tokens of a row."""
        return len(self.nodes)

    @property
    def rows(self) -> int:
        """R."""
        return self.nodes.shape[1]

    def tokens(self, step: int) -> np.ndarray:
        """(R, 1), what the rows are given at a step."""
        found: np.ndarray = self.paths[self.nodes[step], step, None]
        return found

    def sequences(self) -> np.ndarray:
        """(R, steps), the histories that are left at the end."""
        found: np.ndarray = self.paths[self.nodes[-1]]
        return found

    def ancestors(self) -> np.ndarray:
        """(steps, R), the row through which each of `sequences` went at each step."""
        found = [np.arange(self.rows)]
        for beams in self.beams[:0:-1]:
            found.append(beams[found[-1]])
        return np.stack(found[::-1])


def batches(graphs: Graphs, cases: Iterable[tuple[tuple[int, ...], int]]) -> Iterator[Forced]:
    """Those of the gate, for (T of each utterance, steps) of each: the same for the same cases."""
    random = np.random.default_rng(SEED)
    for frames, steps in cases:
        yield forced(random, graphs, frames, steps)


def forced(
    random: np.random.Generator, graphs: Graphs, frames: tuple[int, ...], steps: int
) -> Forced:
    """A batch of utterances of T = `frames`, not beyond what the model was configured for."""
    lengths = np.minimum(frames, graphs.max_source_frames)
    steps = min(steps, graphs.max_target_tokens)
    features = _features(random, graphs, lengths)
    trees = [_tree(random, graphs.vocabulary_size, steps) for _ in frames]
    counts = [len(paths) for paths, _, _ in trees]
    first = np.cumsum([0, *counts])
    return Forced(
        features,
        lengths,
        np.concatenate([paths for paths, _, _ in trees]),
        np.repeat(np.arange(len(trees)), counts),
        np.concatenate([nodes + first[i] for i, (_, nodes, _) in enumerate(trees)], 1),
        np.concatenate([beams + i * BEAM for i, (_, _, beams) in enumerate(trees)], 1),
    )


def _features(random: np.random.Generator, graphs: Graphs, lengths: np.ndarray) -> np.ndarray:
    """See `Forced`."""
    size = len(lengths), int(lengths.max())
    behind = np.arange(size[1]) >= lengths[:, None]
    if graphs.feature_bins:
        features = random.standard_normal((*size, graphs.feature_bins)).astype(np.float32)
        features[behind] = 0
        return features
    ids = random.integers(FIRST, graphs.source_vocabulary_size, size)
    ids[behind] = PAD
    return ids


def _tree(
    random: np.random.Generator, vocabulary: int, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths, nodes and beams of one utterance, see `Forced`."""
    beams = random.integers(0, BEAM, (steps, BEAM), dtype=np.int32)
    beams[:1] = np.arange(BEAM)
    paths = [[START] for _ in range(BEAM)]
    nodes = [list(range(BEAM))]
    for step in range(1, steps):
        taken: list[int] = []
        for row in beams[step]:
            path = nodes[-1][row]
            if path in taken:
                paths.append(paths[path][:step])
                path = len(paths) - 1
            paths[path].append(int(random.integers(FIRST, vocabulary)))
            taken.append(path)
        nodes.append(taken)
    padded = np.full((len(paths), steps), START)
    for path, tokens in enumerate(paths):
        padded[path, : len(tokens)] = tokens[:steps]
    return padded, np.array(nodes)[:steps], beams
