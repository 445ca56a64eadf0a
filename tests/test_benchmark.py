"""The benchmark itself, on a tiny model: same hypotheses, fair order, nothing dropped silently."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MINI, TINY

from fairseq_openvino import cli
from fairseq_openvino.bundle import open_bundle
from fairseq_openvino.commands.benchmark import add_arguments, parse
from fairseq_openvino.errors import EXIT_USAGE, ModelError, OptionError
from fairseq_openvino.measure import plan
from fairseq_openvino.measure.benchmark import benchmark
from fairseq_openvino.measure.benchmark_figures import Results, Row, compute
from fairseq_openvino.measure.benchmark_report import markdown, write
from fairseq_openvino.measure.engines import EngineSpec
from fairseq_openvino.measure.plan import BenchmarkOptions, Case, cases
from fairseq_openvino.measure.process import Conversation, EngineFailed
from fairseq_openvino.measure.turns import Batch, Turns
from fairseq_openvino.runtime.options import PRECISIONS

EXACT = ("eager", "ours-f32", "onnxruntime", "openvino-stateless")
QUANTIZED = "ours-nncf"
FAILING = EngineSpec("broken", "an engine that does not load", "fairseq", "no such | thing")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Results, BenchmarkOptions]]:
    """Four engines that must agree, a quantized one, and one that fails while loading."""
    known = plan.fairseq_engines
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "fairseq_engines", lambda: [*known(), FAILING])
        options = BenchmarkOptions(
            models=("s",), vocabularies=(60,), utterances=(3,), beams=(2,), rounds=2, tokens=8,
            engines=(*EXACT, QUANTIZED, FAILING.name), frames=80, timeout=120, threads=1,
            model_overrides=TINY, work_dir=tmp_path_factory.mktemp("work"),
            output=tmp_path_factory.mktemp("output"),
        )  # fmt: skip
        assert benchmark(options)
        yield compute(options.output / "benchmark.jsonl"), options


@pytest.fixture
def results(run: tuple[Results, BenchmarkOptions]) -> Results:
    return run[0]


def working(results: Results) -> list[Row]:
    return [row for row in results.rows if row.engine != FAILING.name]


@pytest.mark.soak
def test_all_f32_engines_find_eagers_hypotheses(results: Results) -> None:
    texts = {row.engine: row.texts for row in working(results)}
    assert set(texts) == {*EXACT, QUANTIZED}
    del texts[QUANTIZED]
    assert all(len(found) == 3 for found in texts.values())
    assert all(found == texts["eager"] for found in texts.values())
    assert len(set(texts["eager"])) > 1  # the utterances differ


@pytest.mark.soak
def test_lengths_are_fixed_and_times_add_up(results: Results) -> None:
    for row in working(results):
        assert row.audio_seconds == pytest.approx(3 * 0.8)
        assert row.load_seconds is not None and row.load_seconds > 0
        assert row.cold_seconds is not None
        assert row.counts == [8, 8, 8] and len(row.rounds) == 2
        assert row.encode_ms is not None and row.step_ms is not None
        assert 1e3 * row.median == pytest.approx(row.encode_ms + 9 * row.step_ms, rel=0.5)
        assert row.peak_mb > 50


def test_engines_take_turns_within_each_round(tmp_path: Path) -> None:
    turns, order = Turns(1.0, tmp_path, lambda *_: None), []
    turns.alive = {spec(tmp_path, name): Fake(order, name) for name in "abc"}  # type: ignore[misc]
    batch = Batch([], [])
    for number in range(3):
        assert turns.decode(batch, number, without=("b",) if number == 2 else ())
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a"]


@pytest.mark.soak
def test_ours_reports_its_precision_and_its_limit(results: Results) -> None:
    row = next(row for row in results.rows if row.engine == "ours-f32")
    assert row.precision["INFERENCE_PRECISION_HINT"] == "f32"
    assert not row.notes
    assert row.profile is not None
    assert row.profile["nodes_us"]["FullyConnected"] == row.profile["fully_connected_us"] > 0
    assert 0 < row.profile["fully_connected_share"] < 1


@pytest.mark.soak
def test_the_quantized_engine_is_quantized(run: tuple[Results, BenchmarkOptions]) -> None:
    work_dir = run[1].work_dir
    assert work_dir is not None
    (bundle,) = work_dir.glob("s-60/quantized-*")
    assert open_bundle(bundle).manifest.precision == "int8"


@pytest.mark.soak
def test_files_hold_everything(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = write(results, tmp_path / "benchmark.png")
    assert [path.name for path in written] == ["benchmark.md", "benchmark.json", "benchmark.png"]
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert content["provenance"]["openvino"] and content["provenance"]["cpu"]
    assert sorted(len(row["rounds"]) for row in content["rows"]) == [0, 2, 2, 2, 2, 2]
    table = (tmp_path / "benchmark.md").read_text()
    assert "1.00x" in table and "FullyConnected" in table and "Precision in use" in table
    assert (tmp_path / "benchmark.png").stat().st_size > 5000


@pytest.mark.soak
def test_a_failing_engine_keeps_its_row(results: Results) -> None:
    errors = {row.engine: row.error for row in results.rows if row.error}
    assert errors == {FAILING.name: "KeyError: 'no such | thing'"}
    assert f"| `{FAILING.name}` | failed: KeyError: 'no such / thing' |" in markdown(results)


@pytest.mark.soak
def test_the_shipped_model_is_scored_in_fairseqs_batches(tmp_path: Path) -> None:
    options = BenchmarkOptions(
        models=("mini",), trained=MINI, engines=("eager", "ours-f32"), rounds=1, threads=1,
        output=tmp_path, work_dir=tmp_path / "work",
    )  # fmt: skip
    assert benchmark(options)
    found = compute(tmp_path / "benchmark.jsonl")
    assert [round(row.bleu or 0, 2) for row in found.rows] == [84.46, 84.46]  # README
    assert found.rows[1].same_as(found.rows[0]) == 1
    assert "| 84.46 |" in markdown(found)


def spec(directory: Path, name: str = "eager") -> EngineSpec:
    return EngineSpec(name, "", "fairseq", data=str(directory), cache_dir=str(directory))


def conversation(directory: Path, timeout: float = 120.0) -> Conversation:
    turns = Turns(timeout, directory, lambda *_: None)
    assert turns.start(spec(directory))
    return turns.alive[spec(directory)]


def test_a_child_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    process = conversation(tmp_path, timeout=0.05)
    with pytest.raises(EngineFailed, match="--timeout 0.05"):
        process.ask("load")
    assert process._process.poll() is not None


def test_a_child_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    process = conversation(tmp_path)
    with pytest.raises(EngineFailed, match="ended with exit code 1: json"):
        process._process.stdin.write(b"not json\n")
        process.ask("load")
    process.stop()


def test_a_program_that_does_not_start_is_given_up(tmp_path: Path) -> None:
    reasons: list[str] = []
    turns = Turns(1.0, tmp_path, lambda _, reason: reasons.append(reason))
    assert not turns.start(EngineSpec("peer", f"{tmp_path}/absent", "peer"))
    assert not turns.alive and reasons[0].startswith("not started: ")


class Fake:
    """A child that notes its turns."""

    def __init__(self, order: list[str], name: str) -> None:
        self.order, self.name = order, name

    def ask(self, request: str, **_: object) -> dict[str, object]:
        self.order.append(self.name)
        return {"seconds": 1.0}


class Interrupted:
    """A child at which Ctrl-C is pressed in its third round."""

    stopped = 0

    def __init__(self, *_: object) -> None:
        self.runs = 0

    def ask(self, request: str, **named: Any) -> dict[str, object]:
        if request == "generate" and named["tokens"] == 60:
            self.runs += 1
        if self.runs == 3:
            raise KeyboardInterrupt
        outputs = [{"text": "a", "tokens": 60, "score": 0.0}]
        return {
            "load_seconds": 1.0, "clips": [{"seconds": 1.0, "frames": 5}], "outputs": outputs,
            "seconds": 1.0, "generation_seconds": 1.0, "encode_seconds": 0.5, "steps": 1,
            "peak_mb": 1.0,
        }  # fmt: skip

    def stop(self) -> None:
        Interrupted.stopped += 1


def test_interrupting_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "s-250").mkdir()
    (tmp_path / "x.npy").write_bytes(b"")
    table = "id\taudio\ttgt_text\nx\t../x.npy\ty\n"
    (tmp_path / "s-250" / "test1.tsv").write_text(table)
    monkeypatch.setattr("fairseq_openvino.measure.turns.Conversation", Interrupted)
    options = BenchmarkOptions(
        engines=("onnxruntime",), utterances=(1,), work_dir=tmp_path, output=tmp_path
    )
    assert not benchmark(options)
    found = compute(tmp_path / "benchmark.jsonl")
    assert found.interrupted
    assert [len(row.rounds) for row in found.rows] == [1, 1]
    assert Interrupted.stopped >= 2
    assert "Interrupted" in markdown(found)


def test_ratios_are_paired_by_round() -> None:
    case = Case(0, "s", 250, 2, 5, None)
    eager = Row("eager", case, False, rounds=[2.0, 6.0], texts=["a", "b"])
    other = Row("ours-f32", case, True, rounds=[1.0, 2.0], texts=["a", "c"])
    np.testing.assert_allclose(other.ratios(eager), [2.0, 3.0])
    assert other.same_as(eager) == 0.5
    assert other.ratios(None) == [] and other.same_as(None) is None


def test_damaged_records(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.jsonl"
    path.write_text(
        '{"kind": "run", "options": {}, "engines": [], "provenance": {}}\n{"kind": "case"}\n'
    )
    with pytest.raises(ModelError, match="lines as `benchmark` writes them, got one with another"):
        compute(path)


def test_every_precision_of_the_engine_is_known() -> None:
    known = BenchmarkOptions().known_engines
    ours = {name.removeprefix("ours-") for name, spec in known.items() if spec.is_ours}
    assert ours == set(PRECISIONS) - {"f16"} | {"nncf"}
    chosen = BenchmarkOptions(engines=("ours-f32",)).chosen_engines
    assert [spec.name for spec in chosen] == ["eager", "ours-f32"]
    assert len(BenchmarkOptions().chosen_engines) == len(known)


def options_of(*flags: str) -> BenchmarkOptions:
    parser = ArgumentParser()
    add_arguments(parser)
    return parse(parser.parse_args(flags))


def test_flags_become_options() -> None:
    full = options_of(
        "--models", "s,l", "--vocabularies", "250,10000", "--utterances", "1,90", "--beams", "1,5"
    )
    assert [len(group) for group in cases(full)] == [2] * 8  # one load serves all batches
    assert options_of("--quick").rounds == 2
    assert options_of("--quick", "--rounds", "4").rounds == 4
    assert options_of().rounds == 5 and options_of().models == ("s",)
    assert options_of("--trained", str(MINI)).models == ("s", "mini")
    assert options_of("--model-overrides", "{'encoder_layers': 2}").model_overrides == {
        "encoder_layers": 2
    }


@pytest.mark.parametrize(
    "flags", [("--models", "xl"), ("--beams", "0"), ("--models", ","), ("--vocabularies", "3"),
              ("--timeout", "nan"), ("--timeout", "inf"), ("--models", "mini"),
              ("--trained", "absent"), ("--peer", "x=y")],
)  # fmt: skip
def test_wrong_flags_are_named(flags: tuple[str, str]) -> None:
    with pytest.raises(OptionError, match=f"in {flags[0][2:]}s?: expected"):
        options_of(*flags)


@pytest.mark.parametrize("flags", [("--utterances", "1,x"), ("--model-overrides", "[1]")])
def test_malformed_flags_are_named(
    flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        options_of(*flags)
    assert caught.value.code == EXIT_USAGE
    assert f"argument {flags[0]}: got {flags[1]!r}" in capsys.readouterr().err


def test_an_unknown_engine_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", "--engines", "ours-f33"]) == EXIT_USAGE
    message = capsys.readouterr().err
    assert "ours-f32" in message and "'ours-f33'" in message


def test_engines_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", "--list-engines"]) == 0
    assert "torch-compile" in capsys.readouterr().out
    assert cli.main(["benchmark", "--whisper", "base", "--list-engines"]) == 0
    assert "transformers-bf16" in capsys.readouterr().out
