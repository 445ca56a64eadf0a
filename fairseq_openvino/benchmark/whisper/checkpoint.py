"""Whisper checkpoints with random weights at true size, as Hugging Face directories.

Speed does not depend on what the weights say, with one exception: when an engine stops. Therefore
all tokens but plain text are pushed out of reach in the weights themselves. Coordinate 0 of the
decoder's last state is the constant `PUSH`, and only the embeddings of those tokens see it.
Every engine then decodes to the limit it was given, without flags that only some of them have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np

MELS, POSITIONS, TEXT_POSITIONS, VOCABULARY = 80, 1500, 448, 51865
TEXT_TOKENS, BYTES, EMPTY = 50257, 256, 50256
END, START = 50257, 50258
LANGUAGE_CODES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th "
    "ur hr bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr "
    "pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt "
    "haw ln ha ba jw su"
)
LANGUAGES = LANGUAGE_CODES.split()
TASKS = ("translate", "transcribe", "startoflm", "startofprev", "nocaptions", "notimestamps")
TRANSLATE, TRANSCRIBE, _, PREVIOUS, _, NO_TIMESTAMPS = range(50358, 50364)
SUPPRESSED = (
    1, 2, 7, 8, 9, 10, 14, 25, 26, 27, 28, 29, 31, 58, 59, 60, 61, 62, 63, 90, 91, 92, 93, 359, 503,
    522, 542, 873, 893, 902, 918, 922, 931, 1350, 1853, 1982, 2460, 2627, 3246, 3253, 3268, 3536,
    3846, 3961, 4183, 4667, 6585, 6647, 7273, 9061, 9383, 10428, 10929, 11938, 12033, 12331, 12562,
    13793, 14157, 14635, 15265, 15618, 16553, 16604, 18362, 18956, 20075, 21675, 22520, 26130,
    26161, 26435, 28279, 29464, 31650, 32302, 32470, 36865, 42863, 47425, 49870, 50254, 50258,
    50358, 50359, 50360, 50361, 50362,
)  # fmt: skip
"""What openai/whisper-base suppresses."""
SPACE = 220
EMBEDDING_SCALE = 0.05
"""Standard deviation of embeddings: logits differ by about one, and no token calls for itself."""
POSITION_SCALE = 1.0
"""Of decoder positions: large beside embeddings, so that the text goes on instead of repeating."""
ATTENTION_SCALE = 2.0
"""Of queries and keys: attention picks frames, so that the text depends on the audio."""
PUSH = 30.0
"""Logits by which tokens other than text are lowered."""
SEED = 7


@dataclass(frozen=True)
class Size:
    """Dimensions of an architecture; the feed-forward width is 4 D."""

    width: int
    """D."""
    layers: int
    """Of the encoder and of the decoder."""
    heads: int


SIZES = {"tiny": Size(384, 4, 6), "base": Size(512, 6, 8), "small": Size(768, 12, 12)}


def write_checkpoint(directory: Path, size: Size) -> None:
    """Write configuration, tokenizer and weights into an existing directory."""
    from safetensors.numpy import save_file

    special = special_tokens()
    for name, content in {
        "config.json": _config(size),
        "generation_config.json": _generation(),
        "preprocessor_config.json": _preprocessor(),
        "tokenizer_config.json": _tokenizer_config(),
        "tokenizer.json": _tokenizer(special),
        "vocab.json": text_tokens(),
        "added_tokens.json": {token: TEXT_TOKENS + i for i, token in enumerate(special)},
    }.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in _merges())
    (directory / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    weights = directory / "model.safetensors"
    save_file(random_weights(size), weights, metadata={"format": "pt"})


def special_tokens() -> list[str]:
    """Tokens from `END` on, in the official order."""
    names = ["endoftext", "startoftranscript", *LANGUAGES, *TASKS]
    times = [f"{0.02 * i:.2f}" for i in range(POSITIONS + 1)]
    return [f"<|{name}|>" for name in (*names, *times)]


def text_tokens() -> dict[str, int]:
    """Text tokens by spelling: bytes as GPT-2 writes and orders them, two or three letters, empty.

    The last one is how CTranslate2 tells a multilingual vocabulary.
    """
    spelled = [*_byte_characters(), *(left + right for left, right in _merges()), ""]
    return {token: i for i, token in enumerate(spelled)}


def random_weights(size: Size) -> dict[str, np.ndarray]:
    """All tensors by their names in transformers, float32; the output projection is tied."""
    generator, width = np.random.default_rng(SEED), size.width
    tensors: dict[str, np.ndarray] = {}

    def linear(name: str, rows: int, inner: int, *kernel: int, bias: bool = True) -> None:
        gain = ATTENTION_SCALE if name.endswith(("q_proj", "k_proj")) else 1.0
        scale = gain / np.sqrt(inner * np.prod(kernel, dtype=int))
        tensors[f"{name}.weight"] = _normal(generator, scale, rows, inner, *kernel)
        if bias:
            tensors[f"{name}.bias"] = _normal(generator, scale, rows)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(width, np.float32)
        tensors[f"{name}.bias"] = np.zeros(width, np.float32)

    for side in ("encoder", "decoder"):
        for layer in range(size.layers):
            prefix = f"model.{side}.layers.{layer}"
            for attention in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    linear(f"{prefix}.{attention}.{part}", width, width, bias=part != "k_proj")
                norm(f"{prefix}.{attention}_layer_norm")
            linear(f"{prefix}.fc1", 4 * width, width)
            linear(f"{prefix}.fc2", width, 4 * width)
            norm(f"{prefix}.final_layer_norm")
        norm(f"model.{side}.layer_norm")
    linear("model.encoder.conv1", width, MELS, 3)
    linear("model.encoder.conv2", width, width, 3)
    tensors["model.encoder.embed_positions.weight"] = _sinusoids(width)
    positions = _normal(generator, POSITION_SCALE, TEXT_POSITIONS, width)
    tensors["model.decoder.embed_positions.weight"] = positions
    embeddings = _normal(generator, EMBEDDING_SCALE, VOCABULARY, width)
    embeddings[:, 0] = 0.0
    embeddings[:BYTES, 0] = embeddings[EMPTY:, 0] = -1.0
    tensors["model.decoder.embed_tokens.weight"] = embeddings
    tensors["model.decoder.layer_norm.weight"][0] = 0.0
    tensors["model.decoder.layer_norm.bias"][0] = PUSH
    return tensors


def _normal(generator: np.random.Generator, scale: float, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape, np.float32) * np.float32(scale)


def _sinusoids(width: int) -> np.ndarray:
    """Whisper's fixed encoder positions, shape (POSITIONS, width)."""
    steps = np.exp(-np.log(10000.0) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(POSITIONS)[:, None] * steps
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _byte_characters() -> list[str]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, shown), *(chr(BYTES + i) for i in range(BYTES - len(shown)))]


