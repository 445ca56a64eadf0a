"""`fairseq-openvino serve`: transcription over HTTP, as OpenAI's audio API."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_openvino.errors import EXIT_OK
from fairseq_openvino.flags import add_flags, given
from fairseq_openvino.runtime.options import EngineOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="SOURCE",
        help="as of transcribe; requests name its last part",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    add_flags(parser, EngineOptions, ("device", "precision", "threads", "cache_dir"))


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Serve until it is stopped."""
    import uvicorn

    from fairseq_openvino.loading import load_model
    from fairseq_openvino.server.app import application

    options = given(arguments, EngineOptions)
    app = application(lambda: load_model(arguments.model, **options), Path(arguments.model).name)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning")
    return EXIT_OK
