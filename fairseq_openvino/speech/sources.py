"""What can be given as audio: paths, standard input, pipes, open files, their content."""

from __future__ import annotations

import io
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import Any, BinaryIO, cast

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
            yield file if is_seekable else stack.enter_context(_stored(name, file))
        except OSError as error:
            is_url = isinstance(source, str) and URL.match(source) is not None
            got = "a URL" if is_url else (error.strerror or str(error)).rstrip(".")
            advice = "Download it first" if is_url else "Check the path"
            raise unusable(name, "a readable file", got, advice) from error


def _file(name: str, source: Source, stack: ExitStack) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if name == STANDARD_INPUT:
        return sys.stdin.buffer
    if isinstance(source, (str, PathLike)):
        return stack.enter_context(cast(BinaryIO, open(source, "rb", buffering=0)))
    if isinstance(source, io.TextIOBase):
        raise unusable(name, "a binary file", "one of text", "Open it with the mode 'rb'")
    return source


@contextmanager
def _stored(name: str, pipe: BinaryIO) -> Iterator[BinaryIO]:
    """A pipe's content as a file."""
    with tempfile.SpooledTemporaryFile(PIPED_IN_MEMORY_BYTES) as file:
        while content := pipe.read(PIPE_BYTES):
            file.write(content)
            if file.tell() > MAX_PIPED_BYTES:
                limit = f"at most {MAX_PIPED_BYTES} bytes of a pipe"
                raise unusable(name, limit, "more", "Store them as a file")
        yield cast(BinaryIO, file)
