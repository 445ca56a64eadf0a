"""Whisper checkpoints with random weights, as Hugging Face directories; and clips for them.

Special tokens have their true layout.

Speed does not depend on what the weights say, with one exception: when an engine stops. `endless`
checkpoints therefore have all tokens but plain text pushed out of reach in the weights themselves:
coordinate 0 of the decoder's last state is the constant `PUSH`, and only the embeddings of those
tokens see it. Every engine then decodes to the limit it was given, without flags that only some have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np

RATE_HZ = 16_000
POSITIONS_PER_SECOND, TIMES, BYTES = 50, 1501, 256
SPACE = 220
LANGUAGES = (  # noqa: SIM905  a list of 100 strings would fill a screen
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th "
    "ur hr bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr "
    "pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt "
    "haw ln ha ba jw su yue"
).split()
TASKS = ("translate", "transcribe")
CONTROL = ("startoflm", "startofprev", "nospeech")
SUPPRESSED = (
    1, 2, 7, 8, 9, 10, 14, 25, 26, 27, 28, 29, 31, 58, 59, 60, 61, 62, 63, 90, 91, 92, 93, 359, 503,
    522, 542, 873, 893, 902, 918, 922, 931, 1350, 1853, 1982, 2460, 2627, 3246, 3253, 3268, 3536,
    3846, 3961, 4183, 4667, 6585, 6647, 7273, 9061, 9383, 10428, 10929, 11938, 12033, 12331, 12562,
    13793, 14157, 14635, 15265, 15618, 16553, 16604, 18362, 18956, 20075, 21675, 22520, 26130,
    26161, 26435, 28279, 29464, 31650, 32302, 32470, 36865, 42863, 47425, 49870, 50254,
)  # fmt: skip
"""Text tokens that openai/whisper-base suppresses."""
PUSH = 30.0
"""Logits by which tokens other than text are lowered in `endless` checkpoints."""
UNASKED_TIMES = 0.6
"""Scale of the embeddings of timestamps: unlikely where they are not asked for."""


@dataclass(frozen=True)
class Layout:
    """What differs between checkpoints; the feed-forward width is 4 D."""

    width: int = 64
    """D."""
    layers: int = 2
    """Of the encoder and of the decoder."""
    heads: int = 4
    mels: int = 80
    languages: int = 99
    """0: English only."""
    positions: int = 100
    """Of the encoder; 100 are 2 s."""
    targets: int = 48
    """Positions of the decoder."""
    text_tokens: int = 300
    """Bytes, and combinations of letters."""
    seed: int = 0
    ending: float = 1.0
    """Scale of the embedding of <|endoftext|>: hypotheses of several lengths."""
    text_only: bool = False
    """Suppress every special token but <|endoftext|>."""
    endless: bool = False
    """Push everything but letters out of reach."""
    embedding_scale: float = 0.1
    """Standard deviation of embeddings: logits differ by about one."""
    position_scale: float = 0.125
    """Of decoder positions; large beside embeddings, the text goes on instead of repeating."""
    attention_scale: float = 1.0
    """Of queries and keys; above 1 attention picks frames, and the text depends on the audio."""

    @property
    def special(self) -> list[str]:
        """<|endoftext|> to <|30.00|>, in the order of openai-whisper's `tokenizer.py`."""
        names = ["endoftext", "startoftranscript", *LANGUAGES[: self.languages], *TASKS, *CONTROL]
        times = [f"{i / POSITIONS_PER_SECOND:.2f}" for i in range(TIMES)]
        return [f"<|{name}|>" for name in (*names, "notimestamps", *times)]

    @property
    def ids(self) -> dict[str, int]:
        """Of the special tokens, by name without brackets."""
        return {name[2:-2]: self.text_tokens + i for i, name in enumerate(self.special)}

    @property
    def merges(self) -> list[tuple[str, str]]:
        """Pairs that make the text tokens of two or three letters."""
        pairs = list(product(ascii_letters, ascii_letters))
        triples = [(left + right, third) for left, right in pairs for third in ascii_letters]
        return [*pairs, *triples][: self.text_tokens - BYTES - 1]

    @property
    def text(self) -> dict[str, int]:
        """Text tokens: bytes as GPT-2 writes and orders them, letters, and an empty one.

        The last one is how CTranslate2 tells a multilingual vocabulary.
        """
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        spelled = [*map(chr, shown), *(chr(BYTES + i) for i in range(BYTES - len(shown)))]
        spelled += [left + right for left, right in self.merges]
        return {token: i for i, token in enumerate([*spelled, ""])}


