"""The contract: one loop between searches and sessions, and a recurrent decoder behind it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairseq_openvino import decoding
from fairseq_openvino.bundle import Bundle, FeatureConfig, SpecialTokens, TextConfig, open_bundle
from fairseq_openvino.decoding import drive
from fairseq_openvino.errors import DeadlineError, NumericsError, ParityError
from fairseq_openvino.export.forced import Forced
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.options import ExportOptions
from fairseq_openvino.export.parity import at_nodes
from fairseq_openvino.export.procedure import Original, export
from fairseq_openvino.families import FAMILIES
from fairseq_openvino.model import Ask, Head, Hypothesis, Memory, Step
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.s2t.search import TokenIds, generate
from fairseq_openvino.tensors import MASKED, TensorSpec, attention_specs

WIDTH, BINS, VOCABULARY = 16, 80, 23
MEMORY = (
    TensorSpec("cross_bias", ("N", "S"), MASKED),
    TensorSpec("encoder_out", ("N", "S", WIDTH)),
    TensorSpec("mean", ("N", WIDTH)),
)
STATE = (
    TensorSpec("hidden.0", ("R", WIDTH), start="mean"),
    TensorSpec("cell.0", ("R", WIDTH)),
)


class Encoder(nn.Module):
    """Every second frame; the decoder begins with their mean, as `s2t_berard` does."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(BINS, WIDTH)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        x = torch.tanh(self.project(features[:, ::2]))  # (N, S, D)
        lengths = torch.div(lengths + 1, 2, rounding_mode="floor")
        valid = torch.arange(x.shape[1]).unsqueeze(0) < lengths.unsqueeze(1)  # (N, S)
        mean = (x * valid.unsqueeze(2)).sum(1) / lengths.unsqueeze(1)
        return lengths, torch.where(valid, 0.0, MASKED), x, mean


