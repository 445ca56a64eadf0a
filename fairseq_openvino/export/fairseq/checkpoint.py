"""Fairseq checkpoints to eager Fairseq models, with the mistakes named before Fairseq trips."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from fairseq_openvino.atomic import sha256
from fairseq_openvino.errors import (
    ArchitectureError,
    CheckpointError,
    MissingDependencyError,
    ModelError,
    UnsafeCheckpointError,
    failure,
)
from fairseq_openvino.export.fairseq.architecture import Architecture
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.export.fairseq.task import TASKS, Data, data_of
from fairseq_openvino.export.fairseq.text import TextDirectory
from fairseq_openvino.s2t.vocabulary import check_size, load_dictionary

logger = logging.getLogger(__name__)

_fail = partial(
    failure, CheckpointError, "Loading a checkpoint",
    advice="Give a checkpoint written by fairseq-train, or correct its arguments with --model-overrides of "
    "export or fairseq-generate",
)  # fmt: skip

VOCABULARY = ("decoder.embed_tokens.weight", "w2v_encoder.proj.weight")
"""Weights with a row for each symbol, of models that decode and of `wav2vec_ctc`."""
SOURCE_EMBEDDING = "encoder.embed_tokens.weight"
MAX_NAMES_IN_MESSAGE = 5
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of the names in DistributedDataParallel and torch.compile."""
PRETRAINING = ("load_pretrained_encoder_from", "load_pretrained_decoder_from")
"""Model arguments that name files of weights to begin training with."""
FIRST_CONVOLUTION = "encoder.subsample.conv_layers.0.weight"
JOINT = "dualinputs2ttransformer"
"""Begins the architectures of `JOINT_MODELS`, which Fairseq itself imports for its --user-dir only."""
JOINT_MODELS = "fairseq.examples.speech_text_joint_to_text.models.s2t_dualinputtransformer"
AUXILIARY = "_decoder"
"""Ends the names of what --multitask-config-yaml adds to a model (xm_transformer.py:build_model)."""
TWO_PASSES = {"unity_xm_transformer", "unity_conformer"}
"""Models whose second decoder reads what a first one wrote."""


@dataclass(frozen=True)
class Loaded:
    """An eager model and where it came from."""

    model: Any
    """The Fairseq model, in eval mode."""
    arguments: Any
    """Its model arguments."""
    architecture: str
    """Fairseq's model name, as `s2t_transformer`."""
    data: Data
    source: dict[str, Any]
    """For the manifest: file name, SHA-256, architecture and overrides of the checkpoint."""


def load(
    checkpoint: Path,
    data: Data,
    overrides: dict[str, Any],
    known: Mapping[str, Architecture],
) -> Loaded:
    """Load a checkpoint for export.

    Of the file only weights and model arguments count: training state, task, criterion and optimizer
    may be missing or unknown here.

    Args:
        checkpoint: a `.pt` file.
        data: its data directory.
        overrides: model arguments to replace.
        known: by the model names that are accepted.

    Raises:
        CheckpointError: the file is missing, damaged, or its weights and arguments make no model.
        UnsafeCheckpointError: file or arguments would run code.
        ArchitectureError: the model is of another name; nothing else is looked at.
        ModelError: vocabulary or feature size do not fit the weights.
    """
    try:
        import fairseq.models  # noqa: F401

        from fairseq_openvino.checkpoint import load_checkpoint
        from fairseq_openvino.compat.shims import apply_shims
    except ImportError as error:
        raise MissingDependencyError(
            f"Exporting failed: expected torch and fairseq, got {error}. "
            "Install them as the README says (pip install 'fairseq-openvino[fairseq]')."
        ) from error
    apply_shims()
    state = load_checkpoint(checkpoint)
    arguments = _model_arguments(checkpoint, state, overrides)
    name = str(getattr(arguments, "_name", None) or getattr(arguments, "arch", ""))
    architecture = _architecture(name, known)
    arguments = known[architecture].complete(arguments)
    source = {
        "checkpoint": checkpoint.name,
        "sha256": sha256(checkpoint),
        "arch": name,
        "overrides": {key: repr(value) for key, value in overrides.items()},
    }
    weights = _weights(checkpoint, state["model"])
    task = known[architecture].task
    data = data_of(task, data, arguments)
    check_fit(weights, data)
    model = _build(checkpoint, data, arguments, name, TASKS[task])
    _load_weights(checkpoint, model, _without_auxiliary(checkpoint, weights, model), arguments)
    return Loaded(model.eval(), arguments, architecture, data, source)


def _architecture(name: str, known: Mapping[str, Architecture]) -> str:
    """Fairseq's model name of an architecture.

    Raises:
        ArchitectureError: it is none of those that are accepted.
    """
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY

    if name not in ARCH_MODEL_NAME_REGISTRY and name.startswith(JOINT):
        import_module(JOINT_MODELS)  # which registers them
    architecture: str = ARCH_MODEL_NAME_REGISTRY.get(name, name)
    if architecture in TWO_PASSES:
        raise ArchitectureError(
            f"Exporting failed: expected a model with one decoder, got {name!r}, whose second decoder reads "
            "the text that its first one found, each by a search of its own. Generate with Fairseq itself."
        )
    if architecture not in known:
        raise ArchitectureError(
            f"Exporting failed: expected one of the architectures {', '.join(known)} (all sizes), "
            f"got {name!r}. Generate with Fairseq itself."
        )
    return architecture


