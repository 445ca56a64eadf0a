"""A clip that cannot be read or decoded loses neither the rest of its batch nor that of the corpus.

Each function makes the replacement of a method of Fairseq from the method itself, see `plugin.task`.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fairseq_openvino.errors import (
    FairseqOpenVINOError,
    UtteranceTooLongError,
    concerns_one_clip,
)
from fairseq_openvino.plugin import resume
from fairseq_openvino.speech.audio import damage_collected

logger = logging.getLogger(__name__)

INTERACTIVE = "interactive"
"""Fairseq's name for the split of what is typed."""

skipped = multiprocessing.Value("i", 0)  # shared with forked data-loading workers
damaged = multiprocessing.Value("i", 0)


def reading(read: Callable[..., Any]) -> Callable[..., Any]:
    """An utterance of an evaluation that cannot be read is None; damaged ones are counted."""

    @functools.wraps(read)
    def read_or_skip(self: Any, index: int) -> Any:
        with damage_collected() as damage:
            try:
                item = read(self, index)
            except Exception as error:
                if self.is_train_split:
                    raise
                _skip(index, error)
                return None
        if damage and self.split != INTERACTIVE:
            _count(damaged)
        return item

    return read_or_skip


def collating(collate: Callable[..., Any]) -> Callable[..., Any]:
    """Batches of what could be read."""

    @functools.wraps(collate)
    def collate_readable(self: Any, samples: list[Any], *args: Any, **kwargs: Any) -> Any:
        readable = [sample for sample in samples if sample is not None]
        return collate(self, readable, *args, **kwargs)

    return collate_readable


def decoding(step: Callable[..., Any]) -> Callable[..., Any]:
    """A batch that fails is decoded in halves, down to the utterances at fault."""

    @functools.wraps(step)
    def step_or_skip(
        self: Any, generator: Any, models: Any, sample: dict[str, Any], prefix_tokens: Any = None,
        constraints: Any = None,
    ) -> list[Any]:  # fmt: skip
        count = len(sample["net_input"]["src_lengths"])

        def decode(rows: list[int]) -> resume.Found:
            part, prefix, bounds = (
                _rows(each, rows, count) for each in (sample, prefix_tokens, constraints)
            )
            try:
                return [*step(self, generator, models, part, prefix, bounds)]
            except Exception as error:
                if not concerns_one_clip(error):
                    raise
                if len(rows) == 1:
                    return [_reason(error)]
            half = len(rows) // 2
            return decode(rows[:half]) + decode(rows[half:])

        found = resume.kept(sample, lambda: decode(list(range(count))))
        kept = [i for i, hypotheses in enumerate(found) if not isinstance(hypotheses, str)]
        for i, reason in enumerate(found):
            if isinstance(reason, str):
                _tell(int(sample["id"][i]) if "id" in sample else i, reason)
        if "id" not in sample:  # fairseq-interactive, which prints as many lines as there are
            return [[] if isinstance(each, str) else each for each in found]
        if len(kept) < count:
            sample.update(_rows(sample, kept, count), nsentences=len(kept))
        return [found[i] for i in kept]

    return step_or_skip


def ordering(order: Callable[..., Any]) -> Callable[..., Any]:
    """Without what `measuring` found unreadable."""

    @functools.wraps(order)
    def order_readable(self: Any) -> Any:
        indices = order(self)
        is_typed = self.split == INTERACTIVE
        return indices[np.asarray(self.n_frames)[indices] > 0] if is_typed else indices

    return order_readable


def measuring(_: Callable[..., Any]) -> Callable[..., Any]:
    """`fairseq-interactive` reads every file of a buffer for its length first; 0 marks a bad one."""

    def tokens_and_lengths(
        self: Any, lines: list[str], encode_fn: Any
    ) -> tuple[list[str], list[int]]:
        dataset = self.build_dataset_for_inference(lines, [1] * len(lines))
        dataset.split = "lengths"  # what is wrong is counted here, and not when it is read again
        limit = self.max_positions()[0]
        return lines, [_readable_frames(dataset, i, limit) for i in range(len(lines))]

    return tokens_and_lengths


def _readable_frames(dataset: Any, index: int, limit: int) -> int:
    item = dataset[index]
    if item is None or len(item.source) <= limit:
        return 0 if item is None else len(item.source)
    path = dataset.audio_paths[index]
    error = UtteranceTooLongError(
        f"Reading speech failed in {path!r}: expected at most {limit} frames "
        f"(--max-source-positions), got {len(item.source)}. Split the audio."
    )
    _skip(index, error)
    return 0


def _rows(content: Any, rows: list[int], count: int) -> Any:
    """Some utterances of a collated batch of `count`; tensors keep their padding."""
    if isinstance(content, dict):
        return {key: _rows(value, rows, count) for key, value in content.items()}
    is_batch = isinstance(content, torch.Tensor) and content.dim() and len(content) == count
    return content[rows] if is_batch and len(rows) < count else content


def _skip(index: int, error: Exception) -> None:
    """Report an utterance that failed; raise what concerns the others too."""
    if not concerns_one_clip(error):
        raise error
    _tell(index, _reason(error))


def _reason(error: Exception) -> str:
    """In words."""
    if isinstance(error, FairseqOpenVINOError):
        return str(error)
    logger.debug("an utterance is skipped for this", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _tell(index: int, reason: str) -> None:
    logger.warning(f"skipping utterance {index}: {reason}")
    _count(skipped)


def _count(counter: Any) -> None:
    with counter.get_lock():
        counter.value += 1