class Decoder(nn.Module):
    """An LSTM cell that attends to the encoder; one token of each row a call."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.gates = nn.Linear(2 * WIDTH, 4 * WIDTH)
        self.output = nn.Linear(2 * WIDTH, VOCABULARY)

    def forward(
        self, tokens: Tensor, offset: Tensor, bias: Tensor, encoded: Tensor, mean: Tensor,
        hidden: Tensor, cell: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        used = 0.0 * (mean.sum() + offset)  # every input is part of the graph
        gates = self.gates(torch.cat([self.tokens(tokens[:, 0]), hidden], 1)) + used
        kept, new, shown, update = gates.chunk(4, 1)
        cell = torch.sigmoid(kept) * cell + torch.sigmoid(new) * torch.tanh(update)
        hidden = torch.sigmoid(shown) * torch.tanh(cell)
        utterances = encoded.shape[0]
        query = hidden.reshape(utterances, -1, WIDTH)  # (N, K, D)
        scores = query @ encoded.transpose(1, 2) + bias.unsqueeze(1)
        seen = (torch.softmax(scores, 2) @ encoded).reshape(-1, WIDTH)
        return self.output(torch.cat([hidden, seen], 1)).unsqueeze(1), hidden, cell


class Reference:
    """The two modules, token by token; see `parity.Reference`."""

    name = "torch"

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        self.encoder, self.decoder = encoder, decoder

    def logits(self, batch: Forced) -> Tensor:
        _, *memory = self.encoder(torch.from_numpy(batch.features), torch.from_numpy(batch.lengths))
        owners = torch.from_numpy(batch.utterances)
        bias, encoded, mean = (tensor[owners] for tensor in memory)
        hidden, cell, each = mean, torch.zeros_like(mean), []
        for token in torch.from_numpy(batch.paths).T:
            logits, hidden, cell = self.decoder(
                token[:, None], torch.tensor(0), bias, encoded, mean, hidden, cell
            )
            each.append(logits)
        return at_nodes(torch.cat(each, 1), batch)


def recurrent(wrong: bool = False) -> Original:
    torch.manual_seed(3)
    encoder, decoder = Encoder().eval(), Decoder().eval()
    with torch.no_grad():
        decoder.output.weight.mul_(20)
        decoder.output.bias[2] += 2  # hypotheses of several lengths
    state = STATE if not wrong else (replace(STATE[0], start=None), STATE[1])
    graphs = Graphs(
        architecture="toy", encoder=encoder, decoder=decoder, layers=1, memory=MEMORY, state=state,
        model_width=WIDTH, feature_bins=BINS, vocabulary_size=VOCABULARY, max_source_frames=600,
        max_target_tokens=40, subsampling=2,
    )  # fmt: skip
    described = {
        "family": "s2t", "tokens": SpecialTokens(0, 1, 2, 3),
        "features": FeatureConfig(BINS, 16_000, ()), "text": TextConfig(),
    }  # fmt: skip
    return Original(graphs, Reference(encoder, decoder), described, lambda _: None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    found, report = export(recurrent(), tmp_path_factory.mktemp("toy") / "bundle")
    assert report.passed
    return found


def test_a_recurrent_decoder_passes_the_gate(bundle: Bundle) -> None:
    assert bundle.manifest.state == STATE and bundle.manifest.memory == MEMORY


def test_a_state_that_begins_wrongly_does_not(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="toy"):
        export(recurrent(wrong=True), tmp_path / "bundle", ExportOptions())


class TorchModel:
    """The same modules behind the contract, in numpy and torch alone."""

    def __init__(self, bundle: Bundle) -> None:
        original = recurrent()
        assert original.graphs is not None
        self.encoder, self.decoder = original.graphs.encoder, original.graphs.decoder
        self.manifest = bundle.manifest

    def encode(self, features: np.ndarray, lengths: np.ndarray, streams: int = 1) -> Memory:
        with torch.no_grad():
            found, *tensors = self.encoder(torch.from_numpy(features), torch.from_numpy(lengths))
        named = {spec.name: x.numpy() for spec, x in zip(MEMORY, tensors, strict=True)}
        return Memory(found.numpy(), named)

    def open(self, memory: Memory, beam: int, head: Head) -> TorchSession:
        return TorchSession(self, memory, beam, head)


class TorchSession:
    def __init__(self, model: TorchModel, memory: Memory, beam: int, head: Head) -> None:
        self.model, self.memory, self.beam, self.head = model, memory, beam, head
        start = np.repeat(memory.tensors["mean"], beam, axis=0)
        self.states = [torch.from_numpy(start), torch.zeros(start.shape)]

    def step(self, ask: Ask) -> Step:
        rows = torch.from_numpy(ask.beam_idx.astype(np.int64))
        memory = [torch.from_numpy(self.memory.tensors[spec.name]) for spec in MEMORY]
        self.states = [state[rows] for state in self.states]
        with torch.no_grad():
            for token in torch.from_numpy(ask.tokens).T:
                logits, *self.states = self.model.decoder(
                    token[:, None], torch.tensor(0), *memory, *self.states
                )
        scores = torch.log_softmax(logits[:, -1], -1).numpy() + ask.bias
        order = np.argsort(-scores, 1, kind="stable")[:, : self.head.candidates]
        return Step(np.take_along_axis(scores, order, 1), order)

    def keep(self, utterances: np.ndarray) -> None:
        self.memory = self.memory.take(utterances)

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("frames", [(9, 50, 23, 36, 36, 12), (50,)])
def test_a_recurrent_decoder_searches_through_the_session(
    bundle: Bundle, beam: int, frames: tuple[int, ...]
) -> None:
    """Utterances of several lengths, which finish one after another: rows move and are dropped.

    One utterance alone has a decoder of static shapes.
    """
    random = np.random.default_rng(1)
    features = np.zeros((len(frames), max(frames), BINS), np.float32)
    for row, length in zip(features, frames, strict=True):
        row[:length] = random.standard_normal((length, BINS))
    found: list[list[list[Hypothesis]]] = []
    for model in (TorchModel(bundle), CompiledModel(bundle, EngineOptions())):
        memory = model.encode(features, np.array(frames))
        options = S2TOptions(beam=beam, max_len_b=25, lenpen=0.3)
        found.append(generate(model, memory, max(frames), options, TokenIds(1, 2, 3)))
    expected, ours = found
    lengths = {len(best[0].tokens) for best in expected}
    assert len(lengths) > min(len(frames) - 1, 2), lengths
    for a, b in zip(expected, ours, strict=True):
        assert [h.tokens.tolist() for h in a] == [h.tokens.tolist() for h in b]
        np.testing.assert_allclose([h.score for h in a], [h.score for h in b], atol=1e-4)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_state_begins_anew_behind_a_batch_that_shrank(bundle: Bundle, precision: str) -> None:
    """A request is used again, and remembers nothing of the batch before."""
    model, order = CompiledModel(bundle, EngineOptions(precision=precision)), np.arange(3)
    random, first = np.random.default_rng(2), np.full((3, 1), 2)
    found = []
    for _ in range(2):
        features = random.standard_normal((3, 40, BINS)).astype(np.float32)
        memory = model.encode(features, np.full(3, 40))
        with model.open(memory, 1, Head()) as session:
            session.step(Ask(first, order))
            session.step(Ask(first, order))
            session.keep(np.array([0, 2]))
            session.step(Ask(first[:2], np.array([0, 2])))
            session.step(Ask(first[:2], order[:2]))
    for other in (model, CompiledModel(bundle, EngineOptions(precision=precision))):
        with other.open(other.encode(features, np.full(3, 40)), 1, Head()) as session:
            found.append(session.step(Ask(first, order)).scores.copy())
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("head", [Head(), Head(3)])
def test_several_tokens_at_once_are_given_one_by_one(bundle: Bundle, head: Head) -> None:
    model = CompiledModel(bundle, EngineOptions())
    memory = model.encode(np.ones((2, 30, BINS), np.float32), np.array([30, 21]))
    tokens, order = np.array([[2, 5, 9], [2, 7, 4]]), np.arange(2)
    bias = np.zeros((1, VOCABULARY), np.float32)
    with model.open(memory, 1, head) as session:
        together = session.step(Ask(tokens, order, bias)).scores.copy()
    with model.open(memory, 1, head) as session:
        each = [
            session.step(Ask(tokens[:, i : i + 1], order, bias)).scores.copy() for i in range(3)
        ]
    expected = each[-1] if head.candidates else np.concatenate(each, 1)
    np.testing.assert_array_equal(together, expected)


@pytest.mark.parametrize("family", ["s2t", "whisper"])
def test_a_front_end_goes_to_a_worker_alone(family: str) -> None:
    """Without engine and graphs: a few arrays, and the same features on the other side."""
    bundle = open_bundle(Path(__file__).parent / "fixtures" / "format1" / family)
    front_end = FAMILIES[family](bundle).front_end
    packed = pickle.dumps(front_end)
    assert len(packed) < 2_000
    waveform = np.random.default_rng(0).standard_normal(9_000).astype(np.float32) / 9
    there = pickle.loads(packed)(waveform, 16_000)
    np.testing.assert_array_equal(there, front_end(waveform, 16_000))
    assert there.shape[1] == bundle.manifest.features.bins


def memory_of(random: np.random.Generator, utterances: int, frames: int) -> Memory:
    sizes = {"N": utterances, "S": frames}
    specs = attention_specs(1, 2, 4)[0]
    tensors = {
        spec.name: random.standard_normal(
            [sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims]
        ).astype(np.float32)
        for spec in specs
    }
    return Memory(np.full(utterances, frames), tensors)


def test_memories_are_joined_and_taken_apart() -> None:
    random, (specs, _) = np.random.default_rng(0), attention_specs(1, 2, 4)
    parts = [memory_of(random, n, s) for n, s in ((2, 5), (1, 9), (3, 2))]
    joined = Memory.join(parts, specs)
    assert joined.lengths.tolist() == [5, 5, 9, 2, 2, 2]
    assert joined.tensors["cross_bias"].shape == (6, 1, 1, 9)
    assert (joined.tensors["cross_bias"][0, ..., 5:] == MASKED).all()
    assert (joined.tensors["cross_key.0"][3:, :, 2:] == 0).all()
    last = joined.take(np.array([4, 3]))
    np.testing.assert_array_equal(
        last.tensors["cross_value.0"][:, :, :2], parts[2].tensors["cross_value.0"][[1, 0]]
    )
    assert Memory.join(parts[:1], specs) is parts[0]


class Countdown:
    """A search over sessions that answer nothing."""

    def __init__(self, steps: int) -> None:
        self.left, self.owners = steps, np.array([5, 5, 7])

    def ask(self) -> Ask | None:
        return Ask(np.zeros((3, 1)), np.arange(3)) if self.left else None

    def take(self, step: Step) -> np.ndarray | None:
        self.left -= 1
        return np.array([1]) if self.left == 2 else None

    def found(self) -> list[list[Hypothesis]]:
        return []


class Silent:
    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.steps, self.kept = error, 0, []

    def step(self, ask: Ask) -> Step:
        if self.error is not None:
            raise self.error
        self.steps += 1
        return Step(np.zeros((3, 1)))

    def keep(self, utterances: np.ndarray) -> None:
        self.kept.append((self.steps, utterances.tolist()))


def test_the_loop_asks_keeps_and_is_watched() -> None:
    session, seen = Silent(), []
    search: Any = Countdown(4)
    drive(session, search, watch=lambda search: seen.append(search.left))  # type: ignore[attr-defined]
    assert session.steps == 4 and session.kept == [(2, [1])] and seen == [3, 2, 1, 0]


def test_a_deadline_ends_the_loop_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    session, search = Silent(), Countdown(1000)
    clock = SimpleNamespace(monotonic=lambda: float(session.steps))
    monkeypatch.setattr(decoding, "time", clock)
    with pytest.raises(DeadlineError, match="before its deadline"):
        drive(session, search, 3.0)
    assert session.steps == 3 and search.left == 1000 - session.steps


def test_rows_of_an_error_become_utterances() -> None:
    with pytest.raises(NumericsError) as raised:
        drive(Silent(NumericsError("NaN", (0, 1))), Countdown(1))
    assert raised.value.indices == (5,)
