"""The search of transformers' `generate`, for S2T checkpoints that come from there.

Whisper's is the same; here are the rules about tokens and lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fairseq_openvino.bundle import Manifest
from fairseq_openvino.decoding import drive
from fairseq_openvino.errors import invalid
from fairseq_openvino.model import Head, Hypothesis, Memory, Model, Step
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.whisper import rules as whisper
from fairseq_openvino.whisper.search import BeamSearch, Greedy


class Rules(whisper.Rules):
    """What may follow: a forced first token, no padding, eos not before `min_len`."""

    def __init__(self, manifest: Manifest, options: S2TOptions, first: int | None) -> None:
        self.mask = None
        self.eos, self.first = manifest.tokens.eos, first
        self.min_tokens = options.min_len if options.min_len > 1 else 0  # 1 is Fairseq's default
        self._later = np.zeros((1, manifest.dimensions.vocabulary_size), np.float32)
        self._later[0, manifest.tokens.pad] = -np.inf
        self._later[0, manifest.tokens.unk] -= options.unkpen

    def bias(self, generated: int) -> np.ndarray:
        """Bias (1, V) of the token after `generated` others."""
        bias = self._later.copy()
        if generated == 0 and self.first is not None:
            bias[:] = -np.inf
            bias[0, self.first] = 0.0
        elif generated < self.min_tokens:
            bias[0, self.eos] = -np.inf
        return bias


def _certain(step: Step, rules: Rules, generated: int) -> Step:
    """A step in which the forced token costs nothing, as in `ForcedBOSTokenLogitsProcessor`."""
    if generated or rules.first is None:
        return step
    assert step.left is not None
    return replace(step, scores=step.scores - step.left, left=np.zeros_like(step.left))


class _Greedy(Greedy):
    rules: Rules

    def take(self, step: Step) -> np.ndarray | None:
        """See `model.Search`."""
        return super().take(_certain(step, self.rules, self.generated))


class _BeamSearch(BeamSearch):
    rules: Rules
    early_stopping = False

    def take(self, step: Step) -> np.ndarray | None:
        """See `model.Search`."""
        return super().take(_certain(step, self.rules, self.generated))

    def _can_improve(self) -> np.ndarray:
        """See `BeamSearch`; with early stopping K finished hypotheses are enough."""
        if self.early_stopping:
            return np.array([len(self._found[slot]) < self.beam for slot in self.slots])
        return super()._can_improve()


def head(options: S2TOptions) -> Head:
    """What a session reports in a search."""
    return Head(1 if options.beam == 1 else 2 * options.beam, renormalised=True)


def generate(
    model: Model,
    memory: Memory,
    frames: Sequence[int],
    options: S2TOptions,
    language: int | None,
) -> list[list[Hypothesis]]:
    """Decode a batch.

    Args:
        model: a model with a section `generation` in its manifest.
        memory: what its encoder made of N utterances.
        frames: T of each of them.
        options: max_len_a * T + max_len_b counts the first token, as max_length in transformers.
        language: tag that is forced first.

    Returns:
        For each utterance up to K hypotheses, best first; without eos where the limit ended one.

    Raises:
        OptionError: min_len exceeds the longest output.
    """
    manifest = model.manifest
    config = manifest.generation
    assert config is not None
    longest = options.max_len_b if options.max_len_b != S2TOptions.max_len_b else config.max_length
    lengths = np.minimum(
        [int(options.max_len_a * each) + longest for each in frames],
        manifest.limits.max_target_tokens,
    )
    limits = lengths - 1
    if not options.min_len <= limits.min():
        raise invalid(
            "Searching", "min_len", f"at most the longest output, {limits.min()} tokens",
            options.min_len, "Adjust min_len, max_len_a or max_len_b",
        )  # fmt: skip
    rules = Rules(manifest, options, config.first_token if language is None else language)
    prompt = np.full((memory.utterances, 1), rules.eos)
    lenpen = 0.0 if options.unnormalized else options.lenpen
    search: Greedy | BeamSearch
    if options.beam == 1:
        search = _Greedy(prompt, rules, limits, lenpen)
    else:
        search = _BeamSearch(prompt, rules, limits, options.beam, lenpen)
        search.early_stopping = config.early_stopping
    with model.open(memory, options.beam, head(options)) as session:
        drive(session, search)
    return search.found()
