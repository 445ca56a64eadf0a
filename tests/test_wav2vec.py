"""Fine-tuned wav2vec 2.0: CTC and sequence to sequence, in the data layout of `audio_finetuning`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import Shared
from test_xm_transformer import WAV2VEC

from fairseq_openvino import cli, load_model
from fairseq_openvino.errors import (
    ArchitectureError,
    CheckpointError,
    ModelError,
    UnsafeCheckpointError,
)
from fairseq_openvino.export.fairseq import ARCHITECTURES, export_checkpoint
from fairseq_openvino.export.fairseq.checkpoint import load
from fairseq_openvino.export.fairseq.task import data_directory
from fairseq_openvino.export.options import ExportOptions

BLANK, EOS, RATE_HZ = 0, 2, 16_000
LETTERS = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"


def checkpoint(directory: Path, name: str = "wav2vec_ctc", **arguments: Any) -> Path:
    """A random checkpoint as fairseq-hydra-train writes it, with its dictionary and clips."""
    from fairseq.models import MODEL_DATACLASS_REGISTRY, build_model
    from fairseq.tasks.audio_finetuning import AudioFinetuningConfig, AudioFinetuningTask
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    (directory / "dict.ltr.txt").write_text("".join(f"{letter} 1\n" for letter in LETTERS))
    wav2vec = WAV2VEC | arguments.pop("wav2vec", {})
    normalize = arguments.get("normalize", True)
    stored = {"_name": name, "w2v_args": wav2vec, "normalize": normalize, **arguments}
    complete = ARCHITECTURES[name].complete(Namespace(**stored))
    given = OmegaConf.to_container(complete, enum_to_str=True)
    task = AudioFinetuningTask(AudioFinetuningConfig(data=str(directory), labels="ltr"))
    model = build_model(OmegaConf.create(given), task, from_checkpoint=True)
    for key, weight in model.state_dict().items():
        if weight.dim() == 2 and ("embed" not in key or "embed_out" in key):
            weight.mul_(4)
    settled = OmegaConf.structured(MODEL_DATACLASS_REGISTRY[name]())
    OmegaConf.set_struct(settled, False)
    values = OmegaConf.to_container(OmegaConf.merge(settled, given), enum_to_str=True)
    values["w2v_path"] = "/gone/wav2vec_small.pt"
    values |= {"ddp_backend": "legacy_ddp"}
    groups = {"model": values, "task": {"_name": "audio_finetuning", "labels": "ltr"}}
    torch.save({"args": None, "cfg": groups, "model": model.state_dict()}, directory / "model.pt")
    return directory / "model.pt"


def write_audio(directory: Path, clips: int = 9) -> None:
    """The manifest `test.tsv` with its labels `test.ltr`, and the clips in it."""
    random = np.random.default_rng(0)
    rows, labels = [str(directory)], []
    for i in range(clips):
        samples = int(random.uniform(0.1, 2) * RATE_HZ)
        tone = np.sin(np.arange(samples) * random.uniform(0.01, 1))
        wave = 0.1 * tone + 0.02 * random.standard_normal(samples)
        soundfile.write(directory / f"{i}.wav", wave, RATE_HZ)
        rows.append(f"{i}.wav\t{samples}")
        labels.append("T E N | M E N |")
    (directory / "test.tsv").write_text("\n".join(rows) + "\n")
    (directory / "test.ltr").write_text("\n".join(labels) + "\n")


def model_and_clips(path: Path) -> tuple[Any, Any]:
    """Fairseq's own, of the subset `test`."""
    from fairseq.data import FileAudioDataset

    loaded = load(path, data_directory(path.parent, "config.yaml"), {}, ARCHITECTURES)
    manifest, normalize = path.parent / "test.tsv", loaded.arguments.normalize
    return loaded.model, FileAudioDataset(manifest, RATE_HZ, pad=True, normalize=normalize)


def eager(path: Path) -> tuple[list[list[int]], Any]:
    """Greedy tokens as Fairseq validates (`criterions/ctc.py`), each clip alone; and the clips."""
    model, clips = model_and_clips(path)
    found = []
    for i in range(len(clips)):
        with torch.no_grad():
            output = model(**clips.collater([clips[i]])["net_input"])
            log_probs = model.get_normalized_probs(output, log_probs=True)
        tokens = log_probs[:, 0].argmax(dim=-1).unique_consecutive()
        found.append(tokens[tokens != BLANK].tolist())
    return found, clips


