"""The Whisper benchmark on a tiny model: our engine, its checkpoint, and the tables."""

from __future__ import annotations

import json
import struct
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairseq_openvino.benchmark.process import EngineFailed
from fairseq_openvino.benchmark.whisper import checkpoint, material, peer_ggml, plan, rounds
from fairseq_openvino.benchmark.whisper import memory as memory_module
from fairseq_openvino.benchmark.whisper.command import parse
from fairseq_openvino.benchmark.whisper.memory import Curve, measure_memory, write_curve
from fairseq_openvino.benchmark.whisper.plan import ENGINES, WORKLOADS, Engine, Options
from fairseq_openvino.benchmark.whisper.report import markdown, write
from fairseq_openvino.benchmark.whisper.results import (
    Loaded,
    Results,
    Row,
    fastest_of_ours,
    fastest_peer,
    round_of,
)
from fairseq_openvino.benchmark.whisper.rounds import run_whisper_benchmark
from fairseq_openvino.commands.benchmark import add_arguments
from fairseq_openvino.errors import OptionError

SMALLEST = checkpoint.Size(width=32, layers=1, heads=2)
TOKENS = 6


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two of our engines in two rounds, and a peer that is not installed."""
    pytest.importorskip("transformers")
    output = tmp_path_factory.mktemp("whisper")
    options = Options(
        sizes=("tiny",), engines=("transformers-f32", "ours-f32", "ours-int8"), rounds=2,
        tokens=TOKENS, threads=2, output=output,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(material.SIZES, "tiny", SMALLEST)
        patch.setattr(rounds, "PEERS_PYTHON", output / "missing")
        return run_whisper_benchmark(options)


def test_every_hypothesis_has_the_tokens_asked_for(results: Results) -> None:
    measured = [row for row in results.rows if row.ours]
    assert len(measured) == 2 * len(WORKLOADS)
    for row in measured:
        assert row.error is None and len(row.rounds) == 2
        assert row.exact and row.counts == [TOKENS]
        assert all(len(each["counts"]) == row.workload.clips for each in row.rounds)
        assert all(each["seconds"] > 0 for each in row.rounds)


def test_the_text_depends_on_the_audio_but_not_on_the_batch(results: Results) -> None:
    rows = {row.workload.name: row for row in results.rows if row.engine.name == "ours-f32"}
    single = rows["single"].rounds[0]["digests"]
    batch = rows["batch"].rounds[0]["digests"]
    assert batch[:1] == single
    assert len(set(batch)) > 1
    assert rows["single"].rounds[1]["digests"] == single


def test_engines_take_turns(results: Results) -> None:
    order = [name for _, workload, _, name in results.order if workload == "single"]
    assert order == ["ours-int8", "ours-f32", "ours-f32", "ours-int8"]


def test_loading_is_measured_twice_and_a_missing_peer_says_so(results: Results) -> None:
    peer, ours, _ = results.loaded
    assert peer.error == "not installed: run `make peers`"
    assert ours.cold_seconds and ours.warm_seconds
    assert ours.peak_mb > 50
    assert ours.precision == "f32 encoder, f32 decoder"
    table = markdown(results)
    assert "| `transformers-f32` | failed: not installed: run `make peers` |" in table


def test_files_hold_everything_and_no_paths(results: Results, tmp_path: Path) -> None:
    written = write(results, tmp_path)
    assert {path.name for path in written} >= {"whisper.md", "whisper.json"}
    text = (tmp_path / "whisper.json").read_text()
    content = json.loads(text)
    assert len(content["rows"]) == len(results.rows)
    assert content["provenance"]["openvino"]
    assert str(results.options.output) not in text + (tmp_path / "whisper.md").read_text()


def test_a_second_run_makes_nothing_anew(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(material.SIZES, "tiny", SMALLEST)
    monkeypatch.setattr(material, "convert", None)
    monkeypatch.setattr(material, "write_checkpoint", None)
    monkeypatch.setattr(material, "make_clips", None)
    found = material.Material(results.options, "tiny", print)
    found.prepare()
    assert found.path(next(each for each in ENGINES if each.format == "bundle")).is_dir()


def test_tokens_have_the_official_layout() -> None:
    special, text = checkpoint.special_tokens(), checkpoint.text_tokens()
    assert len(text) == checkpoint.TEXT_TOKENS
    assert len(text) + len(special) == checkpoint.VOCABULARY
    ids = {token: checkpoint.TEXT_TOKENS + i for i, token in enumerate(special)}
    assert (ids["<|endoftext|>"], ids["<|en|>"], ids["<|su|>"]) == (50257, 50259, 50357)
    assert (ids["<|transcribe|>"], ids["<|notimestamps|>"]) == (50359, 50363)
    assert (ids["<|0.00|>"], ids["<|30.00|>"]) == (50364, 51864)
    assert (text["Ġ"], text[""]) == (220, 50256)


def test_the_tokenizer_files_agree(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    checkpoint.write_checkpoint(tmp_path, SMALLEST)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == checkpoint.VOCABULARY
    assert tokenizer.decode(tokenizer.encode("abc def").ids) == "abc def"
    assert tokenizer.token_to_id("<|transcribe|>") == checkpoint.TRANSCRIBE


def test_only_letters_are_in_reach() -> None:
    tensors = checkpoint.random_weights(SMALLEST)
    pushed = tensors["model.decoder.embed_tokens.weight"][:, 0] < 0
    reachable = np.flatnonzero(~pushed)
    spelled = {number: token for token, number in checkpoint.text_tokens().items()}
    assert all(spelled[int(token)].isalpha() for token in reachable)
    assert len(reachable) == checkpoint.EMPTY - checkpoint.BYTES


def test_clips_are_as_long_as_named() -> None:
    clips = material.make_clips(2)
    assert clips.shape == (2, 8 * 16000) and clips.dtype == np.float32
    assert np.abs(clips).max() <= 1 and not np.array_equal(*clips)


def test_clips_without_the_shipped_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(material, "TRAINED_DIRECTORY", tmp_path)
    clips = material.make_clips(8)
    assert clips.shape == (8, 8 * 16000) and clips.dtype == np.float32
    assert np.array_equal(clips, material.make_clips(8))


def test_whisper_cpp_gets_blocks_of_32(tmp_path: Path) -> None:
    weights = np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 64)
    packed = peer_ggml._quantized(weights)
    assert len(packed) == 2 * 34
    scale, *values = struct.unpack("<e32b", packed[:34])
    assert scale * np.array(values) == pytest.approx(weights[0, :32], abs=0.02)
    assert values[0] == -127


def test_a_failing_converter_names_its_last_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(material.FORMATS, "bundle", ["-c", "raise SystemExit('no such thing')"])
    with pytest.raises(material.ConversionFailed, match="converting to bundle: no such thing"):
        material.convert("bundle", tmp_path, tmp_path / "target", 1)
    assert not (tmp_path / "target").exists()


PEER = Engine("peer-int8", "peer", "int8", batches=False)
OURS = Engine("ours-f32", plan.OURS, "f32")
FAST = Engine("ours-fast", plan.OURS, "fast")


def measured(engine: Engine, *seconds: float, counts: tuple[int, ...] = (64,)) -> Row:
    row = Row("base", engine, WORKLOADS[0], 64)
    row.rounds = [{"seconds": each, "counts": list(counts), "digests": ["a"]} for each in seconds]
    return row


def test_ratios_are_medians_within_rounds() -> None:
    rows = [
        measured(ENGINES[0], 4.0, 4.0, 8.0),
        measured(PEER, 2.0, 2.0, 6.0),
        measured(FAST, 1.0, 1.0, 2.0),
        measured(OURS, 1.5, 1.5, 3.0),
    ]
    peer = fastest_peer(rows)
    assert peer is rows[1]
    assert rows[2].speed_against(peer) == 2.0  # 2, 2, 3
    assert fastest_of_ours(rows) is rows[2]
    options = Options(sizes=("base",))
    results = Results(options, {"cpu": "x"}, [Loaded("base", PEER)], rows)
    table = markdown(results)
    assert "| `peer-int8` 2000 ms | `ours-fast` 1000 ms: **2.00x** |" in table


def test_other_token_counts_are_scaled_and_said() -> None:
    row = measured(PEER, 1.0, counts=(32,))
    assert not row.exact and row.seconds == [2.0]
    table = markdown(Results(Options(), {}, [], [row]))
    assert "could not be held to 64 tokens" in table


def test_answers_become_comparable() -> None:
    spelled = {300: "ab", 301: "cd"}
    ids = {"seconds": 1.0, "outputs": [{"tokens": [300, 301, 50257]}]}
    text = {"seconds": 1.0, "outputs": [{"count": 2, "text": " abcd"}]}
    assert round_of(ids, spelled) == round_of(text, spelled)
    assert round_of(ids, spelled)["counts"] == [2]


def test_an_engine_that_stops_keeps_its_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Dying:
        def __init__(self, *_: Any) -> None:
            self.runs = 0

        def ask(self, request: str, **_: Any) -> dict[str, Any]:
            if request == "load":
                return {"load_seconds": 1.0, "precision": "f32", "versions": {}}
            self.runs += 1
            if self.runs > 1:  # after the warm-up
                raise EngineFailed("ended with signal 9: no message")
            return {"seconds": 1.0, "outputs": [{"tokens": [300] * 64}], "peak_mb": 1.0}

        def stop(self) -> None:
            pass

    monkeypatch.setattr(rounds, "Conversation", Dying)
    monkeypatch.setattr(rounds, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(material.Material, "prepare", lambda self: None)
    monkeypatch.setattr(material.Material, "path", lambda self, engine: tmp_path)
    found = run_whisper_benchmark(Options(engines=("ours-f32",), output=tmp_path))
    assert len(found.rows) == len(WORKLOADS)
    assert {row.error for row in found.rows} == {"ended with signal 9: no message"}
    assert all(len(row.rounds) == 1 for row in found.rows)  # started anew for each workload
    assert "1000 [1000-1000], then: ended with signal 9" in markdown(found)


def parsed(*flags: str) -> Options:
    parser = ArgumentParser()
    add_arguments(parser)
    return parse(parser.parse_args(flags))


def test_flags() -> None:
    options = parsed("--whisper", "tiny", "base", "--rounds", "7", "--engines", "ours-f32")
    assert (options.sizes, options.rounds, options.engines) == (("tiny", "base"), 7, ("ours-f32",))
    assert [engine.name for engine in options.chosen] == ["ours-f32"]
    assert parsed("--whisper-memory").tokens == 64


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--whisper", "huge"), "--whisper"),
        (("--whisper", "base", "--engines", "eager"), "--engines"),
        (("--whisper", "base", "--rounds", "0"), "--rounds"),
        (("--whisper", "base", "--timeout", "nan"), "--timeout"),
        (("--whisper", "base", "--tokens", "3"), "--tokens"),
        (("--whisper", "base", "--beams", "5"), "--beams"),
    ],
)
def test_wrong_flags_are_named(flags: tuple[str, ...], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        parsed(*flags)


def test_the_memory_curve(
    results: Results, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory_module, "MICRO", tmp_path)
    monkeypatch.setitem(material.SIZES, "tiny", SMALLEST)
    curve = measure_memory(results.options, print, clips=60, warm_up=5)
    assert len(curve.rss_mb) == 3
    path = write_curve(curve, tmp_path)
    assert json.loads(path.read_text())["rss_mb"] == curve.rss_mb
    assert "min" in curve.line()


def test_the_spread_of_a_curve() -> None:
    curve = Curve("tiny", 60, 20, 5, "bf16", [100.0, 110.0, 105.0])
    assert curve.spread == pytest.approx(0.1)
