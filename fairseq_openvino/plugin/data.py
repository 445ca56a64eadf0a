"""Data directories that lack what Fairseq asks for: lengths, texts, files and packages of tokenizers.

Each function makes the replacement of a method of Fairseq from the method itself, see `plugin.task`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from fairseq_openvino.errors import MissingDependencyError, ModelError, failure
from fairseq_openvino.speech.stored import frame_count

logger = logging.getLogger(__name__)

UNREADABLE_FRAMES = 1000
"""Length of what does not say any, for making batches."""
WITHOUT_TEXTS = "without_texts"
"""Attribute of a task whose manifest has no texts."""


def completing(load: Callable[..., Any]) -> Callable[..., Any]:
    """Fill in lengths that the manifest of an evaluation does not say."""

    @functools.wraps(load)
    def load_dataset(self: Any, split: str, *args: Any, **kwargs: Any) -> None:
        load(self, split, *args, **kwargs)
        dataset = self.datasets[split]
        parts = getattr(dataset, "datasets", [dataset])
        if split.startswith("train"):
            return
        config = self.data_cfg
        rate_hz = config.use_sample_rate if config.use_audio_input else None
        for part in parts:
            part.n_frames = [
                frames or frame_count(path, rate_hz) or UNREADABLE_FRAMES
                for frames, path in zip(part.n_frames, part.audio_paths, strict=True)
            ]
        if not any(text for part in parts for text in part.tgt_texts or ()):
            logger.info(f"{split} has no texts (column tgt_text): nothing is scored")
            setattr(self, WITHOUT_TEXTS, True)

    return load_dataset


def building(build: Callable[..., Any]) -> Callable[..., Any]:
    """A tokenizer or its error in one line, for files of the training machine and missing packages."""

    @functools.wraps(build)
    def build_tokenizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return build(self, *args, **kwargs)
        except Exception as error:  # each of the libraries has its own
            config = self.data_cfg
            stated = {"pre_tokenizer": config.pre_tokenizer, "bpe_tokenizer": config.bpe_tokenizer}
            named = "; ".join(f"{key}: {value}" for key, value in stated.items() if value)
            raise failure(
                MissingDependencyError if isinstance(error, ImportError) else ModelError,
                "Building the tokenizer", "the data configuration", f"what it names ({named})",
                str(error).strip().rstrip("."), "Install it, or put its files beside the YAML",
            ) from error  # fmt: skip

    return build_tokenizer


def unscored(step: Callable[..., Any]) -> Callable[..., Any]:
    """Where there are no texts the target, which holds language tags at most, ends with decoding."""

    @functools.wraps(step)
    def inference_step(
        self: Any, generator: Any, models: Any, sample: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        found = step(self, generator, models, sample, *args, **kwargs)
        if getattr(self, WITHOUT_TEXTS, False):
            sample["target"] = None
        return found

    return inference_step
