"""Evaluation: scores against the libraries they come from, every corpus layout, whole runs."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import sacrebleu
import soundfile
from conftest import MINI, TINY, write_checkpoint, write_data

from fairseq_openvino import cli
from fairseq_openvino.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PARTIAL,
    EXIT_USAGE,
    AudioError,
    CheckpointError,
    FairseqOpenVINOError,
    MissingDependencyError,
    ModelError,
    OptionError,
    StorageError,
    UtteranceTooLongError,
)
from fairseq_openvino.evaluate import measure
from fairseq_openvino.evaluate.child import Child
from fairseq_openvino.evaluate.engines import BundleEngine, Output
from fairseq_openvino.evaluate.options import Options, Search, default_metrics, from_plain
from fairseq_openvino.evaluate.originals import FairseqEngine, WhisperEngine
from fairseq_openvino.evaluate.records import Records
from fairseq_openvino.evaluate.records import read as read_records
from fairseq_openvino.evaluate.report import markdown
from fairseq_openvino.evaluate.results import compute
from fairseq_openvino.export.fairseq import export_checkpoint
from fairseq_openvino.export.options import ExportOptions
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.metrics import (
    METRICS,
    bootstrap_difference,
    check,
    score,
    whisper_normalizer,
)
from fairseq_openvino.model import Clip
from fairseq_openvino.speech.corpus import Utterance, kind_of, read
from fairseq_openvino.speech.stored import frames

MANIFEST = MINI / "test_st_en_de.tsv"
CONFIG = "config_st_en_de.yaml"
CLIPS = sorted((MINI / "clips").glob("*.mp3"))
REFERENCES = ["the cat sat on the mat today", "a dog barked at him", "Hello, there my old friend!"]
HYPOTHESES = ["the cat sat on a mat today", "a dog barked loudly at her", "hello there my friend"]


# --- accuracy -----------------------------------------------------------------------------------


def test_bleu_and_chrf_are_sacrebleus() -> None:
    bleu = score(REFERENCES, HYPOTHESES, "bleu")
    assert bleu.value == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert bleu.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert score(REFERENCES, HYPOTHESES, "bleu", tokenizer="char").value == pytest.approx(
        sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize="char").score
    )
    chrf = score(REFERENCES, HYPOTHESES, "chrf")
    assert chrf.value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert "nc:6|nw:0" in chrf.signature


def test_word_errors_are_jiwers() -> None:
    wer = score(REFERENCES, HYPOTHESES, "wer")
    assert wer.value == pytest.approx(100 * jiwer.wer(REFERENCES, HYPOTHESES))
    assert wer.signature == f"jiwer:{version('jiwer')}|norm:none"
    each = [100 * (1 - jiwer.wer(*pair)) for pair in zip(REFERENCES, HYPOTHESES, strict=True)]
    accuracy = score(REFERENCES, HYPOTHESES, "accuracy").value
    assert accuracy == pytest.approx(np.mean(each))
    assert accuracy != pytest.approx(100 - wer.value)  # long utterances do not count for more


def test_an_empty_hypothesis_counts_all_its_words() -> None:
    assert score(["a b"], [""], "wer").value == 100
    assert score(["a b", "c d"], ["", "c d"], "accuracy").value == 50
    assert score(["a b"], ["a b c d e"], "accuracy").value == pytest.approx(-50)


def test_normalizers_are_openais() -> None:
    english = whisper_normalizer("en", {"colour": "color"})
    assert english("Hmm, the Colour isn't £20, Mr. Smith!") == ("the color is not £20 mister smith")
    assert english.name == "Whisper English (1 spellings)"
    assert whisper_normalizer("en_US").name == "Whisper English (no spelling table)"
    assert whisper_normalizer("de")("Über [laut] Straße, 5!") == "über straße 5 "
    assert whisper_normalizer(None).name == "Whisper basic"
    assert whisper_normalizer("zh-CN")("你好").split() == ["你", "好"]
    found = score(REFERENCES[2:], ["hello there my old friend"], "wer", english)
    assert found.value == 0 and found.signature.endswith(f"norm:{english.name}")


def test_bootstrap_of_known_cases() -> None:
    for metric in METRICS:
        assert bootstrap_difference(REFERENCES, HYPOTHESES, HYPOTHESES, metric) == (0, 0, 0)
        better = bootstrap_difference(REFERENCES, HYPOTHESES, REFERENCES, metric, samples=200)
        assert better.low <= better.difference <= better.high
        assert better.high < 0 if metric == "wer" else better.low > 0
        assert better == bootstrap_difference(REFERENCES, HYPOTHESES, REFERENCES, metric, 200)
        whole = [score(REFERENCES, texts, metric).value for texts in (HYPOTHESES, REFERENCES)]
        assert better.difference == pytest.approx(whole[1] - whole[0])


def test_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    random = np.random.default_rng(0)
    references = ["a b c d"] * 400
    wrong = [" ".join("x" if random.random() < 0.3 else w for w in "abcd") for _ in references]
    found = bootstrap_difference(references, references, wrong, "accuracy", samples=2000)
    each = np.array([100 * (1 - jiwer.wer("a b c d", text)) for text in wrong]) - 100
    error = 1.96 * each.std() / len(each) ** 0.5
    assert found.difference == pytest.approx(each.mean())
    assert found.low == pytest.approx(each.mean() - error, abs=0.15 * error)
    assert found.high == pytest.approx(each.mean() + error, abs=0.15 * error)


def test_nothing_is_scored_that_has_no_score() -> None:
    with pytest.raises(ModelError, match="expected one for each of 3 references, got 2"):
        score(REFERENCES, HYPOTHESES[:2], "bleu")
    with pytest.raises(ModelError, match="at least one utterance, got none"):
        score([], [], "wer")
    for metric in METRICS:
        with pytest.raises(ModelError, match=r"Scoring failed in reference 2: .*got ' '"):
            score(["a", " "], ["a", "b"], metric)
    with pytest.raises(ModelError, match="'clip7'.*'Hmm.', which Whisper English .* to nothing"):
        check(["Hmm."], whisper_normalizer("en"), ["clip7"])
    with pytest.raises(OptionError, match="--metrics: expected some of bleu"):
        score(["a"], ["a"], "ter")
    with pytest.raises(OptionError, match="--sacrebleu-tokenizer: expected one of .*13a"):
        score(["a"], ["a"], "bleu", tokenizer="14a")


@pytest.mark.parametrize(
    ("package", "metric", "extra"),
    [("sacrebleu.metrics.bleu", "bleu", "eval"), ("jiwer", "wer", "eval")],
)
def test_missing_packages_name_their_extra(
    monkeypatch: pytest.MonkeyPatch, package: str, metric: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"fairseq-openvino\[{extra}\]"):
        score(["a"], ["a"], metric)


def test_missing_transformers_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "transformers.models.whisper.english_normalizer"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"\[whisper\].*--normalizer none"):
        whisper_normalizer("en")


# --- corpora ------------------------------------------------------------------------------------


def write_table(path: Path, *rows: tuple[str, ...]) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tone(path: Path, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.sin(np.arange(int(16000 * seconds)) / 20)
    soundfile.write(path, wave, 16000)
    return path


def test_a_fairseq_manifest() -> None:
    found = list(read(MANIFEST, MINI / CONFIG))
    assert len(found) == 100 == len({one.id for one in found})
    assert found[0] == Utterance(
        "common_voice_en_00004101", str(CLIPS[0]), "Der schwarze Schlüssel ist sehr neu.",
        "de", "en",
    )  # fmt: skip
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
        ("1", "b.mp3", "Yes.", "en"),
    )
    assert kind_of(table) == "common-voice"
    found = list(read(table))
    assert [one.id for one in found] == ["a", "b"]
    assert found[0].reference == 'He said "no' and found[0].language == "en"  # quotes are text
    assert found[1].path == str(tmp_path / "clips" / "b.mp3")


def test_a_plain_table(tmp_path: Path) -> None:
    tone(tmp_path / "x" / "a.wav")
    table = write_table(tmp_path / "p.tsv", ("path", "text"), ("x/a.wav", "one"))
    found = list(read(table))
    assert found == [Utterance("x/a.wav", str(tmp_path / "x" / "a.wav"), "one")]
    assert kind_of(table) == "plain"


def test_a_librispeech_folder(tmp_path: Path) -> None:
    for speaker, number in (("84", 0), ("84", 1), ("61", 0)):
        folder = tmp_path / speaker / "1"
        tone(folder / f"{speaker}-1-{number}.flac")
        with open(folder / f"{speaker}-1.trans.txt", "a") as file:
            file.write(f"{speaker}-1-{number} TEXT {number}\n")
    assert kind_of(tmp_path) == "librispeech"
    found = list(read(tmp_path))
    assert [one.id for one in found] == ["61-1-0", "84-1-0", "84-1-1"]
    assert found[2].reference == "TEXT 1" and found[2].language == "en"
    assert Path(found[2].path).name == "84-1-1.flac"
    with pytest.raises(OptionError, match="--text-column"):
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
        with pytest.raises(OptionError, match="--shard"):
            next(read(MANIFEST, shard=shard))
    with pytest.raises(OptionError, match="--limit"):
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


# --- options ------------------------------------------------------------------------------------


def options(output: Path, **changed: Any) -> Options:
    given: dict[str, Any] = {
        "corpus": MANIFEST, "output": output, "engines": ("openvino",), "config_yaml": CONFIG,
        "bundle": output / "bundle", "limit": 4, "repeats": 1, "threads": 1,
    }  # fmt: skip
    return Options(**{**given, **changed})


def test_options_survive_the_way_to_a_child(tmp_path: Path) -> None:
    chosen = options(tmp_path, shard=(1, 2), search=Search(beam=3, language="de"))
    assert from_plain(json.loads(json.dumps(chosen.plain()))) == chosen
    assert str(tmp_path.parent) not in json.dumps(chosen.recorded())


@pytest.mark.parametrize(
    ("changed", "flag"),
    [
        ({"engines": ("tensorrt",)}, "--engines"),
        ({"engines": ()}, "--engines"),
        ({"engines": ("openvino", "openvino")}, "--engines"),
        ({"engines": ("pytorch",)}, "--checkpoint"),
        ({"engines": ("pytorch",), "checkpoint": Path("x.pt")}, "--data"),
        ({"bundle": None}, "--bundle"),
        ({"metrics": ("ter",)}, "--metrics"),
        ({"normalizer": "strong"}, "--normalizer"),
        ({"repeats": 0}, "--repeats"),
        ({"batch_size": 0}, "--batch-size"),
        ({"timeout": float("nan")}, "--timeout"),
        ({"timeout": float("inf")}, "--timeout"),
        ({"search": Search(beam=0)}, "--beam"),
        ({"search": Search(lenpen=float("nan"))}, "--lenpen"),
        ({"search": Search(max_len_a=float("inf"))}, "--max-len-a"),
        ({"search": Search(task="sing")}, "--task"),
        ({"search": Search(audio_context="9")}, "--audio-context"),
    ],
)
def test_contradicting_options_name_their_flag(
    tmp_path: Path, changed: dict[str, Any], flag: str
) -> None:
    with pytest.raises(OptionError, match=f"Evaluating failed in {flag}: expected"):
        options(tmp_path, **changed)


def test_metrics_follow_the_corpus(tmp_path: Path) -> None:
    translation = Utterance("a", "a", "x", "de", "en")
    transcript = Utterance("a", "a", "x", "en", "en")
    unknown = Utterance("a", "a", "x")
    chosen, words, texts = options(tmp_path), ("wer", "accuracy"), ("bleu", "chrf")
    assert default_metrics("fairseq", translation, chosen) == texts
    assert default_metrics("fairseq", transcript, chosen) == words
    assert default_metrics("fairseq", unknown, chosen) == texts
    assert default_metrics("plain", unknown, chosen) == words
    whisper = options(tmp_path, search=Search(task="translate"))
    assert default_metrics("plain", unknown, whisper) == texts
    source = options(tmp_path, text_column="src_text")
    assert default_metrics("fairseq", translation, source) == words
    assert default_metrics("plain", unknown, options(tmp_path, metrics=("wer",))) == ("wer",)


# --- whole runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint as a bundle."""
    path = tmp_path_factory.mktemp("mini") / "bundle"
    data = DataDirectory(MINI, CONFIG)
    export_checkpoint(MINI / "checkpoint.pt", data, path, ExportOptions(keep_onnx=False))
    return path


