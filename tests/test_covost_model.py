"""The shipped model of examples/covost: how it was stripped, and what is in it."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
import yaml

from fairseq_openvino.errors import CheckpointError
from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.features import fbank

RECIPE = Path(__file__).parents[1] / "examples" / "covost"
MINI = RECIPE / "mini"
sys.path.insert(0, str(RECIPE))

import strip_checkpoint  # noqa: E402


def _training_checkpoint(value: float) -> dict[str, object]:
    """What fairseq-train writes, in miniature."""
    model = argparse.Namespace(
        arch="s2t_transformer_xs",
        ctc_weight=0.5,
        data="/home/me/corpus/en",
        load_pretrained_encoder_from="/home/me/asr.pt",
    )
    return {
        "cfg": {
            "checkpoint": {"save_dir": "/home/me/run/", "restore_file": "checkpoint_last.pt"},
            "common": {"seed": 1, "user_dir": None},
            "model": model,
        },
        "model": {
            "decoder.bias": torch.full((3,), value),
            "decoder.version": torch.tensor(int(value)),
            "encoder.ctc_proj.bias": torch.zeros(2),
        },
        "optimizer_history": [
            {
                "criterion_name": "C",
                "optimizer_name": "A",
                "num_updates": 7,
                "lr_scheduler_state": 1,
            }
        ],
        "last_optimizer_state": {"state": torch.zeros(9)},
    }


def _safe_load(path: Path) -> dict[str, object]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def test_stripped_checkpoint_is_averaged_safe_and_without_paths(tmp_path: Path) -> None:
    files = [tmp_path / f"checkpoint{index}.pt" for index in (1, 2)]
    for value, file in zip((1.0, 4.0), files, strict=True):
        torch.save(_training_checkpoint(value), file)
    output = tmp_path / "small.pt"
    assert strip_checkpoint.main([*map(str, files), "--output", str(output)]) == 0
    state = _safe_load(output)
    assert state["model"]["decoder.bias"].tolist() == [2.5, 2.5, 2.5]
    assert state["model"]["decoder.version"].item() == 4
    assert state["model"]["encoder.ctc_proj.bias"].shape == (2,)
    assert state["last_optimizer_state"] is None
    assert state["cfg"]["checkpoint"] == {"save_dir": "run", "restore_file": "checkpoint_last.pt"}
    assert state["cfg"]["model"].data == "en"
    assert state["cfg"]["model"].load_pretrained_encoder_from is None
    assert b"/home" not in output.read_bytes()
    assert strip_checkpoint.main([str(files[0]), "--drop-ctc", "--output", str(output)]) == 0
    state = _safe_load(output)
    assert set(state["model"]) == {"decoder.bias", "decoder.version"}
    assert state["cfg"]["model"].ctc_weight == 0


def test_unfit_checkpoints_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = _training_checkpoint(1.0)
    other["model"]["decoder.bias"] = torch.zeros(4)
    with pytest.raises(CheckpointError, match=r"checkpoint 2 of 2.*decoder\.bias"):
        strip_checkpoint.strip([_training_checkpoint(1.0), other])
    unknown = _training_checkpoint(1.0)
    unknown["cfg"]["common"]["seed"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="key 'seed'.*got Tensor"):
        strip_checkpoint.strip([unknown])
    missing = tmp_path / "missing.pt"
    assert strip_checkpoint.main([str(missing), "--output", str(tmp_path / "out.pt")]) == 3
    assert "expected a Fairseq checkpoint" in capsys.readouterr().err


def test_shipped_model_is_small_safe_and_complete() -> None:
    state = _safe_load(MINI / "checkpoint.pt")
    assert (MINI / "checkpoint.pt").stat().st_size <= 8 * 2**20
    assert state["cfg"]["model"].arch == "s2t_transformer_xs"
    config = yaml.safe_load((MINI / "config_st_en_de.yaml").read_text("utf-8"))
    vocabulary = (MINI / config["vocab_filename"]).read_text("utf-8").splitlines()
    assert state["model"]["decoder.embed_tokens.weight"].shape[0] == len(vocabulary) + 4
    assert (config["audio_root"], config["sample_rate"]) == (".", 16_000)
    model = sentencepiece.SentencePieceProcessor(
        str(MINI / config["bpe_tokenizer"]["sentencepiece_model"])
    )
    assert [f"{model.id_to_piece(4)} 1", model.get_piece_size()] == [
        vocabulary[0], len(vocabulary) + 4
    ]  # fmt: skip
    for path in MINI.iterdir():
        content = path.read_bytes() if path.is_file() else b""
        assert not any(text in content for text in (b"/work/", b"/tmp/", b"/home/", b"/root/")), (
            path
        )


def test_shipped_clips_have_the_frames_the_manifest_says() -> None:
    with open(MINI / "test_st_en_de.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE))
    clips = sorted((MINI / "clips").iterdir())
    assert sorted(row["audio"] for row in rows) == [f"clips/{clip.name}" for clip in clips]
    assert len(rows) == 100
    assert sum(clip.stat().st_size for clip in clips) <= 4 * 2**20
    lengths = [int(row["n_frames"]) for row in rows]
    assert min(lengths) < 100 and max(lengths) > 500
    for row in rows[:10]:
        assert int(row["n_frames"]) == len(fbank(*read_audio(MINI / row["audio"])))
