"""The bytes of a large file without holding them: to look through, or to decode parts of in a row."""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, BinaryIO, cast

PART_BYTES = 1 << 20
LONGEST_MATCH = 4


class Content:
    """The bytes of a file, of which a part is in memory; sliced as bytes are."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._length = file, file.seek(0, io.SEEK_END)
        self._begin, self._part = 0, b""

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: slice) -> bytes:
        begin, end, _ = place.indices(self._length)
        if begin < self._begin or end > self._begin + len(self._part):
            self._file.seek(begin)
            self._begin, self._part = begin, self._file.read(max(end - begin, PART_BYTES))
        return self._part[begin - self._begin : max(end, begin) - self._begin]

    def find(self, pattern: re.Pattern[bytes], position: int) -> Iterator[int]:
        """Where a pattern of at most `LONGEST_MATCH` bytes matches, from this position on."""
        while position < self._length:
            self[position : position + LONGEST_MATCH]  # is in memory from here on
            begin, part = self._begin, self._part
            is_last = begin + len(part) >= self._length
            limit = len(part) if is_last else len(part) - LONGEST_MATCH + 1
            for match in pattern.finditer(part, position - begin):
                if match.start() < limit:
                    yield begin + match.start()
            if is_last or begin + limit <= position:  # or the file has become shorter
                return
            position = begin + limit


def spliced(file: BinaryIO, parts: Sequence[tuple[int, int] | bytes]) -> BinaryIO:
    """A file made of parts of another one, (begin, end) in bytes, and of bytes between them."""
    return cast(BinaryIO, _Spliced(file, parts))


class _Spliced(io.RawIOBase):
    def __init__(self, file: BinaryIO, parts: Sequence[tuple[int, int] | bytes]) -> None:
        self._file, self._parts, self._position = file, parts, 0
        sizes = (len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts)
        self._ends = list(accumulate(sizes))

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ends[-1]}[whence]
        if start + offset < 0:
            raise ValueError(f"negative position {start + offset}")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = 0
        while count < len(buffer) and (content := self._next(len(buffer) - count)):
            buffer[count : count + len(content)] = content
            count += len(content)
        return count

    def _next(self, most: int) -> bytes:
        """What follows, of one part only."""
        index = bisect_right(self._ends, self._position)
        if index == len(self._parts):
            return b""
        part, left = self._parts[index], self._ends[index] - self._position
        if isinstance(part, bytes):
            content = part[-left:][:most]
        else:
            self._file.seek(part[1] - left)
            content = self._file.read(min(left, most))
        self._position += len(content)
        return content
