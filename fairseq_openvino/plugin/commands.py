"""`fairseq-generate` and `fairseq-interactive` end as a user expects: one line and an exit code."""

from __future__ import annotations

import functools
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from fairseq_openvino.errors import (
    EXIT_INTERRUPTED,
    EXIT_MODEL,
    EXIT_PARTIAL,
    FairseqOpenVINOError,
)
from fairseq_openvino.flags import spelled
from fairseq_openvino.plugin.flags import PREFIX, add_engine_flags
from fairseq_openvino.plugin.resume import resuming
from fairseq_openvino.plugin.skipping import damaged, skipped

COMMANDS = ("fairseq_cli.generate", "fairseq_cli.interactive")


def guard() -> None:
    """Wrap the `main` of the Fairseq command that is running."""
    for name in (*COMMANDS, "__main__"):
        command: Any = sys.modules.get(name)
        if hasattr(command, "main") and hasattr(command, "cli_main"):
            command.main = guarded(command.main)


def guarded(main: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose errors are one line, and which says at its end what was skipped."""
    parser = ArgumentParser(add_help=False)
    add_engine_flags(parser)

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        result = None
        try:
            with resuming(args[0] if args else None):
                result = main(*args, **kwargs)
        except FairseqOpenVINOError as error:
            print(f"error: {spelled(error, parser, PREFIX)}", file=sys.stderr)
            sys.exit(error.exit_code)
        except FileNotFoundError as error:  # Fairseq's, of its data directory
            print(f"error: {error}. Check the data directory and the paths.", file=sys.stderr)
            sys.exit(EXIT_MODEL)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        except ZeroDivisionError:  # Fairseq divides by the time of zero batches
            if not skipped.value:
                raise
        for counter, what in ((skipped, "skipped"), (damaged, "damaged")):
            if counter.value:
                print(f"error: {counter.value} utterances were {what} (see above)", file=sys.stderr)
        if skipped.value or damaged.value:
            sys.exit(EXIT_PARTIAL)
        return result

    return run
