"""Evaluation: options, whole runs, what fails, and what is resumed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import sacrebleu
from conftest import MINI, child_environment, tone, write_table

from fairseq_openvino import cli
from fairseq_openvino.atomic import locked
from fairseq_openvino.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PARTIAL,
    EXIT_USAGE,
    FairseqOpenVINOError,
    ModelError,
    OptionError,
    StorageError,
)
from fairseq_openvino.measure import evaluation
from fairseq_openvino.measure.engines import Search
from fairseq_openvino.measure.evaluation_figures import compute
from fairseq_openvino.measure.evaluation_report import markdown
from fairseq_openvino.measure.journal import Records
from fairseq_openvino.measure.journal import read as read_records
from fairseq_openvino.measure.options import EvaluationOptions

MANIFEST = MINI / "test_st_en_de.tsv"
CONFIG = "config_st_en_de.yaml"
CLIPS = sorted((MINI / "clips").glob("*.mp3"))


def options(output: Path, **changed: Any) -> EvaluationOptions:
    given: dict[str, Any] = {
        "corpus": MANIFEST, "output": output, "engines": ("openvino",), "config_yaml": CONFIG,
        "bundle": output / "bundle", "limit": 4, "repeats": 1, "threads": 1,
    }  # fmt: skip
    return EvaluationOptions(**{**given, **changed})


def test_records_hold_no_directories_of_this_machine(whisper: Path, tmp_path: Path) -> None:
    peer = f"other=python {tmp_path}/other.py"
    chosen = options(tmp_path, checkpoint=whisper, peers=(peer,), shard=(1, 2))
    recorded = chosen.recorded()
    assert str(tmp_path.parent) not in json.dumps(recorded)
    assert (recorded["peers"], recorded["checkpoint"]) == (["other"], whisper.name)


def test_every_engine_gets_its_model(tmp_path: Path) -> None:
    int8 = tmp_path / "int8"
    engines = ("pytorch", "openvino", "openvino-int8")
    models = {"checkpoint": Path("x.pt"), "data": tmp_path, "engines": engines}
    original, exact, quantized = options(tmp_path, int8_bundle=int8, **models).specs
    assert (original.kind, original.checkpoint, original.bundle) == ("fairseq", "x.pt", None)
    assert (exact.kind, exact.precision, exact.bundle) == ("ours", "f32", str(tmp_path / "bundle"))
    assert (quantized.precision, quantized.bundle) == (None, str(int8))
    assert options(tmp_path, **models).specs[2].precision == "int8"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"engines": ("tensorrt",)}, "engines"),
        ({"engines": ()}, "engines"),
        ({"engines": ("openvino", "openvino")}, "engines"),
        ({"engines": ("pytorch",)}, "checkpoint"),
        ({"engines": ("pytorch",), "checkpoint": Path("x.pt")}, "data"),
        ({"bundle": None}, "bundle"),
        ({"metrics": ("ter",)}, "metrics"),
        ({"normalizer": "strong"}, "normalizer"),
        ({"repeats": 0}, "repeats"),
        ({"batch_size": 0}, "batch_size"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"peers": ("no command",)}, "peers"),
        ({"peers": ("x=y",), "engines": ("x",)}, "checkpoint"),
        ({"search": Search(beam=0)}, "beam"),
        ({"search": Search(lenpen=float("nan"))}, "lenpen"),
        ({"search": Search(max_len_a=float("inf"))}, "max_len_a"),
        ({"search": Search(task="sing")}, "task"),
        ({"search": Search(audio_context="9")}, "audio_context"),
    ],
)
def test_contradicting_options_name_their_field(
    tmp_path: Path, changed: dict[str, Any], field: str
) -> None:
    with pytest.raises(OptionError, match=f"Evaluating failed in {field}: expected"):
        options(tmp_path, **changed)


def command(bundle: Path, output: Path, *flags: str, corpus: Path = MANIFEST) -> list[str]:
    return [
        "evaluate", str(corpus), "--config-yaml", CONFIG, "--bundle", str(bundle),
        "--output", str(output), "--threads", "2", "--repeats", "1", "--timeout", "120", *flags,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(mini_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of the shipped model, PyTorch against OpenVINO."""
    output = tmp_path_factory.mktemp("evaluation") / "out"
    original = ["--checkpoint", str(MINI / "checkpoint.pt"), "--data", str(MINI)]
    flags = ["--engines", "pytorch,openvino", "--limit", "8", "--metrics", "bleu,chrf,wer"]
    assert cli.main(command(mini_bundle, output, *original, *flags)) == EXIT_OK
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
        assert row["load_seconds"] > 0 and row["identical"] == 8
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


