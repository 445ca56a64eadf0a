"""Quantization: what runs in 8 bits, and what the gate lets through."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import soundfile
from conftest import MINI

from fairseq_openvino import cli, load_model
from fairseq_openvino.bundle import (
    DECODER_IR,
    ENCODER_IR,
    MANIFEST,
    Bundle,
    RuntimePrecision,
    open_bundle,
)
from fairseq_openvino.errors import (
    EXIT_PARTIAL,
    EXIT_USAGE,
    ModelError,
    NumericsError,
    OptionError,
    QualityError,
)
from fairseq_openvino.flags import given
from fairseq_openvino.quantize import compress, gate, procedure
from fairseq_openvino.quantize.components import Component, Form
from fairseq_openvino.quantize.faults import Faults
from fairseq_openvino.quantize.gate import LADDERS
from fairseq_openvino.quantize.material import draw
from fairseq_openvino.quantize.options import INT4_WEIGHTS, INT8, INT8_WEIGHTS, MIXED, Options
from fairseq_openvino.quantize.procedure import Result, quantize_bundle
from fairseq_openvino.quantize.progress import Progress
from fairseq_openvino.quantize.yardstick import REFUSED, UNCERTAIN
from fairseq_openvino.runtime.model import CompiledModel

TEST_SET = MINI / "test_st_en_de.tsv"
CLIPS = sorted((MINI / "clips").glob("*.mp3"))
QUICK: dict[str, Any] = {"calibration_size": 8, "held_out_size": 3, "batch_size": 20}


@pytest.fixture(scope="module")
def source(mini_bundle: Path) -> Bundle:
    """The shipped checkpoint, with its ONNX graphs."""
    return open_bundle(mini_bundle)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings shared by the tests."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def int8(source: Bundle, work: Path) -> Result:
    """The whole procedure."""
    options = Options(validation_size=40, max_drop=4, work_dir=work, **QUICK)
    return quantize_bundle(source.directory, TEST_SET, work / "int8", options)


def nodes(compiled: ov.CompiledModel) -> Counter[str]:
    """`<type>:<precision>` of every node that is executed."""
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind, precision = (facts[key].astype(str) for key in ("layerType", "runtimePrecision"))
        found[f"{kind}:{precision}"] += 1
    return found


def test_a_good_calibration_passes_at_once(source: Bundle, int8: Result) -> None:
    (trial,) = int8.trials
    assert trial.passed and abs(trial.loss.points) <= 0.5 and not trial.excess
    assert "| original | original | 8" in int8.table and int8.table.count("| passed |") == 1
    assert "no speaker in both" in int8.table
    manifest = int8.bundle.manifest
    assert manifest.precision == "int8" and manifest.source["bundle"]
    stored = manifest.quantization
    assert len(stored["calibration"]) == 8 and len(stored["held_out"]) == 3
    assert not set(stored["calibration"]) & set(stored["held_out"])
    for name in ("encoder", "decoder"):
        curve = stored[name]["divergence_by_alpha"]
        assert set(curve) == {"-1", "0.5"} and all(0 < kl < 0.01 for kl in curve.values())
        assert curve[f"{stored[name]['smooth_quant_alpha']:g}"] == min(curve.values())
    judged = stored["gate"]
    assert (judged["utterances"], judged["metric"], judged["verdict"]) == (40, "bleu", "passed")
    assert judged["disjoint_by"] == "speaker" and judged["drawn"] == "utterances"
    assert stored["encoder"]["products_in_8_bits"] == [21, 22]  # but what reads the features
    assert stored["gate"]["trials"][0]["score"] == pytest.approx(trial.score)
    assert not any("onnx" in name for name in manifest.files)
    for name in (ENCODER_IR, DECODER_IR):
        weights = name.replace("xml", "bin")
        assert manifest.files[weights].bytes < 0.4 * source.manifest.files[weights].bytes


def test_precisions_are_explicit_and_the_same_before_and_after(
    source: Bundle, int8: Result
) -> None:
    for bundle in (source, int8.bundle):
        written = json.loads((bundle.directory / MANIFEST).read_text())["runtime"]
        assert written == {"inference": "f32", "kv_cache": "f32"}
    stored = int8.bundle.manifest.quantization["gate"]
    expected = {"inference": "f32", "kv_cache": "f32", "dynamic_quantization_group": "0"}
    assert stored["original"]["precision"] == expected
    assert stored["trials"][0]["precision"] == expected


def test_a_bundle_runs_at_its_own_precision_unless_told(int8: Result) -> None:
    manifest = replace(int8.bundle.manifest, runtime=RuntimePrecision("bf16", "bf16"))
    bundle = Bundle(int8.bundle.directory, manifest)
    assert load_model(bundle).model.engine.options.precision == "bf16"
    assert load_model(bundle, precision="f32").model.engine.options.precision == "f32"
    assert load_model(int8.bundle).model.engine.options.precision == "f32"


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_layers_run_in_8_bits_and_attention_stays_fused(int8: Result, precision: str) -> None:
    model = load_model(int8.bundle, precision=precision)
    model.transcribe_batch(CLIPS[:2])
    model.transcribe(CLIPS[0])  # static shapes
    layers = int8.bundle.manifest.dimensions.layers
    found = {variant: nodes(compiled) for variant, compiled in model.model.engine.compiled.items()}
    assert len(found) == 3
    for variant, count in found.items():
        eight = {key for key in count if key.split(":")[1] in ("i8", "u8")}
        assert {key for key in count if key.startswith("FullyConnected")} <= eight
        if variant.graph == "encoder":  # of two, the one that does not read the features
            assert sum(count[key] for key in eight if key.startswith("Convolution")) == 1
        else:  # one node a layer: attention, cache and beam reordering
            assert count[f"ScaledDotProductAttention:{precision}"] == layers
            assert not count[f"Concatenation:{precision}"]
            assert count[f"MatMul:{precision}"] == 2 * layers  # cross-attention


@pytest.mark.parametrize("precision", ["bf16", "int8", "fast"])
def test_a_quantized_bundle_runs_at_every_precision(int8: Result, precision: str) -> None:
    expected, found = (
        load_model(int8.bundle, precision=each).transcribe_batch(CLIPS[:20])
        for each in ("f32", precision)
    )
    assert sum(a.text == b.text for a, b in zip(expected, found, strict=True)) >= 18


@pytest.mark.soak
@pytest.mark.parametrize("mode", [MIXED, INT8_WEIGHTS])
def test_the_other_modes(source: Bundle, work: Path, tmp_path: Path, mode: str) -> None:
    options = Options(
        mode, validation_size=10, accept_uncertain=True, alphas=(0.5,), work_dir=work, **QUICK,
    )  # fmt: skip
    result = quantize_bundle(source.directory, TEST_SET, tmp_path / "out", options)
    assert [trial.verdict for trial in result.trials] == [UNCERTAIN]  # of 10 utterances
    assert result.bundle.manifest.quantization["gate"]["verdict"] == UNCERTAIN
    kinds = result.bundle.manifest.precision
    assert kinds == {MIXED: "int8+int8-weights"}.get(mode, INT8_WEIGHTS)
    model = load_model(result.bundle)
    model.transcribe_batch(CLIPS[:2])
    decoder = next(c for v, c in model.model.engine.compiled.items() if v.graph == "decoder")
    assert int(decoder.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 0
    count = nodes(decoder)
    assert count["ScaledDotProductAttention:f32"] == 2
    assert {key for key in count if key.startswith("FullyConnected")} == {"FullyConnected:i8"}
    graph = ov.Core().read_model(result.bundle.path(DECODER_IR))
    assert not compress.layers(graph)  # activations are as they were


@pytest.mark.soak
def test_every_family_goes_through_the_contract(whisper_bundle: Path, tmp_path: Path) -> None:
    options = Options(
        text_column="src_text", calibration_size=2, held_out_size=1, validation_size=2, max_drop=100,
        alphas=(0.5,), language="en",
    )  # fmt: skip
    result = quantize_bundle(whisper_bundle, TEST_SET, tmp_path / "int8", options)
    assert result.bundle.manifest.family == "whisper" and "| WER |" in result.table
    model = load_model(result.bundle)
    model.transcribe_batch(CLIPS[:2], language="en")
    for variant, compiled in model.model.engine.compiled.items():
        count = nodes(compiled)
        kinds = {key for key in count if key.startswith("FullyConnected")}
        assert {kind.split(":")[1] for kind in kinds} <= {"i8", "u8"}
        fused = count["ScaledDotProductAttention:f32"]
        assert fused == (
            result.bundle.manifest.dimensions.layers if variant.graph == "decoder" else 0
        )


def silence(directory: Path) -> Path:
    """A corpus of clips of digital silence."""
    rows = ["path\ttext"]
    for i in range(7):
        soundfile.write(directory / f"{i}.wav", np.zeros(16_000 + 2_000 * i), 16_000)
        rows.append(f"{i}.wav\tnothing")
    (directory / "silence.tsv").write_text("\n".join(rows) + "\n")
    return directory / "silence.tsv"


@pytest.mark.soak
def test_a_broken_calibration_is_caught_and_relaxed(source: Bundle, tmp_path: Path) -> None:
    options = Options(
        validation=TEST_SET, validation_size=20, metric="bleu", alphas=(0.3,), max_drop=8,
        calibration_size=6, held_out_size=1, batch_size=20, beam=2,
    )  # fmt: skip
    output = tmp_path / "out"
    result = quantize_bundle(source.directory, silence(tmp_path), output, options)
    first, last = result.trials[0], result.trials[-1]
    assert first.verdict == REFUSED and first.loss.low > 50
    assert first.excess["longer"] > 5 and first.excess["repeating"] > 5
    assert len(result.trials) > 2 and last.passed and last.loss.high <= 8
    stored = open_bundle(output).manifest.quantization
    assert [trial["passed"] for trial in stored["gate"]["trials"]] == [False] * (
        len(result.trials) - 1
    ) + [True]
    assert stored["encoder"] == stored["decoder"] == {"kind": INT8_WEIGHTS}
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["out"]  # nothing is left


def test_nothing_is_published_if_no_trial_passes(
    source: Bundle, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """4 bits are too coarse for so small a model."""
    monkeypatch.setitem(LADDERS, INT4_WEIGHTS, LADDERS[INT4_WEIGHTS][:1])
    raised: list[QualityError] = []
    quantized = procedure.quantize_bundle

    def caught(*arguments: Any) -> Result:
        try:
            return quantized(*arguments)
        except QualityError as error:
            raised.append(error)
            raise

    monkeypatch.setattr(procedure, "quantize_bundle", caught)
    words = ["quantize", str(source.directory), "--calibration", str(TEST_SET), "--output",
             str(tmp_path / "out"), "--mode", "int4-weights", "--validation", str(TEST_SET),
             "--validation-size", "20", "--batch-size", "20", "--max-drop", "4", "--work-dir",
             str(work)]  # fmt: skip
    assert cli.main(words) == EXIT_PARTIAL
    error = capsys.readouterr().err
    assert "quality gate failed in bleu" in error and "Nothing was published" in error
    assert error.count("| refused") + error.count("| cannot tell") == 1
    assert "| int4-weights | int4-weights |" in error
    assert not list(tmp_path.iterdir())
    assert [trial.passed for trial in raised[0].trials] == [False]


def test_few_utterances_prove_nothing(
    source: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is decoded."""
    monkeypatch.delattr(CompiledModel, "encode")
    words = ["quantize", str(source.directory), "--calibration", str(TEST_SET), "--output",
             str(tmp_path / "out"), "--validation-size", "5", "--calibration-size", "2"]  # fmt: skip
    with pytest.raises(QualityError, match=r"5 utterances.*about [0-9,]+ words or more") as told:
        quantize_bundle(source.directory, TEST_SET, tmp_path / "out",
                        Options(validation_size=5, calibration_size=2))  # fmt: skip
    assert "--accept-uncertain" in str(told.value) and not told.value.trials
    assert cli.main(words) == EXIT_PARTIAL
    assert not list(tmp_path.iterdir())