@pytest.fixture(scope="session")
def letters(shared: Shared) -> Path:
    """A data directory with a tiny `wav2vec_ctc` and clips."""

    def make(directory: Path) -> None:
        checkpoint(directory, blank_weight=1.0)
        write_audio(directory)

    return shared("wav2vec-ctc", make)


@pytest.fixture(scope="session")
def letters_bundle(letters: Path, shared: Shared) -> Path:
    """Its bundle."""

    def make(directory: Path) -> None:
        export(letters / "model.pt", directory / "bundle")

    return shared("wav2vec-ctc-bundle", make) / "bundle"


def export(path: Path, output: Path) -> Any:
    return export_checkpoint(path, data_directory(path.parent, "config.yaml"), output)


def ended(tokens: list[int]) -> list[int]:
    """As a hypothesis has them."""
    return tokens if tokens[-1:] == [EOS] else [*tokens, EOS]


def assert_greedy(path: Path, bundle: Path) -> None:
    """The bundle's tokens, alone and in batches, are Fairseq's."""
    expected, clips = eager(path)
    recognizer = load_model(bundle)
    files = [str(path.parent / f"{i}.wav") for i in range(len(clips))]
    features = clips[0]["source"].numpy()
    assert np.abs(recognizer.read(files[0]).features[:, 0] - features).max() < 1e-5
    for size in (1, 3, 8, 32):
        news = recognizer.follow(files, batch_size=size, word_timestamps=True)
        found = [each.result for each in news if each.result is not None]
        tokens = [each.hypotheses[0][1].tokens.tolist() for each in found]
        assert tokens == [*map(ended, expected)]
        for each, tokens in zip(found, expected, strict=True):
            written = "".join(recognizer.family.vocabulary.tokens(tokens))
            assert each.text == written.replace("|", " ").strip()
            words = each.segments[0].words
            assert [word.word.strip() for word in words] == each.text.split()
            assert all(0 <= word.start < word.end <= each.seconds for word in words)


@pytest.mark.fault
def test_convolutions_that_would_run_code_are_refused(tmp_path: Path) -> None:
    path, canary = checkpoint(tmp_path), tmp_path / "canary"
    state = torch.load(path, weights_only=False)
    code = f"__import__('os').mkdir({str(canary)!r})"
    state["cfg"]["model"]["w2v_args"]["model"]["conv_feature_layers"] = code
    torch.save(state, path)
    with pytest.raises(UnsafeCheckpointError, match="an option of Fairseq"):
        export_checkpoint(path, data_directory(tmp_path, ""), tmp_path / "out")
    assert not canary.exists()


@pytest.mark.soak
def test_greedy_tokens_are_fairseqs(letters: Path, letters_bundle: Path) -> None:
    assert load_model(letters_bundle).manifest.text.bpe == "letter"
    assert_greedy(letters / "model.pt", letters_bundle)


@pytest.mark.soak
def test_a_checkpoint_is_exported_when_it_is_first_named(letters: Path, cache_dir: Path) -> None:
    recognizer = load_model(letters / "model.pt", data=letters, cache_dir=cache_dir)
    assert recognizer.manifest.architecture == "wav2vec_ctc"


@pytest.mark.soak
def test_a_subset_of_its_data_is_evaluated(
    letters: Path, letters_bundle: Path, tmp_path: Path
) -> None:
    command = ["evaluate", str(letters / "test.tsv"), "--engines", "openvino", "--output",
               str(tmp_path), "--bundle", str(letters_bundle), "--repeats", "1"]  # fmt: skip
    assert cli.main(command) == 0
    assert "WER" in (tmp_path / "evaluation.md").read_text()


def test_the_directory_of_another_task_is_refused(letters: Path, tiny: Path) -> None:
    for checkpoint_of, data in ((letters / "model.pt", tiny), (tiny / "checkpoint.pt", letters)):
        with pytest.raises(ModelError, match="expected (a YAML|one dict.<labels>.txt and no YAML)"):
            load(checkpoint_of, data_directory(data, "config.yaml"), {}, ARCHITECTURES)


def test_a_dictionary_of_another_model_is_refused(letters: Path, tmp_path: Path) -> None:
    (tmp_path / "dict.ltr.txt").write_text("| 1\nE 1\n")
    with pytest.raises(ModelError, match="expected the model's 32 symbols, got 6"):
        load(letters / "model.pt", data_directory(tmp_path, ""), {}, ARCHITECTURES)


