"""XM Transformer: wav2vec 2.0 on raw waveforms, the adaptor, language tags, what is refused."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import (
    MINI,
    Shared,
    assert_identical,
    generate,
    generate_both,
    random_model,
    write_checkpoint,
)

from fairseq_openvino import load_model
from fairseq_openvino.bundle import FeatureConfig, SpecialTokens, TextConfig
from fairseq_openvino.errors import (
    ArchitectureError,
    AudioError,
    CheckpointError,
    ModelError,
    OptionError,
)
from fairseq_openvino.export.fairseq import ARCHITECTURES, cached_bundle, export_checkpoint
from fairseq_openvino.export.fairseq.checkpoint import load
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.export.options import ExportOptions
from fairseq_openvino.export.parity import Report
from fairseq_openvino.export.procedure import Original
from fairseq_openvino.export.procedure import export as export_original
from fairseq_openvino.measure.engines import EngineSpec, Search
from fairseq_openvino.measure.engines.fairseq import FairseqEngine
from fairseq_openvino.measure.engines.ours import BundleEngine
from fairseq_openvino.quantize.options import Options
from fairseq_openvino.quantize.procedure import quantize_bundle
from fairseq_openvino.recognizer import Recognizer
from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.features import layer_norm
from fairseq_openvino.speech.stored import frame_count

LANGUAGES = ("de", "fr")
YAML = """vocab_filename: dict.txt
use_audio_input: true
prepend_bos_and_append_tgt_lang_tag: true
"""
RATES_HZ = (16_000, 44_100, 8_000)
MATRIX, SHARPNESS = 2, 6.0
LONG = ("--max-source-positions", "960000", "--max-tokens", "960000")
"""Flags that let waveforms in; both count samples."""
WAV2VEC = {
    "conv_feature_layers": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2",
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "extractor_mode": "layer_norm",
    "layer_norm_first": True,
    "conv_bias": True,
}
"""Options of a small wav2vec 2.0 like XLS-R."""
DECODER = {
    "decoder_embed_dim": 32,
    "decoder_ffn_embed_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_learned_pos": True,
    "decoder_normalize_before": True,
    "layernorm_embedding": True,
}
"""And of a small decoder like mBART's."""
CONVOLUTIONS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"
DECODER_LARGE = {
    "decoder_embed_dim": 1024,
    "decoder_ffn_embed_dim": 4096,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "share_decoder_input_output_embed": True,
}
TRUE_SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "base": (
        {
            "encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072,
            "encoder_attention_heads": 12, "conv_pos": 128, "conv_pos_groups": 16,
            "extractor_mode": "default", "layer_norm_first": False, "conv_bias": False,
        },
        {"decoder_layers": 6, "encoder_proj": True},
        1000,
    ),
    "xls_r_300m": (
        {
            "encoder_layers": 24, "encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096,
            "encoder_attention_heads": 16, "conv_pos": 128, "conv_pos_groups": 16,
        },
        {},
        250_000,
    ),
}  # fmt: skip
"""Options of wav2vec 2.0 and of the decoder, and V: more than 2 GB of weights in the last."""


