"""Manifests, arrays and clips that are wrong: one line, one utterance."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import generate

from fairseq_openvino.errors import ModelError, OptionError
from fairseq_openvino.plugin import skipping

FAST = ("--beam", "2", "--max-len-b", "8")


@pytest.fixture
def data(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the data directory with four utterances."""
    copy = tmp_path / "data"
    shutil.copytree(tiny, copy, ignore=shutil.ignore_patterns("features"))
    rows = (copy / "test.tsv").read_text().splitlines()[:5]
    (copy / "test.tsv").write_text("\n".join(rows) + "\n")
    return copy


def counted() -> tuple[int, int]:
    return skipping.skipped.value, skipping.damaged.value


def add_row(data: Path, name: str, audio: str) -> None:
    with open(data / "test.tsv", "a") as file:
        file.write(f"{name}\t{audio}\t98\tt1 t2\ts\n")


def test_damaged_audio_is_generated_warned_of_and_counted(
    data: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write(data / "whole.wav", samples, 16_000)
    content = (data / "whole.wav").read_bytes()
    (data / "cut.wav").write_bytes(content[:-9000])
    with zipfile.ZipFile(data / "all.zip", "w", zipfile.ZIP_STORED) as file:
        file.writestr("cut.wav", content[:-9000])
        offset = file.getinfo("cut.wav").header_offset + 30 + len("cut.wav")
    size = len(content) - 9000
    for name in ("whole.wav", "cut.wav", f"all.zip:{offset}:{size}"):
        add_row(data, name, str(data / name))
    for flags in ((), ("--ov-engine", "--ov-cache-dir", str(cache_dir))):
        before = counted()
        run = generate(data, *FAST, *flags)
        assert sorted(run.hypotheses) == list(range(7))
        assert tuple(np.subtract(counted(), before)) == (0, 2)
    assert caplog.text.count("0.28 s of 1.00 s are missing") == 4


def test_arrays_of_wrong_features_are_skipped_by_name(
    data: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arrays: dict[str, Any] = {
        "flat": np.zeros(80, np.float32), "none": np.zeros((0, 80), np.float32),
        "bins": np.zeros((50, 40), np.float32), "nan": np.full((50, 80), np.nan, np.float32),
        "objects": np.array([None, 1]), "text": np.array([["a"] * 80]),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(data / f"{name}.npy", array)
        add_row(data, name, str(data / f"{name}.npy"))
    before = counted()
    run = generate(data, *FAST, "--ov-engine", "--ov-cache-dir", str(cache_dir))
    assert sorted(run.hypotheses) == [0, 1, 2, 3]
    assert tuple(np.subtract(counted(), before)) == (len(arrays), 0)
    for name in arrays:
        (line,) = [x.message for x in caplog.records if f"{name}.npy" in x.message]
        assert line.startswith("skipping utterance") and "Reading speech failed" in line


HEADER, ROW = "id\taudio\tn_frames\ttgt_text", "a\tx.npy\t100\tt1"


BAD_MANIFESTS = {
    "absent": (None, r"got no such file\. Check --gen-subset"),
    "empty": ("", r"columns id, audio, n_frames, tgt_text, got an empty file"),
    "header-only": (HEADER + "\n", "expected at least one utterance, got none"),
    "no-text": ("id\taudio\tn_frames\na\tx.npy\t100\n", "tgt_text, got id, audio, n_frames"),
    "no-frames": ("id\taudio\ttgt_text\na\tx.npy\tt1\n", "got id, audio, tgt_text"),
    "short-row": (f"{HEADER}\n{ROW}\nb\tx.npy\n", "line 3: expected a value in column n_frames"),
    "blank-frames": (f"{HEADER}\na\tx.npy\t\tt1\n", "line 2: expected a whole number .* got ''"),
    "float-frames": (f"{HEADER}\na\tx.npy\t142.0\tt1\n", "line 2: .* got '142.0'"),
    "word-frames": (f"{HEADER}\na\tx.npy\tabc\tt1\n", "line 2: .* got 'abc'"),
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_manifests_that_do_not_fit_name_file_and_line(data: Path, case: str) -> None:
    content, message = BAD_MANIFESTS[case]
    (data / "test.tsv").unlink()
    if content is not None:
        (data / "test.tsv").write_text(content)
    with pytest.raises(ModelError, match=rf"Reading a manifest failed in .*test\.tsv.*{message}"):
        generate(data, *FAST)


def test_a_byte_order_mark_is_no_part_of_a_name(data: Path) -> None:
    content = (data / "test.tsv").read_text()
    expected = generate(data, *FAST)
    (data / "test.tsv").write_text(content, encoding="utf-8-sig")
    assert generate(data, *FAST).hypotheses == expected.hypotheses


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [\n", ""])
def test_data_configurations_that_are_none(data: Path, content: str) -> None:
    (data / "bad.yaml").write_text(content)
    with pytest.raises(ModelError, match=r"bad\.yaml.*expected a YAML file of options, got"):
        generate(data, *FAST, config="bad.yaml")
    with pytest.raises(ModelError, match=r"there: bad\.yaml, config\.yaml"):
        generate(data, *FAST, config="absent.yaml")


def test_batches_that_cannot_hold_an_utterance(data: Path) -> None:
    with pytest.raises(OptionError, match="exceed max_tokens=10. Raise --max-tokens"):
        generate(data, *FAST, "--max-tokens", "10")
    with pytest.raises(OptionError, match="--skip-invalid-size-inputs-valid-test"):
        generate(data, *FAST, "--max-source-positions", "20")
