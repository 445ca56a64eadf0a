"""What a reader finds in one form of Whisper weights: always in the terms of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_openvino.compat.transformers import transformers
from fairseq_openvino.errors import CheckpointError, failure

fail = partial(failure, CheckpointError, "Loading a Whisper checkpoint")

TIED = "proj_out.weight"
PREFIX = "model."
MAX_LAYERS = 256


@dataclass
class Checkpoint:
    """Weights and what is stated about them, before anything is built."""

    config: Any
    """`WhisperConfig`; only its sizes are used."""
    weights: Mapping[str, Tensor]
    """By the parameter names of `WhisperForConditionalGeneration`, as stored."""
    stated: Mapping[str, Any]
    """What the form says of the keys of `generation_config.json`; the rest follows from the
    tokenizer."""


def checked(path: Path, weights: Any) -> dict[str, Tensor]:
    """The parameters of a pickle, which may hold anything.

    Raises:
        CheckpointError: they are not numbers by name.
    """
    advice = "Save the model's state_dict"
    if not isinstance(weights, dict):
        raise fail(path, "a dict of tensors", type(weights).__name__, advice)
    for name, value in weights.items():
        if not (isinstance(name, str) and torch.is_tensor(value) and value.layout == torch.strided):
            raise fail(
                path, "dense tensors by name", f"{name!r:.100}: {type(value).__name__}", advice
            )
    return weights


def build(checkpoint: Checkpoint, path: Path) -> Any:
    """The model in float32 and eval mode; `path` is for messages.

    Raises:
        CheckpointError: the weights are not those of the configuration.
    """
    model = _without_weights(checkpoint.config, path)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights = {
        name if name.startswith((PREFIX, TIED)) else PREFIX + name: tensor
        for name, tensor in checkpoint.weights.items()
    }
    if checkpoint.config.tie_word_embeddings:
        weights.pop(TIED, None)
        expected.pop(TIED, None)
    _check({name: tensor.shape for name, tensor in weights.items()}, expected, path)
    floats = {name: tensor.float() for name, tensor in weights.items()}
    try:
        model.load_state_dict(floats, strict=False, assign=True)
    except RuntimeError as error:
        raise fail(path, "weights of the model", repr(str(error)), "Download it again") from error
    model.tie_weights()
    return model.eval()


def _without_weights(config: Any, path: Path) -> Any:
    advice = "Take config.json from where the model was trained"
    layers = max(config.encoder_layers, config.decoder_layers)
    if layers > MAX_LAYERS:
        raise fail(path, f"at most {MAX_LAYERS} layers", layers, advice)
    try:
        with torch.device("meta"):
            return transformers.WhisperForConditionalGeneration._from_config(
                config, attn_implementation="eager"
            )
    except Exception as error:  # transformers and torch raise many kinds
        raise fail(path, "sizes that make a model", repr(str(error)), advice) from error


def _check(found: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    differing = [
        f"{k} {tuple(found[k])}" for k in found.keys() & expected if found[k] != expected[k]
    ]
    for problem, names in (
        ("missing", sorted(expected.keys() - found)),
        ("unexpected", sorted(found.keys() - expected)),
        ("of another size", sorted(differing)),
    ):
        if names:
            shown = ", ".join(names[:3]) + (" ..." if names[3:] else "")
            raise fail(
                path, "complete weights of the Whisper model its configuration describes",
                f"{len(names)} tensors {problem}: {shown}", "Copy or download it again",
            )  # fmt: skip
