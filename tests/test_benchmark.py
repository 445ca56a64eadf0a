"""The benchmark itself, on a tiny model: same hypotheses, fair order, nothing dropped silently."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY

from fairseq_openvino import cli
from fairseq_openvino.benchmark import Options, Results, run_benchmark
from fairseq_openvino.benchmark import rounds as rounds_module
from fairseq_openvino.benchmark.plan import Case, cases, chosen_engines, known_engines
from fairseq_openvino.benchmark.process import EngineFailed, Process
from fairseq_openvino.benchmark.report import markdown, write
from fairseq_openvino.benchmark.results import Row, identical_share, speedups
from fairseq_openvino.bundle import open_bundle
from fairseq_openvino.commands.benchmark import add_arguments, parse
from fairseq_openvino.errors import EXIT_USAGE, OptionError
from fairseq_openvino.runtime.options import PRECISIONS

EXACT = ("eager", "ours-f32", "onnxruntime", "openvino-stateless")
QUANTIZED = "ours-nncf"

FAILING = "eager-bf16"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Four engines that must agree, a quantized one, and one that fails while loading."""
    options = Options(
        models=("s",), vocabularies=(60,), utterances=(3,), beams=(2,), engines=(*EXACT, QUANTIZED, FAILING),
        rounds=2, tokens=8, frames=80, timeout=120, model_overrides=TINY,
        work_dir=tmp_path_factory.mktemp("work"),
    )  # fmt: skip
    ask = Process.ask

    def fail_some(self: Process, request: str, **named: Any) -> dict[str, Any]:
        if (self.engine, request) == (FAILING, "load"):
            raise EngineFailed("RuntimeError: no such | thing")
        return ask(self, request, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Process, "ask", fail_some)
        return run_benchmark(options)


def working(results: Results) -> list[Row]:
    return [row for row in results.rows if row.engine != FAILING]


def test_all_f32_engines_find_eagers_hypotheses(results: Results) -> None:
    digests = {row.engine: row.rounds[0]["digests"] for row in working(results)}
    assert tuple(digests) == (*EXACT, QUANTIZED)
    del digests[QUANTIZED]
    assert all(len(found) == 3 for found in digests.values())
    assert all(found == digests["eager"] for found in digests.values())
    assert len(set(digests["eager"])) > 1  # the utterances differ


def test_lengths_are_fixed_and_times_add_up(results: Results) -> None:
    for row in working(results):
        assert row.audio_seconds == pytest.approx(3 * 0.8)
        assert row.load_seconds is not None and row.load_seconds > 0
        assert row.load_cold_seconds is not None
        for each in (row.warm_up, *row.rounds):
            assert each is not None
            assert (each["tokens"], each["steps"]) == (27, 9)  # eos included
            assert 0 < each["encode_seconds"] < each["seconds"]
            assert each["peak_mb"] > 50


def test_engines_take_turns_within_each_round(results: Results) -> None:
    order = [engine for _, _, engine in results.order]
    assert [number for _, number, _ in results.order] == [0] * 5 + [1] * 5
    assert set(order[:5]) == set(order[5:]) == {*EXACT, QUANTIZED}
    assert order[0] != order[5]


def test_ours_reports_its_precision_and_its_limit(results: Results) -> None:
    row = next(row for row in results.rows if row.engine == "ours-f32")
    assert row.precision["INFERENCE_PRECISION_HINT"] == "f32"
    assert not row.notes
    assert row.profile is not None
    assert row.profile["nodes_us"]["FullyConnected"] == row.profile["fully_connected_us"] > 0
    assert 0 < row.profile["fully_connected_share"] < 1


def test_the_quantized_engine_is_quantized(results: Results) -> None:
    assert results.options.work_dir is not None
    bundle = open_bundle(results.options.work_dir / "s-60" / "quantized-bundle")
    assert bundle.manifest.precision == "int8"