@pytest.mark.parametrize("form", ["dictionary", "namespace", "arguments"])
def test_arguments_are_read_in_every_form_fairseq_stored_them(
    letters: Path, tmp_path: Path, form: str
) -> None:
    state = torch.load(letters / "model.pt", weights_only=False)
    values = state["cfg"]["model"]
    stored = values["w2v_args"]["model"]
    task = {"_name": "audio_pretraining", "normalize": True, "data": "/gone"}
    if form == "dictionary":
        values["w2v_args"] = {"model": stored, "task": task, "criterion": {"_name": "wav2vec"}}
    else:
        values["w2v_args"] = Namespace(**stored, arch="wav2vec2", task="audio_pretraining")
    if form == "arguments":
        state["args"], state["cfg"] = Namespace(**values, arch="wav2vec_ctc", criterion="ctc"), None
    torch.save(state, tmp_path / "model.pt")
    data = data_directory(letters, "config.yaml")
    loaded = load(tmp_path / "model.pt", data, {}, ARCHITECTURES)
    assert loaded.arguments.normalize and loaded.model.w2v_encoder.w2v_model.cfg.conv_pos == 8


def test_a_pretrained_model_that_is_gone_is_named(letters: Path, tmp_path: Path) -> None:
    state = torch.load(letters / "model.pt", weights_only=False)
    state["cfg"]["model"]["w2v_args"] = None
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="w2v_path '/gone/wav2vec_small.pt'"):
        load(tmp_path / "model.pt", data_directory(letters, ""), {}, ARCHITECTURES)


def test_a_ctc_model_has_no_head_to_take_out(letters: Path, tmp_path: Path) -> None:
    data = data_directory(letters, "config.yaml")
    with pytest.raises(ArchitectureError, match="got a Wav2VecCtc without one. Leave --ctc out"):
        export_checkpoint(letters / "model.pt", data, tmp_path / "b", ExportOptions(ctc=True))


BASE = {
    "conv_feature_layers": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2",
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "extractor_mode": "default",
    "layer_norm_first": False,
    "conv_bias": False,
}
"""Options of the base model."""


@pytest.mark.soak
@pytest.mark.parametrize(
    "arguments",
    [
        {"normalize": False},
        {"normalize": False, "wav2vec": BASE},
        {"blank_weight": -1.0, "blank_mode": "set"},
        {"wav2vec": {"conv_pos": 7, "crop_seq_to_multiple": 3}},
        {"wav2vec": {"layer_norm_first": False, "extractor_mode": "default", "conv_bias": False}},
        {"wav2vec": {"required_seq_len_multiple": 1, "pos_conv_depth": 2}},
    ],
    ids=str,
)
def test_options_of_wav2vec_reproduce_fairseq(arguments: dict[str, Any], tmp_path: Path) -> None:
    path = checkpoint(tmp_path, **arguments)
    write_audio(tmp_path)
    export(path, tmp_path / "bundle")
    assert_greedy(path, tmp_path / "bundle")


DECODER = {"decoder_embed_dim": 512, "decoder_ffn_embed_dim": 48, "decoder_layers": 2}
"""Of a small decoder; with another width than 512 the installed Fairseq cannot compute its attention."""


@pytest.mark.soak
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"normalize": False, "decoder_learned_pos": True, "decoder_normalize_before": True},
        {"wav2vec": {"layer_norm_first": False, "extractor_mode": "default"},
         "no_token_positional_embeddings": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_decoder_searches_as_fairseqs_generator(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    from fairseq.sequence_generator import SequenceGenerator

    path = checkpoint(tmp_path, "wav2vec_seq2seq", **DECODER | arguments)
    write_audio(tmp_path)
    bundle, report = export(path, tmp_path / "bundle")
    assert report.passed and bundle.manifest.family == "s2t"
    recognizer = load_model(bundle)
    model, clips = model_and_clips(path)
    files = [str(tmp_path / f"{i}.wav") for i in range(len(clips))]
    for beam, nbest in ((1, 1), (5, 5)):
        search = SequenceGenerator(
            [model], model.decoder.dictionary, beam_size=beam, max_len_b=20, normalize_scores=True
        )
        options = {"beam": beam, "nbest": nbest, "max_len_b": 20}
        together = recognizer.transcribe_batch(files, **options)
        for i, found in enumerate(together):
            (expected,) = search.generate([model], clips.collater([clips[i]]))
            tokens = [hypothesis.tokens.tolist() for _, hypothesis in found.hypotheses]
            assert tokens == [each["tokens"].tolist() for each in expected[:nbest]]
            assert found.score == pytest.approx(float(expected[0]["score"]), abs=1e-4)
            assert recognizer.transcribe(files[i], **options).text == found.text
