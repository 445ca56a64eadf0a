"""Fairseq checkpoints to eager Fairseq models, with the mistakes named before Fairseq trips."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_openvino.atomic import sha256
from fairseq_openvino.errors import CheckpointError, MissingDependencyError, ModelError
from fairseq_openvino.export.data import DataDirectory
from fairseq_openvino.vocabulary import check_size

EMBEDDING = "decoder.embed_tokens.weight"
FIRST_CONVOLUTION = "encoder.subsample.conv_layers.0.weight"


@dataclass(frozen=True)
class Loaded:
    """An eager model and where it came from."""

    model: Any
    """The Fairseq model, in eval mode."""
    arguments: Any
    """Its model arguments."""
    architecture: str
    """Fairseq's model name, as `s2t_transformer`."""
    data: DataDirectory
    source: dict[str, Any]
    """For the manifest: file name, SHA-256, architecture and overrides of the checkpoint."""


def load(
    checkpoint: Path, data: DataDirectory, overrides: dict[str, Any], known: tuple[str, ...]
) -> Loaded:
    """Load a checkpoint for export.

    Args:
        checkpoint: a `.pt` file.
        data: its data directory.
        overrides: model arguments to replace.
        known: model names that have an exporter; of another model only the name is read.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no Fairseq model.
        ModelError: vocabulary or feature size do not fit the weights.
    """
    try:
        from fairseq import checkpoint_utils
        from fairseq.models import ARCH_MODEL_NAME_REGISTRY
        from fairseq.tasks.speech_to_text import SpeechToTextTask

        from fairseq_openvino.compat import apply_shims
    except ImportError as error:
        raise MissingDependencyError(
            f"Exporting failed: expected torch and fairseq, got {error}. "
            "Install them as the README says (pip install 'fairseq-openvino[fairseq]')."
        ) from error
    apply_shims()
    if not checkpoint.is_file():
        raise CheckpointError(
            f"Loading a checkpoint failed in {str(checkpoint)!r}: expected a file, got none. "
            "Check --path."
        )
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint), overrides)
    arguments = _model_arguments(checkpoint, state)
    name = getattr(arguments, "arch", None) or getattr(arguments, "_name", "")
    architecture = ARCH_MODEL_NAME_REGISTRY.get(name, name)
    source = {
        "checkpoint": checkpoint.name,
        "sha256": sha256(checkpoint),
        "arch": name,
        "overrides": {key: repr(value) for key, value in overrides.items()},
    }
    if architecture not in known:
        return Loaded(None, arguments, architecture, data, source)
    check_fit(state["model"], data)
    task = SpeechToTextTask.setup_task(_task_arguments(data, arguments))
    models, config, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], overrides, task, state=state
    )
    model = models[0].eval()
    return Loaded(model, config.model, architecture, data, source)


def check_fit(weights: dict[str, Any], data: DataDirectory) -> None:
    """Compare V and F of the weights with the data directory.

    Raises:
        ModelError: one of them differs.
    """
    symbols = data.symbols()
    if EMBEDDING in weights:
        check_size(data.dictionary, symbols, weights[EMBEDDING].shape[0])
    if FIRST_CONVOLUTION in weights and weights[FIRST_CONVOLUTION].shape[1] != data.feature_bins:
        raise ModelError(
            f"Loading a checkpoint failed in {data.config_yaml!r}: expected input_feat_per_channel * "
            f"input_channels = {weights[FIRST_CONVOLUTION].shape[1]} as the model has, "
            f"got {data.feature_bins}. Use the configuration the model was trained with."
        )


def _model_arguments(checkpoint: Path, state: dict[str, Any]) -> Any:
    if state.get("args") is not None:
        return state["args"]
    if state.get("cfg") is not None and "model" in state:
        return state["cfg"]["model"]
    raise CheckpointError(
        f"Loading a checkpoint failed in {str(checkpoint)!r}: expected the keys 'model' and 'args' or "
        f"'cfg', got {sorted(state)}. Give a checkpoint written by fairseq-train."
    )


def _task_arguments(data: DataDirectory, arguments: Any) -> Namespace:
    return Namespace(
        task="speech_to_text",
        data=str(data.root),
        config_yaml=data.config_yaml,
        max_source_positions=getattr(arguments, "max_source_positions", 6000),
        max_target_positions=getattr(arguments, "max_target_positions", 1024),
        seed=1,
    )
