"""The gate of export: the float64 original, what is accepted, and that wrong graphs are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT, TINY, child_environment, random_model
from whisper_models import Layout, write_whisper

from fairseq_openvino.errors import ParityError
from fairseq_openvino.export import ir, parity
from fairseq_openvino.export import onnx as onnx_export
from fairseq_openvino.export.fairseq import s2t_transformer
from fairseq_openvino.export.fairseq.architecture import Reference
from fairseq_openvino.export.float64 import Float64
from fairseq_openvino.export.forced import BEAM, forced
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.whisper import graphs as whisper_export
from fairseq_openvino.export.whisper.source import load_source

MATRICES = 20


@dataclass(frozen=True)
class Original:
    """A small model with its graphs and what it computes."""

    model: Any
    build: Callable[[], Graphs]
    reference: parity.Reference
    graphs: Graphs
    cases: parity.Cases

    @cached_property
    def expected(self) -> parity.Expected:
        return parity.expect(self.reference, self.graphs, self.cases)


def s2t(scale: float = 1.0, **options: Any) -> Original:
    model, arguments, _ = random_model("s2t_transformer_s", **(TINY | options))
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(scale)

    def build() -> Graphs:
        return s2t_transformer.build(model, arguments)

    return Original(model, build, Reference(model), build(), parity.CASES)


def whisper(directory: Path, scale: float = 1.0) -> Original:
    model = load_source(write_whisper(directory, Layout(positions=130))).model
    with torch.no_grad():
        model.proj_out.weight.mul_(scale)

    def build() -> Graphs:
        return whisper_export.build(model)

    cases = whisper_export.parity_cases(build())
    return Original(model, build, whisper_export.Reference(model), build(), cases)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Original]:
    """A small model of a family with logits at a scale, made when it is first asked for."""

    @cache
    def make(family: str, scale: float = 1.0) -> Original:
        if family == "s2t":
            return s2t(scale)
        return whisper(tmp_path_factory.mktemp(family), scale)

    return make


@pytest.fixture(params=["s2t", "whisper"])
def original(request: pytest.FixtureRequest, originals: Callable[..., Original]) -> Original:
    return originals(request.param)


def measured(original: Original, graphs: Graphs, directory: Path) -> parity.Report:
    onnx_export.export_onnx(graphs, directory)
    return parity.check(original.expected, graphs, directory, "f32", ir=False)


def test_float64_is_float64_everywhere(original: Original, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a float64 copy computes it, once Fairseq's attention no longer rounds to float32."""
    import copy

    from fairseq import utils

    batch = forced(np.random.default_rng(1), original.graphs, (190, 96), 8)
    with torch.no_grad():
        before = original.reference.logits(batch)
        with Float64():
            wide = original.reference.logits(batch)
        after = original.reference.logits(batch)
        monkeypatch.setattr(utils, "softmax", lambda x, dim, onnx_trace: torch.softmax(x, dim))
        double = type(original.reference)(copy.deepcopy(original.model).double())
        expected = double.logits(replace(batch, features=batch.features.astype(np.float64)))
    assert wide.dtype == expected.dtype == torch.float64
    assert (wide - expected).abs().max() < 1e-12 * expected.abs().max()
    assert before.dtype == torch.float32 and torch.equal(before, after)
    assert {weights.dtype for weights in original.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("activation", ["gelu", "gelu_accurate", "gelu_fast", "tanh", "linear"])
def test_float64_reaches_every_activation(activation: str) -> None:
    original = s2t(activation_fn=activation)
    batch = forced(np.random.default_rng(1), original.graphs, (96,), 4)
    layer = original.model.encoder.transformer_layers[0]
    with torch.no_grad(), Float64():
        inputs = torch.linspace(-3, 3, 50, dtype=torch.float64)
        found = layer.activation_fn(inputs)
        assert original.reference.logits(batch).dtype == torch.float64
    assert not torch.equal(found, found.float().double()) or activation == "linear"


def test_forced_rows_follow_their_paths() -> None:
    """Replaying tokens and reordering gives the paths at each step and the sequences at the end."""
    batch = forced(np.random.default_rng(3), s2t().graphs, (60, 40, 20), 20)
    history = np.zeros((batch.rows, 0), np.int64)
    histories = []
    for step in range(batch.steps):
        history = np.concatenate([history[batch.beams[step]], batch.tokens(step)], 1)
        histories.append(history)
        np.testing.assert_array_equal(history, batch.paths[batch.nodes[step], : step + 1])
        assert (batch.utterances[batch.nodes[step]] == np.arange(batch.rows) // BEAM).all()
    np.testing.assert_array_equal(history, batch.sequences())
    for step, rows in enumerate(batch.ancestors()):
        np.testing.assert_array_equal(histories[step][rows], batch.sequences()[:, : step + 1])
    assert len(batch.paths) > batch.rows  # some rows were given up


def test_the_original_runs_once_a_case_and_type(original: Original) -> None:
    calls = []

    class Counted:
        name = "x"

        def logits(self, batch: Any) -> torch.Tensor:
            calls.append(torch.get_num_threads())
            return original.reference.logits(batch)

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        parity.expect(Counted(), original.graphs, original.cases)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert calls == [1] * 2 * len(original.cases)  # one thread, as the model is small


def test_limit_follows_the_originals_own_error() -> None:
    def limit(own_errors: tuple[float, ...], largest: float, precision: str = "f32") -> float:
        batch = forced(np.random.default_rng(0), s2t().graphs, (9,), 1)
        logits = np.array([largest / 3, -largest])
        cases = tuple(parity.Case(batch, logits, error) for error in own_errors)
        return parity.Expected("x", cases).limit(precision)

    assert limit((1e-5, 2e-5, 1e-6), 10.0) == pytest.approx(8e-5)
    assert limit((0.0,), 10.0) == pytest.approx(1.9e-5, rel=0.01)
    assert limit((0.0,), 0.01) == pytest.approx(1.9e-8, rel=0.01)
    assert limit((0.1,), 10.0) == pytest.approx(1e-2)
    assert limit((1e-5,), 10.0, "f16") == pytest.approx(5e-2)


def test_nan_never_passes() -> None:
    good = parity.Row((9,), 1, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert parity.Report("x", 1.0, 1.0, 1.0, (good,)).passed
    for field in ("onnx_steps", "onnx_sequence", "ir_steps", "ir_sequence"):
        row = replace(good, **{field: float("nan")})
        assert not parity.Report("x", 1.0, 1.0, 1.0, (good, row)).passed


def test_nan_in_the_original_is_named() -> None:
    original = s2t()
    with torch.no_grad():
        original.model.encoder.transformer_layers[1].fc1.weight[0, 0] = float("nan")
    with pytest.raises(ParityError, match=r"finite logits of Fairseq itself.*take another check"):
        assert original.expected


def swap_heads(graphs: Graphs) -> None:
    """Exchange the queries of two heads of one self-attention."""
    width = graphs.state[0].dims[3]  # dh
    weights = graphs.decoder.layers[1].project.weight
    weights[: 2 * width] = weights[: 2 * width].roll(width, 0)


def transpose_heads(graphs: Graphs) -> None:
    """(H, dh) read as (dh, H) behind one cross-attention."""
    linear, heads = graphs.decoder.layers[0].cross_out, graphs.state[0].dims[1]
    order = torch.arange(linear.in_features).view(heads, -1).T.flatten()
    changed = torch.nn.Linear(linear.in_features, linear.out_features)
    changed.weight.copy_(linear.weight[:, order])
    changed.bias.copy_(linear.bias)
    graphs.decoder.layers[0].cross_out = changed


def shift_encoder_positions(graphs: Graphs) -> None:
    body = getattr(graphs.encoder, "body", graphs.encoder)
    body.positions = body.positions.roll(1, 0)


def shift_decoder_positions(graphs: Graphs) -> None:
    graphs.decoder.positions = graphs.decoder.positions.roll(1, 0)


def forget_padding_in_cross_attention(graphs: Graphs) -> None:
    for layer in graphs.decoder.layers:
        attend = layer._cross_attention
        layer._cross_attention = lambda x, key, value, bias, attend=attend: attend(
            x, key, value, bias * 0
        )


def forget_padding_in_the_encoder(graphs: Graphs) -> None:
    for layer in getattr(graphs.encoder, "body", graphs.encoder).layers:
        forward = layer.forward
        layer.forward = lambda x, bias=None, forward=forward: forward(
            x, None if bias is None else bias * 0
        )


def forget_the_causal_mask(graphs: Graphs) -> None:
    for layer in graphs.decoder.layers:
        forward = layer.forward
        layer.forward = lambda x, causal, past, cross, forward=forward: forward(
            x, causal * 0, past, cross
        )


def spoil_a_weight(graphs: Graphs) -> None:
    graphs.decoder.layers[0].project.weight[3, 3] = float("nan")


@pytest.mark.parametrize(
    "spoil",
    [
        swap_heads, transpose_heads, shift_encoder_positions, shift_decoder_positions,
        forget_padding_in_cross_attention, forget_the_causal_mask, spoil_a_weight,
    ],
)  # fmt: skip
def test_wrong_graphs_are_refused(
    original: Original, spoil: Callable[[Graphs], None], tmp_path: Path
) -> None:
    graphs = original.build()
    with torch.no_grad():
        spoil(graphs)
    with pytest.raises(ParityError, match=r"generate with \w+ itself and report"):
        measured(original, graphs, tmp_path)


def test_an_encoder_that_attends_to_padding_is_refused(
    originals: Callable[..., Original], tmp_path: Path
) -> None:
    """Whisper's encoder attends to every frame."""
    original = originals("s2t")
    graphs = original.build()
    forget_padding_in_the_encoder(graphs)
    with pytest.raises(ParityError):
        measured(original, graphs, tmp_path)


@pytest.mark.parametrize("scale", [1.0, 100.0, 0.01])
@pytest.mark.parametrize("family", ["s2t", "whisper"])
def test_any_matrix_off_by_one_percent_is_refused(
    originals: Callable[..., Original], family: str, scale: float, tmp_path: Path
) -> None:
    """While the right graphs pass, whatever the size of the logits."""
    original = originals(family, scale)
    assert measured(original, original.graphs, tmp_path).passed
    random = np.random.default_rng(0)
    protos = {path: onnx.load(path) for path in sorted(tmp_path.glob("*.onnx"))}
    matrices = [
        (path, i)
        for path, proto in protos.items()
        for i, tensor in enumerate(proto.graph.initializer)
        if len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT
    ]
    chosen = random.choice(len(matrices), MATRICES, replace=False)
    for path, i in (matrices[index] for index in chosen):
        tensor = protos[path].graph.initializer[i]
        content = tensor.raw_data
        tensor.raw_data = (np.frombuffer(content, np.float32) * np.float32(1.01)).tobytes()
        onnx.save(protos[path], path)
        with pytest.raises(ParityError):
            parity.check(original.expected, original.graphs, tmp_path, "f32", ir=False)
        tensor.raw_data = content
        onnx.save(protos[path], path)


def test_a_wrong_ir_beside_right_onnx_is_refused(
    originals: Callable[..., Original], tmp_path: Path
) -> None:
    original = originals("s2t")
    good, bad = tmp_path / "good", tmp_path / "bad"
    for directory, graphs in ((good, original.graphs), (bad, original.build())):
        directory.mkdir()
        with torch.no_grad():
            if directory is bad:
                graphs.decoder.layers[0].project.weight.mul_(1.01)
        onnx_export.export_onnx(graphs, directory)
        ir.write(directory, graphs, "f32")
    assert parity.check(original.expected, original.graphs, good, "f32", ir=True).passed
    for name in ("decoder.xml", "decoder.bin"):
        shutil.copyfile(bad / name, good / name)
    with pytest.raises(ParityError):
        parity.check(original.expected, original.graphs, good, "f32", ir=True)
    assert parity.check(original.expected, original.graphs, good, "f16", ir=False).passed


PEAKS = """
import sys
from pathlib import Path
import torch
from conftest import random_model
from fairseq_openvino import machine
from fairseq_openvino.export import ir, onnx, parity
from fairseq_openvino.export.fairseq import s2t_transformer
from fairseq_openvino.export.fairseq.architecture import Reference

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

def restart():
    machine.trim()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here

small = random_model("s2t_transformer_xs", encoder_layers=1, decoder_layers=1)[0]
small(torch.zeros(1, 20, 80), torch.tensor([20]), torch.tensor([[2]]))  # loads what is lazy
del small
machine.trim()
before = status("VmRSS")
model, arguments, _ = random_model("s2t_transformer_m")
size = 4 * sum(weights.numel() for weights in model.parameters())
graphs = s2t_transformer.build(model, arguments)
restart()
expected = parity.expect(Reference(model), graphs)
onnx.export_onnx(graphs, Path(sys.argv[1]))
print((status("VmHWM") - before) / size)
del model
graphs = graphs.without_modules()
restart()
ir.write(Path(sys.argv[1]), graphs, "f32")
machine.trim()
parity.check(expected, graphs, Path(sys.argv[1]), "f32", ir=True)
print((status("VmHWM") - before) / size)
"""


@pytest.mark.soak
def test_the_gate_needs_little_memory(tmp_path: Path) -> None:
    """In f32 weights, true size: the model, its graphs and the float64 original; then the files."""
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, str(tmp_path)], capture_output=True, text=True,
        env=child_environment(PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    original, files = map(float, done.stdout.split())
    print(f"export: {original:.1f}, then {files:.1f} times the weights")
    assert original < 2.5 and files < 2.5