def _model_arguments(
    checkpoint: Path, state: dict[str, Any], overrides: dict[str, Any]
) -> Namespace:
    """Of `args` (legacy) or `cfg.model`, as a copy; overrides that name the architecture can do alone."""
    stored = _mapping(state.get("args"))
    if stored is None:
        groups = _mapping(state.get("cfg"))
        stored = _mapping(groups.get("model")) if isinstance(groups, dict) else None
    values = {} if stored is None else stored
    if not isinstance(values, dict) or not {"arch", "_name"} & {*values, *overrides}:
        got = type(values).__name__ if not isinstance(values, dict) else "arguments without it"
        raise failure(
            CheckpointError, "Loading a checkpoint", checkpoint,
            "model arguments with 'arch' as 'args' or 'cfg.model'",
            f"{'none' if stored is None else got} and the keys {sorted(map(str, state))}",
            "State it, and what differs from its defaults, to export or fairseq-generate with "
            "--model-overrides \"{'arch': 's2t_transformer_s'}\"",
        )  # fmt: skip
    if "arch" in overrides:
        values = {key: value for key, value in values.items() if key != "_name"}
    return Namespace(**{str(key): value for key, value in (values | overrides).items()})


def _mapping(stored: Any) -> Any:
    """A configuration of any of Fairseq's kinds as a dictionary."""
    from omegaconf import DictConfig, OmegaConf

    if isinstance(stored, DictConfig):
        return OmegaConf.to_container(stored)
    return vars(stored) if isinstance(stored, Namespace) else stored


def _weights(checkpoint: Path, stored: Any) -> dict[str, Any]:
    """Weights by the name they have in the model, without those of wrappers around it."""
    if not isinstance(stored, dict):
        raise _fail(checkpoint, "weights by name as 'model'", type(stored).__name__)
    weights = {str(name): value for name, value in stored.items()}
    while weights and (wrapper := os.path.commonprefix([*weights])).startswith(WRAPPERS):
        prefix = next(each for each in WRAPPERS if wrapper.startswith(each))
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _build(
    checkpoint: Path,
    data: Data,
    arguments: Namespace,
    name: str,
    setup: Callable[[Any, Namespace], Any],
) -> Any:
    """The model without its weights, as Fairseq's task builds it; what it was trained from is not read."""
    from fairseq.dataclass.utils import _set_legacy_defaults
    from fairseq.models import ARCH_MODEL_REGISTRY

    _set_legacy_defaults(arguments, ARCH_MODEL_REGISTRY[name])
    vars(arguments).update(dict.fromkeys(PRETRAINING))
    try:
        return setup(data, arguments).build_model(arguments, from_checkpoint=True)
    except UnsafeCheckpointError:
        raise
    except Exception as error:  # a model may trip over its arguments anywhere
        got = f"{type(error).__name__}: {error}"
        raise _fail(checkpoint, f"model arguments that build {name}", got) from error


def _without_auxiliary(checkpoint: Path, weights: dict[str, Any], model: Any) -> dict[str, Any]:
    """Weights without the decoders that a model has for multitask training alone."""
    modules = {name.partition(".")[0] for name in weights}
    known = {name for name, _ in model.named_children()}
    auxiliary = sorted(name for name in modules - known if name.endswith(AUXILIARY))
    if auxiliary:
        names = ", ".join(name.removesuffix(AUXILIARY) for name in auxiliary)
        logger.warning(f"{checkpoint.name}: auxiliary decoders of training are left out: {names}")
    return {
        name: value for name, value in weights.items() if name.partition(".")[0] not in auxiliary
    }


def _load_weights(
    checkpoint: Path, model: Any, weights: dict[str, Any], arguments: Namespace
) -> None:
    try:
        model.load_state_dict(weights, strict=True, model_cfg=arguments)
    except Exception as error:
        wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        found = {key: tuple(getattr(value, "shape", ())) for key, value in weights.items()}
        sizes = sorted(key for key in wanted.keys() & found.keys() if wanted[key] != found[key])
        differences = {
            "without": sorted(wanted.keys() - found.keys()),
            "with": sorted(found.keys() - wanted.keys()),
            "with other sizes of": [f"{key} {found[key]} for {wanted[key]}" for key in sizes],
        }
        got = "; ".join(f"{how} {_first(keys)}" for how, keys in differences.items() if keys)
        raise _fail(checkpoint, "the weights of its model arguments", got or str(error)) from error


def _first(names: list[str]) -> str:
    more = len(names) - MAX_NAMES_IN_MESSAGE
    listed = ", ".join(names[:MAX_NAMES_IN_MESSAGE])
    return f"{listed} and {more} more" if more > 0 else listed


def check_fit(weights: dict[str, Any], data: Data) -> None:
    """Compare V and F of the weights, or V of the source, with the data directory.

    Raises:
        ModelError: one of them differs.
    """
    symbols = data.symbols()
    for name in VOCABULARY:
        if name in weights:
            check_size(data.dictionary, symbols, weights[name].shape[0])
    if isinstance(data, TextDirectory):
        symbols, wanted = load_dictionary(data.source_dictionary), weights.get(SOURCE_EMBEDDING)
        check_size(data.source_dictionary, symbols, len(symbols if wanted is None else wanted))
    if not isinstance(data, DataDirectory) or FIRST_CONVOLUTION not in weights:
        return
    if weights[FIRST_CONVOLUTION].shape[1] != data.feature_bins:
        raise ModelError(
            f"Loading a checkpoint failed in {data.path.name!r}: expected input_feat_per_channel * "
            f"input_channels = {weights[FIRST_CONVOLUTION].shape[1]} as the model has, "
            f"got {'use_audio_input: true' if data.config.use_audio_input else data.feature_bins}. "
            "Use the configuration the model was trained with."
        )
