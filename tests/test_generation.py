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

from fairseq_openvino import load_model
from fairseq_openvino.errors import MissingDependencyError, ModelError, OptionError
from fairseq_openvino.export.fairseq import cached_bundle
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.plugin import skipping
from fairseq_openvino.speech.manifest import read_manifest
from fairseq_openvino.speech.stored import frame_count

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
    "empty": ("", r"columns id, audio, got an empty file"),
    "header-only": (HEADER + "\n", "expected at least one utterance, got none"),
    "no-audio": ("id\tn_frames\ttgt_text\na\t100\tt1\n", "columns id, audio, got id, n_frames"),
    "short-row": (f"{HEADER}\n{ROW}\nb\tx.npy\n", "line 3: expected a value in column n_frames"),
    "odd-frames": (f"{HEADER}\na\tx.npy\t142.5\tt1\n", "line 2: .* got '142.5'"),
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


def test_a_manifest_to_train_on_lacks_nothing(data: Path) -> None:
    for column in ("n_frames", "tgt_text"):
        names = [name for name in HEADER.split("\t") if name != column]
        (data / "train.tsv").write_text("\t".join(names) + "\na\tb\tc\n")
        with pytest.raises(ModelError, match="columns id, audio, n_frames, tgt_text, got id"):
            read_manifest(str(data), "train")


def rewrite(data: Path, columns: list[str], change: Any, end: str = "\n") -> None:
    """The manifest with some of its columns, each row changed."""
    header, *rows = ((data / "test.tsv").read_text()).splitlines()
    cells = [change(dict(zip(header.split("\t"), row.split("\t"), strict=True))) for row in rows]
    lines = ["\t".join(columns), *("\t".join(each[name] for name in columns) for each in cells)]
    (data / "test.tsv").write_bytes("".join(line + end for line in lines).encode())


ALL = [*HEADER.split("\t"), "speaker"]
SPARSE: tuple[tuple[list[str], Any, str], ...] = (
    (ALL[:2], lambda row: row, "\n"),
    (ALL, lambda row: row | {"n_frames": " ", "tgt_text": ""}, "\n"),
    (ALL[:3], lambda row: row | {"n_frames": row["n_frames"] + ".0"}, "\r\n"),
)


def test_manifests_may_lack_lengths_and_texts(data: Path, cache_dir: Path) -> None:
    engine = ("--ov-engine", "--ov-cache-dir", str(cache_dir))
    expected = generate(data, *FAST, *engine)
    assert expected.references and expected.metric
    for columns, change, end in SPARSE:
        shutil.copy(data / "test.tsv", data / "whole.tsv")
        rewrite(data, columns, change, end)
        found = generate(data, *FAST, *engine)
        assert found.hypotheses == expected.hypotheses
        assert not found.references and not found.metric
        shutil.move(data / "whole.tsv", data / "test.tsv")


def test_parts_of_audio_files(data: Path, cache_dir: Path, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (48_000, 2)).astype(np.float32)
    for name, suffix, subtype in (("long", "wav", "FLOAT"), ("long", "flac", "PCM_16")):
        soundfile.write(tmp_path / f"{name}.{suffix}", samples, 16_000, subtype=subtype)
    rows = ["id\taudio"]
    for suffix in ("wav", "flac"):
        whole, _ = soundfile.read(tmp_path / f"long.{suffix}", dtype="float32")
        for first, count in ((0, 9000), (20_001, 16_000)):
            path = tmp_path / f"{suffix}-{first}.wav"
            soundfile.write(path, whole[first : first + count], 16_000, subtype="FLOAT")
            rows += [f"a\t{path}", f"b\t{tmp_path}/long.{suffix}:{first}:{count}"]
    for bad in ("long.wav:40000:16000", "long.wav:0:0", "none.flac:0:9"):
        rows.append(f"c\t{tmp_path}/{bad}")
    (data / "test.tsv").write_text("\n".join(rows) + "\n")
    for flags in ((), ("--ov-engine", "--ov-cache-dir", str(cache_dir))):
        before = counted()
        found = generate(data, *FAST, "--batch-size", "1", *flags).hypotheses
        assert tuple(np.subtract(counted(), before)) == (3, 0)
        assert [found[i] for i in range(0, 8, 2)] == [found[i] for i in range(1, 8, 2)]
    utterances = [row.split("\t")[1] for row in rows[1:9]]
    assert [frame_count(path) for path in utterances] == 2 * [54, 54, 98, 98]
    bundle = cached_bundle(data / "checkpoint.pt", DataDirectory(data), {}, cache_dir)
    clips = [load_model(bundle.directory).read(path) for path in utterances]
    for whole, part in zip(clips[::2], clips[1::2], strict=True):
        np.testing.assert_array_equal(whole.features, part.features)
        assert whole.seconds == part.seconds


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


TOKENIZERS = (
    (
        "bpe_tokenizer: {bpe: subword_nmt, bpe_codes: /gone/codes}",
        ModelError,
        "/gone/codes not found",
    ),
    ("bpe_tokenizer: {bpe: hf_byte_bpe}", ModelError, "'hf_byte_bpe'.*not found"),
    ("pre_tokenizer: {tokenizer: moses}", MissingDependencyError, "pip install sacremoses"),
)


@pytest.mark.parametrize(("config", "kind", "named"), TOKENIZERS)
def test_tokenizers_that_cannot_be_built(data: Path, config: str, kind: Any, named: str) -> None:
    with open(data / "config.yaml", "a") as file:
        file.write(config + "\n")
    with pytest.raises(kind, match=f"Building the tokenizer failed.*{named}"):
        generate(data, *FAST)


def test_batches_that_cannot_hold_an_utterance(data: Path) -> None:
    with pytest.raises(OptionError, match="exceed max_tokens=10. Raise --max-tokens"):
        generate(data, *FAST, "--max-tokens", "10")
    with pytest.raises(OptionError, match="--skip-invalid-size-inputs-valid-test"):
        generate(data, *FAST, "--max-source-positions", "20")
