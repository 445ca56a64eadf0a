"""The Whisper benchmark on a tiny model: our engines, another program, and the tables."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairseq_openvino.commands.benchmark import add_arguments, parse
from fairseq_openvino.errors import OptionError
from fairseq_openvino.measure import subject
from fairseq_openvino.measure.benchmark import benchmark
from fairseq_openvino.measure.benchmark_figures import Results, Row, compute, fastest
from fairseq_openvino.measure.benchmark_report import markdown, write
from fairseq_openvino.measure.material import whisper
from fairseq_openvino.measure.memory import Curve, measure_memory
from fairseq_openvino.measure.plan import BenchmarkOptions, Case

SMALLEST = whisper.true_size(width=32, layers=1, heads=2)
TOKENS = 6
PEER = """
import json, sys, numpy
def answer(name, arguments):
    global clips
    if name == "read":
        clips = [numpy.load(path) for path in arguments["paths"]]
        return {"clips": [{"seconds": len(clip) / 16000} for clip in clips]}
    if name == "generate":
        count = arguments["tokens"] // 2
        made = [{"text": "ab", "tokens": count, "score": None} for _ in arguments["positions"]]
        return {"seconds": 0.5, "outputs": made, "peak_mb": 1.0}
    described = {"precision": {"asked": "x"}, "summary": "digital", "versions": {"peer": "1"}}
    return {"load_seconds": 0.25, **described, "batches": False}
