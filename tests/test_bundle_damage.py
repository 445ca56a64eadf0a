"""Damage in bulk: noticed before OpenVINO reads a byte, and where checksums are right, survived."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from fairseq_openvino.bundle import MANIFEST, Manifest, open_bundle, write_manifest
from fairseq_openvino.errors import BundleError
from fairseq_openvino.loading import load_model
from fairseq_openvino.runtime.isolation import compile_isolated

SEED = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "15"))
FORMAT_1 = Path(__file__).parent / "fixtures" / "format1"
TRUNCATIONS = 64
"""Of each file."""
WEIGHTS = ("encoder.bin", "decoder.bin", "dict.txt")
TEXTS = (MANIFEST, "encoder.xml", "decoder.xml")
"""Half of the damage is done to these."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of format 2 that runs."""
    directory = tmp_path / "bundle"
    shutil.copytree(FORMAT_1 / "s2t", directory)
    write_manifest(directory, open_bundle(directory).manifest)
    return directory


@pytest.fixture
def _unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*_: Any) -> None:
        raise AssertionError("a damaged bundle reached OpenVINO")

    monkeypatch.setattr(ov.Core, "read_model", parsed)


def assert_noticed(bundle: Path, name: str, what: str) -> None:
    """It is refused, and the file named."""
    try:
        load_model(bundle).prepare([1])
    except BundleError as error:
        assert name in str(error), f"seed={SEED} {what}: {error}"
    else:
        raise AssertionError(f"seed={SEED} {what} was not noticed")


def damaged(random: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    """With a bit flipped, or cut, and what was done."""
    at = int(random.integers(len(content)))
    if random.random() < 0.25:
        return content[:at], f"cut at {at}"
    bit, changed = int(random.integers(8)), bytearray(content)
    changed[at] ^= 1 << bit
    return bytes(changed), f"bit {bit} of byte {at}"


def same_document(name: str, first: bytes, second: bytes) -> bool:
    """As `1e-05` and `1E-05`: nothing is lost."""
    try:
        return name == MANIFEST and json.loads(first) == json.loads(second)
    except ValueError:
        return False


def damage(bundle: Path, count: int) -> None:
    random, done = np.random.default_rng(SEED), 0
    whole = {name: (bundle / name).read_bytes() for name in (*TEXTS, *WEIGHTS)}
    while done < count:
        name = str(random.choice(TEXTS if done % 2 else WEIGHTS))
        content, what = damaged(random, whole[name])
        if same_document(name, content, whole[name]):
            continue
        (bundle / name).write_bytes(content)
        assert_noticed(bundle, name, f"{name}: {what}")
        (bundle / name).write_bytes(whole[name])
        done += 1


@pytest.mark.usefixtures("_unread")
def test_flips_and_cuts_are_noticed(bundle: Path) -> None:
    damage(bundle, 300)
    with pytest.raises(AssertionError, match="reached OpenVINO"):
        load_model(bundle).prepare([1])


@pytest.mark.fault
@pytest.mark.usefixtures("_unread")
def test_ten_thousand_flips_and_cuts_are_noticed(bundle: Path) -> None:
    damage(bundle, 10_000)


@pytest.mark.parametrize("points", [4, pytest.param(TRUNCATIONS, marks=pytest.mark.fault)])
@pytest.mark.usefixtures("_unread")
def test_truncated_swapped_missing_and_additional_files(bundle: Path, points: int) -> None:
    names = (*TEXTS, *WEIGHTS)
    whole = {name: (bundle / name).read_bytes() for name in names}
    for name, content in whole.items():
        last = len(content) - 2 if name == MANIFEST else len(content) - 1  # but for its line break
        for size in np.linspace(0, last, points).astype(int):
            (bundle / name).write_bytes(content[:size])
            assert_noticed(bundle, name, f"{name} cut at {size}")
        (bundle / name).unlink()
        assert_noticed(bundle, name, f"{name} missing")
        (bundle / name).write_bytes(content)
    for first, second in combinations(names, 2):
        (bundle / first).write_bytes(whole[second])
        (bundle / second).write_bytes(whole[first])
        with pytest.raises(BundleError, match=f"{first}|{second}"):
            open_bundle(bundle)
        for name in (first, second):
            (bundle / name).write_bytes(whole[name])
    for name in ("more.xml", "more.bin", "encoder.onnx", "encoder.onnx.data", "spm.model", "a.npz"):
        (bundle / name).write_bytes(whole["dict.txt"])
        assert_noticed(bundle, name, f"{name} added")
        (bundle / name).unlink()
    open_bundle(bundle)


NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"3",
    b"2147483648",
    b"4294967295",
    b"9223372036854775807",
    b"1e9",
    b"",
)
TYPES = (b"f32", b"f64", b"f16", b"i64", b"u1", b"i4", b"boolean", b"string", b"dynamic", b"nf4")
ATTRIBUTE = re.compile(rb'"(-?\d+(?:\.\d+)?)"')
ELEMENT_TYPE = re.compile(rb'(?<=element_type=")\w+|(?<=precision=")\w+')
LAYER_TYPE = re.compile(rb'(?<= type=")\w+')
DIM = re.compile(rb"(?<=<dim>)-?\d+")