def test_a_model_that_yields_nan_fails_the_gate(
    source: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> gate.Texts:
        raise NumericsError("NaN")

    options = Options(validation_size=20, metric="bleu", accept_uncertain=True)
    progress = Progress(1, "", lambda line: None)
    judge = gate.Gate(source, draw(TEST_SET, options), options, progress)
    judge.baseline = gate.Texts(judge.yardstick.references, Faults(), {})
    monkeypatch.setattr(judge, "_texts", broken)
    part = Component("encoder", Form(INT8), Path())
    trial = judge.judge(source, part, part)
    assert trial.verdict == REFUSED and trial.loss.points == pytest.approx(100)
    assert trial.excess == {"shorter": 20} and not judge.accepts(trial)
    json.dumps(trial.to_json(), allow_nan=False)


def test_wrong_use(source: Bundle, int8: Result, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="quantized as 'auto'"):
        quantize_bundle(int8.bundle.directory, TEST_SET, tmp_path / "again")
    with pytest.raises(OptionError, match="another directory"):
        quantize_bundle(source.directory, TEST_SET, source.directory, Options(overwrite=True))
    with pytest.raises(OptionError, match="or overwrite it"):
        quantize_bundle(source.directory, TEST_SET, int8.bundle.directory, Options(INT8_WEIGHTS))
    for wrong in ({"mode": "int2"}, {"max_drop": -1}, {"max_drop": float("nan")}, {"beam": 0},
                  {"calibration_size": 0}, {"alphas": (1.5,)}, {"alphas": (float("nan"),)},
                  {"threads": 0}, {"metric": "ter"}):  # fmt: skip
        with pytest.raises(OptionError, match="Quantizing failed in"):
            Options(**wrong)  # type: ignore[arg-type]
    words = ["quantize", "b", "--calibration", "c", "--output", "o", "--alphas=-1,0.5"]
    parsed = cli.build_parser().parse_args([*words, "--max-drop", "0"])
    assert Options(**given(parsed, Options)) == Options(alphas=(-1.0, 0.5), max_drop=0.0)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["quantize", "b", "--calibration", "c", "--output", "o", "--alphas=x"])
    assert stopped.value.code == EXIT_USAGE
