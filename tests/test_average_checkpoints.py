"""`fairseq-openvino average-checkpoints` against the arithmetic of Fairseq's script."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MINI, mini_data

from fairseq_openvino import cli
from fairseq_openvino.commands import average_checkpoints
from fairseq_openvino.errors import FairseqOpenVINOError


def training_checkpoint(value: float, **weights: torch.Tensor) -> dict[str, Any]:
    """What fairseq-train writes, in miniature."""
    model = argparse.Namespace(
        arch="s2t_transformer_xs",
        ctc_weight=0.5,
        data="/home/me/corpus/en",
        load_pretrained_encoder_from="/home/me/asr.pt",
    )
    history = {"criterion_name": "C", "optimizer_name": "A", "num_updates": 7}
    return {
        "cfg": {
            "checkpoint": {"save_dir": "/home/me/run/", "restore_file": "checkpoint_last.pt"},
            "common": {"seed": 1, "user_dir": None, "log": ["a", 2.5]},
            "model": model,
        },
        "args": None,
        "model": {
            "decoder.bias": torch.full((3,), float(value)),
            "decoder.version": torch.tensor(int(value)),
            "encoder.ctc_proj.bias": torch.zeros(2),
            **weights,
        },
        "optimizer_history": [history | {"lr_scheduler_state": {"best": 1.0}}],
        "extra_state": {"train_iterator": {"epoch": 2}},
        "last_optimizer_state": {"state": torch.zeros(9)},
    }


def average(*words: object) -> int:
    parser = argparse.ArgumentParser()
    average_checkpoints.add_arguments(parser)
    return average_checkpoints.run(parser.parse_args([*map(str, words)]), [])


def safe_load(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return dict(torch.load(path, weights_only=True))


def by_the_script(models: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Sum after sum, float16 as float32, then one division."""
    total: dict[str, torch.Tensor] = {}
    for model in models:
        for name, weights in model.items():
            wide = weights.float() if isinstance(weights, torch.HalfTensor) else weights
            total[name] = total[name] + wide if name in total else wide
    count = len(models)
    return {
        name: each / count if each.is_floating_point() else each // count
        for name, each in total.items()
    }


def test_the_mean_is_that_of_fairseqs_script_bit_for_bit(tmp_path: Path) -> None:
    random, states, files = torch.Generator().manual_seed(1), [], []
    for index in range(3):
        weights = torch.randn(50, 7, generator=random)
        state = training_checkpoint(index, wide=weights, half=weights.half())
        files.append(tmp_path / f"any{index}.pt")
        torch.save(state, files[-1])
        states.append(state["model"])
    output = tmp_path / "mean.pt"
    words = ["--inputs", *files, "--output", output]
    assert cli.main(["average-checkpoints", *map(str, words)]) == 0
    found, expected = safe_load(output), by_the_script(states)
    assert list(found["model"]) == list(expected)
    for name, weights in found["model"].items():
        assert weights.dtype == expected[name].dtype
        assert torch.equal(weights, expected[name]), name
    assert found["last_optimizer_state"] is None and found["extra_state"] == {}
    assert found["optimizer_history"][0]["num_updates"] == 7
    assert found["cfg"]["model"].data == "/home/me/corpus/en"
    assert found["cfg"]["common"] == {"seed": 1, "user_dir": None, "log": ["a", 2.5]}


@pytest.mark.parametrize(
    ("flags", "mean"),
    [
        ("--num-epoch-checkpoints 3", (12 + 11 + 9) / 3),
        ("--num-epoch-checkpoints 2 --checkpoint-upper-bound 10", (9 + 2) / 2),
        ("--num-update-checkpoints 2", (2000 + 300) / 2),
        ("--num-update-checkpoints 1 --checkpoint-upper-bound 1999", 300),
    ],
)
def test_the_last_of_a_directory(tmp_path: Path, flags: str, mean: float) -> None:
    for epoch in (2, 9, 11, 12):
        torch.save(training_checkpoint(epoch), tmp_path / f"checkpoint{epoch}.pt")
    for update in (300, 2000):
        torch.save(training_checkpoint(update), tmp_path / f"checkpoint_3_{update}.pt")
    torch.save(training_checkpoint(1e6), tmp_path / "checkpoint_last.pt")
    output = tmp_path / "mean.pt"
    assert average("--inputs", tmp_path, "--output", output, *flags.split()) == 0
    assert safe_load(output)["model"]["decoder.bias"][0].item() == pytest.approx(mean)


def test_without_ctc_head_and_paths(tmp_path: Path) -> None:
    torch.save(training_checkpoint(4.0), file := tmp_path / "a.pt")
    output = tmp_path / "small.pt"
    assert average("--inputs", file, "--output", output, "--drop-ctc", "--strip-paths") == 0
    state = safe_load(output)
    assert set(state["model"]) == {"decoder.bias", "decoder.version"}
    arguments = state["cfg"]["model"]
    assert (arguments.ctc_weight, arguments.data) == (0.0, "en")
    assert arguments.load_pretrained_encoder_from is None
    assert state["cfg"]["checkpoint"] == {"save_dir": "run", "restore_file": "checkpoint_last.pt"}
    assert b"/home" not in output.read_bytes()


@pytest.mark.soak
def test_fairseq_generates_with_a_mean(tmp_path: Path) -> None:
    from conftest import assert_identical, generate

    clip, shipped = sorted((MINI / "clips").iterdir())[0], MINI / "checkpoint.pt"
    mean = tmp_path / "mean.pt"
    assert average("--inputs", shipped, shipped, "--output", mean, "--strip-paths") == 0
    data = tmp_path / "data"
    data.mkdir()
    mini_data(data, [clip])
    assert_identical(generate(data), generate(data, path=str(mean)))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("a.pt b.pt", 3, "b.pt': expected the parameters of "),
        ("a.pt missing.pt", 3, "no such file"),
        ("a.pt code.pt", 4, "posix.system"),
        (". --num-epoch-checkpoints 2", 3, "expected at least 2 files named checkpoint"),
        (". --num-epoch-checkpoints 0", 2, "in num_epoch_checkpoints: expected at least 1"),
        ("a.pt b.pt --num-epoch-checkpoints 1", 2, "in --inputs: expected one directory"),
        (". --num-epoch-checkpoints 1 --num-update-checkpoints 1", 2, "got both"),
        ("a.pt --checkpoint-upper-bound 5", 2, "in checkpoint_upper_bound"),
        ("setting.pt a.pt", 3, "the setting 'seed': expected a plain value, got Tensor"),
    ],
)
def test_unfit_checkpoints_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    code: int,
    message: str,
) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    monkeypatch.chdir(tmp_path)
    torch.save(training_checkpoint(1.0), "a.pt")
    torch.save(training_checkpoint(1.0, more=torch.zeros(1)), "b.pt")
    torch.save(training_checkpoint(1.0) | {"x": Code()}, "code.pt")
    unknown = training_checkpoint(1.0)
    unknown["cfg"]["common"]["seed"] = torch.zeros(1)
    torch.save(unknown, "setting.pt")
    with pytest.raises(FairseqOpenVINOError) as raised:
        average("--inputs", *words.split(), "--output", "out.pt")
    assert raised.value.exit_code == code and message in str(raised.value)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]
