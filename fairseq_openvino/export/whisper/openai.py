"""`.pt` files of openai-whisper, in the terms of transformers.

Source: openai-whisper `model.py`, transformers `models/whisper/convert_openai_to_hf.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fairseq_openvino.checkpoint import load_object
from fairseq_openvino.compat.transformers import transformers
from fairseq_openvino.export.sources import Place
from fairseq_openvino.export.whisper.checkpoint import Checkpoint, fail

DIMENSIONS, STATE = "dims", "model_state_dict"
RENAMED = (
    (r"\bblocks\b", "layers"),
    (r"\bmlp\.0\b", "fc1"),
    (r"\bmlp\.2\b", "fc2"),
    (r"\bmlp_ln\b", "final_layer_norm"),
    (r"\bcross_attn_ln\b", "encoder_attn_layer_norm"),
    (r"\battn_ln\b", "self_attn_layer_norm"),
    (r"\bcross_attn\b", "encoder_attn"),
    (r"\battn\b", "self_attn"),
    (r"\bquery\b", "q_proj"),
    (r"\bkey\b", "k_proj"),
    (r"\bvalue\b", "v_proj"),
    (r"_attn\.out\b", "_attn.out_proj"),
    (r"\bln_post\b", "layer_norm"),
    (r"\bdecoder\.ln\b", "decoder.layer_norm"),
    (r"\btoken_embedding\b", "embed_tokens"),
    (r"\bpositional_embedding\b", "embed_positions.weight"),
)
"""In this order, OpenAI's parameter names to those of transformers."""
FAIRSEQ_STATE = "model"


def read(place: Place) -> Checkpoint:
    """Configuration and weights of a file.

    Raises:
        CheckpointError: it is damaged, or not of openai-whisper.
        UnsafeCheckpointError: it would run code.
    """
    path, content = place.path, load_object(place.path)
    if not isinstance(content, dict) or not {DIMENSIONS, STATE} <= content.keys():
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        advice = "Pass a checkpoint of openai-whisper"
        if isinstance(content, dict) and FAIRSEQ_STATE in content:
            advice = "For a Fairseq checkpoint name its data directory too (--data DIR)"
        raise fail(path, f"{DIMENSIONS!r} and {STATE!r} of openai-whisper", found, advice)
    return Checkpoint(_configuration(path, content[DIMENSIONS]), rename(content[STATE]), {})


def rename(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters under the names of transformers."""
    renamed = {}
    for original, value in weights.items():
        name = original
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[f"model.{name}"] = value
    return renamed


def _configuration(path: Path, dimensions: Any) -> Any:
    try:
        dims = {name: int(value) for name, value in dimensions.items()}
        return transformers.WhisperConfig(
            vocab_size=dims["n_vocab"],
            num_mel_bins=dims["n_mels"],
            d_model=dims["n_audio_state"],
            max_source_positions=dims["n_audio_ctx"],
            max_target_positions=dims["n_text_ctx"],
            encoder_layers=dims["n_audio_layer"],
            encoder_attention_heads=dims["n_audio_head"],
            encoder_ffn_dim=4 * dims["n_audio_state"],
            decoder_layers=dims["n_text_layer"],
            decoder_attention_heads=dims["n_text_head"],
            decoder_ffn_dim=4 * dims["n_text_state"],
            pad_token_id=None,
        )
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise fail(
            path, f"{DIMENSIONS!r} with n_mels, n_vocab, n_audio_* and n_text_*", repr(error),
            "Pass a checkpoint of openai-whisper",
        ) from error  # fmt: skip