for line in sys.stdin:
    print(json.dumps(answer(*json.loads(line))), flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Results, BenchmarkOptions]]:
    """Transformers, two of ours, another program, and one that is not there, in two rounds."""
    pytest.importorskip("transformers")
    output = tmp_path_factory.mktemp("whisper")
    (output / "peer.py").write_text(PEER)
    options = BenchmarkOptions(
        whisper=("tiny",), rounds=2, tokens=TOKENS, threads=1, output=output,
        engines=("transformers-f32", "ours-f32", "ours-int8", "scribe", "absent"),
        peers=(f"scribe={sys.executable} {output}/peer.py", f"absent={output}/absent"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(whisper.SIZES, "tiny", SMALLEST)
        assert benchmark(options)
        yield compute(output / "whisper.jsonl"), options


@pytest.fixture
def results(run: tuple[Results, BenchmarkOptions]) -> Results:
    return run[0]


def by_case(results: Results, engine: str) -> list[Row]:
    """Of one clip greedily, one clip with 5 beams, 8 clips."""
    return [row for row in results.rows if row.engine == engine]


@pytest.mark.soak
def test_every_hypothesis_has_the_tokens_asked_for(results: Results) -> None:
    for name in ("transformers-f32", "ours-f32", "ours-int8"):
        for row, clips in zip(by_case(results, name), (1, 1, 8), strict=True):
            assert row.error is None and len(row.rounds) == 2 and min(row.rounds) > 0
            assert row.counts == [TOKENS] * clips
            assert row.audio_seconds == 8.0 * clips


@pytest.mark.soak
def test_the_text_depends_on_the_audio_but_not_on_the_batch(results: Results) -> None:
    single, _, batch = by_case(results, "ours-f32")
    assert batch.texts[:1] == single.texts
    assert len(set(batch.texts)) > 1
    assert batch.same_as(by_case(results, "transformers-f32")[2]) == 1


@pytest.mark.soak
def test_loading_is_measured_twice_and_a_missing_program_says_so(results: Results) -> None:
    ours = by_case(results, "ours-f32")[0]
    assert ours.cold_seconds and ours.load_seconds
    assert ours.peak_mb > 50
    assert ours.summary == "f32 encoder, f32 decoder"
    table = markdown(results)
    assert table.count("| `absent` | failed: not started: ") == 4  # three cases, and loads


@pytest.mark.soak
def test_another_program_is_measured_as_it_is(results: Results) -> None:
    row = by_case(results, "scribe")[2]
    assert (row.cold_seconds, row.load_seconds) == (0.75, 0.75)  # and two tokens
    assert row.rounds == [1.0, 1.0]  # half of the tokens asked for in 0.5 s
    assert results.provenance["of the peers"] == "peer 1"
    table = markdown(results)
    assert "| `scribe` (one by one) | 1000 [1000-1000] |" in table
    assert f"`scribe` could not be held to {TOKENS} tokens: its time is scaled" in table
    assert "one by one: the engine has no batches" in table
    assert "| `scribe` | digital | 0.8 / 0.8 | 1 |" in table


@pytest.mark.soak
def test_other_programs_alone_get_a_model_too(
    run: tuple[Results, BenchmarkOptions], tmp_path: Path
) -> None:
    options = replace(run[1], engines=("scribe",), rounds=1, output=tmp_path)
    assert benchmark(options)
    assert [row.counts for row in compute(tmp_path / "whisper.jsonl").rows[:2]] == [[3], [3]]
    assert list(tmp_path.glob("whisper-work/whisper-tiny-*/checkpoint/model.safetensors"))


@pytest.mark.soak
def test_files_hold_everything_and_no_paths(
    run: tuple[Results, BenchmarkOptions], tmp_path: Path
) -> None:
    results, options = run
    written = write(results, tmp_path / "whisper.png")
    assert {path.name for path in written} >= {"whisper.md", "whisper.json"}
    text = (tmp_path / "whisper.json").read_text()
    content = json.loads(text)
    assert len(content["rows"]) == len(results.rows) == 15
    assert content["provenance"]["openvino"]
    measured = [row for row in content["rows"] if row["engine"] != "absent"]
    assert str(options.output) not in json.dumps([measured, content["options"]])


@pytest.mark.soak
def test_a_second_run_makes_nothing_anew(
    run: tuple[Results, BenchmarkOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = run[1]
    monkeypatch.setattr(subject, "staged_directory", None)
    case = Case(0, "tiny", None, 1, 1, TOKENS, True)
    found = subject.subject_of(case, options, options.output / "whisper-work")
    assert len(found.clips()) == 8
    bundles = {spec.bundle for spec in found.engines if spec.form}
    assert all(Path(str(bundle)).is_dir() for bundle in bundles)


def test_clips_of_a_trained_model_are_heard(tmp_path: Path) -> None:
    from conftest import MINI

    from fairseq_openvino.speech.audio import read_audio

    directory = subject.write_clips(tmp_path, MINI).parent
    samples, rate_hz = read_audio(directory / "0.wav")
    first = read_audio(sorted((MINI / "clips").glob("*.mp3"))[0], rate_hz)[0]
    assert len(samples) == 8 * rate_hz
    assert (samples[: len(first)] == first).all()


ENGINES = [("transformers-f32", "", False), ("peer-int8", "", False), ("ours-f32", "", True),
           ("ours-fast", "", True)]  # fmt: skip


def measured(engine: str, *seconds: float) -> Row:
    case = Case(0, "base", None, 1, 1, 64, True)
    return Row(
        engine, case, engine.startswith("ours"), rounds=list(seconds), counts=[64], texts=["a"]
    )


def test_ratios_are_medians_within_rounds() -> None:
    rows = [
        measured("transformers-f32", 4.0, 4.0, 8.0),
        measured("peer-int8", 2.0, 2.0, 6.0),
        measured("ours-fast", 1.0, 1.0, 2.0),
        measured("ours-f32", 1.5, 1.5, 3.0),
    ]
    peer = fastest(rows, ours=False)
    assert peer is rows[1]
    assert rows[2].speed_against(peer) == 2.0  # 2, 2, 3
    assert fastest(rows, ours=True) is rows[2]
    results = Results(BenchmarkOptions(whisper=("base",)).recorded(), ENGINES, {"cpu": "x"}, rows)
    table = markdown(results)
    assert "| `peer-int8` 2000 ms | `ours-fast` 1000 ms: **2.00x** |" in table


class Dying:
    """A child that ends after the warm-up of every case."""

    def __init__(self, *_: Any) -> None:
        self.runs = 0

    def ask(self, request: str, **named: Any) -> dict[str, Any]:
        from fairseq_openvino.measure.process import EngineFailed

        if request == "generate" and named["tokens"] == 64:
            self.runs += 1
        if self.runs > 1:
            raise EngineFailed("ended with signal 9: no message")
        clips = [{"seconds": 8.0} for _ in named.get("paths", ())]
        made = {"text": "a", "tokens": 64, "score": None}
        outputs = [made for _ in named.get("positions", ())]
        found = {"seconds": 1.0, "load_seconds": 1.0, "peak_mb": 1.0}
        return {**found, "clips": clips, "outputs": outputs}

    def stop(self) -> None:
        pass


def test_an_engine_that_stops_keeps_its_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fairseq_openvino.measure.turns.Conversation", Dying)
    monkeypatch.setattr("fairseq_openvino.measure.benchmark.PAUSE_SECONDS", 0.0)
    monkeypatch.setitem(whisper.SIZES, "base", SMALLEST)
    options = BenchmarkOptions(whisper=("base",), engines=("ours-f32",), tokens=64, output=tmp_path)
    assert benchmark(options)
    found = compute(tmp_path / "whisper.jsonl")
    assert len(found.rows) == 3
    assert {row.error for row in found.rows} == {"ended with signal 9: no message"}
    assert all(len(row.rounds) == 1 for row in found.rows)  # started anew for each case
    assert "1000 [1000-1000], then: ended with signal 9" in markdown(found)


def parsed(*flags: str) -> BenchmarkOptions:
    parser = ArgumentParser()
    add_arguments(parser)
    return parse(parser.parse_args(flags))


def test_flags() -> None:
    options = parsed("--whisper", "tiny", "base", "--rounds", "7", "--engines", "ours-f32")
    assert (options.whisper, options.rounds) == (("tiny", "base"), 7)
    assert [spec.name for spec in options.chosen_engines] == ["ours-f32"]
    assert parsed("--whisper-memory").tokens == 64
    peers = parsed("--whisper", "base", "--peer", "a=b c", "--peer", "d=e").known_engines
    assert peers["a"].command()[:2] == ["b", "c"]
    names = list(peers)
    assert names.index("transformers-f32") < names.index("d") < names.index("ours-f32")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--whisper", "huge"), "whisper"),
        (("--whisper", "base", "--engines", "eager"), "engines"),
        (("--whisper", "base", "--rounds", "0"), "rounds"),
        (("--whisper", "base", "--timeout", "nan"), "timeout"),
        (("--whisper", "base", "--tokens", "3"), "tokens"),
        (("--whisper", "base", "--beams", "5"), "beams"),
        (("--whisper", "base", "--quick"), "quick"),
        (("--whisper", "base", "--peer", "x"), "peers"),
    ],
)
def test_wrong_flags_are_named(flags: tuple[str, ...], named: str) -> None:
    with pytest.raises(OptionError, match=f"in {named}: expected"):
        parsed(*flags)


@pytest.mark.soak
def test_the_memory_curve(
    run: tuple[Results, BenchmarkOptions], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    curve = measure_memory(run[1], print, clips=60, warm_up=5)
    assert len(curve.rss_mb) == 3
    path = curve.write(tmp_path)
    assert json.loads(path.read_text())["rss_mb"] == curve.rss_mb
    assert "min" in curve.line()


def test_the_spread_of_a_curve() -> None:
    curve = Curve("tiny", 60, 20, 5, "bf16", [100.0, 110.0, 105.0])
    assert curve.spread == pytest.approx(0.1)
