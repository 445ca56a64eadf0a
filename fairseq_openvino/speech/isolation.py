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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np

from fairseq_openvino.errors import AudioError, FairseqOpenVINOError, StorageError, failure, named
from fairseq_openvino.speech import audio
from fairseq_openvino.speech.audio import Audio, Track
from fairseq_openvino.speech.options import MIX, SPLIT
from fairseq_openvino.speech.sndfile import BLOCK_SAMPLES
from fairseq_openvino.speech.sources import Source, opened, source_name
from fairseq_openvino.speech.waveform import MAX_CHANNELS, check_loudness, unusable

FILES_PER_CHILD = 100
TIMEOUT_SECONDS = 60.0
"""For a file, or of a recording of any length for a block."""
MEMORY_BYTES = 4 << 30
"""Address space of the child, and the most that it may answer."""
MAX_ANSWER_BYTES = 1 << 16
MAX_BLOCK_BYTES = BLOCK_SAMPLES * MAX_CHANNELS * 4
MAX_STORED_BYTES = 1 << 33
"""37 hours at 16 kHz."""
Answer = TypeVar("Answer")
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


def store(
    source: Source, sample_rate_hz: int, channel: str | int = MIX, name: str | None = None
) -> Stored:
    """A recording of any length, decoded in the child once.

    Raises:
        AudioError: as above, or it is longer than `MAX_STORED_BYTES` of samples.
        StorageError: there is no room for the samples.
    """
    return decoder().store(source, sample_rate_hz, channel, name)


