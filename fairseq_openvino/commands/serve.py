"""`fairseq-openvino serve`: transcription over HTTP, as OpenAI's audio API."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

from fairseq_openvino.errors import EXIT_OK, DeviceError, failure
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
    """Serve until it is stopped.

    Raises:
        DeviceError: the address cannot be listened at.
        FairseqOpenVINOError: as `load_model`.
    """
    import uvicorn

    from fairseq_openvino.loading import load_model
    from fairseq_openvino.server.app import application

    with _bound(arguments.host, arguments.port) as listening:
        model = load_model(arguments.model, **given(arguments, EngineOptions))
        model.check_supported()
        app = application(lambda: model, Path(arguments.model).name)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
    return EXIT_OK


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the address, and refuses connections until somebody listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise failure(
            DeviceError, "Serving", f"{host}:{port}", "a free address of this machine",
            str(error).rstrip("."), "Choose others by --host and --port",
        ) from error  # fmt: skip
    return bound