def true_size(width: int, layers: int, heads: int) -> Layout:
    """An endless checkpoint with the multilingual vocabulary and a window of 30 s."""
    return Layout(
        width, layers, heads, positions=1500, targets=448, text_tokens=50_257, seed=7, endless=True,
        embedding_scale=0.05, position_scale=1.0, attention_scale=2.0,
    )  # fmt: skip


SIZES = {
    "tiny": true_size(384, 4, 6),
    "base": true_size(512, 6, 8),
    "small": true_size(768, 12, 12),
}


def write_whisper(directory: Path, layout: Layout) -> Path:
    """Write configuration, tokenizer and weights, and return the directory."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "config.json": _config(layout),
        "generation_config.json": _generation(layout),
        "preprocessor_config.json": _preprocessor(layout),
        "tokenizer_config.json": _tokenizer_config(layout),
        "tokenizer.json": _tokenizer(layout),
        "vocab.json": layout.text,
        "added_tokens.json": {f"<|{name}|>": number for name, number in layout.ids.items()},
    }.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in layout.merges)
    (directory / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    weights = directory / "model.safetensors"
    save_file(random_weights(layout), weights, metadata={"format": "pt"})
    return directory


def random_weights(layout: Layout) -> dict[str, np.ndarray]:
    """All tensors by their names in transformers, float32; the output projection is tied."""
    generator, width = np.random.default_rng(layout.seed), layout.width
    tensors: dict[str, np.ndarray] = {}

    def normal(scale: float, *shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32) * np.float32(scale)

    def linear(name: str, rows: int, inner: int, *kernel: int, bias: bool = True) -> None:
        gain = layout.attention_scale if name.endswith(("q_proj", "k_proj")) else 1.0
        scale = gain / np.sqrt(inner * np.prod(kernel, dtype=int))
        tensors[f"{name}.weight"] = normal(scale, rows, inner, *kernel)
        if bias:
            tensors[f"{name}.bias"] = normal(scale, rows)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(width, np.float32)
        tensors[f"{name}.bias"] = np.zeros(width, np.float32)

    for side in ("encoder", "decoder"):
        for layer in range(layout.layers):
            prefix = f"model.{side}.layers.{layer}"
            for attention in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    linear(f"{prefix}.{attention}.{part}", width, width, bias=part != "k_proj")
                norm(f"{prefix}.{attention}_layer_norm")
            linear(f"{prefix}.fc1", 4 * width, width)
            linear(f"{prefix}.fc2", width, 4 * width)
            norm(f"{prefix}.final_layer_norm")
        norm(f"model.{side}.layer_norm")
    linear("model.encoder.conv1", width, layout.mels, 3)
    linear("model.encoder.conv2", width, width, 3)
    tensors["model.encoder.embed_positions.weight"] = _sinusoids(layout)
    positions = normal(layout.position_scale, layout.targets, width)
    tensors["model.decoder.embed_positions.weight"] = positions
    embeddings = normal(layout.embedding_scale, layout.text_tokens + len(layout.special), width)
    embeddings[layout.ids["endoftext"]] *= layout.ending
    embeddings[layout.ids["0.00"] :] *= UNASKED_TIMES
    tensors["model.decoder.embed_tokens.weight"] = embeddings
    if layout.endless:
        embeddings[:, 0] = 0.0
        embeddings[:BYTES, 0] = embeddings[layout.text_tokens - 1 :, 0] = -1.0
        tensors["model.decoder.layer_norm.weight"][0] = 0.0
        tensors["model.decoder.layer_norm.bias"][0] = PUSH
    return tensors


def make_clips(count: int, seconds: float, seed: int = 3) -> np.ndarray:
    """Noise in syllables at RATE_HZ, shape (count, samples), float32."""
    samples = int(seconds * RATE_HZ)
    generator, time = np.random.default_rng(seed), np.arange(samples) / RATE_HZ
    rates_hz = generator.uniform(2.0, 5.0, (count, 1))
    loudness = np.clip(np.sin(2.0 * np.pi * rates_hz * time) + 0.3, 0.0, 1.0)
    noise = generator.standard_normal((count, samples))
    return (0.1 * loudness * noise).astype(np.float32)


def _sinusoids(layout: Layout) -> np.ndarray:
    """Whisper's fixed encoder positions, shape (positions, D)."""
    half = layout.width // 2
    steps = np.exp(-np.log(10000.0) / (half - 1) * np.arange(half))
    angles = np.arange(layout.positions)[:, None] * steps
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _ends(layout: Layout) -> dict[str, int]:
    """What both configurations say of special tokens."""
    end, start = layout.ids["endoftext"], layout.ids["startoftranscript"]
    return {"decoder_start_token_id": start} | dict.fromkeys(
        ("bos_token_id", "eos_token_id", "pad_token_id"), end
    )


