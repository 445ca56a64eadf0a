"""Bundles made to harm: each way by its name, with the error that it ends in."""

from __future__ import annotations

import json
import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.lib import format as npy

from fairseq_openvino.bundle import MANIFEST, open_bundle, write_manifest
from fairseq_openvino.bundle.manifest import _digest
from fairseq_openvino.errors import BundleError, FairseqOpenVINOError, ModelError
from fairseq_openvino.loading import load_model
from fairseq_openvino.runtime.engine import Variant

FORMAT_1 = Path(__file__).parent / "fixtures" / "format1"
Change = Callable[[Path], object]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of format 2 that runs."""
    return copied("s2t", tmp_path / "bundle")


def copied(family: str, directory: Path) -> Path:
    """Another one of a family."""
    shutil.copytree(FORMAT_1 / family, directory)
    write_manifest(directory, open_bundle(directory).manifest)
    return directory


def use(bundle: Path) -> None:
    """All that is read of it: manifest, files, dictionary, graphs."""
    engine = load_model(bundle).model.engine
    for graph in ("encoder", "decoder"):
        engine.model(Variant(graph, "f32", 1))


def edited(change: Callable[[dict[str, Any]], object]) -> Change:
    """The manifest with a change that its own digest covers."""

    def apply(bundle: Path) -> None:
        content = json.loads((bundle / MANIFEST).read_text())
        change(content)
        content["sha256"] = _digest(content)
        (bundle / MANIFEST).write_text(json.dumps(content))

    return apply


def stored(content: bytes) -> Change:
    """Another manifest altogether."""
    return lambda bundle: (bundle / MANIFEST).write_bytes(content)


def replaced(old: str, new: str) -> Change:
    """The manifest's text with a change."""
    return lambda bundle: (bundle / MANIFEST).write_text(
        (bundle / MANIFEST).read_text().replace(old, new, 1)
    )


def listed(name: str) -> Change:
    """One more file that the manifest lists, as the dictionary is."""
    return edited(lambda m: m["files"].update({name: m["files"]["dict.txt"]}))


def rewritten(name: str, content: Callable[[bytes], bytes]) -> Change:
    """A file of other content with the right checksum."""

    def apply(bundle: Path) -> None:
        manifest = open_bundle(bundle).manifest
        (bundle / name).write_bytes(content((bundle / name).read_bytes()))
        write_manifest(bundle, manifest)

    return apply


def in_place_of(name: str, make: Callable[[Path], object]) -> Change:
    """Something else than the file."""

    def apply(bundle: Path) -> None:
        (bundle / name).rename(bundle.parent / "away")
        make(bundle / name)

    return apply


def bind(path: Path) -> None:
    with chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # which must be short


