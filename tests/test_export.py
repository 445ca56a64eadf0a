"""Export: parity of every family member, the bundle's content, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT, TINY, child_environment, random_model, write_checkpoint

from fairseq_openvino import cli
from fairseq_openvino.bundle import (
    MANIFEST,
    FeatureConfig,
    SpecialTokens,
    TextConfig,
    open_bundle,
)
from fairseq_openvino.errors import (
    ArchitectureError,
    CheckpointError,
    ModelError,
    OptionError,
    ParityError,
    StorageError,
)
from fairseq_openvino.export import ir
from fairseq_openvino.export import onnx as onnx_export
from fairseq_openvino.export.fairseq import (
    ARCHITECTURES,
    export_checkpoint,
    s2t_transformer,
)
from fairseq_openvino.export.fairseq.architecture import Architecture, Reference
from fairseq_openvino.export.fairseq.checkpoint import load
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.export.options import ExportOptions
from fairseq_openvino.export.parity import Report
from fairseq_openvino.export.procedure import Original
from fairseq_openvino.export.procedure import export as export_original
from fairseq_openvino.export.weights import write_model

LARGE = ("s", "sp", "m", "mp", "l", "lp")


def measure(model: Any, arguments: Any, directory: Path) -> Report:
    """The whole procedure for a model without a checkpoint."""
    described = {
        "family": "s2t", "tokens": SpecialTokens(0, 1, 2, 3),
        "features": FeatureConfig(80, 16_000, ()), "text": TextConfig(),
    }  # fmt: skip
    graphs = s2t_transformer.build(model, arguments)
    original = Original(graphs, Reference(model), described, lambda _: None)
    return export_original(original, directory / "bundle")[1]


@pytest.mark.parametrize(
    "size", ["xs", *(pytest.param(size, marks=pytest.mark.soak) for size in LARGE)]
)
def test_true_size_members_reproduce_fairseq(size: str, tmp_path: Path) -> None:
    model, arguments, _ = random_model(f"s2t_transformer_{size}", vocabulary=250)
    assert measure(model, arguments, tmp_path).passed


@pytest.mark.parametrize(
    "overrides",
    [
        {"conv_version": "convtransformer", "conv_out_channels": 16},
        {"encoder_normalize_before": False, "decoder_normalize_before": False},
        {"activation_fn": "gelu", "layernorm_embedding": True, "no_scale_embedding": True},
        {"share_decoder_input_output_embed": True, "decoder_learned_pos": True},
        {"decoder_input_dim": 24, "decoder_output_dim": 40},
        {"no_token_positional_embeddings": True, "conv_kernel_sizes": "3,7"},
        {"encoder_attention_heads": 4, "decoder_attention_heads": 8},
        {"decoder_embed_dim": 48, "decoder_attention_heads": 3},
    ],
    ids=",".join,
)
def test_options_of_the_family_reproduce_fairseq(overrides: dict[str, Any], tmp_path: Path) -> None:
    model, arguments, _ = random_model("s2t_transformer_s", **(TINY | overrides))
    assert measure(model, arguments, tmp_path).passed


@pytest.mark.soak
def test_large_family_members_have_the_same_graphs_at_small_size(tmp_path: Path) -> None:
    """A member with `p` has more encoder layers: at one size it is the one without."""
    for size in ("s", "m", "l"):
        model, arguments, _ = random_model(
            f"s2t_transformer_{size}", **(TINY | {"encoder_attention_heads": 16})
        )
        _, other, _ = random_model(
            f"s2t_transformer_{size}p", **(TINY | {"encoder_attention_heads": 16})
        )
        assert vars(other) | {"arch": arguments.arch} == vars(arguments)
        assert measure(model, arguments, tmp_path / size).passed


def test_gate_fails_on_one_wrong_weight_and_publishes_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = s2t_transformer.build

    def broken(model: Any, arguments: Any) -> Any:
        graphs = build(model, arguments)
        with torch.no_grad():
            graphs.decoder.layers[1].cross_query.weight[0, 0] += 0.5
        return graphs

    monkeypatch.setitem(ARCHITECTURES, s2t_transformer.ARCHITECTURE, Architecture(broken))
    with pytest.raises(ParityError, match="Nothing was published"):
        export(tiny, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def export(data: Path, output: Path, **options: Any) -> Any:
    return export_checkpoint(
        data / "checkpoint.pt", DataDirectory(data), output, ExportOptions(**options)
    )


def test_bundle_holds_checked_onnx_with_dynamic_axes(tiny: Path, tmp_path: Path) -> None:
    bundle, report = export(tiny, tmp_path / "bundle", keep_onnx=True)
    assert report.passed
    decoder = onnx.load(bundle.path("decoder.onnx"))
    onnx.checker.check_model(decoder, full_check=True)
    axes = {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in (*decoder.graph.input, *decoder.graph.output)
    }
    assert axes["tokens"] == ["R", "l"] and axes["past_key.0"] == ["R", 2, "L", 16]
    assert axes["cross_key.1"] == ["N", 2, "S", 16] and axes["offset"] == []
    assert axes["logits"][:2] == ["R", "l"]
    manifest = json.loads((bundle.directory / MANIFEST).read_text())
    assert 0 < manifest["parity"]["rows"][0]["own_error"] < manifest["parity"]["limit"]
    assert manifest["source"]["arch"] == "s2t_transformer_s"
    assert all("/" not in name for name in manifest["files"])


def test_onnx_only_writes_no_ir(tiny: Path, tmp_path: Path) -> None:
    bundle, _ = export(tiny, tmp_path / "bundle", onnx_only=True)
    names = set(bundle.manifest.files)
    assert {"encoder.onnx", "decoder.onnx"} <= names and "decoder.xml" not in names


def test_f16_halves_the_weights(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    half, report = export(tiny, tmp_path / "f16", precision="f16")
    bundles = open_bundle(tiny_bundle), half
    before, after = (bundle.manifest.files["encoder.bin"].bytes for bundle in bundles)
    assert after < 0.55 * before
    assert report.limit < max(row.ir_steps or 0 for row in report.rows) <= report.ir_limit


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_sixteen_bit_numbers_are_stored_in_16_bits(
    tiny: Path, tiny_bundle: Path, tmp_path: Path, kind: torch.dtype
) -> None:
    """Exactly: the limit of the gate is that of f32."""
    shutil.copytree(tiny, data := tmp_path / "data")
    state = torch.load(tiny / "checkpoint.pt", weights_only=False)
    for name, weights in state["model"].items():
        if weights.is_floating_point():
            state["model"][name] = weights.to(kind)
    torch.save(state, data / "checkpoint.pt")
    half, report = export(data, tmp_path / "bundle")
    assert half.manifest.precision == "f32" and report.ir_limit == report.limit
    for name in ("encoder.bin", "decoder.bin"):
        # queries that are scaled are no numbers of the checkpoint
        whole = open_bundle(tiny_bundle).manifest.files[name].bytes
        assert half.manifest.files[name].bytes < 0.6 * whole


def test_weights_lie_beside_the_graph(tmp_path: Path) -> None:
    weights = {"w": torch.randn(300, 300).T, "b": torch.randn(300), "k": torch.tensor(3)}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]), onnx.helper.make_node("Add", ["y", "b"], ["z"]),
    ]  # fmt: skip
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 300]) for name in "xz"
    ]
    graph = onnx.helper.make_graph(nodes, "graph", ends[:1], ends[1:])
    path = tmp_path / "model.onnx"
    write_model(path, onnx.helper.make_model(graph), weights)
    assert path.with_name("model.onnx.data").stat().st_size > 4 * 300 * 301
    onnx.checker.check_model(str(path))
    stored = {
        each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer
    }
    for name, weight in weights.items():
        np.testing.assert_array_equal(stored[name], weight.numpy())
    assert stored.keys() == weights.keys()


def test_existing_output_is_refused_then_replaced(
    tiny: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with pytest.raises(OptionError, match="Choose another name, or overwrite it"):
        export(tiny, tmp_path / "bundle")
    export(tiny, tmp_path / "bundle", overwrite=True, keep_onnx=True)
    assert "decoder.onnx" in open_bundle(tmp_path / "bundle").manifest.files  # unlike before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_unknown_architecture_names_the_known_ones(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"s2t_transformer.*'s2ut_transformer'"):
        load(
            tiny / "checkpoint.pt", DataDirectory(tiny), {"arch": "s2ut_transformer"}, ARCHITECTURES
        )


def test_vocabulary_that_does_not_fit(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "s2t_transformer_s", **TINY)
    with open(tmp_path / "dict.txt", "a") as file:
        file.write("extra 1\n")
    with pytest.raises(ModelError, match=r"dict.txt.*expected the model's 60 symbols, got 61"):
        export(tmp_path, tmp_path / "bundle")


def test_feature_size_that_does_not_fit(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "s2t_transformer_s", **TINY)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("80", "40"))
    with pytest.raises(ModelError, match=r"config.yaml.*= 80 as the model has, got 40"):
        export(tmp_path, tmp_path / "bundle")


def test_sentencepiece_model_that_does_not_fit(tmp_path: Path) -> None:
    import sentencepiece

    write_checkpoint(tmp_path, "s2t_transformer_s", **TINY)
    sentences = iter(["ein anderer text als der des modells"] * 20)
    with open(tmp_path / "spm.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences, model_writer=file, model_type="char", vocab_size=16,
            minloglevel=2,
        )  # fmt: skip
    with open(tmp_path / "config.yaml", "a") as file:
        file.write("bpe_tokenizer: {bpe: sentencepiece, sentencepiece_model: spm.model}\n")
    with pytest.raises(ModelError, match=r"spm.model.*0 of 56"):
        export(tmp_path, tmp_path / "bundle")
    (tmp_path / "spm.model").unlink()
    with pytest.raises(ModelError, match="no such file"):
        export(tmp_path, tmp_path / "bundle")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 not a zip", None], ids=["empty", "bad", "none"]
)
def test_bad_checkpoints(tiny: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "checkpoint.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint.pt"):
        load(path, DataDirectory(tiny), {}, ARCHITECTURES)


def test_truncated_checkpoint(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((tiny / "checkpoint.pt").read_bytes()[:50_000])
    with pytest.raises(CheckpointError, match=r"checkpoint.pt"):
        load(path, DataDirectory(tiny), {}, ARCHITECTURES)


def test_full_disk_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ir, "save", no_space)
    with pytest.raises(StorageError, match="No space left"):
        export(tiny, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_export_does_not_touch_the_global_random_state(tmp_path: Path) -> None:
    model, arguments, _ = random_model("s2t_transformer_s", **TINY)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measure(model, arguments, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_script_prints_the_parity_table(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "export_onnx.py")]
    command += ["--path", str(tiny / "checkpoint.pt"), "--data", str(tiny)]
    command += ["--output", str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout and "decoder.xml" in done.stdout
    assert "decoder.onnx" in done.stdout
    assert cli.main(["export", *command[2:]]) == 2
    assert "or overwrite it" in capsys.readouterr().err


def test_encoder_output_lengths_equal_fairseqs(tmp_path: Path) -> None:
    import openvino as ov

    for version in ("s2t_transformer", "convtransformer"):
        model, arguments, _ = random_model(
            "s2t_transformer_s", **(TINY | {"conv_version": version, "conv_out_channels": 8})
        )
        graphs = s2t_transformer.build(model, arguments)
        onnx_export.export_onnx(graphs, tmp_path)
        encoder = ov.Core().compile_model(tmp_path / "encoder.onnx", "CPU")
        for longest in (9, 21, 40, 41, 42, 43, 130):
            lengths = np.arange(1, longest + 1)[::-1].copy()
            features = np.zeros((longest, longest, 80), np.float32)
            found = encoder({"features": features, "lengths": lengths})["encoder_lengths"]
            with torch.no_grad():
                _, expected = model.encoder.subsample(
                    torch.from_numpy(features), torch.from_numpy(lengths)
                )
            assert found.tolist() == expected.tolist(), (version, longest)
