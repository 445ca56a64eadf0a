"""The exception tree and the process exit codes.

Every message follows one grammar: `<what failed> in <where>: expected <X>, got <Y>. <What to do>.`
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

EXIT_OK = 0
"""Everything asked for was done."""
EXIT_PARTIAL = 1
"""The run ended, but some utterances failed or a comparison did not hold (they are listed)."""
EXIT_USAGE = 2
"""The command line is wrong; nothing was done."""
EXIT_MODEL = 3
"""A checkpoint, bundle, vocabulary or feature configuration is missing, damaged or does not fit."""
EXIT_UNSAFE = 4
"""The input was refused because loading it could run code."""
EXIT_ENVIRONMENT = 5
"""A dependency, a device, a permission or disk space is missing."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C."""
EXIT_BROKEN_PIPE = 141
"""The reader of the output has gone; what a shell shows for a program that SIGPIPE ended."""


class FairseqOpenVINOError(Exception):
    """Base of every error this package raises on purpose; `exit_code` is what the CLI returns."""

    exit_code = EXIT_PARTIAL


class OptionError(FairseqOpenVINOError, ValueError):
    """Options contradict each other or cannot work with this engine: change the named one."""

    exit_code = EXIT_USAGE

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        """The option, where the message says ` in <field>:`; a command prints its own flag instead."""


class AudioError(FairseqOpenVINOError):
    """One audio file cannot be used: repair, convert or drop that file."""


class UtteranceTooLongError(AudioError):
    """An utterance exceeds the positions the model was trained with: split it."""


class NumericsError(FairseqOpenVINOError):
    """The model produced NaN: check the named utterances, the precision and the weights."""

    def __init__(self, message: str, indices: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.indices = indices
        """Rows of the decoder, or utterances of the batch once the search has mapped them."""


class DeadlineError(FairseqOpenVINOError):
    """Decoding was not finished in the time allowed: allow more, or decode less at a time."""


class BatchError(FairseqOpenVINOError):
    """Some clips of a batch failed; `results` has the transcripts of the others."""

    def __init__(self, message: str, results: tuple[Any, ...]) -> None:
        super().__init__(message)
        self.results = results
        """In the order given: a `Transcript`, or the error of the clip that failed."""


class ModelError(FairseqOpenVINOError):
    """Model, vocabulary and feature configuration do not fit together: check the named file."""

    exit_code = EXIT_MODEL


class CheckpointError(ModelError):
    """A checkpoint file is missing, truncated or not a Fairseq checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint contains globals outside the allow-list; loading it could run code."""

    exit_code = EXIT_UNSAFE


class ArchitectureError(ModelError):
    """The checkpoint's architecture has no exporter."""


class BundleError(ModelError):
    """A bundle directory is missing, incomplete, damaged or of another format version."""


class ParityError(ModelError):
    """An exported graph does not compute what the torch model computes; nothing was published."""


class QualityError(FairseqOpenVINOError):
    """A quantized bundle is worse than allowed, or the texts are too few to tell; nothing was published.

    `trials` says what was tried.
    """

    def __init__(self, message: str, trials: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.trials = trials
        """`quantize.gate.Trial`, in order."""


class MissingDependencyError(FairseqOpenVINOError, ImportError):
    """An optional package is missing: install the named extra."""

    exit_code = EXIT_ENVIRONMENT


class DeviceError(FairseqOpenVINOError):
    """OpenVINO cannot compile for the requested device."""

    exit_code = EXIT_ENVIRONMENT


class StorageError(FairseqOpenVINOError, OSError):
    """Files could not be written or read: check permission and free space of the named directory."""

    exit_code = EXIT_ENVIRONMENT


NO_MEMORY = ("bad allocation", "bad_alloc", "annot allocate memory", "an't allocate memory")
"""Of OpenVINO and onnxruntime, of the C++ library, of the system, and of torch."""
Failure = TypeVar("Failure", bound=FairseqOpenVINOError)


def failure(
    kind: type[Failure], action: str, where: object, expected: str, got: object, advice: str
) -> Failure:
    """An error whose message follows the grammar; `where` is a name, or a path to be quoted."""
    place = repr(str(where)) if isinstance(where, os.PathLike) else where
    return kind(f"{action} failed in {place}: expected {expected}, got {got}. {advice}.")


def invalid(
    action: str, field: str, expected: str, got: object, advice: str = "Correct it"
) -> OptionError:
    """The error of an option with a value it cannot have."""
    error = failure(OptionError, action, field, expected, got, advice)
    error.field = field
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused, to Python or to native code, whose words are known."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def concerns_one_clip(error: Exception) -> bool:
    """Whether other clips can still succeed: not where model, options or machine are at fault."""
    if is_out_of_memory(error):
        return False
    return not isinstance(error, FairseqOpenVINOError) or error.exit_code == EXIT_PARTIAL


def named(error: Exception, clip: str) -> FairseqOpenVINOError:
    """The error of a clip with the clip's name; one that is not ours with its type."""
    if isinstance(error, FairseqOpenVINOError):
        is_named = clip in str(error) or repr(clip)[1:-1] in str(error)
        return error if is_named else type(error)(f"{clip}: {error}")
    return FairseqOpenVINOError(
        f"Transcribing failed in {clip!r}: expected a transcript, got {type(error).__name__}: "
        f"{str(error).strip().rstrip('.')}. Other clips are not affected; please report it."
    )