def command(bundle: Path, output: Path, *flags: str, corpus: Path = MANIFEST) -> list[str]:
    return [
        "evaluate", str(corpus), "--config-yaml", CONFIG, "--bundle", str(bundle),
        "--output", str(output), "--threads", "2", "--repeats", "1", "--timeout", "120", *flags,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of the shipped model, PyTorch against OpenVINO."""
    output = tmp_path_factory.mktemp("evaluation") / "out"
    original = ["--checkpoint", str(MINI / "checkpoint.pt"), "--data", str(MINI)]
    flags = ["--engines", "pytorch,openvino", "--limit", "8", "--metrics", "bleu,chrf,wer"]
    assert cli.main(command(bundle, output, *original, *flags)) == EXIT_OK
    return output


def lines(output: Path, kind: str) -> list[dict[str, Any]]:
    content = (output / "utterances.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, content) if record["kind"] == kind]


def test_pytorch_and_openvino_write_the_same(finished: Path) -> None:
    found = lines(finished, "utterance")
    assert [record["id"][-3:] for record in found] == [f"{n}" for n in range(101, 109)]
    for record in found:
        eager, ours = record["engines"]["pytorch"], record["engines"]["openvino"]
        assert eager["text"] == ours["text"] and eager["tokens"] == ours["tokens"] > 3
        assert eager["score"] == pytest.approx(ours["score"], abs=1e-3)
        assert len(eager["seconds"]) == len(ours["seconds"]) == 1
        assert eager["peak_mb"] > ours["peak_mb"] > 50  # one process each
    assert {record["engine"] for record in lines(finished, "engine")} == {"pytorch", "openvino"}
    assert str(finished.parent) not in (finished / "utterances.jsonl").read_text()


def test_figures_are_those_of_the_records(finished: Path) -> None:
    content = json.loads((finished / "evaluation.json").read_text())
    found = lines(finished, "utterance")
    references = [record["reference"] for record in found]
    rows = {row["engine"]: row for row in content["rows"]}
    assert list(rows) == ["pytorch", "openvino"]
    for name, row in rows.items():
        texts = [record["engines"][name]["text"] for record in found]
        expected = sacrebleu.corpus_bleu(texts, [references]).score
        assert row["scores"]["bleu"]["value"] == expected > 50
        wer = 100 * jiwer.wer(references, texts)
        assert row["scores"]["wer"]["value"] == pytest.approx(wer)
        assert row["scores"]["wer_normalized"]["value"] <= wer
        seconds = [record["engines"][name]["seconds"][0] for record in found]
        assert row["times"]["seconds"] == pytest.approx(sum(seconds))
        p50, p95 = (1e3 * np.percentile(seconds, p) for p in (50, 95))
        assert row["times"]["percentiles_ms"] == pytest.approx([p50, p95])
        audio = sum(record["seconds"] for record in found)
        assert row["times"]["real_time_factor"] == pytest.approx(sum(seconds) / audio)
        assert row["load_seconds"] > seconds[0] and row["identical"] == 8
    assert rows["pytorch"]["relative_time"] == 1 and rows["pytorch"]["differences"] == {}
    ratio = rows["openvino"]["times"]["seconds"] / rows["pytorch"]["times"]["seconds"]
    assert rows["openvino"]["relative_time"] == pytest.approx(ratio)
    equal = {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert set(map(str, rows["openvino"]["differences"].values())) == {str(equal)}
    assert rows["openvino"]["precision"]["INFERENCE_PRECISION_HINT"] == "f32"
    assert content["primary"] == "bleu"
    assert content["normalizer"] == "Whisper basic"  # the references are German
    assert content["provenance"]["threads"] == "2"


def test_tables_have_the_shape_of_the_article(finished: Path) -> None:
    table = (finished / "evaluation.md").read_text()
    assert "| model | engine | relative time (pytorch = 1.0) | speed | BLEU | difference" in table
    assert "| bundle | `pytorch` | 1.000 | 1.00x |" in table
    assert "+0.00 [+0.00, +0.00]" in table and "8 of 8" in table
    assert "nrefs:1|case:mixed" in table and "openvino 20" in table
    chart = (finished / "evaluation.svg").read_text()
    assert chart.startswith("<?xml") and "openvino: " in chart


def test_score_only_repeats_every_figure(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished / "utterances.jsonl", tmp_path)
    assert cli.main(["evaluate", "--score-only", str(tmp_path)]) == EXIT_OK
    for name in ("evaluation.md", "evaluation.json", "evaluation.svg"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    assert capsys.readouterr().out == (finished / "evaluation.md").read_text()


def test_features_of_both_engines_are_the_same(bundle: Path, tmp_path: Path) -> None:
    chosen = options(tmp_path, bundle=bundle, checkpoint=MINI / "checkpoint.pt", data=MINI)
    ours, eager = BundleEngine("openvino", chosen), FairseqEngine(chosen)
    stored = tmp_path / "a.npy"
    np.save(stored, frames(str(CLIPS[0]), 16000, 80).values)
    for path in (str(CLIPS[0]), str(stored)):
        one, other = ours.read(path), eager.read(path)
        np.testing.assert_allclose(one.features, other.features, atol=1e-6)
        assert one.seconds == pytest.approx(other.seconds)
    long = tmp_path / "long.npy"
    np.save(long, np.zeros((6001, 80), np.float32))
    with pytest.raises(UtteranceTooLongError, match="at most 6000 frames"):
        eager.read(str(long))
    # a batch of other lengths, in the order given
    clips = [eager.read(str(path)) for path in CLIPS[:3]]
    assert [one.text for one in eager.generate(clips, None)] == [
        eager.generate([clip], None)[0].text for clip in clips
    ]


def test_languages_of_the_corpus_reach_a_multilingual_model(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, "s2t_transformer_s", vocabulary=60, **TINY)
    symbols = (tmp_path / "dict.txt").read_text().splitlines()
    symbols[-2:] = ["<lang:de> 1", "<lang:fr> 1"]
    (tmp_path / "dict.txt").write_text("\n".join(symbols) + "\n")
    with open(tmp_path / "config.yaml", "a") as file:
        file.write("prepend_tgt_lang_tag: true\n")
    write_data(tmp_path, utterances=3, frames=(40, 120))
    found = sorted((tmp_path / "features").glob("*.npy"))
    path = tmp_path / "bundle"
    export_checkpoint(checkpoint, DataDirectory(tmp_path), path, ExportOptions(keep_onnx=False))
    search = Search(beam=3, max_len_b=12)
    chosen = options(
        tmp_path / "out", bundle=path, checkpoint=checkpoint, data=tmp_path, search=search,
        config_yaml="config.yaml",
    )  # fmt: skip
    engines = [BundleEngine("openvino", chosen), FairseqEngine(chosen)]
    clips = [[engine.read(str(one)) for one in found] for engine in engines]
    texts = [
        [[engine.generate([clip], code)[0].text for clip in own] for code in ("de", "fr")]
        for engine, own in zip(engines, clips, strict=True)
    ]
    assert texts[0] == texts[1] and texts[0][0] != texts[0][1]
    for engine, own in zip(engines, clips, strict=True):
        with pytest.raises(OptionError, match="--language"):
            engine.generate(own, None)
    same = [Utterance(str(i), "", "x", code) for i, code in enumerate(("de", "de", "fr", "fr"))]
    assert [len(batch) for batch in measure.batches(iter(same), 3)] == [2, 2]


def test_unreadable_clips_are_reported_and_count_for_no_engine(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for clip in CLIPS[:3]:
        shutil.copy(clip, tmp_path)
    (tmp_path / CLIPS[1].name).write_bytes(b"no audio")
    rows = [(clip.name, "Das ist ein Satz.") for clip in CLIPS[:3]]
    table = write_table(tmp_path / "t.tsv", ("path", "text"), *rows)
    output = tmp_path / "out"
    flags = ("--engines", "openvino,openvino-bf16", "--batch-size", "3", "--normalizer", "none")
    assert cli.main(command(bundle, output, *flags, corpus=table)) == EXIT_PARTIAL
    (failed,) = lines(output, "failed")
    assert failed["id"] == CLIPS[1].name and set(failed["problems"]) == {
        "openvino",
        "openvino-bf16",
    }
    assert "Decoding audio failed" in failed["problems"]["openvino"]
    assert [record["id"] for record in lines(output, "utterance")] == [
        CLIPS[0].name, CLIPS[2].name,
    ]  # fmt: skip
    shown = capsys.readouterr()
    assert "**1 utterances failed" in shown.out and f"{CLIPS[1].name} in `openvino`" in shown.out
    assert "failed in openvino-bf16" in shown.err
    assert {len(record["engines"]) for record in lines(output, "utterance")} == {2}
    content = json.loads((output / "evaluation.json").read_text())
    seconds = lines(output, "utterance")[0]["engines"]["openvino"]["seconds"]
    assert content["rows"][0]["times"]["seconds"] == pytest.approx(seconds[0])  # one batch


def test_damaged_clips_are_scored_and_named(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for clip in CLIPS[:2]:
        shutil.copy(clip, tmp_path)
    (tmp_path / CLIPS[1].name).write_bytes(CLIPS[1].read_bytes()[:-2000])
    rows = [(clip.name, "Das ist ein Satz.") for clip in CLIPS[:2]]
    table = write_table(tmp_path / "t.tsv", ("path", "text"), *rows)
    output = tmp_path / "out"
    flags = ("--engines", "openvino", "--normalizer", "none")
    assert cli.main(command(bundle, output, *flags, corpus=table)) == EXIT_PARTIAL
    whole, cut = lines(output, "utterance")
    assert whole["damage"] is None and "it ends inside a frame" in cut["damage"]
    shown = capsys.readouterr().out
    assert "**1 utterances are damaged and scored" in shown
    assert f"Damaged utterances:\n\n- {CLIPS[1].name}: " in shown


class _Fragile:
    """An engine that cannot decode some clips."""

    load_seconds = 0.0

    def read(self, path: str) -> Clip:
        return Clip(path, np.zeros((9, 80), np.float32), 0.1)

    def generate(self, clips: Any, language: str | None) -> list[Output]:
        if any(clip.path == "bad" for clip in clips):
            raise RuntimeError("broken\nmore")
        return [Output(clip.path, 1, -1.0) for clip in clips]

    def precision(self) -> dict[str, str]:
        return {}


def test_a_clip_an_engine_cannot_decode_is_found_in_its_batch(tmp_path: Path) -> None:
    child = Child({"engine": "openvino", "options": options(tmp_path).plain()})
    child.engine = _Fragile()
    child.read(["a", "bad", "c", "d", "bad"])
    with pytest.raises(RuntimeError, match="broken"):  # it may be the engine that is at fault
        child.generate([0, 1, 2], None)
    assert [each["text"] for each in child.generate([0, 2], None)["outputs"]] == ["a", "c"]
    found = child.generate([0, 1, 2, 3, 4], None)
    assert found == {"problems": [[1, "RuntimeError: broken"], [4, "RuntimeError: broken"]]}


def test_an_engine_that_fails_keeps_its_row(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, broken = tmp_path / "out", tmp_path / "broken"
    broken.mkdir()
    flags = ("--engines", "openvino,openvino-int8", "--int8-bundle", str(broken), "--limit", "2")
    assert cli.main(command(bundle, output, *flags)) == EXIT_PARTIAL
    shown = capsys.readouterr()
    assert "openvino-int8 is given up: BundleError" in shown.err
    assert "`openvino-int8` | failed: 0 of 2 utterances decoded, then: BundleError" in shown.out
    assert len(lines(output, "utterance")) == 2
    content = json.loads((output / "evaluation.json").read_text())
    assert [row["error"] is None for row in content["rows"]] == [True, False]


def test_no_engine_is_no_evaluation(tmp_path: Path) -> None:
    chosen = options(tmp_path / "out", bundle=tmp_path)
    with pytest.raises(FairseqOpenVINOError, match="at least one that works, got none"):
        measure.evaluate(chosen)
    with pytest.raises(FairseqOpenVINOError, match="at least one that works"):
        measure.evaluate(chosen)  # nothing was measured: no --resume needed


def test_interrupted_runs_are_resumed(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, record = tmp_path / "out", measure._Measurement._record
    flags = ("--engines", "openvino", "--limit", "4", "--metrics", "bleu")

    def interrupt(self: Any, batch: Any, number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt
        record(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(measure._Measurement, "_record", interrupt)
        assert cli.main(command(bundle, output, *flags)) == EXIT_INTERRUPTED
    assert "**Interrupted: 2 of 4 utterances are missing.**" in capsys.readouterr().out
    with open(output / "utterances.jsonl", "a") as file:
        file.write('{"kind": "utter')  # killed while writing
    assert cli.main(command(bundle, output, *flags)) == EXIT_USAGE
    assert "--resume" in capsys.readouterr().err
    changed = (*flags, "--beam", "1", "--resume")
    assert cli.main(command(bundle, output, *changed)) == EXIT_USAGE
    assert "got others in search. Repeat" in capsys.readouterr().err
    assert cli.main(command(bundle, output, *flags, "--resume")) == EXIT_OK
    assert "Measured in 2 runs." in capsys.readouterr().out
    assert [record["batch"] for record in lines(output, "utterance")] == [0, 1, 2, 3]
    assert len({record["id"] for record in lines(output, "utterance")}) == 4


def test_shards_are_scored_together(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--engines", "openvino", "--limit", "5", "--metrics", "bleu")
    outputs = [tmp_path / "1", tmp_path / "2"]
    for number, output in enumerate(outputs, 1):
        shard = ("--shard", f"{number}/2", "--batch-size", "2")
        assert cli.main(command(bundle, output, *flags, *shard)) == EXIT_OK
    both = ["evaluate", "--score-only", *map(str, outputs)]
    assert cli.main(both) == EXIT_USAGE  # where to?
    assert cli.main([*both, "--output", str(tmp_path / "all")]) == EXIT_OK
    content = json.loads((tmp_path / "all" / "evaluation.json").read_text())
    assert content["utterances"] == 5 and content["missing"] == 0
    twice = [
        "evaluate",
        "--score-only",
        str(outputs[0]),
        str(outputs[0]),
        "--output",
        str(tmp_path),
    ]
    capsys.readouterr()
    assert cli.main(twice) == 3
    assert "expected each utterance once" in capsys.readouterr().err


def test_a_malformed_corpus_stops_before_anything_is_computed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tone(tmp_path / "a.wav")
    tone(tmp_path / "b.wav")
    table = write_table(
        tmp_path / "t.tsv", ("path", "text", "language"), ("a.wav", "Yes.", "en"),
        ("b.wav", "Hmm.", "en"),
    )  # fmt: skip
    output = tmp_path / "out"
    assert cli.main(command(bundle, output, "--engines", "openvino", corpus=table)) == 3
    assert "Scoring failed in 'b.wav'" in capsys.readouterr().err
    assert not output.exists()
    assert cli.main(["evaluate"]) == EXIT_USAGE
    assert "MANIFEST: expected a corpus" in capsys.readouterr().err


def test_damaged_records(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected the records of an evaluation"):
        read_records([tmp_path])
    path = tmp_path / "utterances.jsonl"
    for text, message in (
        ("{}\n", "a kind of run, engine, utterance, failed, got None"),
        ("[1]\n", "a JSON object, got list"),
        ("{\n", "line 1: expected a JSON object"),
        ("", "a line of kind run, got none"),
    ):
        path.write_text(text)
        with pytest.raises(ModelError, match=message):
            read_records([tmp_path])
    found = read_records([finished])
    with pytest.raises(ModelError, match="at least one decoded utterance"):
        compute(Records(found.runs, found.engines), {})
    del found.utterances[0]["reference"]
    with pytest.raises(ModelError, match="lines as `evaluate` writes them"):
        compute(found, {})


def test_many_failures_are_not_all_listed(finished: Path) -> None:
    found = read_records([finished])
    found.failures += [{"id": f"x{i}", "problems": {"openvino": "a | b"}} for i in range(30)]
    text = markdown(compute(found, {}))
    assert "- x19 in `openvino`: a / b" in text and "x20" not in text
    assert "and 10 more" in text


def test_an_output_that_cannot_be_written(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Writing the records failed"):
        measure.evaluate(options(tmp_path / "file" / "out", bundle=bundle))


# --- Whisper ------------------------------------------------------------------------------------


def test_whisper_in_pytorch_is_generate(whisper: Path, tmp_path: Path) -> None:
    import torch

    chosen = options(tmp_path, engines=("pytorch",), checkpoint=whisper, search=Search(beam=2))
    engine = WhisperEngine(chosen)
    clips = [engine.read(str(path)) for path in CLIPS[:2]]
    assert clips[0].features.shape == (800, 80)
    found = engine.generate(clips, "en")
    features = torch.from_numpy(np.stack([clip.features.T for clip in clips]))
    expected = engine.model.generate(features, num_beams=2, language="en", task="transcribe")
    texts = engine.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert [one.text for one in found] == [text.strip() for text in texts] and found[0].text
    assert engine.generate([clips[0]], "de-DE")[0].tokens > 1
    long = tone(tmp_path / "long.wav", seconds=9)
    assert engine.read(str(long)).features.shape == (900, 80)
    np.save(tmp_path / "a.npy", np.zeros((10, 80), np.float32))
    with pytest.raises(AudioError, match="Whisper has its own features"):
        engine.read(str(tmp_path / "a.npy"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="Hugging Face Whisper directory"):
        WhisperEngine(options(tmp_path, checkpoint=tmp_path / "empty"))


def test_whisper_in_pytorch_and_openvino(whisper: Path, tmp_path: Path) -> None:
    from fairseq_openvino.export.whisper import export_whisper

    export_whisper(whisper, tmp_path / "bundle")
    output = tmp_path / "out"
    flags = ["--engines", "pytorch,openvino", "--checkpoint", str(whisper), "--beam", "2",
             "--text-column", "src_text", "--limit", "3", "--batch-size", "2"]  # fmt: skip
    assert cli.main(command(tmp_path / "bundle", output, *flags)) == EXIT_OK
    for record in lines(output, "utterance"):
        eager, ours = record["engines"]["pytorch"], record["engines"]["openvino"]
        assert eager["text"] == ours["text"] != ""
        assert eager["tokens"] == ours["tokens"] > 0
    assert (output / "normalizer.json").is_file()
    before = (output / "evaluation.json").read_bytes()
    assert json.loads(before)["normalizer"] == "Whisper English (1 spellings)"
    assert json.loads(before)["primary"] == "accuracy_normalized"
    assert cli.main(["evaluate", "--score-only", str(output)]) == EXIT_OK
    assert (output / "evaluation.json").read_bytes() == before
