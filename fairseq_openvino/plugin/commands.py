"""`fairseq-generate` and `fairseq-interactive` as a user expects them.

Errors are one line with a documented exit code, and a clip that cannot be read or decoded loses
neither the rest of its batch nor that of the corpus.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fairseq_openvino.errors import (
    EXIT_INTERRUPTED,
    EXIT_MODEL,
    EXIT_PARTIAL,
    FairseqOpenVINOError,
    UtteranceTooLongError,
    concerns_one_clip,
)
from fairseq_openvino.speech.audio import damage_collected

logger = logging.getLogger(__name__)

COMMANDS = ("fairseq_cli.generate", "fairseq_cli.interactive")
INTERACTIVE = "interactive"
"""Fairseq's name for the split of what is typed."""

_skipped = multiprocessing.Value("i", 0)  # shared with forked data-loading workers
_damaged = multiprocessing.Value("i", 0)


def _count(counter: Any) -> None:
    with counter.get_lock():
        counter.value += 1


def _skip(index: int, error: Exception) -> None:
    """Report an utterance that failed; raise what concerns the others too."""
    if not concerns_one_clip(error):
        raise error
    if isinstance(error, FairseqOpenVINOError):
        logger.warning(f"skipping utterance {index}: {error}")
    else:
        logger.warning(f"skipping utterance {index}: {type(error).__name__}: {error}")
        logger.debug("it was raised here", exc_info=error)
    _count(_skipped)


def skip_unreadable_audio() -> None:
    """Evaluation batches go on without utterances that cannot be read; damaged ones are counted."""
    from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDataset

    read, collate = SpeechToTextDataset.__getitem__, SpeechToTextDataset.collater

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
            _count(_damaged)
        return item

    @functools.wraps(collate)
    def collate_readable(self: Any, samples: list[Any], *args: Any, **kwargs: Any) -> Any:
        readable = [sample for sample in samples if sample is not None]
        return collate(self, readable, *args, **kwargs)

    SpeechToTextDataset.__getitem__ = read_or_skip
    SpeechToTextDataset.collater = collate_readable


def skip_what_cannot_be_decoded() -> None:
    """A batch that fails is decoded in halves, down to the utterances at fault."""
    from fairseq.tasks.speech_to_text import SpeechToTextTask

    step = SpeechToTextTask.inference_step

    @functools.wraps(step)
    def step_or_skip(
        self: Any, generator: Any, models: Any, sample: dict[str, Any], prefix_tokens: Any = None,
        constraints: Any = None,
    ) -> list[Any]:  # fmt: skip
        count = len(sample["net_input"]["src_lengths"])

        def decode(rows: list[int]) -> list[Any]:
            part, prefix, bounds = (
                _rows(each, rows, count) for each in (sample, prefix_tokens, constraints)
            )
            try:
                return [*step(self, generator, models, part, prefix, bounds)]
            except Exception as error:
                if len(rows) == 1 or not concerns_one_clip(error):
                    _skip(int(sample["id"][rows[0]]) if "id" in sample else rows[0], error)
                    return [None]
            half = len(rows) // 2
            return decode(rows[:half]) + decode(rows[half:])

        found = decode(list(range(count)))
        kept = [i for i, hypotheses in enumerate(found) if hypotheses is not None]
        if "id" not in sample:  # fairseq-interactive, which prints as many lines as there are
            return [hypotheses or [] for hypotheses in found]
        if len(kept) < count:
            sample.update(_rows(sample, kept, count), nsentences=len(kept))
        return [found[i] for i in kept]

    SpeechToTextTask.inference_step = step_or_skip


def _rows(content: Any, rows: list[int], count: int) -> Any:
    """Some utterances of a collated batch of `count`; tensors keep their padding."""
    if isinstance(content, dict):
        return {key: _rows(value, rows, count) for key, value in content.items()}
    is_batch = isinstance(content, torch.Tensor) and content.dim() and len(content) == count
    return content[rows] if is_batch and len(rows) < count else content


def skip_bad_inputs() -> None:
    """`fairseq-interactive` goes on after a file that cannot be read.

    Fairseq reads every file of a buffer for its length first; 0 now marks those to leave out.
    """
    from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDataset
    from fairseq.tasks.speech_to_text import SpeechToTextTask

    order = SpeechToTextDataset.ordered_indices

    @functools.wraps(order)
    def order_readable(self: Any) -> Any:
        indices = order(self)
        is_typed = self.split == INTERACTIVE
        return indices[np.asarray(self.n_frames)[indices] > 0] if is_typed else indices

    def tokens_and_lengths(
        self: Any, lines: list[str], encode_fn: Any
    ) -> tuple[list[str], list[int]]:
        """The lines, and the frames of each or 0."""
        dataset = self.build_dataset_for_inference(lines, [1] * len(lines))
        dataset.split = "lengths"  # what is wrong is counted here, and not when it is read again
        return lines, [
            _readable_frames(dataset, i, self.max_positions()[0]) for i in range(len(lines))
        ]

    SpeechToTextDataset.ordered_indices = order_readable
    SpeechToTextTask.get_interactive_tokens_and_lengths = tokens_and_lengths


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


def guard_commands() -> None:
    """Wrap the `main` of the Fairseq command that is running."""
    for name in (*COMMANDS, "__main__"):
        command: Any = sys.modules.get(name)
        if hasattr(command, "main") and hasattr(command, "cli_main"):
            command.main = _guarded(command.main)


def _guarded(main: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        result = None
        try:
            result = main(*args, **kwargs)
        except FairseqOpenVINOError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except FileNotFoundError as error:  # Fairseq's, of its data directory
            print(f"error: {error}. Check the data directory and the paths.", file=sys.stderr)
            sys.exit(EXIT_MODEL)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        except ZeroDivisionError:  # Fairseq divides by the time of zero batches
            if not _skipped.value:
                raise
        for counter, what in ((_skipped, "skipped"), (_damaged, "damaged")):
            if counter.value:
                print(f"error: {counter.value} utterances were {what} (see above)", file=sys.stderr)
        if _skipped.value or _damaged.value:
            sys.exit(EXIT_PARTIAL)
        return result

    return run
