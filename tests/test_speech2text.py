"""Speech2Text checkpoints of transformers: graphs, features, text and search are transformers' own."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import MINI, Shared
from whisper_models import waveforms

from fairseq_openvino import load_model
from fairseq_openvino.compat.transformers import transformers
from fairseq_openvino.errors import (
    FairseqOpenVINOError,
    ModelError,
    OptionError,
    UnsafeCheckpointError,
)
from fairseq_openvino.export.speech2text import export_speech2text
from fairseq_openvino.speech.audio import read_audio

SMALL = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "conv_channels": 32,
}  # fmt: skip
CLIPS = sorted((MINI / "clips").iterdir())[:4]
WAVEFORMS = waveforms(5, 4.0)
KINDS = {
    "plain": {"early_stopping": True, "num_beams": 5, "max_length": 40},
    "multilingual": {"max_length": 30},
}
"""Generation configurations by layout."""


def write_speech2text(
    directory: Path, languages: bool, generation: dict[str, Any], **sizes: Any
) -> Path:
    """A random checkpoint with tokenizer and feature extractor, as `save_pretrained` writes it."""
    from transformers.models.speech_to_text.tokenization_speech_to_text import MUSTC_LANGS

    tags = [f"<lang:{code}>" for code in MUSTC_LANGS] if languages else []
    text = (
        [line.split("\t")[3] for line in (MINI / "train_st_en_de.tsv").open()][1:200]
        if (MINI / "train_st_en_de.tsv").is_file()
        else [f"der alte Hund {i} sieht eine schöne Zeitung nummer {i * 7}" for i in range(200)]
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(directory / "spm"), vocab_size=70, bos_id=0,
        pad_id=1, eos_id=2, unk_id=3, user_defined_symbols=tags, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "spm.model"))
    vocabulary = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    (directory / "raw.json").write_text(json.dumps(vocabulary))
    transformers.Speech2TextTokenizer(
        str(directory / "raw.json"), str(directory / "spm.model"),
        do_upper_case=not languages, lang_codes="mustc" if languages else None,
    ).save_pretrained(directory)  # fmt: skip
    transformers.Speech2TextFeatureExtractor().save_pretrained(directory)
    torch.manual_seed(3)
    config = transformers.Speech2TextConfig(vocab_size=len(pieces), **(SMALL | sizes))
    model = transformers.Speech2TextForConditionalGeneration(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1:
                weights.normal_(0, 0.25 if "embed_tokens" in name else 0.2)
        model.model.decoder.embed_tokens.weight[2] *= 1.5
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, **generation
    )
    model.save_pretrained(directory)
    return directory


class Pair:
    """A transformers model and our bundle of it."""

    def __init__(self, directory: Path) -> None:
        self.source = directory / "source"
        self.ours: Any = load_model(directory / "bundle")
        self.front = transformers.Speech2TextFeatureExtractor.from_pretrained(self.source)
        self.tokenizer = transformers.Speech2TextTokenizer.from_pretrained(self.source)
        self.theirs = transformers.Speech2TextForConditionalGeneration.from_pretrained(
            self.source, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def features(self, samples: np.ndarray) -> torch.Tensor:
        return self.front(samples, sampling_rate=16_000, return_tensors="pt")["input_features"]

    def generate(
        self, samples: np.ndarray, **options: Any
    ) -> tuple[list[list[int]], list[str], Any]:
        """Tokens without the first, texts and scores; padding is never generated, as here."""
        found = self.theirs.generate(
            self.features(samples), suppress_tokens=[1], return_dict_in_generate=True,
            output_scores=True, **options,
        )  # fmt: skip
        tokens = [[t for t in row if t != 1] for row in found.sequences[:, 1:].tolist()]
        texts = self.tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
        return tokens, texts, getattr(found, "sequences_scores", None)


@pytest.fixture(scope="session")
def speech2text(shared: Shared) -> Any:
    @cache
    def pair(kind: str) -> Pair:
        def make(at: Path) -> None:
            (at / "source").mkdir()
            source = write_speech2text(at / "source", kind == "multilingual", KINDS[kind])
            export_speech2text(source, at / "bundle")

        return Pair(shared(f"speech2text-{kind}", make))

    return pair


def test_features_equal_the_reference(speech2text: Any) -> None:
    pair = speech2text("multilingual")
    for samples in WAVEFORMS:
        found = pair.ours.clip(samples, 16_000).features
        np.testing.assert_allclose(found, pair.features(samples)[0].numpy(), atol=3e-4)
    for clip in CLIPS:  # MP3 holds nothing above its cut-off but the rounding of a float32 FFT
        samples, _ = read_audio(clip, 16_000)
        found = pair.ours.read(clip).features
        np.testing.assert_allclose(found, pair.features(samples)[0].numpy(), atol=3e-3)


@pytest.mark.parametrize(
    ("kind", "beam"),
    [
        ("multilingual", 5),
        pytest.param("multilingual", 1, marks=pytest.mark.soak),
        pytest.param("plain", 5, marks=pytest.mark.soak),
        pytest.param("plain", 1, marks=pytest.mark.soak),
    ],
)
def test_texts_and_scores_are_those_of_generate(speech2text: Any, kind: str, beam: int) -> None:
    pair = speech2text(kind)
    for options in ({}, {"max_len_b": 9}, {"max_len_b": 25, "lenpen": 0.4, "min_len": 7}):
        language = {"language": "fr"} if kind == "multilingual" else {}
        nbest = min(beam, 3)
        clips = [pair.ours.clip(samples, 16_000) for samples in WAVEFORMS]
        found = pair.ours.transcribe_clips(clips, beam=beam, nbest=nbest, **options, **language)
        theirs = {"num_beams": beam, "num_return_sequences": nbest}
        for ours, name in (
            ("max_len_b", "max_length"), ("lenpen", "length_penalty"), ("min_len", "min_length"),
        ):  # fmt: skip
            if ours in options:  # min_length counts the first token
                theirs[name] = options[ours] + (ours == "min_len")
        if language:
            theirs["forced_bos_token_id"] = pair.tokenizer.lang_code_to_id["fr"]
        for samples, transcript in zip(WAVEFORMS, found, strict=True):
            tokens, texts, scores = pair.generate(samples, **theirs)
            assert [list(h.tokens) for _, h in transcript.hypotheses] == tokens
            assert [text for text, _ in transcript.hypotheses] == texts
            if scores is not None:
                expected = [h.score for _, h in transcript.hypotheses]
                np.testing.assert_allclose(expected, scores.numpy(), atol=1e-4)


@pytest.mark.soak
def test_texts_of_random_tokens(speech2text: Any) -> None:
    random = np.random.default_rng(0)
    for kind in KINDS:
        pair = speech2text(kind)
        size = pair.ours.manifest.dimensions.vocabulary_size
        for length in range(40):
            tokens = random.integers(0, size, length).tolist()
            expected = pair.tokenizer.decode(tokens, skip_special_tokens=True)
            assert pair.ours.family.vocabulary.text(tokens) == expected


def test_a_language_is_needed(speech2text: Any) -> None:
    pair = speech2text("multilingual")
    with pytest.raises(OptionError, match=r"language: expected one of de, es, .* got none"):
        pair.ours.transcribe(CLIPS[0])
    assert pair.ours.transcribe(CLIPS[0], language="de", beam=1).text


@pytest.mark.soak
def test_a_language_may_be_configured(speech2text: Any, tmp_path: Path) -> None:
    pair = speech2text("multilingual")
    source = shutil.copytree(pair.source, tmp_path / "source")
    stated = json.loads((source / "generation_config.json").read_text())
    stated["forced_bos_token_id"] = pair.tokenizer.lang_code_to_id["it"]
    (source / "generation_config.json").write_text(json.dumps(stated))
    export_speech2text(source, tmp_path / "bundle")
    found = load_model(tmp_path / "bundle").transcribe(CLIPS[0])
    assert found.text == pair.ours.transcribe(CLIPS[0], language="it").text
    assert found.hypotheses[0][1].tokens[0] == stated["forced_bos_token_id"]


def changed(name: str, **values: Any) -> Any:
    def change(source: Path) -> None:
        content = json.loads((source / name).read_text())
        (source / name).write_text(json.dumps(content | values))

    return change


def as_pickle(source: Path, **tables: Any) -> None:
    from safetensors.torch import load_file

    weights: dict[str, Any] = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    for name, table in tables.items():
        weights[name.replace("_", ".") + ".embed_positions.weights"] = table
    torch.save(weights, source / "pytorch_model.bin")


class Canary:
    def __reduce__(self) -> Any:
        return print, ("never",)


REFUSED: dict[str, tuple[Any, type[FairseqOpenVINOError], str]] = {
    "no-weights": (
        lambda at: (at / "model.safetensors").unlink(), ModelError, "model.safetensors or pytorch_m"
    ),
    "damaged": (
        lambda at: (at / "model.safetensors").write_bytes(b"x" * 99), ModelError, "a complete check"
    ),
    "code": (lambda at: as_pickle(at, x=Canary()), UnsafeCheckpointError, "builtins.print"),
    "other-layers": (
        changed("config.json", decoder_layers=3), ModelError, "none for .*model.decoder.layers.2"
    ),
    "other-model": (changed("config.json", model_type="whisper"), ModelError, "'speech_to_text', got"),
    "fewer-layers": (
        changed("config.json", decoder_layers=1), ModelError, "others as .*model.decoder.layers.1"
    ),
    "other-width": (changed("config.json", encoder_ffn_dim=48), ModelError, "a complete checkpoint"),
    "search-option": (
        lambda at: (at / "generation_config.json").write_text("["), ModelError, "options of a search"
    ),
    "no-vocabulary": (lambda at: (at / "vocab.json").unlink(), ModelError, "files of a tokenizer"),
    "vocabulary": (changed("vocab.json", extra=99), ModelError, "tokens that begin with <s> <pad>"),
    "search": (
        changed("generation_config.json", no_repeat_ngram_size=3), ModelError, "no_repeat_ngram_size"
    ),
    "dither": (changed("preprocessor_config.json", dither=4.0), ModelError, "dither 4.0"),
}  # fmt: skip


def test_a_directory_of_transformers_is_a_model(speech2text: Any, tmp_path: Path) -> None:
    made = speech2text("multilingual")
    model = load_model(made.source, cache_dir=tmp_path)
    assert model.bundle.directory.parent.parent == tmp_path
    assert model.manifest.source["directory"] == made.source.name


@pytest.mark.parametrize(("change", "kind", "named"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_named(
    speech2text: Any, tmp_path: Path, change: Any, kind: type[FairseqOpenVINOError], named: str
) -> None:
    source = shutil.copytree(speech2text("multilingual").source, tmp_path / "source")
    change(source)
    with pytest.raises(kind, match=named):
        export_speech2text(source, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.soak
def test_directories_of_older_versions(speech2text: Any, tmp_path: Path) -> None:
    """Pickled weights with position tables, and the search among the options of the model."""
    pair = speech2text("plain")
    source = shutil.copytree(pair.source, tmp_path / "source")
    as_pickle(source, model_encoder=torch.zeros(9, 32))
    stated = json.loads((source / "generation_config.json").read_text())
    (source / "generation_config.json").unlink()
    changed("config.json", **{name: stated[name] for name in KINDS["plain"]})(source)
    bundle, report = export_speech2text(source, tmp_path / "bundle")
    assert report.passed and bundle.manifest.generation == pair.ours.manifest.generation
    assert load_model(tmp_path / "bundle").transcribe(CLIPS[0]).text == (
        pair.ours.transcribe(CLIPS[0]).text
    )


@pytest.mark.soak
def test_the_small_model_at_true_size(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    sizes = dict.fromkeys(SMALL)
    defaults = transformers.Speech2TextConfig()
    sizes = {name: getattr(defaults, name) for name in SMALL}
    write_speech2text(tmp_path / "source", False, KINDS["plain"], **sizes)
    _, report = export_speech2text(tmp_path / "source", tmp_path / "bundle")
    assert report.passed
    pair = Pair(tmp_path)
    for beam in (1, 5):
        for samples in WAVEFORMS:
            ours = pair.ours.transcribe(samples, 16_000, beam=beam)
            tokens, texts, _ = pair.generate(samples, num_beams=beam)
            assert list(ours.hypotheses[0][1].tokens) == tokens[0] and ours.text == texts[0]
