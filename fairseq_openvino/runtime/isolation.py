"""Reading and compiling a bundle in a limited child: what crashes OpenVINO there costs only the child.

Checksums say that a graph is what its maker wrote, not that OpenVINO's readers survive it. The child is
forked from a process that has loaded OpenVINO already, may use so much memory and time, and answers with
one text. It is a guard against crashes and exhaustion, not a sandbox: it has the rights of its parent.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from fairseq_openvino import machine
from fairseq_openvino.bundle import DECODER_IR, ENCODER_IR, Bundle, open_bundle
from fairseq_openvino.errors import (
    BundleError,
    FairseqOpenVINOError,
    MissingDependencyError,
    failure,
)
from fairseq_openvino.runtime.engine import Engine, Variant
from fairseq_openvino.runtime.options import EngineOptions

ACTION = "Compiling in a child"
MEMORY_BYTES = 4 << 30
"""Address space of the child, besides what the bundle needs."""
COPIES = 4
"""Of the weights: the file, widened, as the device stores them, and on the way there."""
SECONDS = 30.0
"""For a small bundle."""
BYTES_PER_SECOND = 20e6
"""Of weights, that a slow machine compiles."""
MAX_ANSWER_BYTES = 1 << 16


def compile_isolated(
    bundle: Bundle, memory_bytes: int = MEMORY_BYTES, seconds: float = SECONDS
) -> None:
    """Read and compile the graphs for the CPU at f32, in a child.

    Args:
        bundle: a verified bundle.
        memory_bytes: what the child's address space may hold besides the weights.
        seconds: what it may take, as processor time and on the clock, besides the weights.

    Raises:
        BundleError: a graph cannot be used, or the child crashed, took too long or needed too much memory.
        MissingDependencyError: this system cannot fork or limit processes.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise failure(
            MissingDependencyError, ACTION, bundle.directory, "a Unix system", os.name,
            "Leave --isolated out",
        )  # fmt: skip
    weights = sum(file.bytes for file in bundle.manifest.files.values())
    memory_bytes, seconds = memory_bytes + COPIES * weights, seconds + weights / BYTES_PER_SECOND
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    limits = (memory_bytes, int(seconds) + 1)
    arguments = (str(bundle.directory), bundle.digest, *limits, theirs)
    child = context.Process(target=_compile, args=arguments, daemon=True)
    with ours:
        child.start()
        theirs.close()
        error = _answer(ours, child, seconds)
    if error is not None:
        raise failure(
            BundleError, ACTION, bundle.directory,
            f"graphs that OpenVINO compiles within {memory_bytes >> 20} MiB and {seconds:.0f} s",
            error, "Do not use the bundle",
        )  # fmt: skip


def _answer(connection: Connection, child: BaseProcess, seconds: float) -> str | None:
    """What went wrong in the child; None: nothing."""
    try:
        answered = connection.poll(seconds)
        text = connection.recv_bytes(MAX_ANSWER_BYTES).decode() if answered else None
    except (EOFError, OSError, UnicodeDecodeError):
        text = None  # it has ended, or answers nonsense
    else:
        if not answered:
            child.kill()
            child.join()
            return "no answer in time"
    child.join(1)
    child.kill()
    child.join()
    if text is not None:
        return text or None
    return machine.how_ended(child.exitcode or 0)


def _compile(
    directory: str, digest: str, memory_bytes: int, seconds: int, connection: Connection
) -> None:
    """The child."""
    with open(os.devnull, "r+b") as nothing:
        for descriptor in range(3):
            os.dup2(nothing.fileno(), descriptor)
    machine.limit(RLIMIT_AS=memory_bytes, RLIMIT_CPU=seconds, RLIMIT_CORE=0)
    try:
        bundle = open_bundle(directory, digest)
        engine = Engine(bundle, EngineOptions(threads=1))
        for graph, name in (("encoder", ENCODER_IR), ("decoder", DECODER_IR)):
            if name in bundle.manifest.files:
                engine.lease(Variant(graph, "f32", 1))
        error = ""
    except MemoryError:
        error = "more memory needed"
    except FairseqOpenVINOError as failed:
        error = str(failed).rstrip(".")
    except Exception as failed:  # noqa: BLE001  whatever a hostile graph brings about
        error = f"{type(failed).__name__}: {failed}"
    connection.send_bytes(error.encode()[:MAX_ANSWER_BYTES])
    os._exit(0)  # nothing else of a hostile graph runs
