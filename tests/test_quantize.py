"""Quantization: what runs in 8 bits, what calibration sees, and what the gate lets through."""

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
from openvino import opset13 as ops

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
from fairseq_openvino.model import Ask, Head
from fairseq_openvino.quantize import compress, gate, procedure, recording
from fairseq_openvino.quantize.components import Component, Form
from fairseq_openvino.quantize.divergence import divergence
from fairseq_openvino.quantize.gate import LADDERS
from fairseq_openvino.quantize.material import draw
from fairseq_openvino.quantize.options import INT4_WEIGHTS, INT8, INT8_WEIGHTS, MIXED, Options
from fairseq_openvino.quantize.procedure import Result, quantize_bundle
from fairseq_openvino.quantize.samples import DecoderSamples, EncoderSamples
from fairseq_openvino.runtime.engine import Engine, Variant, compile_properties
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.speech import corpus

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
    """The whole procedure, judged on the complete test set."""
    options = Options(validation=TEST_SET, alphas=(-1.0, 0.5), work_dir=work, **QUICK)
    return quantize_bundle(source.directory, TEST_SET, work / "int8", options)


@pytest.fixture(scope="module")
def recorded(source: Bundle, work: Path) -> list[Path]:
    """Recordings of four utterances."""
    recognizer = load_model(source)
    model, options = recording.RecordingModel(recognizer.model), recognizer.options(beam=1)

    def decode(utterance: corpus.Utterance) -> list[recording.EncoderCall]:
        recognizer.family.decode(model, [recognizer.read(utterance.path)], options)
        return model.take()

    utterances = list(corpus.read(TEST_SET, limit=4))
    return recording.collect(utterances, work / "some", decode, iter)


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
    assert trial.passed and trial.drop <= 0.2
    assert "| original | original | 84.75 |" in int8.table and int8.table.count("| yes |") == 1
    manifest = int8.bundle.manifest
    assert manifest.precision == "int8" and manifest.source["bundle"]
    stored = manifest.quantization
    assert len(stored["calibration"]) == 8 and len(stored["held_out"]) == 3
    assert not set(stored["calibration"]) & set(stored["held_out"])
    for name in ("encoder", "decoder"):
        curve = stored[name]["divergence_by_alpha"]
        assert set(curve) == {"-1", "0.5"} and all(0 < kl < 0.01 for kl in curve.values())
        assert curve[f"{stored[name]['smooth_quant_alpha']:g}"] == min(curve.values())
    assert stored["gate"]["utterances"] == 100 and stored["gate"]["metric"] == "bleu"
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
        for kind in ("FullyConnected", "Convolution"):
            assert {key for key in count if key.startswith(kind)} <= eight
        if variant.graph == "encoder":
            assert sum(count[key] for key in eight if key.startswith("Convolution")) == 2
        else:  # one node a layer: attention, cache and beam reordering
            assert count[f"ScaledDotProductAttention:{precision}"] == layers
            assert not count[f"Concatenation:{precision}"]
            assert count[f"MatMul:{precision}"] == 2 * layers  # cross-attention


@pytest.mark.parametrize("precision", ["bf16", "int8", "fast"])
def test_a_quantized_bundle_runs_at_every_precision(int8: Result, precision: str) -> None:
    expected = [t.text for t in load_model(int8.bundle).transcribe_batch(CLIPS[:30])]
    found = load_model(int8.bundle, precision=precision).transcribe_batch(CLIPS[:30])
    same = sum(a == b.text for a, b in zip(expected, found, strict=True))
    assert same >= 27


@pytest.mark.parametrize("mode", [MIXED, INT8_WEIGHTS])
def test_the_other_modes(source: Bundle, work: Path, tmp_path: Path, mode: str) -> None:
    options = Options(
        mode, validation=TEST_SET, validation_size=20, max_drop=5, alphas=(0.5,), work_dir=work,
        **QUICK,
    )  # fmt: skip
    result = quantize_bundle(source.directory, TEST_SET, tmp_path / "out", options)
    assert result.trials[-1].passed and len(result.trials) == 1
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


