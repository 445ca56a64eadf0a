"""What calibration sees: draws, recordings, samples, and what is made of a graph with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from conftest import MINI, write_table
from openvino import opset13 as ops

from fairseq_openvino import load_model
from fairseq_openvino.bundle import (
    DECODER_IR,
    ENCODER_IR,
    Bundle,
    open_bundle,
)
from fairseq_openvino.errors import OptionError, StorageError
from fairseq_openvino.model import Ask, Head
from fairseq_openvino.quantize import compress, recording
from fairseq_openvino.quantize.components import ENCODER, Components, Form
from fairseq_openvino.quantize.divergence import divergence
from fairseq_openvino.quantize.material import SPEAKER, UTTERANCE, draw
from fairseq_openvino.quantize.options import INT8, INT8_WEIGHTS, MIXED, Options
from fairseq_openvino.quantize.progress import Progress
from fairseq_openvino.quantize.samples import DecoderSamples, EncoderSamples
from fairseq_openvino.runtime.engine import Engine, Variant, compile_properties
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.speech import corpus

TEST_SET = MINI / "test_st_en_de.tsv"


@pytest.fixture(scope="module")
def source(mini_bundle: Path) -> Bundle:
    """The shipped checkpoint, with its ONNX graphs."""
    return open_bundle(mini_bundle)


@pytest.fixture(scope="module")
def recorded(source: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Recordings of four utterances."""
    recognizer = load_model(source)
    model, options = recording.RecordingModel(recognizer.model), recognizer.options(beam=1)

    def decode(utterance: corpus.Utterance) -> list[recording.EncoderCall]:
        recognizer.family.decode(model, [recognizer.read(utterance.path)], options)
        return model.take()

    utterances = list(corpus.read(TEST_SET, limit=4))
    return recording.collect(utterances, tmp_path_factory.mktemp("recordings"), decode, iter)


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
    whole = paths[0].read_bytes()
    for content in (b"", whole[:-30], whole[:300] + b"no" + whole[302:]):
        paths[0].write_bytes(content)
        with pytest.raises(StorageError, match="Reading a recording failed"):
            recording.read(paths[0])
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


def test_layers_left_in_f32_stay_so_at_every_precision(
    source: Bundle, recorded: list[Path], tmp_path: Path
) -> None:
    """Precision int8 quantizes weights as they load, but only those of original bundles."""
    name = "/body/layers.0/out/MatMul"
    graph = ov.Core().read_model(source.path(ENCODER_IR))
    quantized = compress.quantize(graph, EncoderSamples(recorded), 0.5, (name,))
    fed = {layer for layers in compress.layers(quantized).values() for layer in layers}
    assert name not in fed and "/body/layers.1/out/MatMul" in fed
    ov.save_model(quantized, tmp_path / ENCODER_IR, compress_to_fp16=False)

    def weights(quantization: dict[str, Any]) -> str:
        bundle = Bundle(tmp_path, replace(source.manifest, quantization=quantization))
        engine = Engine(bundle, EngineOptions(precision="int8"))
        nodes = engine.model(Variant("encoder", "int8", 1)).get_ops()
        node = next(node for node in nodes if node.get_friendly_name() == name)
        return str(node.input_value(1).get_node().get_type_name())

    assert weights({}) == "Multiply" and weights({"mode": "int8"}) == "Constant"


@pytest.mark.soak
def test_the_worst_layers_stay_in_f32(source: Bundle, recorded: list[Path], tmp_path: Path) -> None:
    """Then the encoder is no longer called int8."""
    components = Components(
        source, recorded[:2], recorded[3:], Options(alphas=(-1.0,)), tmp_path, lambda line: None,
        Progress(1, "", lambda line: None),
    )  # fmt: skip
    whole, relaxed = (components.make(ENCODER, Form(INT8, share)) for share in (0.0, 0.1))
    assert (whole.kind, whole.products) == (INT8, (21, 22))
    eight, every = relaxed.products
    assert relaxed.excluded and every == 22 and eight == 21 - len(relaxed.excluded)
    assert relaxed.kind == (MIXED if eight < 0.9 * 22 else INT8)
    assert relaxed.to_json()["layers_in_f32"] == list(relaxed.excluded)
    assert replace(relaxed, products=(19, 22)).kind == MIXED


def test_draws_are_disjoint_and_repeatable(tmp_path: Path) -> None:
    options = Options(calibration_size=20, held_out_size=5, validation_size=30)
    material = draw(TEST_SET, options)
    assert material == draw(TEST_SET, options)
    sets = (material.calibration, material.held_out, material.validation)
    assert [len(found) for found in sets] == [20, 5, 30]
    assert len({u.id for found in sets for u in found}) == 55
    other = draw(TEST_SET, replace(options, seed=2))
    assert other.calibration != material.calibration
    weights = draw(TEST_SET, Options(INT8_WEIGHTS))
    assert not weights.calibration and len(weights.validation) == 100
    with pytest.raises(OptionError, match=r"at least 101 utterances .* got 100"):
        draw(TEST_SET, Options(calibration_size=92))


def speakers(utterances: Sequence[corpus.Utterance]) -> set[str | None]:
    return {utterance.speaker for utterance in utterances}


def test_speakers_calibrate_or_validate(tmp_path: Path) -> None:
    """Four, with 20 to 33 utterances each; most of them are needed to calibrate with 60."""
    for size in (1, 20, 60):
        material = draw(TEST_SET, Options(calibration_size=size, held_out_size=5))
        fit = speakers((*material.calibration, *material.held_out))
        assert material.disjoint_by == SPEAKER and not fit & speakers(material.validation)
        everybody = speakers(material.validation) | fit
        assert len(everybody) == 4 or size == 1
    material = draw(TEST_SET, Options(calibration_size=85, held_out_size=5))
    assert material.disjoint_by == UTTERANCE and len(material.validation) == 10
    rows = TEST_SET.read_text().splitlines()
    header, *rows = [row.split("\t") for row in rows]
    for row in rows:
        row[1] = str(MINI / row[1])
    half = write_table(tmp_path / "half.tsv", tuple(header), *map(tuple, rows[:50]))
    options = Options(calibration_size=3, held_out_size=1, validation=TEST_SET)
    material = draw(half, options)  # another corpus, with the same people
    assert material.disjoint_by == UTTERANCE or not (
        speakers((*material.calibration, *material.held_out)) & speakers(material.validation)
    )
    nobody = write_table(
        tmp_path / "nobody.tsv", *((*row[:4], "", *row[5:]) for row in (header, *rows))
    )
    nobody.write_text(nobody.read_text().replace("tgt_text\t\t", "tgt_text\tspeaker\t", 1))
    material = draw(nobody, Options(calibration_size=20, held_out_size=5))
    assert material.disjoint_by == UTTERANCE and len(material.validation) == 75
    with pytest.raises(OptionError, match="do not calibrate, got none"):
        draw(half, Options(calibration_size=49, held_out_size=1, validation=half))
