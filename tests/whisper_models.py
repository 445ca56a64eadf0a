"""Small Whisper checkpoints with random weights and the true layout of special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TEXT_TOKENS = 300
"""256 bytes and some tokens that no text contains."""


@dataclass(frozen=True)
class Layout:
    """What differs between the members of the family."""

    mels: int = 80
    languages: int = 99
    """0: English only."""
    positions: int = 100
    """Of the encoder; 100 are 2 s."""
    targets: int = 48
    seed: int = 0
    ending: float = 1.0
    """Scale of the embedding of <|endoftext|>: hypotheses of several lengths."""
    text_only: bool = False
    """Suppress every special token but <|endoftext|>."""


def write_whisper(directory: Path, layout: Layout) -> Path:
    """A Hugging Face directory."""
    import torch

    from fairseq_openvino.compat.transformers import transformers

    directory.mkdir(parents=True, exist_ok=True)
    special = special_tokens(layout.languages)
    write_tokenizer(directory / "tokenizer.json", special)
    ids = {name: TEXT_TOKENS + i for i, name in enumerate(special)}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    config = transformers.WhisperConfig(
        vocab_size=TEXT_TOKENS + len(special), num_mel_bins=layout.mels, d_model=64,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=256, decoder_ffn_dim=256, max_source_positions=layout.positions,
        max_target_positions=layout.targets, pad_token_id=end, bos_token_id=end, eos_token_id=end,
        decoder_start_token_id=start,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(layout.seed)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" not in name and "encoder.embed_positions" not in name:
                scale = 0.02 if weights.dim() == 1 else weights[0].numel() ** -0.5
                weights.copy_(torch.randn(weights.shape, generator=generator) * scale)
        embeddings = model.model.decoder.embed_tokens.weight
        embeddings.copy_(torch.randn(embeddings.shape, generator=generator) * 0.1)
        embeddings[end] *= layout.ending
        embeddings[ids["<|0.00|>"] :] *= 0.6  # unlikely where they are not asked for
    control = [ids[f"<|{name}|>"] for name in ("startoflm", "startofprev", "nospeech")]
    options: dict[str, Any] = {
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "suppress_tokens": [1, 2, 7, start, *control],
        "begin_suppress_tokens": [220, end],
        "decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": end,
        "bos_token_id": end, "max_length": layout.targets, "max_initial_timestamp_index": 50,
        "is_multilingual": bool(layout.languages), "return_timestamps": False,
    }  # fmt: skip
    if layout.languages:
        names = special[2 : 2 + layout.languages]
        options["lang_to_id"] = {name: ids[name] for name in names}
        tasks = ("translate", "transcribe")
        options["task_to_id"] = {task: ids[f"<|{task}|>"] for task in tasks}
        options["suppress_tokens"] += [ids[f"<|{task}|>"] for task in tasks]
    if layout.text_only:
        options["suppress_tokens"] = [1, 2, 7, *range(start, TEXT_TOKENS + len(special))]
    model.generation_config = transformers.GenerationConfig(**options)
    model.save_pretrained(directory)
    chunk = layout.positions // 50
    front = transformers.WhisperFeatureExtractor(feature_size=layout.mels, chunk_length=chunk)
    front.save_pretrained(directory)
    return directory


def special_tokens(languages: int) -> list[str]:
    """<|endoftext|> to <|30.00|>, in the order of openai-whisper's `tokenizer.py`."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    names = ["endoftext", "startoftranscript", *list(LANGUAGES)[:languages]]
    names += ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    return [f"<|{name}|>" for name in [*names, *(f"{i * 0.02:.2f}" for i in range(1501))]]


def write_tokenizer(path: Path, special: list[str]) -> None:
    """Bytes, unused tokens up to TEXT_TOKENS, and the special ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {character: i for i, character in enumerate(bytes_to_unicode().values())}
    vocabulary |= {f"unused{i}": i for i in range(len(vocabulary), TEXT_TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    tokenizer.save(str(path))


def waveforms(count: int, seconds: float, seed: int = 0) -> list[np.ndarray]:
    """Noise with slow amplitude and moving pitch, at 16 kHz, of up to `seconds`."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        samples = int(16000 * seconds * random.uniform(0.4, 1.0))
        time = np.arange(samples) / 16000
        pitch = random.uniform(80, 300) * (
            1 + 0.3 * np.sin(2 * np.pi * random.uniform(1, 4) * time)
        )
        voice = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / 16000) / k for k in range(1, 12))
        envelope = np.abs(np.sin(2 * np.pi * random.uniform(1, 3) * time))
        noise = random.standard_normal(samples) * 0.02
        made.append((0.1 * voice * envelope + noise).astype(np.float32))
    return made