def test_every_family_goes_through_the_contract(whisper_bundle: Path, tmp_path: Path) -> None:
    options = Options(
        text_column="src_text", calibration_size=4, held_out_size=2, validation_size=4, max_drop=100,
        alphas=(0.5,), language="en",
    )  # fmt: skip
    result = quantize_bundle(whisper_bundle, TEST_SET, tmp_path / "int8", options)
    assert result.bundle.manifest.family == "whisper" and "| WER |" in result.table
    model = load_model(result.bundle)
    model.transcribe_batch(CLIPS[:2], language="en")
    for variant, compiled in model.model.engine.compiled.items():
        count = nodes(compiled)
        kinds = {key for key in count if key.startswith(("FullyConnected", "Convolution"))}
        assert {kind.split(":")[1] for kind in kinds} <= {"i8", "u8"}
        fused = count["ScaledDotProductAttention:f32"]
        assert fused == (
            result.bundle.manifest.dimensions.layers if variant.graph == "decoder" else 0
        )


def test_int4_weights_are_4_bits(source: Bundle) -> None:
    graph = compress.compress(ov.Core().read_model(source.path(DECODER_IR)), 4)
    types = Counter(
        node.get_element_type().get_type_name()
        for node in graph.get_ops()
        if node.get_type_name() == "Constant"
    )
    assert types["i4"] >= 10


def observed(path: Path) -> tuple[ov.CompiledModel, list[str]]:
    """The decoder, with the input of every layer with weights as an output."""
    graph = ov.Core().read_model(path)
    names = []
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() in (
            "Constant", "Convert",
        ):  # fmt: skip
            names.append(f"seen:{node.get_friendly_name()}")
            value = ops.result(node.input_value(0))
            value.output(0).get_tensor().set_names({names[-1]})
            graph.add_results([value])
    compiled = ov.Core().compile_model(graph, "CPU", compile_properties("f32", "CPU"))
    return compiled, names


def test_calibration_sees_the_activations_of_real_states(
    source: Bundle, recorded: list[Path]
) -> None:
    """All tokens in one call give the ranges of decoding step by step with the state."""
    sample = DecoderSamples(recorded, CompiledModel(source, EngineOptions()))[0]
    length = sample["tokens"].shape[1]
    assert length > 5
    compiled, names = observed(source.path(DECODER_IR))
    assert len(names) >= 13
    request = compiled.create_infer_request()

    def ranges(result: Any) -> np.ndarray:
        return np.array([(result[n].min(), result[n].max()) for n in names])

    def steps(reset: bool) -> np.ndarray:
        request.reset_state()
        found = []
        for i in range(length):
            if reset:
                request.reset_state()
            fed = {"tokens": sample["tokens"][:, i : i + 1], "offset": np.array(i)}
            found.append(ranges(request.infer(sample | fed)))
        lows, highs = np.array(found)[..., 0].min(0), np.array(found)[..., 1].max(0)
        return np.stack([lows, highs], 1)

    request.reset_state()
    at_once = ranges(request.infer(sample))
    np.testing.assert_allclose(at_once, steps(reset=False), atol=1e-4)
    assert np.abs(at_once - steps(reset=True)).max() > 0.1  # what an empty state would give


def test_recordings_are_what_the_pipeline_decodes(source: Bundle, recorded: list[Path]) -> None:
    model = load_model(source)
    for path, utterance in zip(recorded, corpus.read(TEST_SET, limit=4), strict=True):
        (call,) = recording.read(path)
        clip = model.read(utterance.path)
        np.testing.assert_array_equal(call.features[0], clip.features)
        (tokens,) = call.sequences
        (_, hypothesis) = model.transcribe_clips([clip], beam=1)[0].hypotheses[0]
        assert tokens[0].tolist() == [2, *hypothesis.tokens[:-1].tolist()]
    encoder, decoder = EncoderSamples(recorded), DecoderSamples(recorded, model.model)
    assert len(encoder) == len(decoder) == 4
    assert set(encoder[0]) == {"features", "lengths"}
    assert {"tokens", "offset", "beam_idx", "cross_bias", "cross_key.1"} <= set(decoder[3])


