"""The CoVoST recipe: tables, features, manifests, vocabulary."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
import yaml

from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.features import fbank, utterance_cmvn

RECIPE = Path(__file__).parents[1] / "examples" / "covost"
MINI = RECIPE / "mini"
sys.path.insert(0, str(RECIPE))

import pack_model  # noqa: E402
import prep_covost  # noqa: E402
import prep_text  # noqa: E402
import synthesize  # noqa: E402

RATE_HZ = 16_000
ENGLISH = ("red", "green", "blue", "small", "old", "new")
GERMAN = ("rot", "grün", "blau", "klein", "alt", "neu")


@dataclass(frozen=True)
class Entry:
    """One clip of a test corpus; `rate_hz` 0 writes a file that is not audio, -1 none."""

    name: str
    split: str
    seconds: float = 0.4
    rate_hz: int = RATE_HZ
    translation: str = "rot und grün"


def _entries() -> list[Entry]:
    splits = ["train"] * 12 + ["train_covost", "dev", "dev", "test", "test"]
    return [
        Entry(
            f"clip_{index}.mp3",
            split,
            0.3 + 0.05 * index,
            translation=f"{GERMAN[index % 6]} oder {GERMAN[(index * 5 + 1) % 6]}",
        )
        for index, split in enumerate(splits)
    ]


def _write(root: Path, entries: list[Entry]) -> Path:
    """A corpus of noise with tones in the layout of CoVoST 2; returns its `en` directory."""
    directory = root / "en"
    (directory / "clips").mkdir(parents=True)
    random = np.random.default_rng(3)
    validated = ["client_id\tpath\tsentence\tup_votes"]
    covost = ["path\ttranslation\tsplit"]
    for index, entry in enumerate(entries):
        target = directory / "clips" / entry.name
        if entry.rate_hz > 0:
            time = np.arange(int(entry.seconds * entry.rate_hz)) / entry.rate_hz
            tone = 0.3 * np.sin(2 * np.pi * (200 + 40 * index) * time)
            waveform = tone + 0.01 * random.standard_normal(len(time))
            soundfile.write(target, waveform.astype(np.float32), entry.rate_hz, format="MP3")
        elif entry.rate_hz == 0:
            target.write_bytes(b"not audio" * 50)
        validated.append(f"speaker{index % 3}\t{entry.name}\t{ENGLISH[index % 6]} colour\t2")
        covost.append(f"{entry.name}\t{entry.translation}\t{entry.split}")
    (directory / "validated.tsv").write_text("\n".join(validated) + "\n", "utf-8")
    (directory / "covost_v2.en_de.tsv").write_text("\n".join(covost) + "\n", "utf-8")
    return directory


def _prep(directory: Path, *options: str, target: str | None = "de", kind: str = "char") -> int:
    arguments = ["--data-root", str(directory.parent), "--src-lang", "en", "--workers", "1"]
    arguments += ["--vocab-type", kind, *options] + (["--tgt-lang", target] if target else [])
    return prep_covost.main(arguments)


def _manifest(path: Path) -> dict[str, dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE)
        return {row["id"]: row for row in rows}


def _zip_slice(directory: Path, reference: str) -> np.ndarray:
    name, offset, size = reference.split(":")
    data = (directory / name).read_bytes()[int(offset) : int(offset) + int(size)]
    path = directory / "slice.npy"
    path.write_bytes(data)
    return np.load(path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus prepared for translation; tests must not change it."""
    directory = _write(tmp_path_factory.mktemp("prepared"), _entries())
    assert _prep(directory) == 0
    return directory


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Path]:
    """Write the usual corpus plus the given entries."""
    return lambda *extra: _write(tmp_path, [*_entries(), *extra])


def test_zip_references_hold_the_features_of_the_clips(prepared: Path) -> None:
    rows = _manifest(prepared / "train_st_en_de.tsv")
    assert len(rows) == 13
    for name, row in rows.items():
        waveform, rate_hz = read_audio(prepared / "clips" / f"{name}.mp3")
        expected = fbank(waveform, rate_hz)
        np.testing.assert_array_equal(_zip_slice(prepared, row["audio"]), expected)
        assert int(row["n_frames"]) == len(expected)


def test_manifest_columns_and_texts(prepared: Path) -> None:
    row = _manifest(prepared / "dev_st_en_de.tsv")["clip_13"]
    expected = [
        "id",
        "audio",
        "n_frames",
        "tgt_text",
        "speaker",
        "src_text",
        "src_lang",
        "tgt_lang",
    ]
    assert list(row) == expected
    assert row["tgt_text"] == "grün oder rot"
    assert row["src_text"] == "green colour"
    assert (row["speaker"], row["src_lang"], row["tgt_lang"]) == ("speaker1", "en", "de")


