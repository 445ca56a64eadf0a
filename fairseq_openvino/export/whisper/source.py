"""Whisper checkpoints of every form, loaded: `READERS` is the table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fairseq_openvino.atomic import sha256
from fairseq_openvino.bundle import WhisperConfig
from fairseq_openvino.export.sources import (
    ADAPTER,
    CTRANSLATE2,
    HUGGING_FACE,
    OPENAI,
    Place,
    locate,
)
from fairseq_openvino.export.whisper import adapter, ctranslate2, huggingface, openai, vocabulary
from fairseq_openvino.export.whisper.checkpoint import Checkpoint, build
from fairseq_openvino.export.whisper.rules import eos, rules

READERS = {
    HUGGING_FACE: huggingface.read,
    OPENAI: openai.read,
    CTRANSLATE2: ctranslate2.read,
}
"""Form to a function of a `Place` that returns a `Checkpoint`; an adapter has one of another's."""


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


def load_source(source: str | Path | Place, tokenizer: Path | None = None) -> Source:
    """Load a checkpoint; see `export.whisper.export_whisper` for the arguments and errors."""
    place = source if isinstance(source, Place) else locate(source)
    checkpoint = _read(place)
    config = checkpoint.config
    where = tokenizer or _tokenizer_place(place)
    tokens = vocabulary.find(where, config.vocab_size, place.name)
    whisper = rules(checkpoint.stated, tokens, config, place.path)
    end, pad = eos(checkpoint.stated, whisper.start), checkpoint.stated.get("pad_token_id")
    weights = place.weights[0]
    return Source(
        build(checkpoint, place.path),
        tokens,
        whisper,
        pad if isinstance(pad, int) else end,
        end,
        huggingface.RATE_HZ,
        place.origin | {"weights": weights.name, "sha256": sha256(weights)},
    )


def _read(place: Place) -> Checkpoint:
    if place.form != ADAPTER:
        return READERS[place.form](place)
    assert place.base is not None
    return adapter.read(place, _read(place.base))


def _tokenizer_place(place: Place) -> Path:
    """An adapter's own, if it has one, else its base model's."""
    own = any((place.path / name).is_file() for name in (vocabulary.TOKENIZER, "vocab.json"))
    return place.path if own or place.base is None else place.base.path
