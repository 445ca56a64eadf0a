"""Fairseq text models with random weights, and binarized data of random sentences."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino.measure.material.corpora import SPECIAL_SYMBOLS
from fairseq_openvino.measure.material.s2t import SHARPNESS

SOURCE, TARGET = "en", "de"
CHECKPOINT = "checkpoint.pt"


def write_checkpoint(
    directory: Path,
    arch: str = "transformer",
    vocabularies: tuple[int, int] = (50, 60),
    sharpness: float = SHARPNESS,
    **overrides: Any,
) -> Path:
    """A checkpoint as fairseq-train writes it (legacy `args`), with its two dictionaries.

    Args:
        directory: an existing directory.
        arch: of Fairseq's registry.
        vocabularies: V of source and target, special symbols included.
        sharpness: factor of the output layer's weights, and of embeddings that share them.
        overrides: model arguments.

    Returns:
        The checkpoint's path.
    """
    import torch
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    torch.manual_seed(0)
    dictionaries = []
    for language, size in zip((SOURCE, TARGET), vocabularies, strict=True):
        dictionary = Dictionary()
        for i in range(size - SPECIAL_SYMBOLS):
            dictionary.add_symbol(f"t{i}")
        dictionary.save(str(directory / f"dict.{language}.txt"))
        dictionaries.append(dictionary)
    positions = {"max_source_positions": 1024, "max_target_positions": 1024}
    arguments = Namespace(
        arch=arch, task="translation", source_lang=SOURCE, target_lang=TARGET, data=str(directory),
        **positions | overrides,
    )  # fmt: skip
    ARCH_CONFIG_REGISTRY[arch](arguments)
    task = Namespace(source_dictionary=dictionaries[0], target_dictionary=dictionaries[1])
    model = ARCH_MODEL_REGISTRY[arch].build_model(arguments, task)
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(sharpness)
    history = {"criterion_name": "x", "optimizer_name": "y", "lr_scheduler_state": {}}
    state = {
        "args": arguments,
        "model": model.state_dict(),
        "optimizer_history": [history | {"num_updates": 1}],
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
    }
    torch.save(state, directory / CHECKPOINT)
    return directory / CHECKPOINT


def random_sentences(count: int, tokens: tuple[int, int], vocabulary: int) -> list[str]:
    """Sentences of the symbols of a dictionary, of least and most so many."""
    random = np.random.default_rng(0)
    lengths = random.integers(tokens[0], tokens[1] + 1, count)
    return [
        " ".join(f"t{i}" for i in random.integers(0, vocabulary - SPECIAL_SYMBOLS, length))
        for length in lengths
    ]


def write_data(
    directory: Path, source: Sequence[str], target: Sequence[str], subset: str = "test"
) -> None:
    """Binarize sentences, as fairseq-preprocess does, beside their dictionaries."""
    from fairseq.data import Dictionary, indexed_dataset

    for language, lines in ((SOURCE, source), (TARGET, target)):
        dictionary = Dictionary.load(str(directory / f"dict.{language}.txt"))
        stem = directory / f"{subset}.{SOURCE}-{TARGET}.{language}"
        builder = indexed_dataset.make_builder(f"{stem}.bin", "mmap", vocab_size=len(dictionary))
        for line in lines:
            builder.add_item(dictionary.encode_line(line, add_if_not_exist=False))
        builder.finalize(f"{stem}.idx")
