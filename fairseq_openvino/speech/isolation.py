"""Decoding in a child process, where a file that crashes a decoder or never ends costs only itself.

The child gets an open file and sends samples back, nothing that would have to be trusted: JSON of numbers
and texts, and float32. It lives for a number of files; its successor is started in advance. It is a guard
against crashes and exhaustion, not a sandbox: it runs with the rights of its parent.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import BinaryIO, cast

import numpy as np

from fairseq_openvino.errors import AudioError, named
from fairseq_openvino.speech import audio
from fairseq_openvino.speech.audio import Audio
from fairseq_openvino.speech.options import MIX
from fairseq_openvino.speech.sources import Source, opened, source_name
from fairseq_openvino.speech.waveform import check_loudness, unusable

FILES_PER_CHILD = 100
TIMEOUT_SECONDS = 60.0
MEMORY_BYTES = 4 << 30
"""Address space of the child, and the most that it may answer."""
MAX_ANSWER_BYTES = 1 << 16
COMMAND = "import sys; from fairseq_openvino.speech.isolation import serve; serve(*map(int, sys.argv[1:]))"


def decode(
    source: Source,
    sample_rate_hz: int | None = None,
    channel: str | int = MIX,
    name: str | None = None,
) -> Audio:
    """As `audio.decode`, in the child.

    Raises:
        AudioError: as there, or the child crashed, took too long or needed too much memory.
    """
    return decoder().decode(source, sample_rate_hz, channel, name)


@cache
def decoder() -> Decoder:
    """The one of this process."""
    return Decoder()


class Decoder:
    """A child at work and its successor; threads take turns."""

    def __init__(
        self, memory_bytes: int = MEMORY_BYTES, timeout_seconds: float = TIMEOUT_SECONDS,
        files_per_child: int = FILES_PER_CHILD,
    ) -> None:  # fmt: skip
        self._memory_bytes, self._timeout_seconds = memory_bytes, timeout_seconds
        self._files_per_child = files_per_child
        self._lock = threading.Lock()
        self._child, self._next = _Child(memory_bytes), _Child(memory_bytes)

    @property
    def pid(self) -> int:
        """Of the child at work."""
        return self._child.process.pid

    def decode(
        self, source: Source, sample_rate_hz: int | None = None, channel: str | int = MIX,
        name: str | None = None,
    ) -> Audio:  # fmt: skip
        """As the function."""
        name = source_name(source) if name is None else name
        with self._lock, opened(source) as file, _with_descriptor(file) as real:
            if self._child.files >= self._files_per_child or self._child.process.poll() is not None:
                self._exchange()
            deadline = time.monotonic() + self._timeout_seconds
            watch = threading.Timer(self._timeout_seconds, self._child.process.kill)
            watch.start()
            try:
                return self._child.decode(real, name, sample_rate_hz, channel)
            except AudioError:
                raise
            except BaseException as error:
                got = self._exchange()
                if not isinstance(error, Exception):
                    raise
                if time.monotonic() >= deadline:
                    got = f"none within {self._timeout_seconds:g} s"
                raise unusable(name, "an answer of its decoder", got, "Drop the file") from error
            finally:
                watch.cancel()

    def close(self) -> None:
        """End both children."""
        self._child.stop()
        self._next.stop()

    def _exchange(self) -> str:
        """The next child goes to work; returns how this one ended."""
        how = self._child.stop()
        self._child, self._next = self._next, _Child(self._memory_bytes)
        return how


class _Child:
    """The parent's side of a child."""

    def __init__(self, memory_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join(path for path in sys.path if path)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", COMMAND, str(theirs.fileno()), str(memory_bytes)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        self._connection = Connection(ours.detach())
        self._memory_bytes = memory_bytes
        self.files = 0

    def decode(
        self, file: io.FileIO, name: str, sample_rate_hz: int | None, channel: str | int
    ) -> Audio:
        """Ask for one file.

        Raises:
            AudioError: the file cannot be used.
            Exception: the child has ended, or answers nonsense.
        """
        self.files += 1
        self._connection.send_bytes(json.dumps([name, sample_rate_hz, channel]).encode())
        send_handle(self._connection, file.fileno(), self.process.pid)
        answer = json.loads(self._connection.recv_bytes(MAX_ANSWER_BYTES))
        if "error" in answer:
            raise AudioError(str(answer["error"]))
        channels, samples = map(int, answer["waveforms"])
        if not 0 <= channels * samples * 4 <= self._memory_bytes:
            raise ValueError("a size beyond its limit")
        waveforms = np.empty((channels, samples), np.float32)
        if waveforms.nbytes != self._connection.recv_bytes_into(waveforms.reshape(-1)):
            raise ValueError("not as many samples as announced")
        check_loudness(name, waveforms)
        return Audio(
            name, waveforms, int(answer["rate_hz"]), int(answer["stored_hz"]),
            None if answer["damage"] is None else str(answer["damage"]), bool(answer["is_cancelled"]),
        )  # fmt: skip

    def stop(self) -> str:
        """End it; returns how it ended."""
        self._connection.close()
        self.process.kill()
        code = self.process.wait()
        return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"


def serve(descriptor: int, memory_bytes: int) -> None:
    """The child: decode files until the parent closes the connection."""
    import resource  # Unix alone has it

    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit_bytes = memory_bytes if most == resource.RLIM_INFINITY else min(memory_bytes, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, most))
    connection = Connection(descriptor)
    while True:
        try:
            name, sample_rate_hz, channel = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        with io.FileIO(recv_handle(connection)) as file:
            try:
                found = audio.decode(cast(BinaryIO, file), sample_rate_hz, channel, name)
            except MemoryError:
                limit = f"audio that is decoded in {memory_bytes >> 20} MiB"
                error = unusable(name, limit, "more", "Split the file")
                answer, waveforms = {"error": str(error)}, None
            except Exception as failure:  # noqa: BLE001  whatever a hostile file brings about
                answer, waveforms = {"error": str(named(failure, name))}, None
            else:
                waveforms = found.waveforms
                answer = vars(found) | {"waveforms": waveforms.shape}
        connection.send_bytes(json.dumps(answer).encode())
        if waveforms is not None:
            connection.send_bytes(waveforms.reshape(-1).data)


@contextmanager
def _with_descriptor(file: BinaryIO) -> Iterator[io.FileIO]:
    """The file, or what it holds as one of the system."""
    if isinstance(file, io.FileIO):
        yield file
        return
    with tempfile.TemporaryFile(buffering=0) as stored:
        file.seek(0)
        shutil.copyfileobj(file, stored)
        yield stored
