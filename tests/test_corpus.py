"""Corpora: every layout, stored features, limits and shards, and what is malformed."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import MINI, tone, write_table

from fairseq_openvino.errors import AudioError, ModelError, OptionError
from fairseq_openvino.speech.corpus import Utterance, audio, kind_of, read
from fairseq_openvino.speech.stored import frames

MANIFEST = MINI / "test_st_en_de.tsv"
CONFIG = "config_st_en_de.yaml"
CLIPS = sorted((MINI / "clips").glob("*.mp3"))


def test_a_fairseq_manifest() -> None:
    found = list(read(MANIFEST, MINI / CONFIG))
    assert len(found) == 100 == len({one.id for one in found})
    assert found[0] == Utterance(
        "common_voice_en_00004101", str(CLIPS[0]), "Der schwarze Schlüssel ist sehr neu.",
        "de", "en", found[0].speaker,
    )  # fmt: skip
    assert len({one.speaker for one in found}) == 4 and None not in {one.speaker for one in found}
    assert kind_of(MANIFEST) == "fairseq"
    source = next(read(MANIFEST, text_column="src_text"))
    assert (source.reference, source.language) == ("The black key is very new.", "en")


def test_audio_root_of_the_configuration(tmp_path: Path) -> None:
    tone(tmp_path / "data" / "wav" / "a.wav")
    (tmp_path / "config.yaml").write_text("audio_root: data/wav\n")
    rows = ("id", "audio", "n_frames", "tgt_text"), ("a", "a.wav", "48", "ja")
    manifest = write_table(tmp_path / "lists.tsv", *rows)
    found = next(read(manifest, tmp_path / "config.yaml"))
    assert found.path == str(tmp_path / "data" / "wav" / "a.wav")
    assert found.language is None
    with pytest.raises(ModelError, match="line 2: expected the audio 'a.wav' in"):
        next(read(manifest))
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ModelError, match="expected a readable YAML file"):
        next(read(manifest, tmp_path / "config.yaml"))


def test_features_in_a_zip(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((30, 80)).astype(np.float32)
    stored, audio = io.BytesIO(), io.BytesIO()
    np.save(stored, values)
    soundfile.write(audio, np.zeros(8000), 16000, format="FLAC")
    with zipfile.ZipFile(tmp_path / "fbank80.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.npy", stored.getvalue())
        archive.writestr("b.flac", audio.getvalue())
    content = (tmp_path / "fbank80.zip").read_bytes()
    places = [content.index(part.getvalue()) for part in (stored, audio)]
    sizes = [len(part.getvalue()) for part in (stored, audio)]
    names = [f"fbank80.zip:{a}:{b}" for a, b in zip(places, sizes, strict=True)]
    header = ("id", "audio", "n_frames", "tgt_text")
    rows = [("x", names[0], "30", "eins"), ("y", names[1], "48", "zwei")]
    found = list(read(write_table(tmp_path / "t.tsv", header, *rows)))
    assert found[0].path == str(tmp_path / names[0])
    loaded = frames(found[0].path, 16000, 80)
    assert (loaded.values == values).all() and loaded.seconds == pytest.approx(0.3)
    assert frames(found[1].path, 16000, 80).values.shape == (48, 80)
    for slices, message in (
        ("0:99999999", "expected a file of at least 99999999 bytes"),
        ("a:b", "expected <zip>:<offset>:<bytes>"),
    ):
        bad = write_table(tmp_path / "bad.tsv", header, ("x", f"fbank80.zip:{slices}", "1", "a"))
        with pytest.raises(ModelError, match=message):
            list(read(bad))


def test_stored_features_that_are_none(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 40), np.float32))
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY and no more")
    with pytest.raises(AudioError, match=r"frames of 80 filter banks, got the shape \(4, 40\)"):
        frames(str(tmp_path / "a.npy"), None, 80)
    with pytest.raises(AudioError, match="expected an array of features"):
        frames(str(tmp_path / "b.npy"), None, 80)
    with pytest.raises(AudioError, match="expected a readable file"):
        frames(str(tmp_path / "c.npy"), None, 80)


def test_common_voice(tmp_path: Path) -> None:
    for name in ("a.mp3", "b.mp3"):
        (tmp_path / "clips").mkdir(exist_ok=True)
        shutil.copy(CLIPS[0], tmp_path / "clips" / name)
    table = write_table(
        tmp_path / "test.tsv",
        ("client_id", "path", "sentence", "locale"),
        ("1", "a.mp3", 'He said "no', "en"),
        ("2", "b.mp3", "Yes.", "en"),
    )
    assert kind_of(table) == "common-voice"
    found = list(read(table))
    assert [(one.id, one.speaker) for one in found] == [("a", "1"), ("b", "2")]
    assert found[0].reference == 'He said "no' and found[0].language == "en"  # quotes are text
    assert found[1].path == str(tmp_path / "clips" / "b.mp3")


def test_audio_alone_is_listed_whether_it_is_there_or_not(tmp_path: Path) -> None:
    """One missing file of many is that file's failure, not the table's."""
    tone(tmp_path / "clips" / "a.wav")
    table = write_table(tmp_path / "list.tsv", ("path",), ("a.wav",), ("absent.wav",))
    there, absent = tmp_path / "clips" / "a.wav", tmp_path / "absent.wav"
    assert list(audio(table)) == [(str(there), None), (str(absent), None)]


def test_a_plain_table(tmp_path: Path) -> None:
    tone(tmp_path / "x" / "a.wav")
    table = write_table(tmp_path / "p.tsv", ("path", "text"), ("x/a.wav", "one"))
    found = list(read(table))
    assert found == [Utterance("x/a.wav", str(tmp_path / "x" / "a.wav"), "one")]
    assert kind_of(table) == "plain"


def test_the_text_column_may_have_any_name(tmp_path: Path) -> None:
    table = tmp_path / "table.tsv"
    tone(tmp_path / "a.wav")
    table.write_text("path\tseconds\ttranscript\na.wav\t1.0\thello there\n")
    with pytest.raises(ModelError, match="or that of the texts with --text-column"):
        next(read(table))
    (found,) = read(table, text_column="transcript")
    assert (found.reference, Path(found.path).name) == ("hello there", "a.wav")


def test_a_manifest_of_audio_fine_tuning(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tone(tmp_path / "clips" / f"{name}.wav")
    manifest = tmp_path / "dev.tsv"
    manifest.write_text(f"{tmp_path / 'clips'}\na.wav\t8000\nb.wav\t8000\n")
    with pytest.raises(ModelError, match="tab-separated columns"):
        next(read(manifest))
    (tmp_path / "dev.ltr").write_text("T E N | M E N |\nN O |\n")
    assert kind_of(manifest) == "wav2vec"
    found = list(read(manifest))
    assert [(one.id, one.reference) for one in found] == [("a", "TEN MEN"), ("b", "NO")]
    assert found[1].path == str(tmp_path / "clips" / "b.wav")
    (tmp_path / "dev.wrd").write_text("ten men\n")
    with pytest.raises(ModelError, match="dev.wrd.* expected 2 lines, got 1"):
        next(read(manifest))
    with pytest.raises(OptionError, match="text_column"):
        next(read(manifest, text_column="text"))


def test_a_librispeech_folder(tmp_path: Path) -> None:
    for speaker, number in (("84", 0), ("84", 1), ("61", 0)):
        folder = tmp_path / speaker / "1"
        tone(folder / f"{speaker}-1-{number}.flac")
        with open(folder / f"{speaker}-1.trans.txt", "a") as file:
            file.write(f"{speaker}-1-{number} TEXT {number}\n")
    assert kind_of(tmp_path) == "librispeech"
    found = list(read(tmp_path))
    assert [one.id for one in found] == ["61-1-0", "84-1-0", "84-1-1"]
    assert [one.speaker for one in found] == ["61", "84", "84"]
    assert found[2].reference == "TEXT 1" and found[2].language == "en"
    assert Path(found[2].path).name == "84-1-1.flac"
    with pytest.raises(OptionError, match="text_column"):
        next(read(tmp_path, text_column="text"))
    (tmp_path / "84" / "1" / "84-1-1.flac").unlink()
    with pytest.raises(ModelError, match=r"line 2: expected the audio '84-1-1.flac'"):
        list(read(tmp_path))


def test_limit_and_shards_part_a_corpus() -> None:
    whole = [one.id for one in read(MANIFEST, limit=10)]
    shards = [[one.id for one in read(MANIFEST, limit=10, shard=(i, 3))] for i in (1, 2, 3)]
    assert [len(shard) for shard in shards] == [4, 3, 3]
    assert sorted(sum(shards, [])) == sorted(whole)
    for shard in ((0, 2), (3, 2)):
        with pytest.raises(OptionError, match="in shard"):
            next(read(MANIFEST, shard=shard))
    with pytest.raises(OptionError, match="in limit"):
        next(read(MANIFEST, limit=0))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("path", "text"), ("a.wav", " ")], r"line 2: expected a text in column text, got ' '"),
        ([("path", "text"), ("a.wav", "x"), ("a.wav", "y")], "each id once, got 'a.wav' again"),
        ([("path", "text"), ("a.wav", "x", "y")], "line 2: expected 2 columns, got 3"),
        ([("path", "text"), ("a.wav",)], "line 2: expected 2 columns, got 1"),
        ([("path", "text"), ("b.wav", "x")], "line 2: expected the audio 'b.wav' in"),
        ([("path", "text")], "expected at least one utterance, got none"),
        ([("file", "text"), ("a.wav", "x")], "columns id, audio, tgt_text or .*, got file, text"),
        ([("id", "audio"), ("1", "a.wav")], "expected a column tgt_text, got none"),
        ([("id", "audio", "tgt_text"), ("", "a.wav", "x")], "a text in column id, got ''"),
        ([("id", "audio", "tgt_text"), ("1", "", "x")], "the path of an audio file, got ''"),
    ],
)
def test_malformed_tables(tmp_path: Path, rows: list[tuple[str, ...]], message: str) -> None:
    tone(tmp_path / "a.wav")
    with pytest.raises(ModelError, match=message) as caught:
        list(read(write_table(tmp_path / "t.tsv", *rows)))
    assert str(caught.value).startswith("Reading a corpus failed in ")


def test_corpora_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        next(read(tmp_path / "absent.tsv"))
    with pytest.raises(ModelError, match=r"a folder with \*.trans.txt, got none"):
        next(read(tmp_path))
    (tmp_path / "latin.tsv").write_bytes(b"path\ttext\na.wav\tgr\xfc\xdfe\n")
    with pytest.raises(ModelError, match="a readable UTF-8 TSV file"):
        list(read(tmp_path / "latin.tsv"))
