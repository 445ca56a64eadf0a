"""Decoding in child processes, where a file that crashes a decoder or never ends costs only itself.

A child gets an open file and sends samples back, nothing that would have to be trusted: JSON of numbers
and texts, and float32. It lives for a number of files; the next one is forked within milliseconds. It is a
guard against crashes and exhaustion, not a sandbox: it runs with the rights of its parent.
"""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, replace
from functools import cache, partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np

from fairseq_openvino import machine
from fairseq_openvino.errors import AudioError, FairseqOpenVINOError, StorageError, failure, named
from fairseq_openvino.speech import audio
from fairseq_openvino.speech.audio import Audio, Track
from fairseq_openvino.speech.forkserver import ForkServer, serve
from fairseq_openvino.speech.options import MIX, SPLIT
from fairseq_openvino.speech.slices import Slice
from fairseq_openvino.speech.sndfile import BLOCK_SAMPLES
from fairseq_openvino.speech.sources import Source, opened, source_name
from fairseq_openvino.speech.waveform import check_loudness, unusable

FILES_PER_CHILD = 100
TIMEOUT_SECONDS = 60.0
"""For a file, or of a recording of any length for a block."""
MEMORY_BYTES = 4 << 30
"""Address space of a child, and the most that it may answer."""
MAX_ANSWER_BYTES = 1 << 16
MAX_BLOCK_BYTES = 1 << 17
"""Of samples in a message: larger ones do not stay in the cache, and are several times slower."""
MAX_STORED_BYTES = 1 << 33
"""37 hours at 16 kHz."""
Answer = TypeVar("Answer")
COMMAND = (
    "import sys; from fairseq_openvino.speech.isolation import main; main(*map(int, sys.argv[1:]))"
)


