"""XM Transformer: wav2vec 2.0 on raw waveforms, the adaptor, language tags, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import random_model

from fairseq_openvino.bundle import FeatureConfig, SpecialTokens, TextConfig
from fairseq_openvino.export.fairseq import ARCHITECTURES
from fairseq_openvino.export.parity import Report
from fairseq_openvino.export.procedure import Original
from fairseq_openvino.export.procedure import export as export_original

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


def model_of(wav2vec: dict[str, Any], **overrides: Any) -> tuple[Any, Any, Any]:
    """A random model; see `random_model`."""
    from argparse import Namespace

    architecture = ARCHITECTURES["xm_transformer"]
    stored = {"w2v_args": WAV2VEC | wav2vec, **DECODER, **overrides}
    completed = vars(architecture.complete(Namespace(**stored)))
    return random_model("xm_transformer", **completed)


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
    model, arguments, _ = model_of(wav2vec, **overrides)
    assert measure(model, arguments, tmp_path).passed
