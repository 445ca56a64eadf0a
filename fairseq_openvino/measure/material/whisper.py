"""Whisper checkpoints with random weights, as Hugging Face directories; and clips for them.

Special tokens have their true layout. Speed does not depend on what the weights say, with one exception:
when an engine stops. `endless` checkpoints therefore have all tokens but plain text pushed out of reach
in the weights themselves: coordinate 0 of the decoder's last state is the constant `PUSH`, and only the
embeddings of those tokens see it. Every engine then decodes to the limit it was given, without flags
that only some have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np

from fairseq_openvino.speech.languages import LANGUAGES

RATE_HZ = 16_000
POSITIONS_PER_SECOND, TIMES, BYTES = 50, 1501, 256
SPACE = 220
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
BIAS_SCALE = 0.02


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
    def codes(self) -> list[str]:
        """Of the languages."""
        return list(LANGUAGES)[: self.languages]

    @property
    def ids(self) -> dict[str, int]:
        """Special tokens without brackets, in the order of openai-whisper's `tokenizer.py`."""
        names = ["endoftext", "startoftranscript", *self.codes, *TASKS, *CONTROL, "notimestamps"]
        times = [f"{i / POSITIONS_PER_SECOND:.2f}" for i in range(TIMES)]
        return {name: self.text_tokens + i for i, name in enumerate([*names, *times])}

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
        letters = [left + right for left, right in self.merges]
        return {token: i for i, token in enumerate([*spelled, *letters, ""])}


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
    from fairseq_openvino.compat.transformers import transformers

    library: Any = transformers
    ids, width = layout.ids, layout.width
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), ids["endoftext"])
    ends["decoder_start_token_id"] = ids["startoftranscript"]
    config = library.WhisperConfig(
        vocab_size=layout.text_tokens + len(ids), num_mel_bins=layout.mels, d_model=width,
        encoder_layers=layout.layers, encoder_attention_heads=layout.heads,
        decoder_layers=layout.layers, decoder_attention_heads=layout.heads,
        encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
        max_source_positions=layout.positions, max_target_positions=layout.targets, **ends,
    )  # fmt: skip
    model = library.WhisperForConditionalGeneration(config).eval()
    randomize(model, layout)
    model.generation_config = library.GenerationConfig(**ends, **_generation(layout))
    model.save_pretrained(directory)
    seconds = layout.positions // POSITIONS_PER_SECOND
    front = library.WhisperFeatureExtractor(feature_size=layout.mels, chunk_length=seconds)
    front.save_pretrained(directory)
    _write_tokenizer(directory, layout)
    return directory


def randomize(model: Any, layout: Layout) -> None:
    """Weights by the layout's seed and scales; norms and the encoder's positions stay as they are."""
    import torch

    generator, ids = torch.Generator().manual_seed(layout.seed), layout.ids
    scales = {
        "q_proj.weight": layout.attention_scale * layout.width**-0.5,
        "k_proj.weight": layout.attention_scale * layout.width**-0.5,
        "embed_tokens.weight": layout.embedding_scale,
        "embed_positions.weight": layout.position_scale,
    }
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" in name or "encoder.embed_positions" in name:
                continue
            usual = BIAS_SCALE if weights.dim() == 1 else weights[0].numel() ** -0.5
            scale = next((s for ending, s in scales.items() if name.endswith(ending)), usual)
            weights.copy_(torch.randn(weights.shape, generator=generator) * scale)
        embeddings, norm = model.model.decoder.embed_tokens.weight, model.model.decoder.layer_norm
        embeddings[ids["endoftext"]] *= layout.ending
        embeddings[ids["0.00"] :] *= UNASKED_TIMES
        if layout.endless:
            embeddings[:, 0] = 0.0
            embeddings[:BYTES, 0] = embeddings[layout.text_tokens - 1 :, 0] = -1.0
            norm.weight[0], norm.bias[0] = 0.0, PUSH


def make_clips(count: int, seconds: float, seed: int = 3) -> np.ndarray:
    """Noise in syllables at RATE_HZ, shape (count, samples), float32."""
    samples = int(seconds * RATE_HZ)
    generator, time = np.random.default_rng(seed), np.arange(samples) / RATE_HZ
    rates_hz = generator.uniform(2.0, 5.0, (count, 1))
    loudness = np.clip(np.sin(2.0 * np.pi * rates_hz * time) + 0.3, 0.0, 1.0)
    noise = generator.standard_normal((count, samples))
    return (0.1 * loudness * noise).astype(np.float32)


def _generation(layout: Layout) -> dict[str, Any]:
    ids = layout.ids
    suppressed = [ids[name] for name in ("startoftranscript", *TASKS, *CONTROL)]
    if layout.text_only:
        suppressed = list(ids.values())[1:]
    found: dict[str, Any] = {
        "begin_suppress_tokens": [SPACE, ids["endoftext"]],
        "suppress_tokens": [t for t in SUPPRESSED if t < layout.text_tokens] + suppressed,
        "is_multilingual": bool(layout.languages),
        "no_timestamps_token_id": ids["notimestamps"],
        "prev_sot_token_id": ids["startofprev"],
        "max_initial_timestamp_index": 50,
        "max_length": layout.targets,
        "return_timestamps": False,
    }
    if layout.languages:
        found["lang_to_id"] = {f"<|{code}|>": ids[code] for code in layout.codes}
        found["task_to_id"] = {task: ids[task] for task in TASKS}
    return found


def _write_tokenizer(directory: Path, layout: Layout) -> None:
    """`tokenizer.json`, its configuration, and `vocab.json` for those who read no other file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(layout.text, layout.merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(f"<|{name}|>", normalized=False) for name in layout.ids]
    tokenizer.add_special_tokens(special[:-TIMES])
    tokenizer.add_tokens(special[-TIMES:])
    tokenizer.save(str(directory / "tokenizer.json"))
    ends = ("bos_token", "eos_token", "pad_token", "unk_token")
    settings = {"tokenizer_class": "WhisperTokenizer", **dict.fromkeys(ends, "<|endoftext|>")}
    for name, content in (("tokenizer_config", settings), ("vocab", layout.text)):
        (directory / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
