"""Bundles: what is written is read again; other manifests are refused. Damage is in `test_bundle_damage`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
from fairseq_openvino.bundle.manifest import _digest
from fairseq_openvino.errors import BundleError, OptionError, StorageError
from fairseq_openvino.loading import load_model
from fairseq_openvino.tensors import attention_specs

FORMAT_1 = Path(__file__).parent / "fixtures" / "format1"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of arbitrary bytes: nothing here parses the graphs."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    random = np.random.default_rng(0)
    for name in ("encoder.xml", "encoder.bin", "decoder.xml", "decoder.bin", "dict.txt"):
        (directory / name).write_bytes(random.bytes(700))
    memory, state = attention_specs(2, 2, 16)
    manifest = Manifest(
        family="s2t", architecture="s2t_transformer", precision="f32",
        dimensions=Dimensions(2, 32, 80, 60, 4), limits=Limits(6000, 1024),
        tokens=SpecialTokens(0, 1, 2, 3), features=FeatureConfig(80, 16000, ("utterance_cmvn",)),
        text=TextConfig("dict.txt", None), memory=memory, state=state,
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


def edit(bundle: Path, change: Any) -> None:
    """Change a manifest, and with format 2 its digest."""
    path = bundle / MANIFEST
    content = json.loads(path.read_text())
    change(content)
    if "sha256" in content:
        content["sha256"] = _digest(content)
    path.write_text(json.dumps(content))


def test_every_changed_byte_of_a_manifest_is_noticed(bundle: Path) -> None:
    """Whatever the change leaves readable: a digit, a name, a whole field."""
    path = bundle / MANIFEST
    content, random = path.read_bytes(), np.random.default_rng(2)
    for _ in range(400):
        changed = bytearray(content)
        changed[random.integers(len(content))] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        try:
            same = json.loads(changed) == json.loads(content)
        except ValueError:
            same = False
        if same:  # white space
            open_bundle(bundle)
            continue
        with pytest.raises(BundleError):
            open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["dimensions"].update(layers=-1), r"\$.dimensions.layers"),
        (lambda m: m["dimensions"].update(layers="2"), r"\$.dimensions.layers"),
        (lambda m: m["dimensions"].update(layers=True), r"\$.dimensions.layers"),
        (lambda m: m["features"].update(bins="eighty"), r"\$.features.bins"),
        (lambda m: m["features"].update(sample_rate_hz=[1]), r"\$.features.sample_rate_hz"),
        (lambda m: m["runtime"].update(inference=5), r"\$.runtime.inference"),
        (lambda m: m["memory"][0].update(dims=["N", None]), r"\$.memory\[0\].dims\[1\]"),
        (lambda m: m["state"][0].update(name=3), r"\$.state\[0\].name"),
        (lambda m: m["files"]["dict.txt"].update(bytes="9"), r"\$.files\[...\].bytes"),
        (lambda m: m["limits"].pop("max_target_tokens"), "complete manifest.*max_target_tokens"),
        (lambda m: m.update(files=[1]), r"\$.files"),
    ],
)
def test_malformed_manifests(bundle: Path, change: Any, message: str) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_fields_of_a_newer_version_are_ignored_once_the_digest_matches(bundle: Path) -> None:
    before = open_bundle(bundle).manifest
    edit(bundle, lambda m: (m.update(words=1), m["features"].update(channels=2)))
    assert open_bundle(bundle).manifest == before
    (bundle / MANIFEST).write_text((bundle / MANIFEST).read_text().replace("words", "sword"))
    with pytest.raises(BundleError, match="agrees with its own sha256"):
        open_bundle(bundle)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A bundle written by version 0.1.0."""
    shutil.copytree(FORMAT_1 / "s2t", tmp_path / "s2t")
    return tmp_path / "s2t"


@pytest.mark.parametrize("family", ["s2t", "whisper"])
def test_bundles_of_format_1_give_what_they_gave(family: str) -> None:
    """Tokens and scores were written down by the version that wrote the bundles."""
    seconds = np.arange(12_000) / 16_000
    waveform = 0.3 * np.sin(2 * np.pi * 220 * seconds * (1 + 0.3 * seconds))
    waveform += 0.05 * np.sin(2 * np.pi * 1700 * seconds)
    model = load_model(FORMAT_1 / family)
    for expected in json.loads((FORMAT_1 / "expected.json").read_text())[family]:
        once = {"temperature": 0.0, "skip_silence": False} if family == "whisper" else {}
        options = {**once, **expected["options"]}
        found = model.transcribe(waveform.astype(np.float32), 16_000, **options)
        hypotheses = [hypothesis for _, hypothesis in found.hypotheses]
        assert [hypothesis.tokens.tolist() for hypothesis in hypotheses] == expected["tokens"]
        scores = [hypothesis.score for hypothesis in hypotheses]
        np.testing.assert_allclose(scores, expected["scores"], rtol=1e-5)
        assert found.text == expected["text"]


def test_format_1_is_read_as_format_2_has_it(older: Path) -> None:
    manifest = open_bundle(older).manifest
    assert (manifest.memory, manifest.state) == attention_specs(1, 2, 8)
    write_manifest(older, manifest)
    again = open_bundle(older).manifest
    assert again == replace(manifest, format=2, files=again.files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["dimensions"].update(heads=-1), "heads"),
        (lambda m: m["dimensions"].update(heads="2"), "expected a complete manifest"),
        (lambda m: m["dimensions"].pop("head_width"), "head_width"),
        (lambda m: m["dimensions"].update(extra=1), "unknown field 'extra' in 'dimensions'"),
        (lambda m: m["text"].update(bpf=None), "unknown field 'bpf' in 'text'"),
        (lambda m: m.update(unknown=1), "unknown field 'unknown'"),
    ],
)
def test_malformed_manifests_of_format_1(older: Path, change: Any, message: str) -> None:
    """It has no digest: a name that is not known may be a damaged one."""
    edit(older, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(older)


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
    with pytest.raises(OptionError, match="overwrite"), staged_directory(target):
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
