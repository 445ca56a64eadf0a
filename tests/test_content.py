"""Looking through large files, and reading parts of them in a row, against the bytes themselves."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest

from fairseq_openvino.speech import content
from fairseq_openvino.speech.content import Content, spliced


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "PART_BYTES", 50)


@pytest.mark.parametrize("pattern", [rb"\x01[\x00-\x01]", rb"\x01\x00\x01\x01", rb"\x01"])
def test_everything_is_found_where_it_is(pattern: bytes) -> None:
    rng = np.random.default_rng(0)
    for length in (0, 1, 49, 50, 51, 1000):
        whole = rng.integers(0, 2, length, np.uint8).tobytes()
        held, expression = Content(io.BytesIO(whole)), re.compile(pattern)
        for position in (0, 7, length):
            expected = [
                match.start() for match in re.finditer(b"(?=" + pattern + b")", whole[position:])
            ]
            found, at = [], position
            while (at := next(held.find(expression, at), -1)) >= 0:
                found.append(at - position)
                at += 1
            assert found == expected


def test_slices_are_those_of_bytes() -> None:
    whole = np.random.default_rng(0).bytes(1000)
    held = Content(io.BytesIO(whole))
    assert len(held) == len(whole)
    for begin, end in np.random.default_rng(1).integers(0, 1100, (300, 2)).tolist():
        assert held[begin:end] == whole[begin:end]


def test_a_file_that_shrinks_has_an_end() -> None:
    file = io.BytesIO(bytes(1000))
    held = Content(file)
    file.truncate(10)
    assert list(held.find(re.compile(b"x"), 0)) == []
    assert held[5:20] == bytes(5)


def test_parts_in_a_row_are_a_file() -> None:
    rng, whole = np.random.default_rng(0), np.random.default_rng(0).bytes(1000)
    file = spliced(io.BytesIO(whole), [(5, 100), b"", b"between", (100, 100), (40, 900), b"end"])
    expected = io.BytesIO(whole[5:100] + b"between" + whole[40:900] + b"end")
    assert file.read() == expected.getvalue()
    for place, count in rng.integers(0, 1100, (300, 2)).tolist():
        assert file.seek(place) == expected.seek(place)
        assert file.read(count) == expected.read(count)
        assert file.tell() == expected.tell()
    assert file.seek(-3, io.SEEK_END) == expected.seek(-3, io.SEEK_END)
    assert file.read() == b"end"
    with pytest.raises(ValueError, match="negative"):
        file.seek(-1)