def test_unreadable_clips_are_reported_and_count_for_no_engine(
    mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for clip in CLIPS[:3]:
        shutil.copy(clip, tmp_path)
    (tmp_path / CLIPS[1].name).write_bytes(b"no audio")
    rows = [(clip.name, "Das ist ein Satz.") for clip in CLIPS[:3]]
    table = write_table(tmp_path / "t.tsv", ("path", "text"), *rows)
    output = tmp_path / "out"
    flags = ("--engines", "openvino,openvino-bf16", "--batch-size", "3", "--normalizer", "none")
    assert cli.main(command(mini_bundle, output, *flags, corpus=table)) == EXIT_PARTIAL
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
    mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for clip in CLIPS[:2]:
        shutil.copy(clip, tmp_path)
    (tmp_path / CLIPS[1].name).write_bytes(CLIPS[1].read_bytes()[:-2000])
    rows = [(clip.name, "Das ist ein Satz.") for clip in CLIPS[:2]]
    table = write_table(tmp_path / "t.tsv", ("path", "text"), *rows)
    output = tmp_path / "out"
    flags = ("--engines", "openvino", "--normalizer", "none")
    assert cli.main(command(mini_bundle, output, *flags, corpus=table)) == EXIT_PARTIAL
    whole, cut = lines(output, "utterance")
    assert whole["damage"] is None and "it ends inside a frame" in cut["damage"]
    shown = capsys.readouterr().out
    assert "**1 utterances are damaged and scored" in shown
    assert f"Damaged utterances:\n\n- {CLIPS[1].name}: " in shown


def test_an_engine_that_fails_keeps_its_row(
    mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, broken = tmp_path / "out", tmp_path / "broken"
    broken.mkdir()
    flags = ("--engines", "openvino,openvino-int8", "--int8-bundle", str(broken), "--limit", "2")
    assert cli.main(command(mini_bundle, output, *flags)) == EXIT_PARTIAL
    shown = capsys.readouterr()
    assert "openvino-int8 is given up: BundleError" in shown.err
    assert "`openvino-int8` | failed: 0 of 2 utterances decoded, then: BundleError" in shown.out
    assert len(lines(output, "utterance")) == 2
    content = json.loads((output / "evaluation.json").read_text())
    assert [row["error"] is None for row in content["rows"]] == [True, False]


def test_no_engine_is_no_evaluation(tmp_path: Path) -> None:
    chosen = options(tmp_path / "out", bundle=tmp_path)
    with pytest.raises(FairseqOpenVINOError, match="at least one that works, got none"):
        evaluation.evaluate(chosen)
    with pytest.raises(FairseqOpenVINOError, match="at least one that works"):
        evaluation.evaluate(chosen)  # nothing was measured: no --resume needed


def test_interrupted_runs_are_resumed(
    mini_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, record = tmp_path / "out", evaluation._Measurement._record
    flags = ("--engines", "openvino", "--limit", "4", "--metrics", "bleu")

    def interrupt(self: Any, batch: Any, number: int, done: set[str]) -> None:
        if number == 2:
            raise KeyboardInterrupt
        record(self, batch, number, done)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation._Measurement, "_record", interrupt)
        assert cli.main(command(mini_bundle, output, *flags)) == EXIT_INTERRUPTED
    assert "**Interrupted: 2 of 4 utterances are missing.**" in capsys.readouterr().out
    with open(output / "utterances.jsonl", "a") as file:
        file.write('{"kind": "utter')  # killed while writing
    assert cli.main(command(mini_bundle, output, *flags)) == EXIT_USAGE
    assert "--resume" in capsys.readouterr().err
    changed = (*flags, "--beam", "1", "--resume")
    assert cli.main(command(mini_bundle, output, *changed)) == EXIT_USAGE
    assert "got others in search. Repeat" in capsys.readouterr().err
    assert cli.main(command(mini_bundle, output, *flags, "--resume")) == EXIT_OK
    assert "Measured in 2 runs." in capsys.readouterr().out
    assert [record["batch"] for record in lines(output, "utterance")] == [0, 1, 2, 3]
    assert len({record["id"] for record in lines(output, "utterance")}) == 4


def test_a_run_goes_on_with_the_same_corpus_and_models_only(
    mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, other = tmp_path / "out", tmp_path / "other" / mini_bundle.name
    audio = tone(tmp_path / "a.wav")
    rows = ("id", "audio", "n_frames", "tgt_text"), ("a", str(audio), "50", "eins")
    corpus = write_table(tmp_path / "test.tsv", *rows)
    flags = ("--engines", "openvino", "--metrics", "bleu")
    assert cli.main(command(mini_bundle, output, *flags, corpus=corpus)) == EXIT_OK

    def resumed(bundle: Path = mini_bundle, *more: str) -> tuple[int, str]:
        code = cli.main(command(bundle, output, *flags, "--resume", *more, corpus=corpus))
        return code, capsys.readouterr().err

    assert resumed()[0] == EXIT_OK
    shutil.copytree(mini_bundle, other)
    assert resumed(other)[0] == EXIT_OK
    with open(other / "manifest.json", "a") as file:
        file.write("\n")
    write_table(corpus, *rows, ("b", str(audio), "50", "zwei"))
    os.utime(audio)
    code, error = resumed(other)
    assert code == EXIT_USAGE and "got others in corpus, bundle. Repeat" in error
    write_table(corpus, *rows)
    code, error = resumed(mini_bundle)  # a file that may be another now
    assert code == EXIT_USAGE and "got others in corpus. Repeat" in error
    with locked(output / evaluation.LOCK) as is_held:
        code, error = resumed()
        assert is_held and code == EXIT_USAGE and "got one that another process is at" in error
    code, error = resumed(mini_bundle, "--limit", "1", "--shard", "1/1")
    assert code == EXIT_USAGE and "got others in limit, corpus. Repeat" in error


def measured(output: Path) -> dict[str, Any]:
    """What was found of each utterance, without times."""
    found = lines(output, "utterance")
    assert len({record["id"] for record in found}) == len(found)
    kept = ("text", "score", "tokens")
    return {
        record["id"]: {name: record["engines"]["openvino"][name] for name in kept}
        for record in found
    }


@pytest.mark.fault
def test_killed_runs_are_resumed(mini_bundle: Path, tmp_path: Path) -> None:
    """At random moments, with random parts of the last batch lost; the batches stay the same."""
    seed = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "1"))
    chance, kills = random.Random(seed), 0
    flags = ("--engines", "openvino", "--limit", "60", "--metrics", "bleu", "--batch-size", "4")
    assert cli.main(command(mini_bundle, tmp_path / "whole", *flags)) == EXIT_OK
    output, path = tmp_path / "out", tmp_path / "out" / "utterances.jsonl"
    words = [sys.executable, "-m", "fairseq_openvino", *command(mini_bundle, output, *flags)]
    while True:
        before = path.stat().st_size if path.exists() else 0
        child = subprocess.Popen(
            [*words, "--resume"] if before else words, env=child_environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        more = chance.randrange(1000, 8000)
        while child.poll() is None and before + more > (
            path.stat().st_size if path.exists() else 0
        ):
            time.sleep(0.002)
        child.kill()
        _, errors = child.communicate()
        if child.returncode != -signal.SIGKILL:
            break
        kills += 1
        content = path.read_bytes()
        path.write_bytes(content[: max(len(content) - chance.randrange(1500), before)])
    print(f"{kills} kills, seed {seed}")
    assert child.returncode == EXIT_OK, errors
    assert kills > 2 and len(measured(output)) == 60
    assert measured(output) == measured(tmp_path / "whole")


def test_shards_are_scored_together(
    mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--engines", "openvino", "--limit", "5", "--metrics", "bleu")
    outputs = [tmp_path / "1", tmp_path / "2"]
    for number, output in enumerate(outputs, 1):
        shard = ("--shard", f"{number}/2", "--batch-size", "2")
        assert cli.main(command(mini_bundle, output, *flags, *shard)) == EXIT_OK
    assert cli.main(command(mini_bundle, outputs[0], *flags, *shard, "--resume")) == EXIT_USAGE
    assert "got others in corpus, shard. Repeat" in capsys.readouterr().err
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
    mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tone(tmp_path / "a.wav")
    tone(tmp_path / "b.wav")
    table = write_table(
        tmp_path / "t.tsv", ("path", "text", "language"), ("a.wav", "Yes.", "en"),
        ("b.wav", "Hmm.", "en"),
    )  # fmt: skip
    output = tmp_path / "out"
    assert cli.main(command(mini_bundle, output, "--engines", "openvino", corpus=table)) == 3
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


def test_an_output_that_cannot_be_written(mini_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="expected a writable directory"):
        evaluation.evaluate(options(tmp_path / "file" / "out", bundle=mini_bundle))


@pytest.mark.soak
def test_whisper_in_pytorch_and_openvino(
    whisper: Path, whisper_bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    flags = ["--engines", "pytorch,openvino", "--checkpoint", str(whisper), "--beam", "2",
             "--text-column", "src_text", "--limit", "3", "--batch-size", "2"]  # fmt: skip
    assert cli.main(command(whisper_bundle, output, *flags)) == EXIT_OK
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
