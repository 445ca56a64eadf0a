"""`s2t_conformer` and `convtransformer` against Fairseq: options, padding, hypotheses, 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    TINY,
    Shared,
    assert_identical,
    generate,
    generate_both,
    random_model,
    write_checkpoint,
    write_data,
)

from fairseq_openvino import load_model
from fairseq_openvino.bundle import FeatureConfig, SpecialTokens, TextConfig
from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export import onnx
from fairseq_openvino.export.fairseq import ARCHITECTURES, cached_bundle
from fairseq_openvino.export.fairseq.checkpoint import load
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.export.fairseq.s2t_conformer import encoder_frames
from fairseq_openvino.export.parity import Report
from fairseq_openvino.export.procedure import Original
from fairseq_openvino.export.procedure import export as export_original
from fairseq_openvino.quantize.options import INT8, Options
from fairseq_openvino.quantize.procedure import quantize_bundle
from fairseq_openvino.runtime.engine import compile_properties

Arguments = dict[str, Any]
SMALL: Arguments = TINY | {"fp16": False}
RELATIVE: Arguments = {"attn_type": "espnet", "pos_enc_type": "rel_pos"}
ROTARY: Arguments = {"attn_type": "espnet", "pos_enc_type": "rope"}
TWO_DIMENSIONAL: Arguments = {"conv_version": "convtransformer", "conv_out_channels": 6}
ODD: dict[str, tuple[str, Arguments]] = {
    "fairseq-abs": ("s2t_conformer", {"depthwise_conv_kernel_size": 31}),
    "espnet-abs": ("s2t_conformer", {"attn_type": "espnet", "no_scale_embedding": True}),
    "no-positions": ("s2t_conformer", {"pos_enc_type": "rope", "conv_kernel_sizes": "3,7"}),
    "rope": ("s2t_conformer", ROTARY | {"depthwise_conv_kernel_size": 1}),
    "rope-2d": ("s2t_conformer", ROTARY | TWO_DIMENSIONAL | {"encoder_attention_heads": 4}),
    "rel_pos": ("s2t_conformer", RELATIVE | {"depthwise_conv_kernel_size": 7}),
    "rel_pos-2d": ("s2t_conformer", RELATIVE | TWO_DIMENSIONAL),
    "rel_pos-post-norm": (
        "s2t_conformer",
        RELATIVE | {
            "decoder_normalize_before": False, "decoder_learned_pos": True,
            "share_decoder_input_output_embed": True, "encoder_normalize_before": False,
        },
    ),  # fmt: skip
    "rel_pos-one-convolution": ("s2t_conformer", RELATIVE | {"conv_kernel_sizes": "5"}),
    "conv-post-norm": ("convtransformer", {"conv_out_channels": 6}),
    "conv-pre-norm": (
        "convtransformer_espnet",
        {
            "conv_out_channels": 5, "encoder_normalize_before": True, "no_scale_embedding": True,
            "decoder_normalize_before": True, "share_decoder_input_output_embed": True,
        },
    ),
    "conv-wide-decoder": (
        "convtransformer",
        {"decoder_embed_dim": 48, "decoder_attention_heads": 3, "activation_fn": "gelu"},
    ),
}  # fmt: skip
"""Architecture and what differs from `SMALL`."""
TRUE_SIZE: dict[str, tuple[str, Arguments]] = {
    "rel_pos": ("s2t_conformer", RELATIVE | {"fp16": False}),
    "rope": ("s2t_conformer", ROTARY | {"fp16": False}),
    "abs": ("s2t_conformer", {"fp16": False}),
    "convtransformer": ("convtransformer", {}),
    "convtransformer_espnet": ("convtransformer_espnet", {}),
}


def odd(name: str) -> tuple[Any, Any]:
    arch, options = ODD[name]
    model, arguments, _ = random_model(arch, **(SMALL | options))
    return model, arguments


def graphs_of(model: Any, arguments: Any) -> Any:
    return ARCHITECTURES[arguments.arch.removesuffix("_espnet")].build(model, arguments)


def padded(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and zeros behind it."""
    features = torch.zeros(len(lengths), max(lengths), 80)
    for row, length in zip(features, lengths, strict=True):
        row[:length] = torch.randn(length, 80)
    return features, torch.tensor(lengths)