class Stored:
    """Samples of a recording in a temporary file, which is gone when nobody refers to it any more."""

    def __init__(self) -> None:
        self.audio: Audio
        """What is known about them; its waveforms, (channels, 0), hold none."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._bytes = 0

    def add(self, samples: np.ndarray) -> None:
        """Samples in the order of time, the channels of each behind each other, float32."""
        try:
            self._file.write(samples.data)
            self._file.flush()
        except OSError as error:
            raise failure(
                StorageError, "Storing decoded audio", Path(tempfile.gettempdir()), "free space",
                error.strerror, "Set TMPDIR to a directory with 230 MB for each hour",
            ) from error  # fmt: skip
        self._bytes += samples.nbytes

    def blocks(self, channel: int) -> Iterator[np.ndarray]:
        """Of a channel, (samples,) each."""
        channels = len(self.audio.waveforms)
        size = channels * BLOCK_SAMPLES * 4
        for begin in range(0, self._bytes, size):
            content = os.pread(self._file.fileno(), size, begin)
            block = np.frombuffer(content, np.float32).reshape(-1, channels)
            yield np.ascontiguousarray(block[:, channel])


@cache
def pool() -> Pool:
    """The one of this process."""
    return Pool()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=pool.cache_clear)


class Pool:
    """Decoders, forked when all others are at work; each thread has one for the time of a file."""

    def __init__(
        self, memory_bytes: int = MEMORY_BYTES, timeout_seconds: float = TIMEOUT_SECONDS,
        files_per_child: int = FILES_PER_CHILD, children: int | None = None,
    ) -> None:  # fmt: skip
        """Nothing is started before the first file.

        Args:
            memory_bytes: see `MEMORY_BYTES`.
            timeout_seconds: see `TIMEOUT_SECONDS`.
            files_per_child: after so many it is exchanged.
            children: at most; default: one for each core.
        """
        self._memory_bytes, self._timeout_seconds = memory_bytes, timeout_seconds
        self._files_per_child = files_per_child
        self._places = threading.BoundedSemaphore(children or machine.threads())
        self._turn = threading.Lock()
        self._idle: list[_Child] = []
        self._server: ForkServer | None = None

    def decode(
        self, source: Source, sample_rate_hz: int | None = None, channel: str | int = MIX,
        name: str | None = None,
    ) -> Audio:  # fmt: skip
        """As `audio.decode`, in a child.

        Raises:
            AudioError: as there, or the child crashed, took too long or needed too much memory.
        """
        return self._answered(source, name, _Child.decode, sample_rate_hz, channel)

    def store(
        self, source: Source, sample_rate_hz: int, channel: str | int = MIX, name: str | None = None
    ) -> Stored:
        """A recording of any length, decoded in a child once.

        Raises:
            AudioError: as above, or it is longer than `MAX_STORED_BYTES` of samples.
            StorageError: there is no room for the samples.
        """
        return self._answered(source, name, _Child.store, sample_rate_hz, channel)

    def part_wav(self, part: Slice) -> bytes:
        """As `Slice.wav`, in a child.

        Raises:
            AudioError: as there, or the child crashed, took too long or needed too much memory.
        """
        with part.opened() as file:
            return self._answered(cast(BinaryIO, file), part.name, _Child.part_wav, part)

    def _answered(
        self, source: Source, name: str | None, ask: Callable[..., Answer], *request: Any
    ) -> Answer:
        """What a child answers; it is ended if it does not."""
        name = source_name(source) if name is None else name
        with opened(source) as file, _with_descriptor(file) as real, self._places:
            child = self._taken(name)
            try:
                return ask(child, real, name, *request)
            except FairseqOpenVINOError:
                raise
            except Exception as error:
                got = child.end()
                if isinstance(error, BlockingIOError):
                    got = f"none within {self._timeout_seconds:g} s"
                raise unusable(name, "an answer of its decoder", got, "Drop the file") from error
            finally:
                self._put_back(child)

    def _taken(self, name: str) -> _Child:
        """A child for one file."""
        with self._turn:
            while self._idle:
                if (child := self._idle.pop()).is_waiting:
                    return child
                child.end()
            try:
                if self._server is None or not self._server.is_alive:
                    self._server = ForkServer(COMMAND, self._memory_bytes)
                return _Child(self._server, self._memory_bytes, self._timeout_seconds)
            except (OSError, EOFError) as error:
                got = str(error) or "the end of the process it is forked from"
                advice = "Allow more processes, open files or memory"
                raise unusable(name, "a decoder", got, advice) from error

    def _put_back(self, child: _Child) -> None:
        if child.is_idle and child.files < self._files_per_child:
            self._idle.append(child)
        else:
            child.end()

    def close(self) -> None:
        """End all processes; the next file starts new ones."""
        with self._turn:
            while self._idle:
                self._idle.pop().end()
            if self._server is not None:
                self._server.close()


class _Child:
    """The parent's side of a child."""

    def __init__(self, server: ForkServer, memory_bytes: int, timeout_seconds: float) -> None:
        self._server = server
        self.pid, self._connection = server.fork(timeout_seconds)
        self._memory_bytes = memory_bytes
        self.files = 0
        self.is_idle = True
        """Whether it has answered everything."""
        self._how = ""

    @property
    def is_waiting(self) -> bool:
        """Whether it lives; one that has ended, or talks unasked, has something to be read."""
        return not self._connection.poll()

    def decode(
        self, file: io.FileIO, name: str, sample_rate_hz: int | None, channel: str | int
    ) -> Audio:
        """Ask for one file.

        Raises:
            AudioError: the file cannot be used.
            BlockingIOError: the child does not answer in time.
            Exception: it has ended, or answers nonsense.
        """
        self._ask(file, "decode", name, sample_rate_hz, channel)
        audio = self._audio(name)
        waveforms = np.empty(audio.waveforms.shape, np.float32)
        left = waveforms.reshape(-1)
        while len(left):
            block = self._block(name)
            if not 0 < len(block) <= len(left):
                raise ValueError("not as many samples as announced")
            left[: len(block)], left = block, left[len(block) :]
        self.is_idle = True
        return replace(audio, waveforms=waveforms)

    def store(self, file: io.FileIO, name: str, sample_rate_hz: int, channel: str | int) -> Stored:
        """The same of a file of any length."""
        self._ask(file, "stream", name, sample_rate_hz, channel)
        found, total = Stored(), 0
        while len(block := self._block(name)):
            total += block.nbytes
            if total > MAX_STORED_BYTES:
                limit = f"at most {MAX_STORED_BYTES >> 30} GiB of samples"
                raise unusable(name, limit, "more", "Split the file")
            found.add(block)
        found.audio = self._audio(name)
        self.is_idle = True
        return found

    def part_wav(self, file: io.FileIO, name: str, part: Slice) -> bytes:
        """A WAV file of a part of a file."""
        self._ask(file, "part", name, *astuple(part))
        size, content = int(self._answer()["bytes"]), bytearray()
        if not 0 <= size <= self._memory_bytes:
            raise ValueError("a size beyond its limit")
        while left := size - len(content):
            block = self._connection.recv_bytes(MAX_BLOCK_BYTES)
            if not 0 < len(block) <= left:
                raise ValueError("not as many bytes as announced")
            content += block
        self.is_idle = True
        return bytes(content)

    def _ask(self, file: io.FileIO, *request: Any) -> None:
        self.files, self.is_idle = self.files + 1, False
        self._connection.send_bytes(json.dumps(request).encode())
        send_handle(self._connection, file.fileno(), self.pid)

    def _block(self, name: str) -> np.ndarray:
        """Samples that can be used, in the order they are sent."""
        block = np.frombuffer(self._connection.recv_bytes(MAX_BLOCK_BYTES), np.float32)
        check_loudness(name, block)
        return block

    def _answer(self) -> Any:
        """What the child tells about a file that it could read."""
        answer = json.loads(self._connection.recv_bytes(MAX_ANSWER_BYTES))
        if "error" in answer:
            self.is_idle = True
            raise AudioError(str(answer["error"]))
        return answer

    def _audio(self, name: str) -> Audio:
        """The same of one that was decoded; the waveforms have their shape only."""
        answer = self._answer()
        channels, samples = map(int, answer["waveforms"])
        if not 0 <= channels * samples * 4 <= self._memory_bytes:
            raise ValueError("a size beyond its limit")
        nothing = np.broadcast_to(np.float32(0), (channels, samples))
        return Audio(
            name, nothing, int(answer["rate_hz"]), int(answer["stored_hz"]),
            None if answer["damage"] is None else str(answer["damage"]), bool(answer["is_cancelled"]),
        )  # fmt: skip

    def end(self) -> str:
        """End it; returns how it ended."""
        if not self._how:
            self._connection.close()
            self._how = self._server.end(self.pid)
        return self._how


