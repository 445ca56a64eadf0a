"""Whisper checkpoints of Hugging Face and OpenAI: what is exported and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from whisper_models import Pair, openai_checkpoint, waveforms

from fairseq_openvino import load_model


def test_the_tied_embedding_is_stored_once(multilingual: Pair) -> None:
    files = multilingual.bundle.manifest.files
    weights = sum(each.numel() for each in multilingual.original.model.decoder.parameters())
    assert files["decoder.bin"].bytes < 1.1 * 4 * weights


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of openai-whisper: `dims`, other names, a tiktoken file; 51,865 tokens."""
    import base64

    import torch

    from fairseq_openvino.compat.transformers import transformers

    directory = tmp_path_factory.mktemp("openai")
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
        max_source_positions=50, max_target_positions=32,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    torch.save(model, directory / "unsafe.pt")
    torch.save(openai_checkpoint(model), directory / "small.pt")
    tokens = [bytes([i]) for i in range(256)]
    tokens += [bytes([i, j]) for i in range(256) for j in range(256)][: 50257 - 256]
    lines = [base64.b64encode(t) + b" " + str(i).encode() for i, t in enumerate(tokens)]
    (directory / "multilingual.tiktoken").write_bytes(b"\n".join(lines))
    return directory


def test_openai_checkpoints(openai: Path, tmp_path: Path) -> None:
    import torch

    from fairseq_openvino.errors import CheckpointError, UnsafeCheckpointError
    from fairseq_openvino.export.whisper import export_whisper

    bundle, report = export_whisper(openai / "small.pt", tmp_path / "bundle")
    rules = bundle.manifest.whisper
    assert report.passed and rules is not None
    assert (rules.start, rules.no_timestamps, rules.no_speech) == (50258, 50363, 50362)
    assert not rules.alignment_heads  # OpenAI's model of this name has more layers
    assert rules.languages["su"] == 50357 and rules.tasks["transcribe"] == 50359
    assert {50258, 50360, 50361, 50362} <= set(rules.suppressed)
    model = load_model(bundle)
    found = model.transcribe_clips([model.clip(waveforms(1, 1.0)[0], 16000)], beam=2, language="de")
    assert found[0].language == "de" and len(found[0].hypotheses[0][1].tokens) > 0
    assert model.family.vocabulary.tokens("ab")[0] > 255  # a merged pair
    with pytest.raises(UnsafeCheckpointError):
        export_whisper(openai / "unsafe.pt", tmp_path / "x")
    torch.save({"model_state_dict": {}}, tmp_path / "nodims.pt")
    with pytest.raises(CheckpointError, match="dims"):
        export_whisper(tmp_path / "nodims.pt", tmp_path / "x", None, openai)
    content = torch.load(openai / "small.pt")
    content["model_state_dict"].popitem()
    torch.save(content, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="missing"):
        export_whisper(tmp_path / "part.pt", tmp_path / "x", None, openai)
    assert not (tmp_path / "x").exists()


def test_names_of_openai_s_files_tell_the_alignment_heads() -> None:
    import whisper

    from fairseq_openvino.compat.transformers import transformers
    from fairseq_openvino.export.whisper import openai

    assert openai.ALIGNMENT_HEADS == whisper._ALIGNMENT_HEADS
    config = transformers.WhisperConfig(decoder_layers=6, decoder_attention_heads=8)
    expected = [(3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)]
    assert openai._alignment_heads("base", config) == expected
    assert openai._alignment_heads("small", config) == openai._alignment_heads("mine", config) == []


def test_sources_that_cannot_be_exported(multilingual: Pair, tmp_path: Path) -> None:
    import json
    import shutil

    from fairseq_openvino.errors import CheckpointError, ModelError
    from fairseq_openvino.export.whisper import export_whisper

    def copy(name: str) -> Path:
        return Path(shutil.copytree(multilingual.directory, tmp_path / name))

    cases: list[tuple[Path | str, type[Exception], str]] = [
        (tmp_path / "absent", CheckpointError, "no such file"),
    ]
    for names, kind, reason in (
        (("tokenizer.json", "vocab.json"), ModelError, "--tokenizer"),
        (("model.safetensors",), CheckpointError, "model.safetensors"),
        (("config.json",), CheckpointError, "config.json"),
    ):
        directory = copy(f"without-{names[0]}")
        for name in names:
            (directory / name).unlink()
        cases.append((directory, kind, reason))
    truncated = copy("truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    cases.append((truncated, CheckpointError, "complete weights"))
    other = copy("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    cases.append((other, ModelError, "bert"))
    rules = copy("rules")
    (rules / "generation_config.json").write_text("{}")
    content = (rules / "tokenizer.json").read_text()
    (rules / "tokenizer.json").write_text(content.replace("<|notimestamps|>", "<|other|>"))
    cases.append((rules, CheckpointError, "no_timestamps_token_id"))
    front = copy("front")
    settings = json.loads((front / "preprocessor_config.json").read_text())
    (front / "preprocessor_config.json").write_text(json.dumps(settings | {"hop_length": 200}))
    cases.append((front, ModelError, "hop_length"))
    for source, kind, reason in cases:
        with pytest.raises(kind, match=reason):
            export_whisper(source, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()