def _config(layout: Layout) -> dict[str, Any]:
    sides = ("encoder", "decoder")
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "torch_dtype": "float32",
        "vocab_size": layout.text_tokens + len(layout.special),
        "num_mel_bins": layout.mels,
        "d_model": layout.width,
        "num_hidden_layers": layout.layers,
        **{f"{side}_layers": layout.layers for side in sides},
        **{f"{side}_attention_heads": layout.heads for side in sides},
        **{f"{side}_ffn_dim": 4 * layout.width for side in sides},
        "max_source_positions": layout.positions,
        "max_target_positions": layout.targets,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        **_ends(layout),
    }


def _generation(layout: Layout) -> dict[str, Any]:
    ids = layout.ids
    special = [ids[name] for name in ("startoftranscript", *TASKS, *CONTROL)]
    if layout.text_only:
        special = list(range(ids["startoftranscript"], layout.text_tokens + len(ids)))
    found: dict[str, Any] = {
        **_ends(layout),
        "begin_suppress_tokens": [SPACE, ids["endoftext"]],
        "suppress_tokens": [
            *(token for token in SUPPRESSED if token < layout.text_tokens),
            *special,
        ],
        "is_multilingual": bool(layout.languages),
        "no_timestamps_token_id": ids["notimestamps"],
        "prev_sot_token_id": ids["startofprev"],
        "max_initial_timestamp_index": 50,
        "max_length": layout.targets,
        "return_timestamps": False,
    }
    if layout.languages:
        codes = LANGUAGES[: layout.languages]
        found["lang_to_id"] = {f"<|{code}|>": ids[code] for code in codes}
        found["task_to_id"] = {task: ids[task] for task in TASKS}
    return found


def _preprocessor(layout: Layout) -> dict[str, Any]:
    seconds = layout.positions // POSITIONS_PER_SECOND
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": layout.mels,
        "sampling_rate": RATE_HZ,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": seconds,
        "n_samples": seconds * RATE_HZ,
        "nb_max_frames": 100 * seconds,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _tokenizer_config(layout: Layout) -> dict[str, Any]:
    ends = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        **dict.fromkeys(ends, "<|endoftext|>"),
        "additional_special_tokens": layout.special[:-TIMES],
        "add_prefix_space": False,
        "errors": "replace",
        "model_max_length": 1024,
    }


def _tokenizer(layout: Layout) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    control = len(layout.special) - TIMES
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": layout.text_tokens + i, "content": token, "special": i < control, **plain}
            for i, token in enumerate(layout.special)
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
            "vocab": layout.text,
            "merges": [f"{left} {right}" for left, right in layout.merges],
        },
    }
