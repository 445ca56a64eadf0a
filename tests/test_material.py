"""Random checkpoints: the official layout of tokens, and weights that never stop."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import load_file

from fairseq_openvino.measure.material import whisper

SMALLEST = whisper.true_size(width=32, layers=1, heads=2)


def test_tokens_have_the_official_layout() -> None:
    layout = whisper.SIZES["base"]
    ids, text = layout.ids, layout.text
    assert len(text) == layout.text_tokens == 50257
    assert len(text) + len(ids) == 51865
    assert (ids["endoftext"], ids["en"], ids["su"]) == (50257, 50259, 50357)
    assert (ids["transcribe"], ids["notimestamps"]) == (50359, 50363)
    assert (ids["0.00"], ids["30.00"]) == (50364, 51864)
    assert (text["Ġ"], text[""]) == (220, 50256)


def test_the_tokenizer_files_agree(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    whisper.write_whisper(tmp_path, SMALLEST)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 51865
    assert tokenizer.decode(tokenizer.encode("abc def").ids) == "abc def"
    assert tokenizer.token_to_id("<|transcribe|>") == 50359


def test_only_letters_are_in_reach(tmp_path: Path) -> None:
    whisper.write_whisper(tmp_path, SMALLEST)
    tensors = load_file(tmp_path / "model.safetensors")
    pushed = tensors["model.decoder.embed_tokens.weight"][:, 0] < 0
    reachable = np.flatnonzero(~pushed)
    spelled = {number: token for token, number in SMALLEST.text.items()}
    assert all(spelled[int(token)].isalpha() for token in reachable)
    assert len(reachable) == 50256 - 256


def test_clips_are_as_long_as_named() -> None:
    clips = whisper.make_clips(2, 8)
    assert clips.shape == (2, 8 * 16000) and clips.dtype == np.float32
    assert np.abs(clips).max() <= 1 and not np.array_equal(*clips)
    assert np.array_equal(clips, whisper.make_clips(2, 8))


def test_whisper_cpp_gets_blocks_of_32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts" / "peers"), *sys.path])
    import ggml

    weights = np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 64)
    packed = ggml._quantized(weights)
    assert len(packed) == 2 * 34
    scale, *values = struct.unpack("<e32b", packed[:34])
    assert scale * np.array(values) == pytest.approx(weights[0, :32], abs=0.02)
    assert values[0] == -127
