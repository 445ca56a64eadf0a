"""What can be given as audio: paths, standard input, pipes, open files, their content."""

from __future__ import annotations

import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from threading import Lock
from typing import Any, BinaryIO, cast

from fairseq_openvino.errors import StorageError
from fairseq_openvino.speech.waveform import unusable

Source = str | PathLike[str] | BinaryIO | bytes | bytearray | memoryview
"""A path, `-` for standard input, an open binary file, or the content of one."""
STANDARD_INPUT = "-"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
MAX_PIPED_BYTES = 1 << 32
"""A pipe is stored until its end, as formats are read back and forth."""
PIPED_IN_MEMORY_BYTES = 1 << 26
PIPE_BYTES = 1 << 16


def is_source(audio: Any) -> bool:
    """Whether this is a `Source`, not samples."""
    return isinstance(audio, (str, PathLike, bytes, bytearray, memoryview)) or hasattr(
        audio, "read"
    )


def source_name(source: Any) -> str:
    """What to call it."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    return str(source if isinstance(source, (str, PathLike)) else getattr(source, "name", source))


@contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """The source as a file that can be read several times.

    Raises:
        AudioError: it is missing or cannot be read, also later, within the context.
    """
    name = source_name(source)
    with ExitStack() as stack:
        try:
            try:
                file = _file(name, source, stack)
                is_seekable = file.seekable()
            except ValueError as error:  # a path with a null character, a closed file
                raise OSError(str(error)) from error
            yield file if is_seekable else _stored(name, file)
        except StorageError:
            raise
        except OSError as error:
            is_url = isinstance(source, str) and URL.match(source) is not None
            got = "a URL" if is_url else (error.strerror or str(error)).rstrip(".")
            advice = "Download it first" if is_url else "Check the path"
            raise unusable(name, "a readable file", got, advice) from error


def _file(name: str, source: Source, stack: ExitStack) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, (str, PathLike)):
        if name == STANDARD_INPUT:
            return sys.stdin.buffer
        return stack.enter_context(cast(BinaryIO, open(source, "rb", buffering=0)))
    if isinstance(source, io.TextIOBase):
        raise unusable(name, "a binary file", "one of text", "Open it with the mode 'rb'")
    return source


def _stored(name: str, pipe: BinaryIO) -> BinaryIO:
    """A pipe's content as a file, which is gone when nobody refers to it any more."""
    file = tempfile.SpooledTemporaryFile(PIPED_IN_MEMORY_BYTES)  # noqa: SIM115
    while content := pipe.read(PIPE_BYTES):
        file.write(content)
        if file.tell() > MAX_PIPED_BYTES:
            limit = f"at most {MAX_PIPED_BYTES} bytes of a pipe"
            raise unusable(name, limit, "more", "Store them as a file")
    return cast(BinaryIO, file)


def lasting(source: Source) -> Callable[[], Source]:
    """Gives the source for one more pass, also beside another one; a pipe is read and stored now.

    Raises:
        AudioError: it is missing or cannot be read.
    """
    name, content = source_name(source), (bytes, bytearray, memoryview)
    is_handle = name == STANDARD_INPUT or not isinstance(source, (str, PathLike, *content))
    with opened(source) as file:
        if is_handle or isinstance(file, tempfile.SpooledTemporaryFile):
            turn = Lock()
            return lambda: cast(BinaryIO, _Reader(file, turn, name))
    return lambda: source


class _Reader(io.RawIOBase):
    """A file that others read too, at a position of its own."""

    def __init__(self, file: BinaryIO, turn: Lock, name: str) -> None:
        self._file, self._turn, self._position = file, turn, 0
        self.name = name

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset, whence = self._position + offset, io.SEEK_SET
        with self._turn:
            self._position = self._file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        with self._turn:
            self._file.seek(self._position)
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