def test_an_interrupted_collection_is_resumed(source: Bundle, tmp_path: Path) -> None:
    utterances = list(corpus.read(TEST_SET, limit=3))
    decoded: list[str] = []
    call = recording.EncoderCall(np.zeros((1, 9, 80)), np.array([9]), (np.array([[2, 5]]),))

    def decode(utterance: corpus.Utterance) -> list[recording.EncoderCall]:
        decoded.append(utterance.id)
        if len(decoded) == 3:
            raise KeyboardInterrupt
        return [call]

    with pytest.raises(KeyboardInterrupt):
        recording.collect(utterances, tmp_path, decode, iter)
    assert len(list(tmp_path.glob("*.npz"))) == 2
    paths = recording.collect(utterances, tmp_path, decode, iter)
    assert decoded == [*(u.id for u in utterances), utterances[2].id]
    assert [len(recording.read(path)) for path in paths] == [1, 1, 1]
    name = recording.directory_name(source, None)
    assert name == recording.directory_name(open_bundle(source.directory), None)
    assert name != recording.directory_name(source, "de")


def test_sessions_are_told_apart(source: Bundle) -> None:
    """Several rows or the memory of another model are not recorded; several sessions are."""
    compiled = CompiledModel(source, EngineOptions())
    model = recording.RecordingModel(compiled)
    features = np.random.default_rng(0).standard_normal((1, 60, 80)).astype(np.float32)
    memory, other = (each.encode(features, np.array([60])) for each in (model, compiled))
    for tokens in ([[2]], [[2], [7]], [[2, 3]]):
        with model.open(memory, 1, Head()) as session:
            for token in tokens:
                session.step(Ask(np.array([token]), np.zeros(1)))
    for unknown, beam in ((memory, 2), (other, 1)):
        with model.open(unknown, beam, Head()) as session:
            session.step(Ask(np.full((beam, 1), 2), np.arange(beam)))
    (call,) = model.take()
    assert [s.tolist() for s in call.sequences] == [[[2]], [[2, 7]], [[2, 3]]]
    assert model.take() == []


def test_divergence_is_zero_for_itself_and_grows(source: Bundle, recorded: list[Path]) -> None:
    reference = CompiledModel(source, EngineOptions())
    assert divergence(reference, reference, recorded) == pytest.approx(0, abs=1e-9)
    low = divergence(reference, CompiledModel(source, EngineOptions(precision="bf16")), recorded)
    assert 1e-7 < low < 1e-3


def noise(directory: Path) -> Path:
    """A corpus of 20 clips of digital silence with bursts of random noise."""
    random, rows = np.random.default_rng(0), ["path\ttext"]
    for i in range(20):
        waveform = np.zeros(int(random.integers(16_000, 48_000)), np.float32)
        for start in random.integers(0, len(waveform) - 8, 3):
            waveform[start : start + 8] = random.uniform(-1, 1, 8)
        soundfile.write(directory / f"{i}.wav", waveform, 16_000)
        rows.append(f"{i}.wav\tnoise")
    (directory / "noise.tsv").write_text("\n".join(rows) + "\n")
    return directory / "noise.tsv"


def test_a_broken_calibration_is_caught_and_relaxed(source: Bundle, tmp_path: Path) -> None:
    lines: list[str] = []
    options = Options(
        validation=TEST_SET, validation_size=40, metric="bleu", alphas=(0.3,), calibration_size=6,
        held_out_size=2, batch_size=20,
    )  # fmt: skip
    output = tmp_path / "out"
    result = quantize_bundle(source.directory, noise(tmp_path), output, options, lines.append)
    first, last = result.trials[0], result.trials[-1]
    assert not first.passed and first.drop > 1
    assert len(result.trials) > 2 and last.passed and last.drop <= 0.2
    assert any("layers stay in f32" in line for line in lines)
    stored = open_bundle(output).manifest.quantization
    assert [trial["passed"] for trial in stored["gate"]["trials"]] == [False] * (
        len(result.trials) - 1
    ) + [True]
    assert stored["encoder"]["kind"] == INT8_WEIGHTS or stored["encoder"]["layers_in_f32"]
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
             "--batch-size", "20", "--work-dir", str(work)]  # fmt: skip
    assert cli.main(words) == EXIT_PARTIAL
    error = capsys.readouterr().err
    assert "quality gate failed in bleu" in error and "Nothing was published" in error
    assert error.count("| no |") == 1 and "| int4-weights | int4-weights |" in error
    assert not list(tmp_path.iterdir())
    assert [trial.passed for trial in raised[0].trials] == [False]


