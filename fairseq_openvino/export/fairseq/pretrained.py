"""Model arguments that name what a checkpoint was initialised from: files of the training machine.

A checkpoint holds all weights, so of a pre-trained wav2vec 2.0 only the configuration is needed.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from fairseq_openvino.checkpoint import load_checkpoint
from fairseq_openvino.errors import CheckpointError, failure

TASK = "audio_pretraining"
"""Fairseq's task that builds a wav2vec 2.0; of its options only `normalize` is looked at."""
UNSET: dict[str, Any] = {"data": "", "tpu": False, "seed": 1}
"""Options that refer to parts of a whole configuration."""
MAX_OPTIONS = 10_000
REFERENCE = "${"
"""To another option, in OmegaConf's notation."""
MISSING: dict[str, Any] = {"data": "", "freeze_regex": None}
"""Options that older checkpoints do not have and Fairseq has no default for."""


def wav2vec2_arguments(arguments: Namespace) -> Namespace:
    """Arguments that build a `Wav2VecEncoder` without any other file.

    Args:
        arguments: of the checkpoint. `w2v_args` may be missing, what Fairseq stores there, or a dictionary
            of what differs from the defaults of a `Wav2Vec2Config`; then `w2v_path` is not read.

    Raises:
        CheckpointError: neither `w2v_args` nor a file at `w2v_path`.
    """
    from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config
    from fairseq.tasks.audio_pretraining import AudioPretrainingConfig

    stored = _groups(getattr(arguments, "w2v_args", None) or _of_file(arguments))
    named = {"_name": stored.get("_name") or "wav2vec2"}
    model = _defaults(Wav2Vec2Config()) | stored | named
    normalize = bool(getattr(arguments, "normalize", False))
    task = _defaults(AudioPretrainingConfig()) | {"_name": TASK, "normalize": normalize}
    found = configured({"model": model, "task": task | UNSET})
    return Namespace(**{**MISSING, **vars(arguments), "w2v_args": found})


def configured(options: dict[str, Any]) -> Any:
    """Options as a `DictConfig`, whose texts may stand for the value of another one.

    Raises:
        CheckpointError: there are too many of them, also as the same part stands in many places, or a text
            refers to several others: where each does, its length doubles from one to the next.
    """
    from omegaconf import Container, OmegaConf, ValueNode

    left: list[Any] = [options]
    seen = 0
    while left:
        one = left.pop()
        if isinstance(one, Container):
            one = OmegaConf.to_container(one)
        elif isinstance(one, ValueNode):
            one = one._value()
        seen += 1
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, (list, tuple)):
            left += one
        has_several = isinstance(one, str) and one.count(REFERENCE) > 1
        if has_several or seen > MAX_OPTIONS:
            raise failure(
                CheckpointError, "Loading a checkpoint", "its options",
                f"at most {MAX_OPTIONS} values, and texts with one reference",
                repr(one)[:100] if has_several else "more", "Use the checkpoint as it was published",
            )  # fmt: skip
    return OmegaConf.create(options)


def _of_file(arguments: Namespace) -> Any:
    """The configuration in the pre-trained model's own checkpoint."""
    path = getattr(arguments, "w2v_path", None)
    if not path or not Path(path).is_file():
        raise failure(
            CheckpointError, "Loading a checkpoint", f"w2v_path {path!r}",
            "the pre-trained wav2vec 2.0, as the checkpoint holds no w2v_args", "no such file",
            "Say where it is now with --model-overrides \"{'w2v_path': 'FILE'}\", or what differs from "
            "Fairseq's defaults with \"{'w2v_args': {'encoder_layers': 24, ...}}\"",
        )  # fmt: skip
    state = load_checkpoint(Path(path))
    return state.get("cfg") or state["args"]


def _groups(stored: Any) -> dict[str, Any]:
    """Options of the model, of any of the forms in which Fairseq stores a configuration."""
    from omegaconf import DictConfig, OmegaConf

    if isinstance(stored, DictConfig):
        stored = OmegaConf.to_container(stored, enum_to_str=True)
    values = vars(stored) if isinstance(stored, Namespace) else dict(stored)
    return _groups(values["model"]) if "model" in values else values


def _defaults(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return values
