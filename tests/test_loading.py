"""Fairseq checkpoints for export: what is needed, what is not, and what each refusal names."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, write_checkpoint
from omegaconf import OmegaConf

from fairseq_openvino import cli
from fairseq_openvino.errors import ArchitectureError, CheckpointError
from fairseq_openvino.export.fairseq import ARCHITECTURES, export_checkpoint
from fairseq_openvino.export.fairseq.checkpoint import load
from fairseq_openvino.export.fairseq.data import DataDirectory

State = dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_checkpoint(directory, "s2t_transformer_s", **TINY)
    return directory


def changed(data: Path, directory: Path, change: Callable[[State], Any]) -> Path:
    """The checkpoint after a change to its content."""
    state = torch.load(data / "checkpoint.pt", weights_only=False)
    change(state)
    torch.save(state, directory / "changed.pt")
    return directory / "changed.pt"


def loaded(data: Path, path: Path, **overrides: Any) -> Any:
    return load(path, DataDirectory(data), overrides, ARCHITECTURES)


def as_cfg(state: State, convert: Callable[[Namespace], Any]) -> None:
    state["cfg"] = {"model": convert(state.pop("args"))}


LOADS: dict[str, Callable[[State], Any]] = {
    "task": lambda s: setattr(s["args"], "task", "my_task"),
    "criterion": lambda s: setattr(s["args"], "criterion", "my_criterion"),
    "optimizer": lambda s: setattr(s["args"], "optimizer", "my_optimizer"),
    "lr-scheduler": lambda s: setattr(s["args"], "lr_scheduler", "my_scheduler"),
    "other-registries": lambda s: vars(s["args"]).update(bpe="my_bpe", tokenizer="x", scoring="y"),
    "odd-values": lambda s: vars(s["args"]).update(lr="[", data="/a b=c", train_subset="all"),
    "no-extra-state": lambda s: s.pop("extra_state"),
    "no-history": lambda s: s.pop("optimizer_history"),
    "no-training-state": lambda s: [s.pop(key) for key in set(s) - {"args", "model"}],
    "dictionary": lambda s: s.update(args=vars(s["args"])),
    "no-positions": lambda s: [
        delattr(s["args"], f"max_{side}_positions") for side in ("source", "target")
    ],
    "cfg-namespace": lambda s: as_cfg(s, lambda args: Namespace(**vars(args), _name=args.arch)),
    "cfg-dictionary": lambda s: as_cfg(s, vars),
    "cfg-omegaconf": lambda s: as_cfg(s, lambda args: OmegaConf.create(vars(args))),
    "cfg-and-args": lambda s: s.update(cfg={"model": None}),
    "cfg-omegaconf-objects": lambda s: s.update(
        args=None,
        cfg=OmegaConf.create(
            {"model": s["args"], "task": Namespace(_name="my_task"), "common": {"seed": "???"}},
            flags={"allow_objects": True},
        ),
    ),
    "cfg-of-namespaces": lambda s: s.update(args=None, cfg=Namespace(model=s["args"])),
    "distributed": lambda s: renamed(s, "module."),
    "compiled": lambda s: renamed(s, "_orig_mod."),
    "compiled-distributed": lambda s: renamed(s, "module._orig_mod."),
    "moving-average": lambda s: s["extra_state"].update(
        ema={name: value + 1 for name, value in s["model"].items()}, best_ema=0.5
    ),
}


@pytest.mark.parametrize("change", LOADS.values(), ids=LOADS)
def test_only_arguments_and_weights_count(
    data: Path, tmp_path: Path, change: Callable[[State], Any]
) -> None:
    found = loaded(data, changed(data, tmp_path, change))
    expected = torch.load(data / "checkpoint.pt", weights_only=False)["model"]
    weights = found.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert found.architecture == "s2t_transformer" and not found.model.training
    assert found.arguments.max_source_positions == 6000


@pytest.mark.parametrize(
    ("dtype", "zipped", "protocol"),
    [
        (torch.float16, True, 2), (torch.bfloat16, True, 4), (torch.bfloat16, False, 2),
        (torch.float16, False, 5),
    ],
    ids=str,
)  # fmt: skip
def test_files_of_every_layout_and_precision(
    data: Path, tmp_path: Path, dtype: torch.dtype, zipped: bool, protocol: int
) -> None:
    state = torch.load(data / "checkpoint.pt", weights_only=False)
    state["model"] = {name: value.to(dtype) for name, value in state["model"].items()}
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(state, tmp_path / "other.pt", **options)
    weights = loaded(data, tmp_path / "other.pt").model.state_dict()
    assert all(torch.equal(weights[name], value.float()) for name, value in state["model"].items())


def test_weights_alone_need_the_name_of_the_architecture(data: Path, tmp_path: Path) -> None:
    weights = torch.load(data / "checkpoint.pt", weights_only=False)["model"]
    expected = loaded(data, data / "checkpoint.pt")
    for name, content in (("model.pt", {"model": weights}), ("bare.pt", weights)):
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match=r"--model-overrides .*'arch': 's2t_tr"):
            loaded(data, tmp_path / name)
        found = loaded(data, tmp_path / name, arch="s2t_transformer_s", **TINY)
        assert str(found.model) == str(expected.model)
        assert found.source["arch"] == "s2t_transformer_s"


def test_the_model_is_the_one_fairseq_loads(data: Path) -> None:
    from fairseq import checkpoint_utils

    path = str(data / "checkpoint.pt")
    overrides = {"data": str(data), "decoder_attention_heads": 4}
    (expected,), config, _ = checkpoint_utils.load_model_ensemble_and_task([path], overrides)
    found = loaded(data, data / "checkpoint.pt", decoder_attention_heads=4)
    assert str(found.model) == str(expected)
    shared = vars(config.model).keys() - {"_name"}
    assert {key: getattr(found.arguments, key) for key in shared} | {"data": str(data)} == {
        key: getattr(config.model, key) for key in shared
    }
    assert found.model.decoder.layers[0].self_attn.num_heads == 4


def renamed(state: State, prefix: str) -> None:
    state["model"] = {prefix + name: value for name, value in state["model"].items()}


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "only-model": (lambda s: [s.pop(key) for key in set(s) - {"model"}], "'arch'.*got none"),
    "no-arch": (lambda s: delattr(s["args"], "arch"), "'arch'.*got arguments without it"),
    "cfg-without-model": (
        lambda s: s.update(args=None, cfg={"task": None}),
        "'cfg.model'.*got none",
    ),
    "args-list": (lambda s: s.update(args=[1]), "got list"),
    "weights-list": (lambda s: s.update(model=[1]), "weights by name.*got list"),
    "extra": (lambda s: s["model"].update(extra=torch.ones(1)), "got with extra"),
    "missing": (
        lambda s: s["model"].pop("encoder.layer_norm.weight"),
        "without encoder.layer_norm.w",
    ),
    "prefix": (lambda s: renamed(s, "model."), r"without decoder\..* more; with model\..* more"),
    "no-weights": (lambda s: s["model"].clear(), r"got without decoder\..* more"),
    "fewer-layers": (lambda s: setattr(s["args"], "encoder_layers", 1), r"with encoder.*layers\.1"),
    "no-layers": (lambda s: delattr(s["args"], "encoder_layers"), "without encoder.*and 155 more"),
    "width": (
        lambda s: setattr(s["args"], "encoder_ffn_embed_dim", 48),
        r"other sizes of encoder.*fc1.bias \(64,\) for \(48,\)",
    ),
    "heads": (
        lambda s: setattr(s["args"], "encoder_attention_heads", 5),
        "that build s2t_tr.*Error",
    ),
    "list": (
        lambda s: s["model"].update({"encoder.layer_norm.bias": [1]}),
        "sizes of encoder.layer",
    ),
}


@pytest.mark.parametrize(("change", "named"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_named(
    data: Path, tmp_path: Path, change: Callable[[State], Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"changed\.pt.*{named}") as error:
        loaded(data, changed(data, tmp_path, change))
    assert error.value.exit_code == 3


def test_overrides_that_do_not_fit_end_with_code_3(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["export", "--path", str(data / "checkpoint.pt"), "--data", str(data)]
    words += ["--output", str(tmp_path / "b"), "--model-overrides", "{'decoder_layers': 3}"]
    assert cli.main(words) == 3
    assert "without decoder.layers.2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arch", ["my_user_arch", "convtransformer_simul_trans", "s2t_conformer", ""]
)
@pytest.mark.parametrize("style", ["args", "cfg"])
def test_the_architecture_is_refused_before_anything_else(
    data: Path, tmp_path: Path, arch: str, style: str
) -> None:
    def change(state: State) -> None:
        vars(state["args"]).update(arch=arch, task="my_task", criterion="my_criterion")
        state["model"].clear()
        if style == "cfg":
            as_cfg(state, lambda args: vars(args) | {"_name": args.arch})

    path = changed(data, tmp_path, change)
    with pytest.raises(ArchitectureError, match=f"s2t_transformer.*got '{arch}'"):
        load(path, DataDirectory(tmp_path / "absent"), {}, ARCHITECTURES)


def test_few_positions_cut_the_parity_cases(data: Path, tmp_path: Path) -> None:
    overrides = {"max_target_positions": 5, "max_source_positions": 40}
    bundle, report = export_checkpoint(
        data / "checkpoint.pt", DataDirectory(data), tmp_path / "bundle", overrides=overrides
    )
    assert report.passed and {row.steps for row in report.rows} == {4, 5}
    assert max(max(row.frames) for row in report.rows) == 40
    assert bundle.manifest.limits.max_target_tokens == 5
