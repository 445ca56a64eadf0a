"""OpenAI's checkpoint layout in the terms of transformers.

Source: openai-whisper `tokenizer.py` and `model.py`, transformers
`models/whisper/convert_openai_to_hf.py`.
"""

from __future__ import annotations

import base64
import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from fairseq_openvino.bundle import WhisperConfig
from fairseq_openvino.compat.transformers import transformers
from fairseq_openvino.errors import CheckpointError

ENGLISH_TOKENS = 50_257
"""<|startoftranscript|> of an English-only model; a multilingual one has one token more."""
MULTILINGUAL_VOCABULARY = 51_865
"""Vocabulary of the first multilingual models, with 99 languages; later ones add languages."""
FIRST_LANGUAGES = 99
TIMESTAMPS = 1501
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
SYMBOLS = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("', "((", "))", "(((", ")))"),
    *("[[", "]]", "{{", "}}", "♪♪", "♪♪♪"),
)
MUSIC = set("♩♪♫♬♭♮♯")
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def configuration(path: Path, state: dict[str, Any]) -> Any:
    """The model configuration of a checkpoint with `dims`."""
    try:
        dims = {name: int(value) for name, value in state["dims"].items()}
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
        )
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"Loading a Whisper checkpoint failed in {str(path)!r}: expected 'dims' with n_mels, "
            f"n_vocab, n_audio_* and n_text_*, got {error!r}. Pass a checkpoint of openai-whisper."
        ) from error


def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters under the names of transformers, float32."""
    renamed = {}
    for original, value in weights.items():
        name = original
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[f"model.{name}"] = value.float()
    return renamed


def layout(vocabulary_size: int) -> WhisperConfig:
    """Special tokens by position; nothing is suppressed yet."""
    multilingual = vocabulary_size >= MULTILINGUAL_VOCABULARY
    start = ENGLISH_TOKENS + multilingual
    count = FIRST_LANGUAGES + max(vocabulary_size - MULTILINGUAL_VOCABULARY, 0)
    translate = start + 1 + count
    codes = list(_languages())[:count] if multilingual else []
    return WhisperConfig(
        start=start,
        previous=translate + 3,
        no_speech=translate + 4,
        no_timestamps=translate + 5,
        languages={code: start + 1 + i for i, code in enumerate(codes)},
        tasks={"translate": translate, "transcribe": translate + 1} if multilingual else {},
        suppressed=(),
        suppressed_at_start=(),
        max_initial_timestamp=50,
        max_tokens=0,
    )


def with_suppression(rules: WhisperConfig, tokenizer: Tokenizer, max_tokens: int) -> WhisperConfig:
    """The suppression lists of openai-whisper (`non_speech_tokens`) for a tokenizer."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    found = {encode(" -")[0], encode(" '")[0]}
    for symbol in [*SYMBOLS, *MUSIC]:
        for tokens in (encode(symbol), encode(f" {symbol}")):
            if len(tokens) == 1 or symbol in MUSIC:
                found.add(tokens[0])
    translate = rules.no_timestamps - 5
    found |= {rules.start, translate, translate + 1, *range(translate + 2, rules.no_timestamps)}
    return replace(
        rules,
        suppressed=tuple(sorted(found)),
        suppressed_at_start=(encode(" ")[0], rules.start - 1),
        max_tokens=max_tokens,
    )


def tokenizer(path: Path, vocabulary_size: int) -> Tokenizer:
    """A `.tiktoken` file (base64 token, rank) with the special tokens of the layout."""
    rules = layout(vocabulary_size)
    count = rules.no_timestamps - 5 - rules.start - 1
    specials = ["<|endoftext|>", "<|startoftranscript|>"]
    specials += [f"<|{code}|>" for code in list(_languages())[:count]]
    specials += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    specials += ["<|nospeech|>", "<|notimestamps|>"]
    specials += [f"<|{i * rules.timestamp_seconds:.2f}|>" for i in range(TIMESTAMPS)]
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):  # type: ignore[misc]
        """Reads the file itself, without the tiktoken package."""

        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            pairs = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines() if line)
            return {base64.b64decode(token): int(rank) for token, rank in pairs}

    return Converter(str(path), PATTERN, extra_special_tokens=specials).converted()


def _languages() -> dict[str, str]:
    """Code to name, in the order of the tokens."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return dict(LANGUAGES)


def installed_tokenizer(checkpoint: Path, vocabulary_size: int) -> Path:
    """Directory of the checkpoint, or the file in an installed openai-whisper."""
    multilingual = vocabulary_size >= MULTILINGUAL_VOCABULARY
    name = f"{'multilingual' if multilingual else 'gpt2'}.tiktoken"
    specification = importlib.util.find_spec("whisper")
    if specification is not None and specification.origin:
        path = Path(specification.origin).parent / "assets" / name
        if path.is_file():
            return path
    return checkpoint.parent
