"""Our search against Fairseq's `SequenceGenerator`, on score tables that both see."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from fairseq.sequence_generator import SequenceGenerator

from fairseq_openvino.errors import NumericsError, OptionError
from fairseq_openvino.model import Ask, Head, Memory, Step
from fairseq_openvino.s2t import search
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.s2t.search import TokenIds, generate

PAD, EOS, UNK = 1, 2, 3
MAX_TARGET = 30


@dataclass(frozen=True)
class Table:
    """Log-probabilities as a function of utterance, step and previous token; (N, steps, V, V)."""

    log_probs: np.ndarray

    def rows(self, utterances: np.ndarray, step: int, previous: np.ndarray) -> np.ndarray:
        return self.log_probs[utterances, step, previous]  # (R, V)


def random_table(random: np.random.Generator, utterances: int, vocabulary: int) -> Table:
    shape = (utterances, MAX_TARGET, vocabulary, vocabulary)
    scores = random.standard_normal(shape) * random.uniform(0.5, 4)
    scores[..., EOS] += random.uniform(-3, 3)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    return Table(scores.astype(np.float32))


class TableEncoder(FairseqEncoder):
    def forward(self, src_tokens: Any, src_lengths: Any, **_: Any) -> Any:
        return {"rows": torch.arange(len(src_tokens))}

    def reorder_encoder_out(self, encoder_out: Any, new_order: Any) -> Any:
        return {"rows": encoder_out["rows"][new_order]}


class TableDecoder(FairseqIncrementalDecoder):
    def __init__(self, dictionary: Any, table: Table) -> None:
        super().__init__(dictionary)
        self.table, self.adaptive_softmax = table, None

    def forward(self, tokens: Any, encoder_out: Any = None, incremental_state: Any = None) -> Any:
        rows, step = encoder_out["rows"].numpy(), tokens.shape[1] - 1
        scores = self.table.rows(rows, step, tokens[:, -1].numpy())
        return torch.from_numpy(scores.copy()).unsqueeze(1), None

    def get_normalized_probs(self, net_output: Any, log_probs: Any, sample: Any = None) -> Any:
        return net_output[0]  # the table holds log-probabilities: no second rounding

    def reorder_incremental_state_scripting(self, *_: Any) -> None: ...

    def max_positions(self) -> int:
        return MAX_TARGET


@dataclass
class TableSession:
    table: Table
    utterances: np.ndarray
    beam: int
    head: Head
    step_number: int = 0
    history: list[np.ndarray] = field(default_factory=list)

    def __enter__(self) -> TableSession:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def keep(self, utterances: np.ndarray) -> None:
        self.utterances = self.utterances[utterances]

    def step(self, ask: Ask) -> Step:
        rows = np.repeat(self.utterances, self.beam)
        assert ask.tokens.shape == (len(rows), 1) and ask.beam_idx.shape == (len(rows),)
        scores = self.table.rows(rows, self.step_number, ask.tokens[:, 0]) + ask.bias
        self.step_number += 1
        if np.isnan(scores).any():
            raise NumericsError("NaN", tuple(np.flatnonzero(np.isnan(scores).any(1)).tolist()))
        order = np.argsort(-scores, 1, kind="stable")[:, : self.head.candidates]
        return Step(np.take_along_axis(scores, order, 1), order)


class TableModel:
    def __init__(self, table: Table) -> None:
        self.table = table
        self.manifest: Any = SimpleNamespace(
            dimensions=SimpleNamespace(vocabulary_size=table.log_probs.shape[-1]),
            limits=SimpleNamespace(max_target_tokens=MAX_TARGET),
        )

    def open(self, memory: Memory, beam: int, head: Head) -> TableSession:
        return TableSession(self.table, np.arange(memory.utterances), beam, head)


def run_both(
    table: Table, options: S2TOptions, suppressed: tuple[int, ...] = (), prefix: Any = None
) -> tuple[Any, Any]:
    dictionary = Dictionary()
    for i in range(table.log_probs.shape[-1] - 4):
        dictionary.add_symbol(f"t{i}")
    model = FairseqEncoderDecoderModel(TableEncoder(None), TableDecoder(dictionary, table))
    reference = SequenceGenerator(
        [model], dictionary, beam_size=options.beam, max_len_a=options.max_len_a,
        max_len_b=options.max_len_b, min_len=options.min_len, len_penalty=options.lenpen,
        unk_penalty=options.unkpen, normalize_scores=not options.unnormalized,
        tokens_to_suppress=tuple(dictionary[i] for i in suppressed),
    )  # fmt: skip
    utterances, frames = len(table.log_probs), 7
    sample = {
        "net_input": {
            "src_tokens": torch.zeros(utterances, frames, 80),
            "src_lengths": torch.full((utterances,), frames),
        }
    }
    given = None if prefix is None else torch.from_numpy(prefix)
    expected = reference.generate([model], sample, prefix_tokens=given)
    found = generate(
        TableModel(table), Memory(np.full(utterances, frames), {}), frames, options,
        TokenIds(PAD, EOS, UNK, suppressed=suppressed), prefix,
    )  # fmt: skip
    return expected, found


def assert_same(expected: Any, found: Any) -> None:
    assert len(expected) == len(found)
    for reference, ours in zip(expected, found, strict=True):
        assert [h["tokens"].tolist() for h in reference] == [h.tokens.tolist() for h in ours]
        for a, b in zip(reference, ours, strict=True):
            assert abs(float(a["score"]) - b.score) <= 1e-6 * max(1, abs(b.score))
            np.testing.assert_allclose(b.positional_scores, a["positional_scores"], atol=2e-5)


def random_case(seed: int) -> None:
    random = np.random.default_rng(seed)
    vocabulary = int(random.choice([6, 9, 17, 40]))
    utterances = int(random.integers(1, 7))
    table = random_table(random, utterances, vocabulary)
    max_len = int(random.integers(2, MAX_TARGET + 5))
    options = S2TOptions(
        beam=int(random.choice([1, 2, 3, 5, 8])),
        max_len_a=float(random.choice([0, 0.5])),
        max_len_b=max_len,
        min_len=int(random.integers(0, min(max_len, MAX_TARGET - 1) + 1)),
        lenpen=float(random.choice([0.0, 0.6, 1.0, 1.7])),
        unkpen=float(random.choice([0.0, 0.5, -0.5])),
        unnormalized=bool(random.random() >= 0.8),
    )
    suppressed = tuple(random.choice(vocabulary - 4, 1) + 4) if random.random() < 0.3 else ()
    prefix = None
    if random.random() < 0.4:
        prefix = random.integers(4, vocabulary, (utterances, int(random.integers(1, 4))))
        prefix[random.random(prefix.shape) < 0.15] = PAD
    expected, found = run_both(table, options, tuple(map(int, suppressed)), prefix)
    assert_same(expected, found)


@pytest.mark.parametrize("block", range(2))
def test_random_tables_give_fairseqs_hypotheses(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        random_case(seed)


@pytest.mark.soak
def test_ten_thousand_random_tables_give_fairseqs_hypotheses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where two candidates have exactly the same score, torch.topk may choose either."""
    original, ties = search.BeamSearch._merge, []

    def watched(self: Any, step: int, scores: Any, tokens: Any) -> Any:
        merged = original(self, step, scores, tokens)
        ties.append(bool((np.diff(merged[0], axis=1) == 0).any()))
        return merged

    monkeypatch.setattr(search.BeamSearch, "_merge", watched)
    different = 0
    for seed in range(10_000):
        ties.clear()
        try:
            random_case(seed)
        except AssertionError:
            assert any(ties), seed
            different += 1
    assert different <= 10