def completed(wav2vec: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a random model, as they are completed for an export."""
    stored = {"w2v_args": WAV2VEC | wav2vec, "normalize": False, **DECODER, **overrides}
    return vars(ARCHITECTURES["xm_transformer"].complete(Namespace(**stored)))


def sharpen(weights: dict[str, Any], sharpness: float = SHARPNESS) -> None:
    """Let a decoder that is not trained hear its encoder: else all clips have the same hypotheses."""
    for name, weight in weights.items():
        if weight.dim() == MATRIX and "encoder" in name and "embed" not in name:
            weight.mul_(sharpness)


def checkpoint(directory: Path, wav2vec: dict[str, Any] | None = None, **overrides: Any) -> Path:
    """A random checkpoint that reads waveforms, with dictionary and YAML."""
    path = write_checkpoint(
        directory, "xm_transformer", gain=1.0, **completed(wav2vec or {}, overrides)
    )
    state = torch.load(path, weights_only=False)
    sharpen(state["model"])
    torch.save(state, path)
    dictionary = directory / "dict.txt"
    *words, _, _ = dictionary.read_text().splitlines()
    tags = [f"<lang:{language}> 1" for language in LANGUAGES]
    dictionary.write_text("\n".join([*words, *tags]) + "\n")
    (directory / "config.yaml").write_text(YAML)
    return path


def write_audio(directory: Path) -> None:
    """A manifest `test` of 13 clips of 0.1 to 1.5 s at several rates; it does not say their lengths."""
    random, rows = np.random.default_rng(0), ["id\taudio\ttgt_text\ttgt_lang"]
    for i in range(13):
        rate_hz, path = RATES_HZ[i % len(RATES_HZ)], directory / f"{i}.flac"
        samples = int(random.uniform(0.1, 1.5) * rate_hz)
        tone = np.sin(np.arange(samples) * random.uniform(0.01, 1))
        soundfile.write(path, 0.1 * tone + 0.02 * random.standard_normal(samples), rate_hz)
        rows.append(f"clip{i}\t{path}\tt1 t2 t3\t{LANGUAGES[i % 2]}")
    (directory / "test.tsv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="session")
def xm(shared: Shared) -> Path:
    """A data directory with a tiny random checkpoint and waveforms."""

    def make(directory: Path) -> None:
        checkpoint(directory)
        write_audio(directory)

    return shared("xm", make)


def measure(model: Any, arguments: Any, directory: Path) -> Report:
    """The whole procedure for a model without a checkpoint."""
    described = {
        "family": "s2t", "tokens": SpecialTokens(0, 1, 2, 3),
        "features": FeatureConfig(1, 16_000, ("layer_norm",)), "text": TextConfig(),
    }  # fmt: skip
    known = ARCHITECTURES["xm_transformer"]
    graphs = known.build(model, arguments)
    original = Original(graphs, known.reference(model), described, lambda _: None, known.cases)
    return export_original(original, directory / "bundle")[1]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("wav2vec", "overrides"),
    [
        ({}, {}),
        ({"extractor_mode": "default", "layer_norm_first": False, "conv_bias": False}, {}),
        ({"conv_pos": 7, "crop_seq_to_multiple": 3}, {"adaptor_n_layers": 1, "adaptor_stride": 3}),
        ({"pos_conv_depth": 3, "required_seq_len_multiple": 1}, {"adaptor_n_layers": 0}),
        ({"conv_pos": 5}, {"adaptor_kernel_size": 5, "adaptor_layernorm": True}),
        ({}, {"encoder_proj": True, "decoder_embed_dim": 48}),
        ({}, {"adaptor_proj": True, "decoder_embed_dim": 48, "no_scale_embedding": True}),
        ({"layer_type": "conformer", "required_seq_len_multiple": 4}, {}),
        ({"layer_type": "conformer", "attn_type": "espnet", "layer_norm_first": False}, {}),
        ({"encoder_embed_dim": 16}, {"remove_weight_norm": True, "layerdrop": 0.1}),
    ],
    ids=str,
)
def test_options_of_the_family_reproduce_fairseq(
    wav2vec: dict[str, Any], overrides: dict[str, Any], tmp_path: Path
) -> None:
    arguments = completed(wav2vec, overrides)
    model, arguments, _ = random_model("xm_transformer", gain=1.0, **arguments)
    sharpen(model.state_dict())
    assert measure(model, arguments, tmp_path).passed


@pytest.mark.soak
@pytest.mark.parametrize(
    ("wav2vec", "overrides", "vocabulary"), TRUE_SIZES.values(), ids=TRUE_SIZES
)
def test_true_size_members_reproduce_fairseq(
    wav2vec: dict[str, Any], overrides: dict[str, Any], vocabulary: int, tmp_path: Path
) -> None:
    arguments = completed(
        {"conv_feature_layers": CONVOLUTIONS} | wav2vec, DECODER_LARGE | overrides
    )
    model, arguments, _ = random_model("xm_transformer", vocabulary, gain=1.0, **arguments)
    sharpen(model.state_dict(), 2.0)
    assert measure(model, arguments, tmp_path).passed


@pytest.fixture(scope="session")
def recognizer(xm: Path, cache_dir: Path) -> Recognizer:
    """That checkpoint, loaded."""
    bundle = cached_bundle(
        xm / "checkpoint.pt", DataDirectory(xm, gen_subset="test"), {}, cache_dir
    )
    return load_model(bundle.directory)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--beam", "1"), marks=pytest.mark.soak),
        ("--beam", "5", "--nbest", "5", "--max-len-b", "20"),
    ],
)
def test_hypotheses_are_fairseqs(xm: Path, cache_dir: Path, flags: tuple[str, ...]) -> None:
    assert_identical(*generate_both(xm, cache_dir, *LONG, *flags, "--eos-token", "<lang:de>"))


def test_a_limit_that_counts_frames_is_named(xm: Path, cache_dir: Path) -> None:
    """Fairseq's default, 6000, is 0.4 s of a waveform."""
    with pytest.raises(OptionError, match="--max-source-positions .both count samples"):
        generate(xm, "--ov-engine", "--ov-cache-dir", str(cache_dir), "--eos-token", "<lang:de>")


@pytest.mark.soak
def test_clips_are_transcribed_as_fairseq_does_one_by_one(
    xm: Path, cache_dir: Path, recognizer: Recognizer
) -> None:
    flags = ("--batch-size", "1", "--ov-engine", "--ov-cache-dir", str(cache_dir))
    expected = generate(xm, *LONG[:2], *flags, "--eos-token", "<lang:fr>").hypotheses
    found = recognizer.transcribe_each([xm / f"{i}.flac" for i in range(13)], language="fr")
    assert [each.text for each in found] == [expected[i][0].text for i in range(13)]


def test_lengths_of_waveforms_count_samples_of_the_models_rate(xm: Path) -> None:
    counts = [frame_count(str(xm / f"{i}.flac"), 16_000) for i in range(13)]
    read = [len(read_audio(xm / f"{i}.flac", 16_000)[0]) for i in range(13)]
    assert counts == pytest.approx(read, abs=1)


def test_waveforms_are_scaled_as_fairseq_does() -> None:
    samples = np.random.default_rng(0).standard_normal(5000).astype(np.float32) * 0.003 + 0.1
    expected = torch.nn.functional.layer_norm(torch.from_numpy(samples), samples.shape)
    assert np.abs(layer_norm(samples) - expected.numpy()).max() < 1e-4  # noqa: PLR2004


def test_what_is_no_audio_for_the_model_is_refused(recognizer: Recognizer, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((100, 80), np.float32))
    for audio, reason in ((np.zeros(399), "at least 400 samples"), (tmp_path / "a.npy", "audio")):
        with pytest.raises(AudioError, match=reason):
            recognizer.transcribe(audio, language="de")


@pytest.mark.soak
def test_longer_recordings_are_cut_at_pauses(xm: Path, cache_dir: Path) -> None:
    """Each piece as it is transcribed alone."""
    clips = sorted((MINI / "clips").glob("*.mp3"))[:4]
    silence = np.zeros(16_000, np.float32)
    joined = np.concatenate(
        [part for clip in clips for part in (read_audio(clip, 16_000)[0], silence)]
    )
    data, overrides = DataDirectory(xm, gen_subset="test"), {"max_source_positions": 64_000}
    bundle = cached_bundle(xm / "checkpoint.pt", data, overrides, cache_dir)
    model = load_model(bundle.directory)
    assert bundle.manifest.limits.max_source_frames == 64_000  # noqa: PLR2004
    found = model.transcribe(joined, language="de", beam=1)
    assert len(found.segments) >= len(clips)
    for segment in found.segments:
        part = joined[round(segment.start * 16_000) : round(segment.end * 16_000)]
        assert model.transcribe(part, language="de", beam=1).text == segment.text


def test_pretrained_model_that_is_gone_is_named(xm: Path, tmp_path: Path) -> None:
    state = torch.load(xm / "checkpoint.pt", weights_only=False)
    arguments = state["args"]
    stored, arguments.w2v_args, arguments.w2v_path = arguments.w2v_args, None, "/there/w2v.pt"
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="'/there/w2v.pt'.*--model-overrides"):
        load(tmp_path / "checkpoint.pt", DataDirectory(xm), {}, ARCHITECTURES)
    torch.save({"args": None, "cfg": stored, "model": {}}, tmp_path / "w2v.pt")
    wav2vec = {key: value for key, value in WAV2VEC.items() if key != "extractor_mode"}
    for overrides in ({"w2v_path": str(tmp_path / "w2v.pt")}, {"w2v_args": WAV2VEC}):
        assert load(tmp_path / "checkpoint.pt", DataDirectory(xm), overrides, ARCHITECTURES).model
    with pytest.raises(CheckpointError, match=r"without .*conv_layers.*with "):
        load(tmp_path / "checkpoint.pt", DataDirectory(xm), {"w2v_args": wav2vec}, ARCHITECTURES)


def test_a_configuration_of_filter_banks_is_refused(xm: Path, tmp_path: Path) -> None:
    for name in ("checkpoint.pt", "dict.txt"):
        (tmp_path / name).symlink_to(xm / name)
    (tmp_path / "config.yaml").write_text("vocab_filename: dict.txt\n")
    with pytest.raises(ModelError, match="use_audio_input: true for xm_transformer, got false"):
        export_checkpoint(tmp_path / "checkpoint.pt", DataDirectory(tmp_path), tmp_path / "bundle")


@pytest.mark.parametrize(
    ("wav2vec", "overrides", "named"),
    [
        ({}, {"adaptor_kernel_size": 4}, "adaptor_kernel_size"),
        ({"quantize_input": True}, {}, "quantize_input"),
        ({"adp_num": 2}, {"layer_type": "trf_adp"}, "AdapterLayer"),
    ],
)
def test_options_without_a_graph_are_named(
    wav2vec: dict[str, Any], overrides: dict[str, Any], named: str
) -> None:
    model, arguments, _ = random_model("xm_transformer", gain=1.0, **completed(wav2vec, overrides))
    with pytest.raises(ArchitectureError, match=named):
        ARCHITECTURES["xm_transformer"].build(model, arguments)


@pytest.mark.soak
def test_the_engines_that_are_compared_hear_the_same(xm: Path, recognizer: Recognizer) -> None:
    model = {"checkpoint": str(xm / "checkpoint.pt"), "data": str(xm)}
    eager = FairseqEngine(EngineSpec("fairseq", "", "fairseq", **model))
    ours = BundleEngine(EngineSpec("ours", "", "ours", bundle=str(recognizer.bundle.directory)))
    found = []
    for engine in (eager, ours):
        clips = [engine.read(str(xm / f"{i}.flac")) for i in range(4)]
        for language in LANGUAGES:  # as a corpus states it
            outputs = [engine.generate([clip], Search(), language, None).outputs for clip in clips]
            found.append([output.text for each in outputs for output in each])
    assert found[:2] == found[2:] and found[0] != found[1]


@pytest.mark.soak
def test_quantized_bundles_run(xm: Path, tmp_path: Path) -> None:
    data, output = DataDirectory(xm, gen_subset="test"), tmp_path / "bundle"
    bundle, _ = export_checkpoint(xm / "checkpoint.pt", data, output, ExportOptions(keep_onnx=True))
    options = Options(calibration_size=2, held_out_size=1, validation_size=2, max_drop=100)
    result = quantize_bundle(bundle.directory, xm / "test.tsv", tmp_path / "int8", options)
    assert load_model(result.bundle).transcribe(xm / "0.flac", language="de").text
