"""`.pt` files of openai-whisper, in the terms of transformers.

Source: openai-whisper `model.py`, transformers `models/whisper/convert_openai_to_hf.py`.
"""

from __future__ import annotations

import base64
import gzip
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fairseq_openvino.checkpoint import load_object
from fairseq_openvino.compat.transformers import transformers
from fairseq_openvino.export.sources import Place
from fairseq_openvino.export.whisper.checkpoint import Checkpoint, checked, fail

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
ALIGNMENT_HEADS = {
    "tiny.en": b"ABzY8J1N>@0{>%R00Bk>$p{7v037`oCl~+#00",
    "tiny": b"ABzY8bu8Lr0{>%RKn9Fp%m@SkK7Kt=7ytkO",
    "base.en": b"ABzY8;40c<0{>%RzzG;p*o+Vo09|#PsxSZm00",
    "base": b"ABzY8KQ!870{>%RzyTQH3`Q^yNP!>##QT-<FaQ7m",
    "small.en": b"ABzY8>?_)10{>%RpeA61k&I|OI3I$65C{;;pbCHh0B{qLQ;+}v00",
    "small": b"ABzY8DmU6=0{>%Rpa?J`kvJ6qF(V^F86#Xh7JUGMK}P<N0000",
    "medium.en": b"ABzY8usPae0{>%R7<zz_OvQ{)4kMa0BMw6u5rT}kRKX;$NfYBv00*Hl@qhsU00",
    "medium": b"ABzY8B0Jh+0{>%R7}kK1fFL7w6%<-Pf*t^=N)Qr&0RR9",
    "large-v1": b"ABzY8r9j$a0{>%R7#4sLmoOs{s)o3~84-RPdcFk!JR<kSfC2yj",
    "large-v2": b"ABzY8zd+h!0{>%R7=D0pU<_bnWW*tkYAhobTNnu$jnkEkXqp)j;w1Tzk)UH3X%SZd&fFZ2fC2yj",
    "large-v3": b"ABzY8gWO1E0{>%R7(9S+Kn!D~%ngiGaR?*L!iJG9p-nab0JQ=-{D1-g00",
    "large": b"ABzY8gWO1E0{>%R7(9S+Kn!D~%ngiGaR?*L!iJG9p-nab0JQ=-{D1-g00",
    "large-v3-turbo": b"ABzY8j^C+e0{>%RARaKHP%t(lGR*)0g!tONPyhe`",
    "turbo": b"ABzY8j^C+e0{>%RARaKHP%t(lGR*)0g!tONPyhe`",
}
"""By the name of OpenAI's file without `.pt`: which heads follow the audio, (layers, heads) booleans, packed.
Source: openai-whisper `__init__.py:_ALIGNMENT_HEADS`."""


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
    config = _configuration(path, content[DIMENSIONS])
    stated = {"alignment_heads": _alignment_heads(path.stem, config)}
    return Checkpoint(config, rename(checked(path, content[STATE])), stated)


def rename(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters under the names of transformers."""
    renamed = {}
    for original, value in weights.items():
        name = original
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[f"model.{name}"] = value
    return renamed


def _alignment_heads(name: str, config: Any) -> list[tuple[int, int]]:
    """(layer, head) of a model of this name; none if OpenAI's has other layers or heads."""
    shape = config.decoder_layers, config.decoder_attention_heads
    packed = ALIGNMENT_HEADS.get(name)
    flags = gzip.decompress(base64.b85decode(packed)) if packed else b""
    if len(flags) != math.prod(shape):
        return []
    return [divmod(i, shape[1]) for i, flag in enumerate(flags) if flag]


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
    except Exception as error:  # the checks of a configuration raise many kinds
        raise fail(
            path, f"{DIMENSIONS!r} with n_mels, n_vocab, n_audio_* and n_text_*", repr(error),
            "Pass a checkpoint of openai-whisper",
        ) from error  # fmt: skip
