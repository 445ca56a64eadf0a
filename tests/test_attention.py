"""Cross-attention weights as a session reports them against those of the eager model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fairseq_openvino.bundle import open_bundle
from fairseq_openvino.export.whisper.source import load_source
from fairseq_openvino.model import Ask, Head
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.runtime.options import EngineOptions

HEADS = ((1, 3), (0, 2), (1, 0))


@pytest.fixture(scope="module")
def compiled(whisper_bundle: Path) -> CompiledModel:
    return CompiledModel(open_bundle(whisper_bundle), EngineOptions())


@pytest.mark.parametrize("candidates", [0, 3])
@pytest.mark.parametrize("beam", [1, 2])
def test_attention_is_that_of_transformers(
    whisper: Path, compiled: CompiledModel, candidates: int, beam: int
) -> None:
    """Several utterances and rows, a prompt and then single tokens of reordered rows."""
    original = load_source(whisper).model
    original.set_attn_implementation("eager")
    random, frames = np.random.default_rng(0), 120
    features = random.standard_normal((2, frames, 80)).astype(np.float32)
    tokens = random.integers(0, 200, (2 * beam, 5))
    vocabulary = compiled.manifest.dimensions.vocabulary_size
    order = np.arange(2 * beam).reshape(2, beam)[:, ::-1].reshape(-1)
    swapped = tokens.copy()
    swapped[:, :3] = tokens[order, :3]
    encoder = original.model.encoder
    encoder.config.max_source_positions = frames // 2
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(
        encoder.embed_positions.weight[: frames // 2]
    )
    with torch.no_grad():
        states = encoder(torch.from_numpy(features).transpose(1, 2)).last_hidden_state
        eager = original.model.decoder(
            input_ids=torch.from_numpy(swapped), output_attentions=True,
            encoder_hidden_states=states.repeat_interleave(beam, 0),
        )  # fmt: skip
    expected = np.stack([eager.cross_attentions[i][:, j].numpy() for i, j in HEADS], 2)
    memory = compiled.encode(features, np.full(2, frames))
    bias = np.zeros((1, vocabulary), np.float32)
    with compiled.open(memory, beam, Head(candidates, attention=HEADS)) as session:
        session.step(Ask(tokens[:, :3], np.arange(2 * beam), bias))
        found = session.step(Ask(tokens[:, 3:], order, bias)).attention
        assert found is not None
        np.testing.assert_allclose(found, expected[:, 3:], atol=1e-5)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


def test_attention_is_reported_in_16_bits_too(whisper_bundle: Path) -> None:
    """Where keys are kept as state."""
    model = CompiledModel(open_bundle(whisper_bundle), EngineOptions(precision="bf16"))
    memory = model.encode(np.ones((1, 40, 80), np.float32), np.array([40]))
    with model.open(memory, 1, Head(attention=HEADS)) as session:
        found = session.step(Ask(np.array([[5, 6]]), np.arange(1))).attention
    assert found is not None
    np.testing.assert_allclose(found.sum(-1), 1, atol=0.02)
