"""Reads what a Whisper export needs: Hugging Face directories, hub names, OpenAI `.pt` files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from fairseq_openvino.atomic import sha256
from fairseq_openvino.bundle import WhisperConfig
from fairseq_openvino.checkpoint import load_checkpoint
from fairseq_openvino.compat.transformers import transformers
from fairseq_openvino.errors import CheckpointError, ModelError, failure
from fairseq_openvino.export.whisper import openai

_fail = partial(failure, CheckpointError, "Loading a Whisper checkpoint")

SAMPLE_RATE_HZ, FFT_SAMPLES, HOP_SAMPLES = 16_000, 400, 160
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
OPENAI_STATE = "model_state_dict"
TOKENIZER_FILES = ("tokenizer.json", "multilingual.tiktoken", "gpt2.tiktoken")
ENGLISH_START = "<|startoftranscript|>"


@dataclass(frozen=True)
class Source:
    """A loaded checkpoint with everything around it."""

    model: Any
    """`WhisperForConditionalGeneration` in eval mode, float32, eager attention."""
    tokenizer: Tokenizer
    whisper: WhisperConfig
    pad: int
    eos: int
    sample_rate_hz: int
    origin: dict[str, Any]
    """Where it came from, for the manifest."""


def load_source(source: str | Path, tokenizer: Path | None = None) -> Source:
    """Load a checkpoint; see `export.whisper.export_whisper` for the arguments and errors."""
    path = Path(source)
    if path.is_dir():
        return _from_directory(path, path, tokenizer, {"directory": path.name})
    if path.is_file():
        return _from_openai(path, tokenizer)
    if path.suffix or path.is_absolute() or str(source).startswith("."):
        raise CheckpointError(
            f"Loading a Whisper checkpoint failed in {str(source)!r}: expected a Hugging Face "
            "directory, an OpenAI .pt file or a hub name, got no such file. Check the path."
        )
    return _from_directory(_download(str(source)), path, tokenizer, {"hub": str(source)})


def _download(name: str) -> Path:
    """A snapshot of a hub repository, through the hub's own library and cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "merges.txt"])
        )
    except Exception as error:  # the hub's library raises many kinds, and the network more
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"Downloading a Whisper checkpoint failed for {name!r}: expected a hub repository that "
            f"can be reached, got {reason!r}. Download it where there is network "
            f"(hf download {name} --local-dir DIR) and pass DIR."
        ) from error


def _from_directory(
    path: Path, shown: Path, tokenizer: Path | None, origin: dict[str, Any]
) -> Source:
    try:
        config = transformers.WhisperConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _fail(shown, "config.json", f"{error}", "Pass the model's directory") from error
    if config.model_type != "whisper":
        raise ModelError(
            f"Loading a Whisper checkpoint failed in {str(shown)!r}: expected model type whisper, "
            f"got {config.model_type!r}. Only Whisper and Distil-Whisper have an exporter."
        )
    weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        found = ", ".join(sorted(p.name for p in path.iterdir())) or "an empty directory"
        raise _fail(
            shown, "model.safetensors", found,
            "Other formats can run code: save the model with save_pretrained first",
        )  # fmt: skip
    try:
        model = transformers.WhisperForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", use_safetensors=True
        )
    except Exception as error:  # safetensors and transformers raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _fail(shown, "complete weights", repr(reason), "Copy or download it again") from error
    generation = model.generation_config
    whisper = _rules(generation, config, shown)
    tokens = _tokenizer(shown if shown.is_dir() else path, tokenizer, config, whisper)
    return Source(
        model.eval(),
        tokens,
        whisper,
        _token(config.pad_token_id, whisper),
        _token(generation.eos_token_id or config.eos_token_id, whisper),
        _sample_rate(path, config),
        origin | {"weights": weights.name, "sha256": sha256(weights)},
    )


def _sample_rate(path: Path, config: Any) -> int:
    """The front end is fixed; a checkpoint made for another one is refused."""
    if not (path / "preprocessor_config.json").is_file():
        return SAMPLE_RATE_HZ
    front = transformers.WhisperFeatureExtractor.from_pretrained(path)
    found = (front.sampling_rate, front.n_fft, front.hop_length, front.feature_size)
    expected = (SAMPLE_RATE_HZ, FFT_SAMPLES, HOP_SAMPLES, config.num_mel_bins)
    if found != expected or getattr(front, "do_normalize", False) or front.dither:
        raise ModelError(
            f"Loading a Whisper checkpoint failed in 'preprocessor_config.json' of {str(path)!r}: "
            f"expected sampling_rate, n_fft, hop_length, feature_size {expected} without "
            f"normalization and dither, got {found}. Only Whisper's own front end is supported."
        )
    return SAMPLE_RATE_HZ


