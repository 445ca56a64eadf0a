"""`fairseq-openvino COMMAND`: one of `COMMANDS`.

Exit codes: 0 done; 1 done, but some utterances failed or a comparison did not hold; 2 wrong usage;
3 model, bundle or data damaged or not fitting; 4 unsafe input refused; 5 dependency, device,
permission or disk space missing; 130 interrupted; 141 whoever read the output stopped, as `head` does.
Output is UTF-8 whatever the locale says.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from fairseq_openvino import __version__
from fairseq_openvino.commands import (
    average_checkpoints,
    benchmark,
    cache,
    detect_language,
    doctor,
    evaluate,
    export,
    info,
    job,
    quantize,
    serve,
    transcribe,
    translate,
    verify,
    verify_bundle,
)
from fairseq_openvino.commands.outputs import abandon_stdout
from fairseq_openvino.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    FairseqOpenVINOError,
    is_out_of_memory,
)
from fairseq_openvino.flags import spelled

COMMANDS = {
    "average-checkpoints": (average_checkpoints, "mean of Fairseq checkpoints, as a checkpoint"),
    "export": (export, "checkpoint to bundle"),
    "verify": (verify, "fairseq-generate twice: eager and --ov-engine, compared"),
    "verify-bundle": (verify_bundle, "a bundle: intact, as expected, right on a device"),
    "info": (info, "what a bundle is, and what it was made from"),
    "transcribe": (transcribe, "audio files to text"),
    "job": (job, "how far a long job of transcribe is"),
    "serve": (serve, "transcription over HTTP, as OpenAI's audio API"),
    "translate": (translate, "lines of text to lines of text"),
    "detect-language": (detect_language, "which language is spoken"),
    "quantize": (quantize, "smaller and faster, gated"),
    "evaluate": (evaluate, "accuracy and time on a corpus"),
    "benchmark": (benchmark, "against every alternative"),
    "cache": (cache, "bundles and compiled models that are kept"),
    "doctor": (doctor, "versions, shims, devices, precision in use"),
}
"""Name to a module with `add_arguments` and `run`, and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    level = os.environ.get("LOGLEVEL", "WARNING").upper()  # Fairseq's variable
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.run is not verify.run:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return int(options.run(options, rest))
    except BrokenPipeError:
        abandon_stdout()
        return EXIT_BROKEN_PIPE
    except Exception as error:
        return _failed(error, options.parser)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _failed(error: Exception, parser: argparse.ArgumentParser) -> int:
    """Say why on stderr; returns the exit code. What nobody expected is raised."""
    code, text = EXIT_ENVIRONMENT, f"{parser.prog} failed: expected "
    package = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    extra = doctor.EXTRAS.get(package.partition(".")[0])
    if is_out_of_memory(error):
        got = str(error).strip() or type(error).__name__
        text += f"enough memory, got {got.splitlines()[-1].rstrip('.')}. Free some, or allow more."
    elif isinstance(error, FairseqOpenVINOError):
        code, text = error.exit_code, spelled(error, parser)
    elif extra is not None:
        text += f"the package {package}, got none. Install fairseq-openvino[{extra}]."
    elif isinstance(error, OSError):
        text += (
            f"files that can be read and written, got {error}. Check permissions and disk space."
        )
    else:
        raise error
    print(f"error: {text}", file=sys.stderr)
    return code


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and their flags."""
    parser = argparse.ArgumentParser(
        prog="fairseq-openvino", description="Train in Fairseq, run on OpenVINO.",
        epilog=__doc__.split("\n\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run, parser=command)
    return parser
