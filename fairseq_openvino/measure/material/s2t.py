"""Fairseq S2T checkpoints with random weights, and data directories of random features."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

FEATURE_BINS = 80
SPECIAL_SYMBOLS = 4
"""bos, pad, eos, unk: every dictionary begins with them."""
SHARPNESS = 4.0
"""Untrained output layers are nearly flat, and a flat search would compare rounding errors."""
WORDS_FROM, WORDS_TO = 3, 8
"""Length of a random reference."""


def random_model(
    arch: str,
    vocabulary: int = 60,
    seed: int = 0,
    sharpness: float = SHARPNESS,
    **overrides: Any,
) -> tuple[Any, Namespace, Any]:
    """A model with random weights, as Fairseq builds it.

    Args:
        arch: of Fairseq's registry, as `s2t_transformer_s`.
        vocabulary: V, special symbols included.
        seed: of the weights.
        sharpness: factor of the output layer's weights.
        overrides: model arguments.

    Returns:
        The model in eval mode, its arguments, and its dictionary.
    """
    import torch
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    torch.manual_seed(seed)
    dictionary = Dictionary()
    for i in range(vocabulary - SPECIAL_SYMBOLS):
        dictionary.add_symbol(f"t{i}")
    stated = {
        "arch": arch, "task": "speech_to_text", "max_source_positions": 6000,
        "max_target_positions": 1024, "input_feat_per_channel": FEATURE_BINS, "input_channels": 1,
    }  # fmt: skip
    arguments = Namespace(**(stated | overrides))
    ARCH_CONFIG_REGISTRY[arch](arguments)
    task = Namespace(target_dictionary=dictionary, multitask_tasks={})
    model = ARCH_MODEL_REGISTRY[arch].build_model(arguments, task)
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(sharpness)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):  # untrained it does nothing
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return model.eval(), arguments, dictionary


def write_checkpoint(
    directory: Path, arch: str, name: str = "checkpoint.pt", **options: Any
) -> Path:
    """A checkpoint as fairseq-train writes it (legacy `args`), with dictionary and YAML.

    Args:
        directory: an existing directory.
        arch: as for `random_model`.
        name: of the file.
        options: as for `random_model`.

    Returns:
        The checkpoint's path.
    """
    import torch

    model, arguments, dictionary = random_model(arch, **options)
    dictionary.save(str(directory / "dict.txt"))
    (directory / "config.yaml").write_text(
        f"vocab_filename: dict.txt\ninput_feat_per_channel: {FEATURE_BINS}\ninput_channels: 1\n"
    )
    arguments.data, arguments.config_yaml = str(directory), "config.yaml"
    history = {"criterion_name": "x", "optimizer_name": "y", "lr_scheduler_state": {}}
    state = {
        "args": arguments,
        "model": model.state_dict(),
        "optimizer_history": [history | {"num_updates": 1}],
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
    }
    torch.save(state, directory / name)
    return directory / name


def write_data(
    directory: Path, utterances: int, frames: tuple[int, int], subset: str = "test", seed: int = 0
) -> Path:
    """A manifest of random features with random references from the dictionary.

    Args:
        directory: a data directory as `write_checkpoint` makes it.
        utterances: rows of the manifest.
        frames: least and most frames (T) of an utterance, 10 ms each.
        subset: name of the manifest.
        seed: of features, lengths and references.

    Returns:
        The manifest's path.
    """
    random = np.random.default_rng(seed)
    (directory / "features").mkdir(exist_ok=True)
    rows = ["id\taudio\tn_frames\ttgt_text\tspeaker"]
    for i in range(utterances):
        length = int(random.integers(frames[0], frames[1] + 1))
        path = directory / "features" / f"{subset}-{i}.npy"
        np.save(path, random.standard_normal((length, FEATURE_BINS)).astype(np.float32))
        words = random.integers(0, 40, random.integers(WORDS_FROM, WORDS_TO + 1))
        text = " ".join(f"t{word}" for word in words)
        rows.append(f"{subset}{i}\t{path}\t{length}\t{text}\tspeaker")
    manifest = directory / f"{subset}.tsv"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest
