"""`fairseq-generate` and `fairseq-interactive` as a user expects them.

Errors are one line with a documented exit code, and one unreadable clip does not lose the rest of
the corpus.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

from fairseq_openvino.errors import (
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    AudioError,
    FairseqOpenVINOError,
)

logger = logging.getLogger(__name__)

COMMANDS = ("fairseq_cli.generate", "fairseq_cli.interactive")

_skipped = multiprocessing.Value("i", 0)  # shared with forked data-loading workers


def skip_unreadable_audio() -> None:
    """Evaluation batches go on without utterances whose audio cannot be read."""
    from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDataset

    read, collate = SpeechToTextDataset.__getitem__, SpeechToTextDataset.collater

    @functools.wraps(read)
    def read_or_skip(self: Any, index: int) -> Any:
        try:
            return read(self, index)
        except AudioError as error:
            if self.is_train_split:
                raise
            logger.warning(f"skipping utterance {index}: {error}")
            with _skipped.get_lock():
                _skipped.value += 1
            return None

    @functools.wraps(collate)
    def collate_readable(self: Any, samples: list[Any], *args: Any, **kwargs: Any) -> Any:
        readable = [sample for sample in samples if sample is not None]
        return collate(self, readable, *args, **kwargs)

    SpeechToTextDataset.__getitem__ = read_or_skip
    SpeechToTextDataset.collater = collate_readable


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
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        except ZeroDivisionError:  # Fairseq divides by the time of zero batches
            if not _skipped.value:
                raise
        if _skipped.value:
            print(f"error: {_skipped.value} utterances were skipped (see above)", file=sys.stderr)
            sys.exit(EXIT_PARTIAL)
        return result

    return run