def test_prefix_that_ends_with_eos_repeats_the_first_beam() -> None:
    table = random_table(np.random.default_rng(3), 3, 12)
    first = table.log_probs[:, 0, EOS]
    prefix = np.stack([first[:, 4:].argmax(1) + 4, np.full(3, EOS)], 1)
    expected, found = run_both(table, S2TOptions(beam=3, max_len_b=10), prefix=prefix)
    assert_same(expected, found)
    assert all(len(h.tokens) == 2 for h in found[0])


def test_beam_larger_than_the_vocabulary() -> None:
    table = random_table(np.random.default_rng(1), 2, 7)
    assert_same(*run_both(table, S2TOptions(beam=50, max_len_b=6)))


def test_all_hypotheses_ending_at_step_one() -> None:
    table = random_table(np.random.default_rng(2), 2, 9)
    table.log_probs[:, 1, :, EOS] = -1e-4
    expected, found = run_both(table, S2TOptions(beam=4, max_len_b=12))
    assert_same(expected, found)


@pytest.mark.parametrize(
    "options",
    [{"beam": 0}, *({name: value} for name in ("lenpen", "max_len_a") for value in (np.nan, np.inf)),
     {"unkpen": np.nan}, {"unkpen": -np.inf}],
)  # fmt: skip
def test_numbers_that_make_no_search_are_refused(options: dict[str, float]) -> None:
    name = next(iter(options))
    with pytest.raises(OptionError, match=f"Searching failed in {name}: expected") as error:
        S2TOptions(**options)  # type: ignore[arg-type]
    assert error.value.field == name


def test_an_infinite_unk_penalty_forbids_unk() -> None:
    table = random_table(np.random.default_rng(3), 2, 12)
    expected, found = run_both(table, S2TOptions(beam=3, max_len_b=6, unkpen=np.inf))
    assert_same(expected, found)


def test_min_len_beyond_max_len_is_refused() -> None:
    table = random_table(np.random.default_rng(0), 1, 9)
    with pytest.raises(
        OptionError, match="in min_len: expected at most the longest output, 3 tokens, got 5"
    ):
        run_ours = S2TOptions(beam=2, max_len_b=3, min_len=5)
        generate(TableModel(table), Memory(np.ones(1), {}), 5, run_ours, TokenIds(PAD, EOS, UNK))


def test_nan_is_an_error_not_a_hypothesis() -> None:
    table = random_table(np.random.default_rng(0), 2, 9)
    table.log_probs[1, 2] = np.nan
    with pytest.raises(NumericsError) as error:
        generate(
            TableModel(table), Memory(np.ones(2), {}), 5, S2TOptions(beam=2),
            TokenIds(PAD, EOS, UNK),
        )  # fmt: skip
    assert error.value.indices == (1,)