@pytest.mark.parametrize("name", ODD)
def test_encoder_states_equal_fairseqs_in_padded_batches(name: str) -> None:
    """Those of padding too, as it leaks; from one encoder frame on."""
    model, arguments = odd(name)
    body = graphs_of(model, arguments).encoder.body
    for longest in (1, 2, 3, 4, 5, 8, 9, 20, 21, 130):
        features, lengths = padded(longest, max(1, longest // 2), max(1, longest - 5))
        with torch.no_grad():
            expected = model.encoder(features, lengths)
            found, found_lengths = body(features, lengths)
        states = expected["encoder_out"][0].transpose(0, 1)
        torch.testing.assert_close(found, states, rtol=1e-4, atol=2e-5)
        mask = torch.arange(found.shape[1]) >= found_lengths.unsqueeze(1)
        masks = expected["encoder_padding_mask"]
        assert torch.equal(mask, masks[0]) if masks else not mask.any()


@pytest.mark.parametrize("name", ["rel_pos-2d", "conv-post-norm"])
def test_graphs_follow_every_length(name: str, tmp_path: Path) -> None:
    import openvino as ov

    model, arguments = odd(name)
    onnx.export_onnx(graphs_of(model, arguments), tmp_path)
    encoder = ov.Core().compile_model(
        tmp_path / "encoder.onnx", "CPU", compile_properties("f32", "CPU", threads=1)
    )
    attention = model.decoder.layers[1].encoder_attn
    for longest in (1, 4, 5, 9, 20, 21, 130):
        features, lengths = padded(longest, max(1, longest - 3))
        found = encoder({"features": features.numpy(), "lengths": lengths.numpy()})
        with torch.no_grad():
            states = model.encoder(features, lengths)["encoder_out"][0].transpose(0, 1)
            values = attention.v_proj(states).unflatten(2, (attention.num_heads, -1))
        np.testing.assert_allclose(found["cross_value.1"], values.transpose(1, 2), atol=2e-5)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["fairseq-abs", "rope-2d", "conv-pre-norm"])
def test_encoder_lengths_equal_fairseqs(name: str, tmp_path: Path) -> None:
    import openvino as ov

    model, arguments = odd(name)
    onnx.export_onnx(graphs_of(model, arguments), tmp_path)
    encoder = ov.Core().compile_model(
        tmp_path / "encoder.onnx", "CPU", compile_properties("f32", "CPU", threads=1)
    )
    for longest in range(1, 131):
        features, lengths = padded(*range(longest, 0, -max(1, longest // 7)))
        found = encoder({"features": features.numpy(), "lengths": lengths.numpy()})
        with torch.no_grad():
            expected = model.encoder(features, lengths)
        frames = len(expected["encoder_out"][0])
        masks = expected["encoder_padding_mask"]
        valid = frames - masks[0].sum(1) if masks else torch.full_like(lengths, frames)
        assert found["encoder_lengths"].tolist() == valid.tolist(), longest


@pytest.mark.parametrize("name", ["rel_pos", "rope-2d", "rel_pos-one-convolution"])
def test_positions_reach_as_far_as_the_longest_input(name: str) -> None:
    model, _ = odd(name)
    for longest in (6000, 5999, 5997, 41):
        states, _ = model.encoder.subsample(*padded(longest))
        assert encoder_frames(model.encoder.subsample, longest) == len(states)


def test_relative_positions_need_the_attention_that_has_them() -> None:
    model, arguments, _ = random_model("s2t_conformer", **(SMALL | {"pos_enc_type": "rel_pos"}))
    with pytest.raises(ArchitectureError, match=r"attn_type 'espnet'.*got None"):
        graphs_of(model, arguments)


def measure(model: Any, arguments: Any, directory: Path) -> Report:
    """The whole procedure for a model without a checkpoint."""
    described = {
        "family": "s2t", "tokens": SpecialTokens(0, 1, 2, 3),
        "features": FeatureConfig(80, 16_000, ()), "text": TextConfig(),
    }  # fmt: skip
    known = ARCHITECTURES[arguments.arch.removesuffix("_espnet")]
    graphs, reference = known.build(model, arguments), known.reference(model)
    original = Original(graphs, reference, described, lambda _: None, known.cases)
    return export_original(original, directory / "bundle")[1]


@pytest.mark.soak
@pytest.mark.parametrize("name", ODD)
def test_options_pass_the_gate(name: str, tmp_path: Path) -> None:
    assert measure(*odd(name), tmp_path).passed


@pytest.mark.soak
@pytest.mark.parametrize("name", TRUE_SIZE)
def test_true_size_passes_the_gate(name: str, tmp_path: Path) -> None:
    arch, options = TRUE_SIZE[name]
    model, arguments, _ = random_model(arch, vocabulary=250, **options)
    report = measure(model, arguments, tmp_path)
    print(report.table())
    assert report.passed


def checkpoint(
    directory: Path, arch: str, leak: float = 1.0, utterances: int = 9, **options: Any
) -> Path:
    """A data directory whose depthwise convolutions weigh their neighbours by `leak`."""
    path = write_checkpoint(directory, arch, **(SMALL | options))
    state = torch.load(path, weights_only=False)
    for name, weights in state["model"].items():
        if "depthwise_conv" in name:
            weights.mul_(leak)
    torch.save(state, path)
    write_data(directory, utterances, frames=(20, 260))
    return directory


@pytest.fixture(scope="module")
def leaky(shared: Shared) -> Path:
    """A data directory with a conformer of relative positions where padding is heard far off."""
    return shared("leaky", lambda at: checkpoint(at, "s2t_conformer", 20.0, 5, **RELATIVE))


@pytest.mark.soak
def test_padding_leaks_as_in_fairseq_and_not_in_transcribe(leaky: Path, cache_dir: Path) -> None:
    flags = ("--beam", "5", "--nbest", "2", "--max-len-b", "12")
    alone = generate(leaky, *flags, "--batch-size", "1")
    eager, engine = generate_both(leaky, cache_dir, *flags, "--batch-size", "5")
    assert_identical(eager, engine)
    pairs = ((lines[0], eager.hypotheses[i][0]) for i, lines in alone.hypotheses.items())
    changes = [abs(one.score - other.score) for one, other in pairs]
    assert sum(change > 0.01 for change in changes) > 2, changes

    bundle = cached_bundle(leaky / "checkpoint.pt", DataDirectory(leaky), {}, cache_dir)
    recognizer = load_model(bundle.directory)
    clips = [leaky / "features" / f"test-{i}.npy" for i in range(5)]
    asked = {"beam": 5, "nbest": 2, "max_len_b": 12}
    together = recognizer.transcribe_batch(clips, **asked)
    for i, (clip, transcript) in enumerate(zip(clips, together, strict=True)):
        one = recognizer.transcribe(clip, **asked)
        assert one.text == transcript.text
        assert [text for text, _ in one.hypotheses] == [text for text, _ in transcript.hypotheses]
        for found, other, line in zip(
            one.hypotheses, transcript.hypotheses, alone.hypotheses[i], strict=True
        ):
            assert found[0] == line.text
            assert abs(found[1].score - other[1].score) < 1e-5
            assert abs(found[1].score - line.score) < 1e-3


def test_what_training_began_with_is_not_needed(tmp_path: Path) -> None:
    """Fairseq reads it again whenever it loads a convtransformer."""
    path = write_checkpoint(tmp_path, "convtransformer", **TINY, conv_out_channels=6)
    state = torch.load(path, weights_only=False)
    state["args"].load_pretrained_encoder_from = str(tmp_path / "asr.pt")
    torch.save(state, path)
    loaded = load(path, DataDirectory(tmp_path), {}, ARCHITECTURES)
    assert loaded.architecture == "convtransformer"


@pytest.mark.soak
@pytest.mark.parametrize("name", ["rel_pos", "rope", "conv-post-norm"])
def test_they_are_quantized(name: str, shared: Shared, cache_dir: Path, tmp_path: Path) -> None:
    """Products of conformers and convolutions in 8 bits; a random model judges no quality."""
    arch, arguments = ODD[name]
    data = shared(f"conformer-{name}", lambda at: checkpoint(at, arch, **arguments))
    bundle = cached_bundle(data / "checkpoint.pt", DataDirectory(data), {}, cache_dir)
    options = Options(
        mode=INT8, calibration_size=4, held_out_size=2, validation_size=3, max_drop=100
    )
    found = quantize_bundle(bundle.directory, data / "test.tsv", tmp_path / "out", options)
    print(found.table)
    clip = data / "features" / "test-0.npy"
    assert load_model(found.bundle.directory).transcribe(clip, beam=5).text


@pytest.mark.soak
@pytest.mark.parametrize("batch", ["1", "3", "9"])
@pytest.mark.parametrize("beam", ["1", "5"])
@pytest.mark.parametrize(
    "name", ["rel_pos", "rope", "espnet-abs", "fairseq-abs", "conv-pre-norm", "conv-post-norm"]
)
def test_hypotheses_are_identical(
    name: str, beam: str, batch: str, shared: Shared, cache_dir: Path
) -> None:
    arch, options = ODD[name]
    data = shared(f"conformer-{name}", lambda at: checkpoint(at, arch, **options))
    flags = ["--beam", beam, "--nbest", beam, "--max-len-b", "40", "--batch-size", batch]
    assert_identical(*generate_both(data, cache_dir, *flags))
