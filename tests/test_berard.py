"""`s2t_berard`: graphs and searches against Fairseq's own, in batches of several lengths."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from conftest import (
    MINI,
    Shared,
    assert_identical,
    generate_both,
    random_model,
    write_checkpoint,
    write_data,
)

from fairseq_openvino import load_model
from fairseq_openvino.bundle import ENCODER_IR, FeatureConfig, SpecialTokens, TextConfig
from fairseq_openvino.export.fairseq import ARCHITECTURES, berard, cached_bundle
from fairseq_openvino.export.fairseq.checkpoint import load
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.export.parity import Report
from fairseq_openvino.export.procedure import Original, export
from fairseq_openvino.quantize.gate import ANY_DROP
from fairseq_openvino.quantize.options import INT8_WEIGHTS, Options
from fairseq_openvino.quantize.procedure import quantize_bundle
from fairseq_openvino.s2t.vocabulary import EOS

TINY: dict[str, Any] = {
    "input_layers": "[24, 16]",
    "conv_layers": "[(4, 3, 2), (4, 3, 2)]",
    "lstm_size": 16,
    "num_blstm_layers": 2,
    "decoder_embed_dim": 12,
    "decoder_hidden_dim": 32,
    "decoder_num_layers": 2,
    "attention_dim": 20,
    "output_layer_dim": 14,
}
"""Model arguments that make any s2t_berard small."""
TEST_SET = MINI / "test_st_en_de.tsv"
SIZES = ("s2t_berard", "s2t_berard_256_3_3", "s2t_berard_512_3_2", "s2t_berard_512_5_3")


def checkpoint(directory: Path, **arguments: Any) -> Path:
    """A tiny random checkpoint with its data directory.

    As it is initialised it hardly listens: it gets larger weights, and says eos more often.
    """
    path = write_checkpoint(directory, "s2t_berard", gain=1.0, **(TINY | arguments))
    state = torch.load(path, weights_only=False)
    for name, weights in state["model"].items():
        weights.mul_(6 if name.startswith("decoder.") else 4)
    state["model"]["decoder.output_projection.bias"][EOS] += 14
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def tiny_berard(shared: Shared) -> Path:
    def make(directory: Path) -> None:
        checkpoint(directory)
        write_data(directory, utterances=11, frames=(12, 200))

    return shared("berard", make)


def measure(directory: Path, arch: str = "s2t_berard", **arguments: Any) -> Report:
    """The gate for a model without a checkpoint."""
    model, namespace, _ = random_model(arch, gain=1.0, **arguments)
    described = {
        "family": "s2t", "tokens": SpecialTokens(0, 1, 2, 3),
        "features": FeatureConfig(80, 16_000, ()), "text": TextConfig(),
    }  # fmt: skip
    graphs = berard.build(model, namespace)
    original = Original(graphs, berard.Reference(model), described, lambda _: None)
    return export(original, directory / "bundle")[1]


@pytest.mark.soak
@pytest.mark.parametrize("arch", SIZES)
def test_true_size_members_reproduce_fairseq(arch: str, tmp_path: Path) -> None:
    assert measure(tmp_path, arch, vocabulary=250).passed


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [
        {"decoder_num_layers": 1, "num_blstm_layers": 1},
        {"decoder_num_layers": 3, "dropout": 0.0},
        {"conv_layers": "[(4, 3, 2)]", "input_layers": "[16]"},
        {"conv_layers": "[(3, 5, 2), (4, 1, 1), (5, 3, 3)]", "input_layers": "[30, 20, 12]"},
        {"input_channels": 2, "input_feat_per_channel": 40},
    ],
    ids=str,
)
def test_options_reproduce_fairseq(options: dict[str, Any], tmp_path: Path) -> None:
    assert measure(tmp_path, **(TINY | options)).passed


@pytest.mark.parametrize(
    "flags",
    [
        ("--beam", "5", "--nbest", "5", "--batch-size", "6"),
        *(
            pytest.param(
                ("--beam", beam, "--nbest", beam, "--batch-size", size), marks=pytest.mark.soak
            )
            for beam in ("1", "5")
            for size in ("1", "3", "8", "32")
        ),
    ],
    ids=" ".join,
)
def test_hypotheses_are_fairseqs(
    tiny_berard: Path, cache_dir: Path, flags: tuple[str, ...]
) -> None:
    """Utterances finish one after another: rows are reordered, and the batch shrinks."""
    eager, engine = generate_both(tiny_berard, cache_dir, "--max-len-b", "30", *flags)
    lengths = {len(lines[0].tokens.split()) for lines in eager.hypotheses.values()}
    assert len(lengths) > 2, lengths
    assert_identical(eager, engine)


def test_transcripts_do_not_depend_on_their_batch(tiny_berard: Path, cache_dir: Path) -> None:
    """In any order of lengths; Fairseq's own batches must be sorted by length."""
    recognizer = load_model(tiny_berard / "checkpoint.pt", data=tiny_berard, cache_dir=cache_dir)
    paths = [str(tiny_berard / "features" / f"test-{i}.npy") for i in range(6)]
    lengths = [len(np.load(path)) for path in paths]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)
    together = recognizer.transcribe_batch(paths, max_len_b=30)
    alone = [recognizer.transcribe(path, max_len_b=30) for path in paths]
    assert [each.text for each in together] == [each.text for each in alone]


def test_the_encoder_that_training_began_with_is_not_needed(
    tiny_berard: Path, tmp_path: Path
) -> None:
    state = torch.load(tiny_berard / "checkpoint.pt", weights_only=False)
    state["args"].load_pretrained_encoder_from = str(tmp_path / "asr.pt")
    torch.save(state, tmp_path / "checkpoint.pt")
    loaded = load(tmp_path / "checkpoint.pt", DataDirectory(tiny_berard), {}, ARCHITECTURES)
    assert loaded.architecture == berard.ARCHITECTURE


@pytest.mark.soak
def test_quantized_without_its_lstms(tiny_berard: Path, cache_dir: Path, tmp_path: Path) -> None:
    """Products and convolutions of the encoder in 8 bits, and the weights of the decoder."""
    data = DataDirectory(tiny_berard)
    bundle = cached_bundle(tiny_berard / "checkpoint.pt", data, {}, cache_dir)
    options = Options(
        validation_size=8, max_drop=ANY_DROP, calibration_size=6, held_out_size=3, work_dir=tmp_path
    )
    found = quantize_bundle(bundle.directory, TEST_SET, tmp_path / "int8", options)
    stored = found.bundle.manifest.quantization
    assert stored["encoder"]["products_in_8_bits"] == [4, 5]  # but what reads the features
    assert stored["decoder"]["kind"] == INT8_WEIGHTS
    kinds = Counter(
        node.get_type_name() for node in ov.Core().read_model(bundle.path(ENCODER_IR)).get_ops()
    )
    assert kinds["LSTMSequence"] == 4  # layers and directions, which stay in f32
    clips = [str(clip) for clip in sorted((MINI / "clips").glob("*.mp3"))[:4]]
    batch = load_model(found.bundle).transcribe_batch(clips, max_len_b=20)
    assert [each.text for each in batch] == [
        load_model(found.bundle).transcribe(clip, max_len_b=20).text for clip in clips
    ]
