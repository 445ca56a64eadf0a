"""The shipped model of examples/covost: what is in it."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import sentencepiece
import torch
import yaml

from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.features import fbank

MINI = Path(__file__).parents[1] / "examples" / "covost" / "mini"


def _safe_load(path: Path) -> dict[str, object]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


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
