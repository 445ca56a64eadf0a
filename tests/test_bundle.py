"""Bundles: every kind of damage is noticed before a native parser sees a byte."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from fairseq_openvino.atomic import sha256, staged_directory
from fairseq_openvino.bundle import (
    MANIFEST,
    Dimensions,
    FeatureConfig,
    Limits,
    Manifest,
    SpecialTokens,
    TextConfig,
    is_bundle,
    open_bundle,
    write_manifest,
)
from fairseq_openvino.errors import BundleError, OptionError, StorageError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of arbitrary bytes: nothing here parses the graphs."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    random = np.random.default_rng(0)
    for name in ("encoder.xml", "encoder.bin", "decoder.xml", "decoder.bin", "dict.txt"):
        (directory / name).write_bytes(random.bytes(700))
    manifest = Manifest(
        family="s2t", architecture="s2t_transformer", precision="f32",
        dimensions=Dimensions(2, 2, 16, 32, 80, 60, 4), limits=Limits(6000, 1024),
        tokens=SpecialTokens(0, 1, 2, 3), features=FeatureConfig(80, 16000, ("utterance_cmvn",)),
        text=TextConfig("dict.txt", None),
    )  # fmt: skip
    write_manifest(directory, manifest)
    return directory


def test_a_bundle_survives_writing_reading_and_moving(bundle: Path, tmp_path: Path) -> None:
    first = open_bundle(bundle).manifest
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.move(bundle, moved)
    again = open_bundle(moved)
    assert again.manifest == first
    assert again.path("dict.txt").parent == moved
    assert replace(first, files={}).files == {} and len(first.files) == 5
    with pytest.raises(BundleError, match=r"'spm.model'"):
        again.path("spm.model")


def test_every_flipped_bit_is_noticed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*_: Any) -> None:
        raise AssertionError("a damaged bundle reached OpenVINO")

    monkeypatch.setattr(ov.Core, "read_model", parsed)
    random = np.random.default_rng(1)
    files = [p for p in sorted(bundle.iterdir()) if p.name != MANIFEST]
    for _ in range(400):
        path = files[random.integers(len(files))]
        content = bytearray(path.read_bytes())
        position, bit = random.integers(len(content)), random.integers(8)
        content[position] ^= 1 << int(bit)
        path.write_bytes(content)
        with pytest.raises(BundleError, match=path.name):
            open_bundle(bundle)
        content[position] ^= 1 << int(bit)
        path.write_bytes(content)
    open_bundle(bundle)


@pytest.mark.parametrize("size", [0, 1, 350, 699, 701])
def test_truncated_or_longer_files(bundle: Path, size: int) -> None:
    content = (bundle / "decoder.bin").read_bytes() + b"x"
    (bundle / "decoder.bin").write_bytes(content[:size])
    with pytest.raises(BundleError, match=r"700 bytes in 'decoder.bin'"):
        open_bundle(bundle)


def test_missing_linked_and_special_files(bundle: Path, tmp_path: Path) -> None:
    path = bundle / "encoder.xml"
    path.rename(tmp_path / "away.xml")
    with pytest.raises(BundleError, match=r"encoder.xml"):
        open_bundle(bundle)
    path.symlink_to(tmp_path / "away.xml")
    with pytest.raises(BundleError, match="regular file"):
        open_bundle(bundle)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match="regular file"):
        open_bundle(bundle)


def test_swapped_files(bundle: Path) -> None:
    a, b = bundle / "encoder.bin", bundle / "decoder.bin"
    a.rename(bundle / "x"), b.rename(a), (bundle / "x").rename(b)
    with pytest.raises(BundleError, match="SHA-256"):
        open_bundle(bundle)


def edit(bundle: Path, change: Any) -> None:
    path = bundle / MANIFEST
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=0), "bundle format 1"),
        (lambda m: m.update(format=2), "bundle format 1"),
        (lambda m: m.pop("dimensions"), "complete manifest"),
        (lambda m: m["dimensions"].update(heads=-1), "heads"),
        (lambda m: m["dimensions"].update(heads="2"), "heads"),
        (lambda m: m["dimensions"].update(extra=1), "extra"),
        (lambda m: m["limits"].pop("max_target_tokens"), "complete manifest"),
        (lambda m: m.update(files=[1]), "complete manifest"),
        (lambda m: m["files"].update({"../etc/passwd": m["files"]["dict.txt"]}), "directory part"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"]["dict.txt"]}), "directory part"),
        (lambda m: m["files"]["dict.txt"].pop("sha256"), "complete manifest"),
        (lambda m: m.update(unknown=1), "complete manifest"),
    ],
)
def test_malformed_manifests(bundle: Path, change: Any, message: str) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_manifests_that_are_not_json_objects(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError):
        open_bundle(bundle)


def test_huge_manifest_is_not_parsed(bundle: Path) -> None:
    with open(bundle / MANIFEST, "ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(BundleError, match="below"):
        open_bundle(bundle)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    assert not is_bundle(tmp_path)
    with pytest.raises(BundleError, match=MANIFEST):
        open_bundle(tmp_path / "nothing")


def test_staging_publishes_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with pytest.raises(RuntimeError), staged_directory(target) as stage:
        (stage / "a").write_text("half")
        raise RuntimeError
    assert not target.exists() and list(target.parent.iterdir()) == []
    with staged_directory(target) as stage:
        (stage / "a").write_text("whole")
        assert not target.exists()
    assert (target / "a").read_text() == "whole"
    with pytest.raises(OptionError, match="--overwrite"), staged_directory(target):
        pass
    with staged_directory(target, overwrite=True) as stage:
        (stage / "b").write_text("new")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_no_permission_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="permissions"),
        staged_directory(tmp_path / "file" / "x"),
    ):
        pass


def test_sha256_equals_hashlib(tmp_path: Path) -> None:
    import hashlib

    content = np.random.default_rng(0).bytes(3_000_001)
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()