def _merges() -> list[tuple[str, str]]:
    pairs = list(product(ascii_letters, ascii_letters))
    triples = [(left + right, third) for left, right in pairs for third in ascii_letters]
    return [*pairs, *triples][: EMPTY - BYTES]


def _config(size: Size) -> dict[str, Any]:
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "torch_dtype": "float32",
        "vocab_size": VOCABULARY,
        "num_mel_bins": MELS,
        "d_model": size.width,
        "num_hidden_layers": size.layers,
        **{f"{side}_layers": size.layers for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": size.heads for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 4 * size.width for side in ("encoder", "decoder")},
        "max_source_positions": POSITIONS,
        "max_target_positions": TEXT_POSITIONS,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "decoder_start_token_id": START,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
    }


def _generation() -> dict[str, Any]:
    return {
        "decoder_start_token_id": START,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
        "begin_suppress_tokens": [SPACE, END],
        "suppress_tokens": list(SUPPRESSED),
        "is_multilingual": True,
        "lang_to_id": {f"<|{name}|>": START + 1 + i for i, name in enumerate(LANGUAGES)},
        "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE},
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "prev_sot_token_id": PREVIOUS,
        "max_initial_timestamp_index": 50,
        "max_length": TEXT_POSITIONS,
        "return_timestamps": False,
    }


def _preprocessor() -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": MELS,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _tokenizer_config() -> dict[str, Any]:
    end = "<|endoftext|>"
    times = POSITIONS + 1
    return {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
        "additional_special_tokens": special_tokens()[:-times],
        "add_prefix_space": False,
        "errors": "replace",
        "model_max_length": 1024,
    }


def _tokenizer(special: list[str]) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    times = POSITIONS + 1
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": TEXT_TOKENS + i, "content": token, "special": i < len(special) - times, **plain}
            for i, token in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "add_prefix_space": False},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": text_tokens(),
            "merges": [f"{left} {right}" for left, right in _merges()],
        },
    }