def mutants(whole: dict[str, bytes], seed: int) -> Iterator[tuple[str, bytes]]:
    """A file with some changes: numbers, types and layers of a graph, its lines, any bytes of weights."""
    random = np.random.default_rng(seed)
    layers = sorted(set(LAYER_TYPE.findall(whole["encoder.xml"] + whole["decoder.xml"])))
    choices = ((ATTRIBUTE, NUMBERS), (DIM, NUMBERS), (ELEMENT_TYPE, TYPES), (LAYER_TYPE, layers))
    while True:
        name = str(random.choice(list(whole), p=(0.4, 0.4, 0.1, 0.1)))
        content = bytearray(whole[name])
        for _ in range(random.integers(1, 4)):
            kind = int(random.integers(7))
            if name.endswith(".bin") or kind > 5:
                at, size = int(random.integers(len(content))), int(random.integers(1, 64))
                content[at : at + size] = random.bytes(size)
            elif kind < len(choices):
                pattern, values = choices[kind]
                places = list(pattern.finditer(content))
                if places:
                    place = places[random.integers(len(places))]
                    group = 1 if pattern is ATTRIBUTE else 0
                    value = values[random.integers(len(values))]
                    content[place.start(group) : place.end(group)] = value
            else:
                lines = content.split(b"\n")
                at = int(random.integers(len(lines)))
                lines[at : at + 1] = [] if kind == 4 else [lines[at]] * 2  # noqa: PLR2004
                content = bytearray(b"\n".join(lines))
        yield name, bytes(content)


def survive(bundle: Path, count: int, seed: int) -> Counter[str]:
    """Compile mutants with valid checksums in children; what happened, by kind."""
    manifest: Manifest = open_bundle(bundle).manifest
    names = ("encoder.xml", "decoder.xml", "encoder.bin", "decoder.bin")
    whole = {name: (bundle / name).read_bytes() for name in names}
    found: Counter[str] = Counter()
    made = mutants(whole, seed)
    for number in range(count):
        name, content = next(made)
        (bundle / name).write_bytes(content)
        write_manifest(bundle, manifest)
        try:
            compile_isolated(open_bundle(bundle), 4 << 30, 30)
            found["compiled"] += 1
        except BundleError as error:
            ended = re.search(r"got (signal \d+|exit code \d+|no answer|more memory)", str(error))
            kind = ended.group(1) if ended else "refused"
            found[kind] += 1
            if ended:
                print(f"seed={seed} mutant {number} of {name}: {error}", flush=True)
        (bundle / name).write_bytes(whole[name])
    write_manifest(bundle, manifest)
    compile_isolated(open_bundle(bundle))
    return found


def test_graphs_with_valid_checksums_do_not_harm_the_parent(bundle: Path) -> None:
    assert survive(bundle, 4, SEED)["refused"] > 0


@pytest.mark.fault
def test_a_thousand_graphs_with_valid_checksums(bundle: Path) -> None:
    found = survive(bundle, 1000, SEED)
    print(f"seed={SEED}: {dict(found)}")
    assert found.total() == 1000 and found["refused"] > 250 and found["compiled"] > 0