def test_configuration_is_fairseqs_and_movable(prepared: Path) -> None:
    config = yaml.safe_load((prepared / "config_st_en_de.yaml").read_text("utf-8"))
    assert config.pop("audio_root") == prepared.as_posix()
    assert str(prepared) not in json.dumps(config)
    assert config["bpe_tokenizer"]["sentencepiece_model"] == "spm_char_st_en_de.model"
    assert config["vocab_filename"] == "spm_char_st_en_de.txt"
    assert config["sample_rate"] == RATE_HZ
    assert config["transforms"] == {
        "*": ["utterance_cmvn"],
        "_train": ["utterance_cmvn", "specaugment"],
    }
    assert (config["specaugment"]["freq_mask_F"], config["specaugment"]["time_mask_T"]) == (27, 100)


def test_vocabulary_has_fairseqs_special_ids(prepared: Path) -> None:
    model = sentencepiece.SentencePieceProcessor(str(prepared / "spm_char_st_en_de.model"))
    assert [model.id_to_piece(index) for index in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    lines = (prepared / "spm_char_st_en_de.txt").read_text("utf-8").splitlines()
    pieces = [model.id_to_piece(index) for index in range(4, model.get_piece_size())]
    assert lines == [f"{piece} 1" for piece in pieces]
    assert {"ü", "▁", "r"} <= set(pieces)


def test_fairseq_loads_the_manifest(prepared: Path) -> None:
    encoders = pytest.importorskip("fairseq.data.encoders.sentencepiece_bpe")
    from fairseq.data import Dictionary
    from fairseq.data.audio.data_cfg import S2TDataConfig
    from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDatasetCreator

    config = S2TDataConfig(prepared / "config_st_en_de.yaml")
    dictionary = Dictionary.load(str(prepared / config.vocab_filename))
    tokenizer = encoders.SentencepieceBPE(
        encoders.SentencepieceConfig(
            sentencepiece_model=config.bpe_tokenizer["sentencepiece_model"]
        )
    )
    dataset = SpeechToTextDatasetCreator.from_tsv(
        str(prepared), config, "test_st_en_de", dictionary, None, tokenizer, False, 1, 1
    )
    assert len(dataset) == 2
    item = dataset[0]
    waveform, rate_hz = read_audio(prepared / "clips" / "clip_15.mp3")
    expected = utterance_cmvn(fbank(waveform, rate_hz))
    np.testing.assert_allclose(item.source.numpy(), expected, atol=1e-5)
    assert tokenizer.decode(dictionary.string(item.target)) == "klein oder alt"
    assert dictionary.unk() not in item.target.tolist()


def test_filters(corpus: Callable[..., Path]) -> None:
    directory = corpus(
        Entry("short.mp3", "train", 0.05),
        Entry("empty.mp3", "dev", translation=""),
        Entry("long_train.mp3", "train", 30.2),
        Entry("long_dev.mp3", "dev", 30.2),
        Entry("other_split.mp3", "unused"),
    )
    assert _prep(directory) == 0
    assert set(_manifest(directory / "train_st_en_de.tsv")) == {f"clip_{i}" for i in range(13)}
    assert set(_manifest(directory / "dev_st_en_de.tsv")) == {"clip_13", "clip_14", "long_dev"}


def test_bad_clips_are_listed_and_make_the_exit_code_one(
    corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = corpus(
        Entry("broken.mp3", "train", rate_hz=0), Entry("gone.mp3", "train", rate_hz=-1)
    )
    for _ in range(2):  # the second run reuses the features and must still report them
        assert _prep(directory) == 1
        assert "skipped_st_en_de.tsv: 2 rows" in capsys.readouterr().err
        lines = (directory / "skipped_st_en_de.tsv").read_text("utf-8").splitlines()
        assert [line.split("\t")[:3] for line in lines] == [
            ["split", "path", "problem"],
            ["train", "broken.mp3", "not decodable"],
            ["train", "gone.mp3", "missing file"],
        ]
        assert all("Decoding audio failed" in line for line in lines[1:])
    assert len(_manifest(directory / "train_st_en_de.tsv")) == 13


def test_differing_rates_are_an_error_that_names_both(
    corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = corpus(Entry("other.mp3", "train", rate_hz=32_000))
    assert _prep(directory) == 2
    message = capsys.readouterr().err
    assert "16000 Hz" in message and "32000 Hz (other.mp3)" in message
    assert "--sample-rate 16000" in message
    assert not (directory / "fbank80.zip").exists()
    assert _prep(directory, "--sample-rate", "16000") == 0
    row = _manifest(directory / "train_st_en_de.tsv")["other"]
    waveform, _ = read_audio(directory / "clips" / "other.mp3", RATE_HZ)
    np.testing.assert_array_equal(_zip_slice(directory, row["audio"]), fbank(waveform, RATE_HZ))


def test_existing_features_of_another_rate_are_refused(
    corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = corpus()
    assert _prep(directory, "--sample-rate", "8000") == 0
    config = yaml.safe_load((directory / "config_st_en_de.yaml").read_text("utf-8"))
    assert config["sample_rate"] == 8000
    assert _prep(directory) == 2
    assert "expected features at 16000 Hz, got 8000 Hz" in capsys.readouterr().err
    assert _prep(directory, "--sample-rate", "8000") == 0
    record = (directory / "fbank80.json").read_bytes()
    (directory / "fbank80.json").unlink()
    assert _prep(directory, "--sample-rate", "8000") == 2
    (directory / "fbank80.json").write_bytes(record)
    (directory / "fbank80.zip").write_bytes((directory / "fbank80.zip").read_bytes()[:-30])
    assert _prep(directory, "--sample-rate", "8000") == 2
    assert "Delete fbank80.zip to compute" in capsys.readouterr().err


def test_a_second_run_changes_nothing(corpus: Callable[..., Path]) -> None:
    directory = corpus()
    assert _prep(directory, "--vocab-size", "28", kind="bpe") == 0
    before = {path: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    kept = {path: path.stat().st_mtime_ns for path in before if path.suffix in (".zip", ".model")}
    assert len(kept) == 2 and not list(directory.glob("*.partial"))
    assert _prep(directory, "--vocab-size", "28", kind="bpe") == 0
    assert {path: path.read_bytes() for path in directory.iterdir() if path.is_file()} == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_new_clips_need_new_features(
    corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = corpus()
    assert _prep(directory) == 0
    shutil.copy(directory / "clips" / "clip_0.mp3", directory / "clips" / "late.mp3")
    with open(directory / "validated.tsv", "a", encoding="utf-8") as file:
        file.write("speaker1\tlate.mp3\tlate\t2\n")
    with open(directory / "covost_v2.en_de.tsv", "a", encoding="utf-8") as file:
        file.write("late.mp3\tspät\ttrain\n")
    assert _prep(directory) == 2
    assert "got none for 1 of them (late.mp3)" in capsys.readouterr().err


def test_recognition_writes_the_sentences(corpus: Callable[..., Path]) -> None:
    directory = corpus()
    assert _prep(directory, target=None) == 0
    assert {path.name for path in directory.glob("*_asr_en*")} == {
        "train_asr_en.tsv", "dev_asr_en.tsv", "test_asr_en.tsv", "config_asr_en.yaml",
        "spm_char_asr_en.model", "spm_char_asr_en.vocab", "spm_char_asr_en.txt",
    }  # fmt: skip
    row = _manifest(directory / "test_asr_en.tsv")["clip_15"]
    assert (row["tgt_text"], row["tgt_lang"]) == ("small colour", "en")


def test_manifests_of_the_clips_themselves(corpus: Callable[..., Path]) -> None:
    directory = corpus()
    assert _prep(directory, "--features", "none") == 0
    assert not (directory / "fbank80.zip").exists()
    row = _manifest(directory / "test_st_en_de.tsv")["clip_16"]
    assert row["audio"] == "clips/clip_16.mp3"
    assert int(row["n_frames"]) == len(fbank(*read_audio(directory / "clips" / "clip_16.mp3")))
    assert _prep(directory, "--features", "none", "--sample-rate", "8000") == 2


def test_translation_table_is_unpacked_or_asked_for(
    corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = corpus()
    table = directory / "covost_v2.en_de.tsv"
    with tarfile.open(directory / "covost_v2.en_de.tsv.tar.gz", "w:gz") as archive:
        archive.add(table, table.name)
    table.unlink()
    assert _prep(directory) == 0
    table.unlink()
    (directory / "covost_v2.en_de.tsv.tar.gz").unlink()
    assert _prep(directory) == 2
    assert "covost_v2.en_de.tsv.tar.gz" in capsys.readouterr().err


def test_impossible_vocabulary_size_names_the_option(
    corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _prep(corpus(), "--vocab-size", "5000", kind="unigram") == 2
    assert "Change --vocab-size" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_synthetic_corpus_can_be_prepared(tmp_path: Path) -> None:
    options = ["--train", "20", "--dev", "2", "--test", "2", "--seed", "4"]
    for name in ("first", "second"):
        assert synthesize.main(["--output", str(tmp_path / name), *options]) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "first/en/clips").iterdir()}
    second = {path.name: path.read_bytes() for path in (tmp_path / "second/en/clips").iterdir()}
    assert len(first) == 24 and first == second
    info = soundfile.info(tmp_path / "first/en/clips/common_voice_en_00000001.mp3")
    assert (info.samplerate, info.channels, info.format) == (RATE_HZ, 1, "MP3")
    directory = tmp_path / "first" / "en"
    header = (directory / "validated.tsv").read_text("utf-8").splitlines()[0]
    assert header == "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"
    assert _prep(directory) == 0
    rows = _manifest(directory / "train_st_en_de.tsv")
    assert len(rows) == 20
    assert all(100 * 0.8 < int(row["n_frames"]) < 100 * 12 for row in rows.values())


def _pack(data: Path, output: Path, *options: str) -> set[str]:
    arguments = ["--data", str(data), *options, "--output", str(output)]
    assert pack_model.main(arguments) == 0
    texts = [
        path.read_text("utf-8") for path in output.iterdir() if path.suffix in (".tsv", ".yaml")
    ]
    assert not any(str(output.parent) in text or str(data) in text for text in texts)
    return {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}


def test_packed_directory_is_complete_and_movable(prepared: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "small.pt"
    checkpoint.write_bytes(b"weights")
    output = tmp_path / "packed"
    assert _pack(prepared, output, "-t", "de", "--checkpoint", str(checkpoint)) == {
        "checkpoint.pt", "clips/clip_15.mp3", "clips/clip_16.mp3", "config_st_en_de.yaml",
        "spm_char_st_en_de.model", "spm_char_st_en_de.txt", "test_st_en_de.tsv",
    }  # fmt: skip
    assert yaml.safe_load((output / "config_st_en_de.yaml").read_text("utf-8"))["audio_root"] == "."
    row = _manifest(output / "test_st_en_de.tsv")["clip_15"]
    expected = _manifest(prepared / "test_st_en_de.tsv")["clip_15"]
    assert row == {**expected, "audio": "clips/clip_15.mp3"}


def test_multilingual_model_is_prepared_and_packed_without_a_second_copy_of_the_clips(
    corpus: Callable[..., Path], tmp_path: Path
) -> None:
    directory = corpus()
    german = (directory / "covost_v2.en_de.tsv").read_text("utf-8")
    catalan = german.replace(" oder ", " o ")
    (directory / "covost_v2.en_ca.tsv").write_text(catalan, "utf-8")
    assert _prep(directory) == 0
    alone = (directory / "train_st_en_de.tsv").read_bytes()
    assert _prep(directory, "--tgt-lang", "de", "ca", target=None) == 0
    assert (directory / "train_st_en_de.tsv").read_bytes() == alone
    row = _manifest(directory / "test_st_en_ca.tsv")["clip_15"]
    assert (row["tgt_text"], row["tgt_lang"]) == ("klein o alt", "ca")
    config = yaml.safe_load((directory / "config_st_en_deca.yaml").read_text("utf-8"))
    assert config["prepend_tgt_lang_tag"] is True
    pieces = (directory / config["vocab_filename"]).read_text("utf-8").split()
    assert pieces[:4] == ["<lang:de>", "1", "<lang:ca>", "1"]
    checkpoint = tmp_path / "checkpoint.pt"
    torch.save({"cfg": argparse.Namespace(), "model": {"a": torch.ones(2)}}, checkpoint)
    clips = tmp_path / "clips_packed"
    _pack(directory, clips, "-t", "de", "--checkpoint", str(checkpoint))
    output = tmp_path / "models" / "multilingual"
    options = ["-t", "de", "ca", "--checkpoint", str(checkpoint), "--half", "--clips", str(clips)]
    assert _pack(directory, output, *options) == {
        "checkpoint.pt", "config_st_en_deca.yaml", "spm_char_st_en_deca.model",
        "spm_char_st_en_deca.txt", "test_st_en_ca.tsv", "test_st_en_de.tsv",
    }  # fmt: skip
    root = yaml.safe_load((output / "config_st_en_deca.yaml").read_text("utf-8"))["audio_root"]
    assert (output / root / _manifest(output / "test_st_en_ca.tsv")["clip_15"]["audio"]).is_file()
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert torch.load(output / "checkpoint.pt")["model"]["a"].dtype == torch.float16


def test_parallel_text_keeps_sentences_together(corpus: Callable[..., Path]) -> None:
    directory = corpus(Entry("empty.mp3", "train", translation=""))
    arguments = ["-d", str(directory.parent), "-s", "en", "-t", "de", "--vocab-type", "char"]
    assert prep_text.main(arguments) == 0
    text = directory / "mt_en_de"
    english = (text / "train.en").read_text("utf-8").splitlines()
    german = (text / "train.de").read_text("utf-8").splitlines()
    assert (len(english), len(german)) == (13, 13)
    assert (english[1], german[1]) == ("green colour", "grün oder rot")
    vocabulary = (text / "spm_char_mt_en_de.txt").read_text("utf-8")
    pieces = (text / "spm.valid.de").read_text("utf-8").split()
    assert set(pieces) <= {line.split()[0] for line in vocabulary.splitlines()}
