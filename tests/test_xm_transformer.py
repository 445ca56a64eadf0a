"""XM Transformer: wav2vec 2.0 on raw waveforms, the adaptor, language tags, what is refused."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Shared, assert_identical, generate_both, random_model, write_checkpoint

from fairseq_openvino.bundle import FeatureConfig, SpecialTokens, TextConfig
from fairseq_openvino.export.fairseq import ARCHITECTURES
from fairseq_openvino.export.parity import Report
from fairseq_openvino.export.procedure import Original
from fairseq_openvino.export.procedure import export as export_original

LANGUAGES = ("de", "fr")
LONG = ("--max-source-positions", "960000", "--max-tokens", "960000")
"""Flags that let waveforms in; both count samples."""
WAV2VEC = {
    "conv_feature_layers": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2",
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "extractor_mode": "layer_norm",
    "layer_norm_first": True,
    "conv_bias": True,
}
"""Options of a small wav2vec 2.0 like XLS-R."""
DECODER = {
    "decoder_embed_dim": 32,
    "decoder_ffn_embed_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_learned_pos": True,
    "decoder_normalize_before": True,
    "layernorm_embedding": True,
}
"""And of a small decoder like mBART's."""


def completed(wav2vec: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a random model, as they are completed for an export."""
    stored = {"w2v_args": WAV2VEC | wav2vec, **DECODER, **overrides}
    return vars(ARCHITECTURES["xm_transformer"].complete(Namespace(**stored)))


def checkpoint(directory: Path, wav2vec: dict[str, Any] | None = None, **overrides: Any) -> Path:
    """A random checkpoint that reads waveforms, with dictionary and YAML."""
    path = write_checkpoint(directory, "xm_transformer", **completed(wav2vec or {}, overrides))
    dictionary = directory / "dict.txt"
    *words, _, _ = dictionary.read_text().splitlines()
    tags = [f"<lang:{language}> 1" for language in LANGUAGES]
    dictionary.write_text("\n".join([*words, *tags]) + "\n")
    (directory / "config.yaml").write_text("vocab_filename: dict.txt\nuse_audio_input: true\n")
    return path


def write_audio(directory: Path, rates_hz: tuple[int, ...] = (16_000,)) -> None:
    """A manifest `test` of 13 clips of 0.1 to 1.5 s of noise and tones."""
    random, rows = np.random.default_rng(0), ["id\taudio\tn_frames\ttgt_text\ttgt_lang"]
    for i in range(13):
        rate_hz, path = rates_hz[i % len(rates_hz)], directory / f"{i}.flac"
        samples = int(random.uniform(0.1, 1.5) * rate_hz)
        tone = np.sin(np.arange(samples) * random.uniform(0.01, 1))
        soundfile.write(path, 0.1 * tone + 0.02 * random.standard_normal(samples), rate_hz)
        rows.append(f"clip{i}\t{path}\t{samples * 16_000 // rate_hz}\tt1 t2 t3\t{LANGUAGES[i % 2]}")
    (directory / "test.tsv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="session")
def xm(shared: Shared) -> Path:
    """A data directory with a tiny random checkpoint and waveforms."""

    def make(directory: Path) -> None:
        checkpoint(directory)
        write_audio(directory)

    return shared("xm", make)


def measure(model: Any, arguments: Any, directory: Path) -> Report:
    """The whole procedure for a model without a checkpoint."""
    described = {
        "family": "s2t", "tokens": SpecialTokens(0, 1, 2, 3),
        "features": FeatureConfig(1, 16_000, ("layer_norm",)), "text": TextConfig(),
    }  # fmt: skip
    known = ARCHITECTURES["xm_transformer"]
    graphs = known.build(model, arguments)
    original = Original(graphs, known.reference(model), described, lambda _: None, known.cases)
    return export_original(original, directory / "bundle")[1]


@pytest.mark.parametrize(
    ("wav2vec", "overrides"),
    [
        ({}, {}),
        ({"extractor_mode": "default", "layer_norm_first": False, "conv_bias": False}, {}),
        ({"conv_pos": 7, "crop_seq_to_multiple": 3}, {"adaptor_n_layers": 1, "adaptor_stride": 3}),
        ({"pos_conv_depth": 3, "required_seq_len_multiple": 1}, {"adaptor_n_layers": 0}),
        ({"conv_pos": 5}, {"adaptor_kernel_size": 5, "adaptor_layernorm": True}),
        ({}, {"encoder_proj": True, "decoder_embed_dim": 48}),
        ({}, {"adaptor_proj": True, "decoder_embed_dim": 48, "no_scale_embedding": True}),
        ({"encoder_embed_dim": 16}, {"remove_weight_norm": True, "layerdrop": 0.1}),
    ],
    ids=str,
)
def test_options_of_the_family_reproduce_fairseq(
    wav2vec: dict[str, Any], overrides: dict[str, Any], tmp_path: Path
) -> None:
    arguments = completed(wav2vec, overrides)
    model, arguments, _ = random_model("xm_transformer", **arguments)
    assert measure(model, arguments, tmp_path).passed


@pytest.mark.parametrize("flags", [("--beam", "1"), ("--beam", "5", "--nbest", "5")])
def test_hypotheses_are_fairseqs(xm: Path, cache_dir: Path, flags: tuple[str, ...]) -> None:
    assert_identical(*generate_both(xm, cache_dir, *LONG, *flags, "--max-len-b", "20"))