def _rules(generation: Any, config: Any, path: Path) -> WhisperConfig:
    """Special tokens and suppression lists of a generation configuration."""
    no_timestamps = getattr(generation, "no_timestamps_token_id", None)
    if no_timestamps is None:
        raise _fail(
            path, "no_timestamps_token_id in generation_config.json", "a file without it",
            "Take generation_config.json of the checkpoint this one was trained from",
        )  # fmt: skip
    languages = getattr(generation, "lang_to_id", None) or {}
    return WhisperConfig(
        start=int(generation.decoder_start_token_id or config.decoder_start_token_id),
        previous=getattr(generation, "prev_sot_token_id", None) or no_timestamps - 2,
        no_speech=no_timestamps - 1,
        no_timestamps=no_timestamps,
        languages={name.strip("<|>"): int(token) for name, token in languages.items()},
        tasks={name: int(token) for name, token in _tasks(generation).items()},
        suppressed=tuple(generation.suppress_tokens or ()),
        suppressed_at_start=tuple(generation.begin_suppress_tokens or ()),
        max_initial_timestamp=getattr(generation, "max_initial_timestamp_index", None),
        max_tokens=min(
            generation.max_length or config.max_target_positions, config.max_target_positions
        ),
        alignment_heads=_alignment_heads(generation, config),
    )


def _alignment_heads(generation: Any, config: Any) -> tuple[tuple[int, int], ...]:
    """As the checkpoint has them; none of them if one does not exist in this model."""
    found = getattr(generation, "alignment_heads", None) or ()
    heads = tuple((int(layer), int(head)) for layer, head in found)
    layers, width = config.decoder_layers, config.decoder_attention_heads
    return heads if all(0 <= a < layers and 0 <= b < width for a, b in heads) else ()


def _token(value: Any, whisper: WhisperConfig) -> int:
    """A token that a configuration may leave out or list several of; <|endoftext|> then."""
    return value if isinstance(value, int) else whisper.start - 1


def _tasks(generation: Any) -> dict[str, int]:
    tasks: dict[str, int] | None = getattr(generation, "task_to_id", None)
    return tasks or {}


def _tokenizer(path: Path, given: Path | None, config: Any, whisper: WhisperConfig) -> Tokenizer:
    """The checkpoint's own tokenizer, or the one given, checked against the vocabulary."""
    place = given or path
    if place.is_dir():
        found = next((place / name for name in TOKENIZER_FILES if (place / name).is_file()), None)
        if found is None and (place / "vocab.json").is_file():
            return _checked(_slow_tokenizer(place), place, config, whisper)
        place = found or place / TOKENIZER_FILES[0]
    if not place.is_file():
        raise ModelError(
            f"Loading a Whisper tokenizer failed in {str(place)!r}: expected tokenizer.json, "
            "vocab.json with merges.txt, or a .tiktoken file, got no such file. Put it beside the "
            "checkpoint or name it with --tokenizer."
        )
    try:
        if place.suffix == ".tiktoken":
            tokenizer = openai.tokenizer(place, config.vocab_size)
        else:
            tokenizer = Tokenizer.from_file(str(place))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(
            f"Loading a Whisper tokenizer failed in {str(place)!r}: expected a complete file, got "
            f"{str(error)!r}. Copy or download it again."
        ) from error
    return _checked(tokenizer, place, config, whisper)


def _slow_tokenizer(directory: Path) -> Tokenizer:
    tokenizer: Tokenizer = transformers.WhisperTokenizer.from_pretrained(
        directory
    ).backend_tokenizer
    return tokenizer


def _checked(tokenizer: Tokenizer, path: Path, config: Any, whisper: WhisperConfig) -> Tokenizer:
    found = tokenizer.token_to_id(ENGLISH_START)
    if found != whisper.start or tokenizer.get_vocab_size() > config.vocab_size:
        raise ModelError(
            f"Loading a Whisper tokenizer failed in {str(path)!r}: expected {ENGLISH_START} to be "
            f"token {whisper.start} of at most {config.vocab_size}, got {found} of "
            f"{tokenizer.get_vocab_size()}. Use the tokenizer the model was trained with."
        )
    return tokenizer


def _from_openai(path: Path, tokenizer: Path | None) -> Source:
    state = load_checkpoint(path, OPENAI_STATE)
    config = openai.configuration(path, state)
    model = transformers.WhisperForConditionalGeneration._from_config(
        config, attn_implementation="eager"
    )
    weights = openai.rename(state[OPENAI_STATE])
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if set(missing) - {"proj_out.weight"} or unexpected:
        raise _fail(
            path, "the weights of a Whisper model",
            f"missing {sorted(missing)[:3]}, unexpected {sorted(unexpected)[:3]}",
            "Pass a checkpoint of openai-whisper",
        )  # fmt: skip
    model.tie_weights()
    place = tokenizer or openai.installed_tokenizer(path, config.vocab_size)
    layout = openai.layout(config.vocab_size)
    tokens = _tokenizer(place, place, config, layout)
    whisper = openai.with_suppression(layout, tokens, config.max_target_positions)
    origin = {"file": os.path.basename(path), "sha256": sha256(path)}
    eos = layout.start - 1
    return Source(model.float().eval(), tokens, whisper, eos, eos, SAMPLE_RATE_HZ, origin)