def swap(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    for end in ("xml", "bin"):
        names = [bundle / f"{graph}.{end}" for graph in ("encoder", "decoder")]
        first, second = (path.read_bytes() for path in names)
        names[0].write_bytes(second)
        names[1].write_bytes(first)
    write_manifest(bundle, manifest)


def statistics(write: Callable[[IO[bytes]], object]) -> Change:
    """Of the filter banks, listed as it should be."""

    def apply(bundle: Path) -> None:
        manifest = open_bundle(bundle).manifest
        with open(bundle / "global_cmvn.npz", "wb") as file:
            write(file)
        features = replace(manifest.features, global_cmvn="global_cmvn.npz")
        write_manifest(bundle, replace(manifest, features=features))

    return apply


def vast(file: IO[bytes]) -> None:
    """Of which 16 MiB are there: more than is read."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("mean.npy", "std.npy"):
            with archive.open(name, "w") as member:
                npy.write_array_header_1_0(
                    member, {"descr": "<f8", "fortran_order": False, "shape": (1 << 26,)}
                )
                for _ in range(8):
                    member.write(bytes(1 << 20))


def bomb(bundle: Path) -> None:
    """A manifest of format 1 from which a version before this one made ever more tensors."""
    content = json.loads((FORMAT_1 / "s2t" / MANIFEST).read_text())
    content["dimensions"]["layers"] = 2**31 - 1
    (bundle / MANIFEST).write_text(json.dumps(content))


def share(bundle: Path) -> None:
    os.chmod(bundle / "encoder.bin", 0o666)
    os.link(bundle / "encoder.bin", bundle.parent / "another.bin")


LAUGHS = b'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "' + b"a" * 1000 + b'">' + b"".join(
    b'<!ENTITY a%d "' % i + b"&a%d;" % (i - 1) * 10 + b'">' for i in range(1, 10)
) + b']><net name="&a9;" version="11"><layers/><edges/></net>'  # fmt: skip
WRONG = BundleError
ATTACKS: dict[str, tuple[Change, type[FairseqOpenVINOError], str]] = {
    "format 0": (edited(lambda m: m.update(format=0)), WRONG, "bundle format 1 or 2 in manifest.json"),
    "a format of the future": (edited(lambda m: m.update(format=3)), WRONG, "got 3"),
    "the format as text": (edited(lambda m: m.update(format="2")), WRONG, "got '2'"),
    "the format as a boolean": (edited(lambda m: m.update(format=True)), WRONG, "got True"),
    "no format": (edited(lambda m: m.pop("format")), WRONG, "got None"),
    "an empty manifest": (stored(b""), WRONG, "a readable manifest.json"),
    "half a manifest": (stored(b'{"format": 2, "sha'), WRONG, "a readable manifest.json"),
    "a list": (stored(b"[2]"), WRONG, "got 'list'"),
    "not UTF-8": (stored(b'{"format": "\xff"}'), WRONG, "'utf-8' codec can't decode byte 0xff"),
    "UTF-16": (stored('{"format": 2}'.encode("utf-16")), WRONG, "'utf-8' codec can't decode"),
    "a byte order mark": (stored(b"\xef\xbb\xbf{}"), WRONG, "a readable manifest.json"),
    "half a character": (stored(b'{"format": "\\ud800"}'), WRONG, "surrogates not allowed"),
    "deep lists": (stored(b"[" * 500_000), WRONG, "nested too deeply"),
    "deep objects": (stored(b'{"a":' * 200_000), WRONG, "nested too deeply"),
    "a key twice": (replaced('{\n', '{\n "family": "ctc",\n'), WRONG, "the key 'family' twice"),
    "a file twice": (replaced('"files": {', '"files": {"dict.txt": {},'), WRONG, "'dict.txt' twice"),
    "NaN": (replaced(": 6000", ": NaN"), WRONG, "the number NaN"),
    "infinity": (replaced(": 6000", ": -Infinity"), WRONG, "the number -Infinity"),
    "a real number beyond all": (replaced(": 6000", ": 1e999"), WRONG, "the number 1e999"),
    "an integer of 5,000 digits": (replaced(": 6000", ": " + "6" * 5000), WRONG, "an integer of 5000 digits"),
    "an integer of 65 bits": (replaced(": 6000", f": {2**65}"), WRONG, "an integer of 20 digits"),
    "a manifest of 1 GiB": (lambda b: os.truncate(b / MANIFEST, 1 << 30), WRONG, "below 1048576 bytes"),
    "another digest of its own": (replaced(": 6000", ": 6001"), WRONG, "agrees with its own sha256"),
    "dimensions as a text, in format 1": (
        edited(lambda m: m.update(format=1, dimensions="x")), WRONG, "a complete manifest",
    ),
    "no dimensions": (edited(lambda m: m.pop("dimensions")), WRONG, "dimensions"),
    "10^12 bins": (edited(lambda m: m["dimensions"].update(feature_bins=10**12)), WRONG, "feature_bins"),
    "10^12 symbols": (
        edited(lambda m: m["dimensions"].update(vocabulary_size=10**12)), WRONG, "vocabulary_size",
    ),
    "10^12 layers": (edited(lambda m: m["dimensions"].update(layers=10**12)), WRONG, "layers"),
    "2^31 layers in format 1": (bomb, WRONG, "layers"),
    "-1 frames": (edited(lambda m: m["limits"].update(max_source_frames=-1)), WRONG, "max_source_frames"),
    "a tensor of 10^12": (
        edited(lambda m: m["memory"][1].update(dims=["N", 10**12, "S", 8])), WRONG, r"memory\[1\]",
    ),
    "a family of nobody": (edited(lambda m: m.update(family="os")), WRONG, "'os'"),
    "a token beyond the vocabulary": (
        edited(lambda m: m["tokens"].update(eos=10**6)), WRONG, "got 1000000",
    ),
    "another vocabulary": (
        edited(lambda m: m["dimensions"].update(vocabulary_size=99)), ModelError, "dict.txt",
    ),
    "a name above": (listed("../dict.txt"), WRONG, "'../dict.txt'"),
    "a name from the root": (listed("/etc/passwd"), WRONG, "'/etc/passwd'"),
    "a name below": (listed("sub/dict.txt"), WRONG, "'sub/dict.txt'"),
    "a name of Windows": (listed("..\\dict.txt"), WRONG, "without a directory part"),
    "a name with NUL": (listed("dict.txt\0.xml"), WRONG, "without a directory part"),
    "a name with a line break": (listed("dict.txt\n"), WRONG, "without a directory part"),
    "a hidden name": (listed(".dict.txt"), WRONG, "without a directory part"),
    "an empty name": (listed(""), WRONG, "without a directory part"),
    "a program": (listed("encoder.so"), WRONG, "names that end in .xml"),
    "a pickle": (listed("weights.pkl"), WRONG, "names that end in .xml"),
    "a dictionary elsewhere": (
        edited(lambda m: m["text"].update(dictionary="../../etc/passwd")), WRONG, "lists '../../etc/passwd'",
    ),
    "a tokenizer that is not listed": (
        edited(lambda m: m["text"].update(tokenizer="tokenizer.json")), WRONG, "lists 'tokenizer.json'",
    ),
    "weights that are not listed": (
        edited(lambda m: m["files"].pop("encoder.bin")), WRONG, "lists 'encoder.bin'",
    ),
    "no checksum": (edited(lambda m: m["files"]["dict.txt"].pop("sha256")), WRONG, "sha256"),
    "an empty checksum": (
        edited(lambda m: m["files"]["dict.txt"].update(sha256="")), WRONG, "SHA-256 ... of 'dict.txt'",
    ),
    "a graph of 1 GiB": (
        edited(lambda m: m["files"]["encoder.xml"].update(bytes=1 << 30)), WRONG, "bytes in 'encoder.xml'",
    ),
    "weights of 2^62 bytes": (
        edited(lambda m: m["files"]["encoder.bin"].update(bytes=1 << 62)), WRONG, "bytes",
    ),
    "a file of 1 TiB": (lambda b: os.truncate(b / "dict.txt", 1 << 40), WRONG, "bytes in 'dict.txt'"),
    "a link": (in_place_of("dict.txt", lambda p: p.symlink_to("../away")), WRONG, "got a symbolic link"),
    "a link as manifest": (
        in_place_of(MANIFEST, lambda p: p.symlink_to("../away")), WRONG, "manifest.json, got a symbolic",
    ),
    "a link to itself": (
        in_place_of("dict.txt", lambda p: p.symlink_to("dict.txt")), WRONG, "got a symbolic link",
    ),
    "a hard link that anybody may write": (share, WRONG, r"'encoder.bin', got a file of 2 names"),
    "a pipe": (in_place_of("dict.txt", os.mkfifo), WRONG, "a regular file 'dict.txt'"),
    "a pipe as manifest": (in_place_of(MANIFEST, os.mkfifo), WRONG, "a directory, pipe or device"),
    "a directory": (in_place_of("dict.txt", os.mkdir), WRONG, "a regular file 'dict.txt'"),
    "a directory as manifest": (in_place_of(MANIFEST, os.mkdir), WRONG, "a directory, pipe or device"),
    "a socket": (in_place_of("dict.txt", bind), WRONG, "a file 'dict.txt'"),
    "no file": (in_place_of("dict.txt", lambda _: None), WRONG, "a file 'dict.txt'"),
    "a graph that is not listed": (
        lambda b: (b / "encoder.onnx").write_bytes(b"x"), WRONG, "got 'encoder.onnx'",
    ),
    "a manifest in capitals": (
        lambda b: (b / "MANIFEST.JSON").write_bytes(b"{}"), WRONG, "got 'MANIFEST.JSON'",
    ),
    "encoder for decoder": (swap, WRONG, "encoder.xml'"),
    "a memory that is not there": (
        edited(lambda m: m["memory"][1].update(name="x")), WRONG, "called 'cross_key.0' among its outputs",
    ),
    "a memory of another rank": (
        edited(lambda m: m["memory"][1].update(dims=["N", "S", 8])), WRONG, "'cross_key.0'",
    ),
    "a memory of another size": (
        edited(lambda m: m["memory"][1].update(dims=["N", 3, "S", 8])), WRONG, "'cross_key.0'",
    ),
    "a state less": (edited(lambda m: m["state"].pop()), WRONG, "among its states"),
    "a state that is not there": (
        edited(lambda m: m["state"].append({"name": "x", "dims": ["R", 4]})), WRONG, "among its states",
    ),
    "other bins than the graph's": (
        edited(lambda m: (m["dimensions"].update(feature_bins=81), m["features"].update(bins=81))),
        WRONG, "'features' among its inputs",
    ),
    "other bins of features": (
        edited(lambda m: m["features"].update(bins=0)), WRONG, "features of 80 numbers .* got 0",
    ),
    "a rate to which samples cannot be resampled": (
        edited(lambda m: m["features"].update(sample_rate_hz=2**31 - 1)), WRONG, "<= 384000",
    ),
    "no rate": (edited(lambda m: m["features"].update(sample_rate_hz=0)), WRONG, ">= 1000"),
    "a state without a decoder": (
        edited(lambda m: m["dimensions"].update(layers=0)), WRONG, "a decoder with a state, or neither",
    ),
    "a tensor twice": (
        edited(lambda m: m["memory"].append(m["memory"][1])), WRONG, "tensors by names of their own",
    ),
    "unknown subwords": (
        edited(lambda m: m["text"].update(bpe="int8")), ModelError, "subwords of .* got 'int8'",
    ),
    "no statistics": (statistics(lambda file: file.write(b"x")), ModelError, "an archive of stat"),
    "statistics that unpack to more than is read": (
        statistics(vast), ModelError, "an archive of statistics, got",
    ),
    "pickled statistics": (
        statistics(lambda file: np.savez(file, mean=np.array([{}]), std=np.zeros(80))),
        ModelError, "got the type object",
    ),
    "statistics of other bins": (
        statistics(lambda file: np.savez(file, mean=np.zeros(79), std=np.zeros(79))),
        ModelError, r"of 80 filter banks, got \(\(79,\), \(79,\)\)",
    ),
    "inputs of another type": (
        rewritten("encoder.xml", lambda xml: xml.replace(b'element_type="f32"', b'element_type="f64"')),
        WRONG, "encoder.xml'",
    ),
    "no XML": (rewritten("encoder.xml", lambda _: b"\0" * 100), WRONG, "a graph that OpenVINO reads"),
    "an empty graph": (rewritten("encoder.xml", lambda _: b""), WRONG, "encoder.xml'"),
    "a billion laughs": (rewritten("encoder.xml", lambda _: LAUGHS), WRONG, "encoder.xml'"),
    "no weights": (rewritten("encoder.bin", lambda _: b""), WRONG, "a graph that OpenVINO reads"),
    "weights beyond the file": (
        rewritten("encoder.xml", lambda xml: xml.replace(b'offset="0"', b'offset="99999999999"')),
        WRONG, "a graph that OpenVINO reads",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_ends_in_its_error(bundle: Path, name: str) -> None:
    change, kind, message = ATTACKS[name]
    change(bundle)
    with pytest.raises(kind, match=message) as raised:
        use(bundle)
    assert type(raised.value) is kind and raised.value.exit_code == 3


def test_the_bundle_itself_can_be_used(bundle: Path) -> None:
    """Or no attack would show anything; also under second names, beside files of others, and renamed."""
    os.chmod(bundle / "encoder.bin", 0o664)
    os.link(bundle / "encoder.bin", bundle.parent / "another.bin")
    for name in (".DS_Store", "README.md", ".hidden.json"):
        (bundle / name).write_text("x")
    (bundle / ".cache").mkdir()
    use(bundle.rename(bundle.with_name("renamed")))


def test_a_directory_that_may_not_be_listed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As mode 711 makes one, for everybody but root."""

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(BundleError, match="a directory that can be listed"):
        open_bundle(bundle)


@pytest.mark.parametrize("frames", [0, 2**31 - 1])
def test_a_window_of_whisper_that_cannot_be(tmp_path: Path, frames: int) -> None:
    bundle = copied("whisper", tmp_path / "bundle")
    edited(lambda m: m["limits"].update(max_source_frames=frames))(bundle)
    with pytest.raises(BundleError, match="a window of 1 to 60000 frames"):
        load_model(bundle)