def test_files_hold_everything(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = write(results, tmp_path)
    assert [path.name for path in written] == ["benchmark.md", "benchmark.json", "benchmark.png"]
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert content["provenance"]["openvino"] and content["provenance"]["cpu"]
    assert [len(row["rounds"]) for row in content["rows"]] == [2, 2, 2, 2, 2, 0]
    assert len(content["order"]) == 10
    table = (tmp_path / "benchmark.md").read_text()
    assert "1.00x" in table and "FullyConnected" in table and "Precision in use" in table
    assert (tmp_path / "benchmark.png").stat().st_size > 5000


def test_a_failing_engine_keeps_its_row(results: Results) -> None:
    assert [row.error for row in results.rows] == [None] * 5 + ["RuntimeError: no such | thing"]
    assert f"| `{FAILING}` | failed: RuntimeError: no such / thing |" in markdown(results)


def test_a_child_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    options = Options(timeout=0.05, model_overrides=TINY)
    process = Process("eager", Case("s", 60, 1, 1), options, tmp_path, tmp_path)
    with pytest.raises(EngineFailed, match="--timeout 0.05"):
        process.ask("prepare", onnx=False, quantized=False)
    assert process._process.poll() is not None


def test_a_child_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    process = Process("eager", Case("s", 60, 1, 1), Options(), tmp_path, tmp_path)
    with pytest.raises(EngineFailed, match="ended with exit code 1: json"):
        process._process.stdin.write(b"not json\n")
        process.ask("load")
    process.stop()


def test_interrupting_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stopped = []

    class Fake:
        def __init__(self, engine: str, *_: object) -> None:
            self.engine, self.runs = engine, 0

        def ask(self, request: str, **_: object) -> dict[str, object]:
            self.runs += request == "run"
            if self.runs == 3:
                raise KeyboardInterrupt
            return {
                "load_seconds": 1.0, "audio_seconds": 1.0, "precision": {}, "seconds": 1.0,
                "encode_seconds": None, "steps": 1, "tokens": 1, "digests": ["a"], "bleu": None,
                "peak_mb": 1.0,
            }  # fmt: skip

        def stop(self) -> None:
            stopped.append(self.engine)

    monkeypatch.setattr(rounds_module, "Process", Fake)
    options = Options(engines=("onnxruntime",), utterances=(1,), work_dir=tmp_path)
    found = run_benchmark(options)
    assert found.interrupted
    assert [len(row.rounds) for row in found.rows] == [1, 1]
    assert {"eager", "onnxruntime"} <= set(stopped)
    assert "Interrupted" in markdown(found)


def test_ratios_are_paired_by_round() -> None:
    def row(engine: str, seconds: list[float], digests: list[str]) -> Row:
        rounds = [{"seconds": each, "digests": digests} for each in seconds]
        return Row(engine, Case("s", 250, 2, 5), rounds=rounds)

    eager, other = row("eager", [2.0, 6.0], ["a", "b"]), row("ours-f32", [1.0, 2.0], ["a", "c"])
    np.testing.assert_allclose(speedups(other, eager), [2.0, 3.0])
    assert identical_share(other, eager) == 0.5
    assert speedups(other, None) == [] and identical_share(other, None) is None


def test_every_precision_of_the_engine_is_known() -> None:
    ours = {name.removeprefix("ours-") for name in known_engines() if name.startswith("ours-")}
    assert ours == set(PRECISIONS) - {"f16"} | {"nncf"}
    assert chosen_engines(("ours-f32",)) == ("eager", "ours-f32")
    assert Counter(chosen_engines(())) == Counter(known_engines().keys())


def options_of(*flags: str) -> Options:
    parser = ArgumentParser()
    add_arguments(parser)
    return parse(parser.parse_args(flags))


def test_flags_become_options() -> None:
    full = options_of(
        "--models", "s,l", "--vocabularies", "250,10000", "--utterances", "1,90", "--beams", "1,5"
    )
    assert len(cases(full)) == 16
    assert options_of("--quick").rounds == 2
    assert options_of("--quick", "--rounds", "4").rounds == 4
    assert options_of().rounds == 5


@pytest.mark.parametrize(
    "flags", [("--models", "xl"), ("--utterances", "1,x"), ("--beams", "0"), ("--models", ","),
              ("--model-overrides", "[1]"), ("--vocabularies", "3"), ("--timeout", "nan"),
              ("--timeout", "inf")],
)  # fmt: skip
def test_wrong_flags_are_named(flags: tuple[str, str]) -> None:
    with pytest.raises(OptionError, match=flags[0]):
        options_of(*flags)


def test_an_unknown_engine_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", "--engines", "ours-f33"]) == EXIT_USAGE
    message = capsys.readouterr().err
    assert "ours-f32" in message and "'ours-f33'" in message


def test_engines_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", "--list-engines"]) == 0
    assert "torch-compile" in capsys.readouterr().out