def main(descriptor: int, memory_bytes: int) -> None:
    """The process that children are forked from, which has loaded all decoders."""
    with suppress(ImportError):
        import av  # noqa: F401
    gc.freeze()  # children would copy what their garbage collection marks
    serve(descriptor, partial(_work, memory_bytes))


def _work(memory_bytes: int, connection: Connection) -> None:
    """The child: decode files until the parent closes the connection."""
    machine.limit(RLIMIT_AS=memory_bytes)
    while True:
        try:
            kind, name, *request = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        with io.FileIO(recv_handle(connection)) as file:
            file.name = name
            content: Any = None
            try:
                with opened(cast(BinaryIO, file)) as source:
                    if kind == "part":
                        content = Slice(*request).wav_of(file)
                        answer: dict[str, Any] = {"bytes": len(content)}
                    elif kind == "stream":
                        answer = _about(_streamed(connection, source, name, *request))
                    else:
                        rate_hz, channel = request
                        found = audio.decode(source, rate_hz, channel, name)
                        answer, content = _about(found), _bytes(found.waveforms)
            except MemoryError:
                limit = f"audio that is decoded in {memory_bytes >> 20} MiB"
                error = unusable(name, limit, "more", "Split the file")
                answer = {"error": str(error)}
            except Exception as failed:  # noqa: BLE001  whatever a hostile file brings about
                answer = {"error": str(named(failed, name))}
        if kind == "stream":
            connection.send_bytes(b"")
        connection.send_bytes(json.dumps(answer).encode())
        if content is not None:
            _send(connection, content)


def _about(found: Audio) -> dict[str, Any]:
    """The child: what it tells of a file before it sends the samples."""
    return vars(found) | {"waveforms": found.waveforms.shape}


def _bytes(samples: np.ndarray) -> memoryview:
    """Those of a contiguous array."""
    return samples.reshape(-1).data.cast("B")


def _send(connection: Connection, content: bytes | memoryview) -> None:
    """The child: in messages that the parent takes."""
    for begin in range(0, len(content), MAX_BLOCK_BYTES):
        connection.send_bytes(content[begin : begin + MAX_BLOCK_BYTES])


def _streamed(
    connection: Connection, file: BinaryIO, name: str, sample_rate_hz: int, channel: str | int
) -> Audio:
    """The child: send the samples, and return what is known about them."""
    track = Track(name, file, channel, sample_rate_hz)
    for block in track.settled():
        _send(connection, _bytes(np.ascontiguousarray(block)))
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