class Stored:
    """Samples of a recording in a temporary file, which is gone when nobody refers to it any more."""

    def __init__(self) -> None:
        self.audio: Audio
        """What is known about them; its waveforms, (channels, 0), hold none."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._bytes = 0

    def add(self, content: bytes) -> None:
        """Samples in the order of time, the channels of each behind each other, float32."""
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise failure(
                StorageError, "Storing decoded audio", Path(tempfile.gettempdir()), "free space",
                error.strerror, "Set TMPDIR to a directory with 230 MB for each hour",
            ) from error  # fmt: skip
        self._bytes += len(content)

    def blocks(self, channel: int) -> Iterator[np.ndarray]:
        """Of a channel, (samples,) each."""
        channels = len(self.audio.waveforms)
        size = channels * BLOCK_SAMPLES * 4
        for begin in range(0, self._bytes, size):
            content = os.pread(self._file.fileno(), size, begin)
            block = np.frombuffer(content, np.float32).reshape(-1, channels)
            yield np.ascontiguousarray(block[:, channel])


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
        self._child, self._next = self._started(), self._started()

    @property
    def pid(self) -> int:
        """Of the child at work."""
        return self._child.process.pid

    def decode(
        self, source: Source, sample_rate_hz: int | None = None, channel: str | int = MIX,
        name: str | None = None,
    ) -> Audio:  # fmt: skip
        """As the function."""
        return self._answered(source, name, _Child.decode, sample_rate_hz, channel)

    def store(
        self, source: Source, sample_rate_hz: int, channel: str | int = MIX, name: str | None = None
    ) -> Stored:
        """As the function."""
        return self._answered(source, name, _Child.store, sample_rate_hz, channel)

    def _answered(
        self, source: Source, name: str | None, ask: Callable[..., Answer], *request: Any
    ) -> Answer:
        """What the child answers; it is exchanged if it does not."""
        name = source_name(source) if name is None else name
        with self._lock, opened(source) as file, _with_descriptor(file) as real:
            if self._child.files >= self._files_per_child or self._child.process.poll() is not None:
                self._exchange()
            try:
                return ask(self._child, real, name, *request)
            except BaseException as error:
                if isinstance(error, AudioError) and self._child.is_idle:
                    raise
                got = self._exchange()
                if isinstance(error, FairseqOpenVINOError) or not isinstance(error, Exception):
                    raise
                if isinstance(error, TimeoutError):
                    got = f"none within {self._timeout_seconds:g} s"
                raise unusable(name, "an answer of its decoder", got, "Drop the file") from error

    def close(self) -> None:
        """End both children."""
        self._child.stop()
        self._next.stop()

    def _started(self) -> _Child:
        return _Child(self._memory_bytes, self._timeout_seconds)

    def _exchange(self) -> str:
        """The next child goes to work; returns how this one ended."""
        how = self._child.stop()
        self._child, self._next = self._next, self._started()
        return how


class _Child:
    """The parent's side of a child."""

    def __init__(self, memory_bytes: int, timeout_seconds: float) -> None:
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
        self._memory_bytes, self._timeout_seconds = memory_bytes, timeout_seconds
        self.files = 0
        self.is_idle = True
        """Whether it has answered everything."""

    def decode(
        self, file: io.FileIO, name: str, sample_rate_hz: int | None, channel: str | int
    ) -> Audio:
        """Ask for one file.

        Raises:
            AudioError: the file cannot be used.
            Exception: the child has ended, or answers nonsense, or nothing in time.
        """
        self._ask(file, "decode", name, sample_rate_hz, channel)
        audio = self._audio(name)
        waveforms = np.empty(audio.waveforms.shape, np.float32)
        if waveforms.nbytes != self._connection.recv_bytes_into(waveforms.reshape(-1)):
            raise ValueError("not as many samples as announced")
        self.is_idle = True
        check_loudness(name, waveforms)
        return replace(audio, waveforms=waveforms)

    def store(self, file: io.FileIO, name: str, sample_rate_hz: int, channel: str | int) -> Stored:
        """The same of a file of any length."""
        self._ask(file, "stream", name, sample_rate_hz, channel)
        found, total = Stored(), 0
        while content := self._received(MAX_BLOCK_BYTES):
            check_loudness(name, np.frombuffer(content, np.float32))
            total += len(content)
            if total > MAX_STORED_BYTES:
                limit = f"at most {MAX_STORED_BYTES >> 30} GiB of samples"
                raise unusable(name, limit, "more", "Split the file")
            found.add(content)
        found.audio = self._audio(name)
        self.is_idle = True
        return found

    def _ask(self, file: io.FileIO, *request: Any) -> None:
        self.files, self.is_idle = self.files + 1, False
        self._connection.send_bytes(json.dumps(request).encode())
        send_handle(self._connection, file.fileno(), self.process.pid)

    def _received(self, most: int) -> bytes:
        """A message.

        Raises:
            TimeoutError: there is none in time.
        """
        if not self._connection.poll(self._timeout_seconds):
            raise TimeoutError
        return self._connection.recv_bytes(most)

    def _audio(self, name: str) -> Audio:
        """What the child tells about a file; the waveforms have their shape only."""
        answer = json.loads(self._received(MAX_ANSWER_BYTES))
        if "error" in answer:
            self.is_idle = True
            raise AudioError(str(answer["error"]))
        channels, samples = map(int, answer["waveforms"])
        if not 0 <= channels * samples * 4 <= self._memory_bytes:
            raise ValueError("a size beyond its limit")
        nothing = np.broadcast_to(np.float32(0), (channels, samples))
        return Audio(
            name, nothing, int(answer["rate_hz"]), int(answer["stored_hz"]),
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
            kind, name, sample_rate_hz, channel = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        with io.FileIO(recv_handle(connection)) as file:
            try:
                if kind == "stream":
                    found = _streamed(
                        connection, cast(BinaryIO, file), name, sample_rate_hz, channel
                    )
                else:
                    found = audio.decode(cast(BinaryIO, file), sample_rate_hz, channel, name)
            except MemoryError:
                limit = f"audio that is decoded in {memory_bytes >> 20} MiB"
                error = unusable(name, limit, "more", "Split the file")
                answer, waveforms = {"error": str(error)}, None
            except Exception as failed:  # noqa: BLE001  whatever a hostile file brings about
                answer, waveforms = {"error": str(named(failed, name))}, None
            else:
                waveforms = found.waveforms
                answer = vars(found) | {"waveforms": waveforms.shape}
        if kind == "stream":
            connection.send_bytes(b"")
        connection.send_bytes(json.dumps(answer).encode())
        if kind == "decode" and waveforms is not None:
            connection.send_bytes(waveforms.reshape(-1).data)


def _streamed(
    connection: Connection, file: BinaryIO, name: str, sample_rate_hz: int, channel: str | int
) -> Audio:
    """The child: send the samples, and return what is known about them."""
    track = Track(name, file, channel, sample_rate_hz)
    for block in track.settled():
        for begin in range(0, len(block), BLOCK_SAMPLES):
            connection.send_bytes(block[begin : begin + BLOCK_SAMPLES].tobytes())
    channels = track.channels if channel == SPLIT else 1
    return Audio(
        name, np.empty((channels, 0), np.float32), sample_rate_hz, track.stored_hz, track.damage(),
        track.is_cancelled,
    )  # fmt: skip


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