def test_drops_point_the_same_way_for_every_metric() -> None:
    judge = object.__new__(gate.Gate)
    texts = {"same": ["a b c d e f"], "worse": ["a b c d e x"]}
    part = Component("encoder", Form(INT8), Path())
    for metric in ("bleu", "chrf", "wer"):
        judge.options, judge.metric, judge.max_drop = Options(), metric, 0.5
        judge.utterances = ()
        judge._references, judge._normalizer = texts["same"], None
        judge.baseline = gate.Texts(texts["same"], {})
        judge.baseline_score = gate.metrics.score(texts["same"], texts["same"], metric)
        for name, worse in (("same", False), ("worse", True)):
            judge._texts = lambda *_, name=name: gate.Texts(texts[name], {})  # type: ignore[method-assign]
            trial = judge.judge(Bundle(Path(), None), part, part)  # type: ignore[arg-type]
            assert (trial.drop > 5) is worse and trial.passed is not worse
            assert trial.changed == worse and trial.low <= trial.drop <= trial.high


def test_a_model_that_yields_nan_fails_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> gate.Texts:
        raise NumericsError("NaN")

    judge = object.__new__(gate.Gate)
    judge.options, judge.metric, judge.max_drop = Options(), "bleu", 0.2
    judge._references, judge._normalizer = ["a b c d e f"], None
    judge.utterances = (corpus.Utterance("a", "a", "a b c d e f"),)
    judge.baseline = gate.Texts(["a b c d e f"], {})
    judge.baseline_score = gate.metrics.score(["a b c d e f"], ["a b c d e f"], "bleu")
    monkeypatch.setattr(judge, "_texts", broken)
    part = Component("encoder", Form(INT8), Path())
    trial = judge.judge(Bundle(Path(), None), part, part)  # type: ignore[arg-type]
    assert not trial.passed and trial.drop == pytest.approx(100)
    json.dumps(trial.to_json(), allow_nan=False)


def test_layers_left_in_f32_stay_so_at_every_precision(
    source: Bundle, recorded: list[Path], tmp_path: Path
) -> None:
    """Precision int8 quantizes weights as they load, but only those of original bundles."""
    name = "/layers.0/out/MatMul"
    graph = ov.Core().read_model(source.path(ENCODER_IR))
    quantized = compress.quantize(graph, EncoderSamples(recorded), 0.5, (name,))
    fed = {layer for layers in compress.layers(quantized).values() for layer in layers}
    assert name not in fed and "/layers.1/out/MatMul" in fed
    ov.save_model(quantized, tmp_path / ENCODER_IR, compress_to_fp16=False)

    def weights(quantization: dict[str, Any]) -> str:
        bundle = Bundle(tmp_path, replace(source.manifest, quantization=quantization))
        engine = Engine(bundle, EngineOptions(precision="int8"))
        nodes = engine.model(Variant("encoder", "int8", 1)).get_ops()
        node = next(node for node in nodes if node.get_friendly_name() == name)
        return str(node.input_value(1).get_node().get_type_name())

    assert weights({}) == "Multiply" and weights({"mode": "int8"}) == "Constant"


def test_draws_are_disjoint_and_repeatable(tmp_path: Path) -> None:
    options = Options(calibration_size=20, held_out_size=5, validation_size=30)
    material = draw(TEST_SET, options)
    assert material == draw(TEST_SET, options)
    sets = (material.calibration, material.held_out, material.validation)
    assert [len(found) for found in sets] == [20, 5, 30]
    assert len({u.id for found in sets for u in found}) == 55
    other = draw(TEST_SET, Options(calibration_size=20, held_out_size=5, seed=2))
    assert other.calibration != material.calibration and len(other.validation) == 75
    weights = draw(TEST_SET, Options(INT8_WEIGHTS))
    assert not weights.calibration and len(weights.validation) == 100
    with pytest.raises(OptionError, match=r"at least 101 utterances .* got 100"):
        draw(TEST_SET, Options(calibration_size=92))


def test_wrong_use(source: Bundle, int8: Result, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="quantized as 'int8'"):
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
