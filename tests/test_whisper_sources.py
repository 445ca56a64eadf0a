"""Every form Whisper weights come in gives the same model; what is no model is refused by name."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from contained import contained
from safetensors.torch import load_file, save_file

from fairseq_openvino.errors import (
    CheckpointError,
    MissingDependencyError,
    ModelError,
    UnsafeCheckpointError,
)
from fairseq_openvino.export import sources
from fairseq_openvino.export.sources import locate
from fairseq_openvino.export.whisper import ctranslate2
from fairseq_openvino.export.whisper.source import Source, load_source

MINI = ROOT / "examples" / "covost" / "whisper" / "mini"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def original() -> Source:
    return load_source(MINI)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The shipped Whisper without its clips, to be changed."""
    ignored = shutil.ignore_patterns("clips", "*.tsv")
    return Path(shutil.copytree(MINI, tmp_path / "copy", ignore=ignored))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The shipped Whisper as CTranslate2 stores it, by the name of the quantization."""
    from ctranslate2.converters import TransformersConverter

    def convert(kind: str) -> Path:
        directory = tmp_path_factory.mktemp("ctranslate2") / kind
        files = ["tokenizer.json", "preprocessor_config.json"]
        TransformersConverter(str(MINI), copy_files=files).convert(
            str(directory), quantization=kind
        )
        return directory

    return convert


def assert_equal(
    found: Source, expected: Source, rounding: Callable[[Any], Any] = lambda x: x
) -> None:
    """The same parameters, rounded as stored, and the same rules and tokens."""
    states = found.model.state_dict(), expected.model.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, weights in states[1].items():
        assert torch.equal(states[0][name], rounding(weights).float()), name
    assert found.whisper == expected.whisper
    assert (found.eos, found.pad) == (expected.eos, expected.pad)
    assert found.tokenizer.to_str() == expected.tokenizer.to_str()


def split(weights: dict[str, torch.Tensor], suffix: str) -> dict[str, dict[str, torch.Tensor]]:
    """In two shards, by file name."""
    names = sorted(weights)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    return {
        f"{stem}-0000{i}-of-00002.{suffix}": {name: weights[name] for name in half}
        for i, half in enumerate(halves, 1)
    }


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_tensor_in_two_shards_is_refused(copy: Path, suffix: str) -> None:
    """Which of them counted was left to the names of the files."""
    weights = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    for name, part in split(weights, suffix).items():
        both = part | {"model.encoder.conv1.bias": weights["model.encoder.conv1.bias"]}
        (save_file if suffix == "safetensors" else torch.save)(both, copy / name)
    with pytest.raises(CheckpointError, match=r"00002-of.*got 'model.encoder.conv1.bias' in two"):
        load_source(copy)
    save_file(weights, copy / WEIGHTS)  # comes before shards, as of transformers
    load_source(copy)


@pytest.mark.parametrize("form", ["shards", "pickle", "pickled shards", "wide", "bare"])
def test_hugging_face(form: str, copy: Path, original: Source) -> None:
    weights = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    if form == "shards":
        for name, part in split(weights, "safetensors").items():
            save_file(part, copy / name)
    elif form == "pickled shards":
        for name, part in split(weights, "bin").items():
            torch.save(part, copy / name)
    elif form == "pickle":
        torch.save(weights, copy / "pytorch_model.bin")
    elif form == "wide":
        save_file({name: value.float() for name, value in weights.items()}, copy / WEIGHTS)
    else:  # a WhisperModel, without the head
        save_file({k.removeprefix("model."): v for k, v in weights.items()}, copy / WEIGHTS)
    found = load_source(copy)
    assert_equal(found, original)
    assert {value.dtype for value in weights.values()} == {torch.float16}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encoder_layers": 10**9}, "at most 256 layers, got 1000000000"),
        ({"decoder_attention_heads": 3}, "sizes that make a model"),
        ({"encoder_layers": 5}, "15 tensors missing: model.encoder.layers.4"),
        ({"d_model": 64}, "tensors of another size"),
        ({"d_model": "wide"}, "a valid config.json"),
    ],
)
def test_configurations_that_do_not_fit(change: dict[str, Any], reason: str, copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(CheckpointError, match=reason):
        load_source(copy)


def test_one_of_its_files_stands_for_a_directory(original: Source) -> None:
    assert locate(MINI / WEIGHTS).path == MINI
    assert original.origin["directory"] == "mini" and original.origin["weights"] == WEIGHTS


def test_pickles_run_no_code(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    torch.save({"x": np.ma.masked_array}, copy / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError):
        load_source(copy)


SLOW = pytest.mark.soak
KINDS = [
    "float16",
    "int8",
    *(pytest.param(kind, marks=SLOW) for kind in ("float32", "bfloat16", "int8_float16", "int16")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_ctranslate2(kind: str, converted: Any, original: Source) -> None:
    found = load_source(converted(kind))
    if "int" not in kind:
        assert_equal(found, original, lambda x: x.to(getattr(torch, kind)))
        return
    for name, weights in original.model.state_dict().items():
        largest = weights.abs().max()
        if "int8" in kind and weights.dim() > 1:  # one scale a row, else one a matrix
            largest = weights.abs().flatten(1).amax(1).reshape(-1, *[1] * (weights.dim() - 1))
        bound = 0.51 * largest / 127 + 1e-6
        assert ((found.model.state_dict()[name] - weights).abs() <= bound).all(), name
    assert found.whisper == original.whisper


def small_ctranslate2(
    *variables: tuple[str, tuple[int, ...], int, bytes], version: int = 6
) -> bytes:
    """A file with these variables: name, shape, number of the type, data."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    content = (
        struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    )
    for name, shape, kind, data in variables:
        content += string(name) + struct.pack(f"<B{len(shape)}I", len(shape), *shape)
        content += struct.pack("<BI", kind, len(data)) + data
    return content + struct.pack("<I", 1) + string("alias") + string("a")


def read_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    reader = ctranslate2._Reader(io.BytesIO(content), path)
    reader.check_header()
    list(reader.variables())
    list(reader.aliases())


def test_damaged_ctranslate2_models_are_refused(tmp_path: Path) -> None:
    whole = small_ctranslate2(("a", (2, 3), 0, bytes(24)), ("b", (), 2, bytes(2)))
    read_bytes(whole, tmp_path / "x")
    random = np.random.default_rng(0)
    for size in range(0, len(whole), 4):
        with pytest.raises(CheckpointError, match="more bytes|name of 1"):
            read_bytes(whole[:size], tmp_path / "x")
    for _ in range(200):
        changed = bytearray(whole)
        changed[random.integers(len(whole))] = random.integers(256)
        try:
            read_bytes(bytes(changed), tmp_path / "x")
        except CheckpointError:
            continue
    for variables, reason in (
        (("a", (2**31, 2**31, 2**31, 2), 0, b"1234"), "bytes of 'a'"),
        (("a", (1,) * 9, 0, b"1234"), "at most 4 dimensions"),
        (("a", (1,), 77, b"1234"), "a known type"),
        (("a", (0,), 0, b""), "bytes of 'a'"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            read_bytes(small_ctranslate2(variables), tmp_path / "x")
    with pytest.raises(CheckpointError, match="binary version 6"):
        read_bytes(small_ctranslate2(version=7), tmp_path / "x")


def test_ctranslate2_models_of_another_kind(copy: Path) -> None:
    (copy / "model.bin").write_bytes(small_ctranslate2(("a", (1,), 0, bytes(4))))
    with pytest.raises(CheckpointError, match="the variables of a Whisper model"):
        load_source(copy)


@pytest.fixture
def adapter(tmp_path: Path, copy: Path) -> Path:
    """A LoRA adapter with random matrices, beside its base model."""
    from peft import LoraConfig, get_peft_model

    from fairseq_openvino.compat.transformers import transformers

    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(copy, dtype=torch.float32)
    changed = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "fc1"]))
    for name, weights in changed.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.05)
    changed.save_pretrained(tmp_path / "adapter")
    changed.merge_and_unload().save_pretrained(tmp_path / "merged")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../copy"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path / "adapter"


def test_adapters_are_merged(
    adapter: Path, original: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, merged = load_source(adapter), load_file(adapter.parent / "merged" / WEIGHTS)
    state = found.model.state_dict()
    changed = 0
    for name, weights in merged.items():
        torch.testing.assert_close(state[name], weights.float(), atol=1e-6, rtol=1e-5)
        changed += not torch.equal(state[name], original.model.state_dict()[name])
    assert changed >= 6 and found.whisper == original.whisper
    assert found.origin["directory"] == "adapter"
    assert {path.name for path in locate(adapter).files} > {"adapter_model.safetensors", WEIGHTS}
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingDependencyError, match="pip install peft"):
        load_source(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for base, reason in ((".", "one of another adapter"), (None, "got None"), ("../x", "no such")):
        changed_config = config | {"base_model_name_or_path": base}
        (adapter / "adapter_config.json").write_text(json.dumps(changed_config))
        with pytest.raises(CheckpointError, match=reason):
            locate(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="adapter_model.safetensors"):
        locate(adapter)


ASSETS = [
    ("gpt2", 51864, 0),
    ("multilingual", 51866, 100),
    pytest.param("multilingual", 51865, 99, marks=SLOW),
]
TEXTS = ("Hello world, it's 3 o'clock!", " für Ælfred 平凡 ♪♪ (2)", "สวัสดี\n\n  e\u0301")


@pytest.mark.parametrize(("name", "size", "many"), ASSETS)
def test_shipped_vocabularies_are_openai_s(name: str, size: int, many: int) -> None:
    import lzma

    import whisper
    from whisper.tokenizer import get_tokenizer

    from fairseq_openvino.export.whisper import vocabulary
    from fairseq_openvino.export.whisper.rules import rules

    shipped = lzma.decompress((vocabulary.SHIPPED / f"{name}.tiktoken.xz").read_bytes())
    theirs = Path(whisper.__file__).parent / "assets" / f"{name}.tiktoken"
    assert shipped == theirs.read_bytes()
    expected = get_tokenizer(bool(many), num_languages=many or 99, language="de", task="transcribe")
    tokens = vocabulary.find(ROOT, size, "x")
    for text in TEXTS:
        assert tokens.encode(text, add_special_tokens=False).ids == expected.encode(text)
        assert tokens.decode(expected.encode(text)) == text
    config = type("Config", (), {
        "vocab_size": size, "max_target_positions": 448, "decoder_layers": 4, "encoder_layers": 32,
        "decoder_attention_heads": 1,
    })  # fmt: skip
    found = rules({}, tokens, config, ROOT)
    assert found.start == expected.sot and found.no_timestamps == expected.no_timestamps
    assert (found.previous, found.no_speech) == (expected.sot_prev, expected.no_speech)
    assert set(found.suppressed) == {
        *expected.non_speech_tokens, expected.transcribe, expected.translate, expected.sot,
        expected.sot_prev, expected.sot_lm, expected.no_speech,
    }  # fmt: skip
    assert found.suppressed_at_start == (expected.encode(" ")[0], expected.eot)
    if many:
        codes = dict(zip(expected.all_language_codes, expected.all_language_tokens, strict=True))
        assert found.languages == codes and len(codes) == many
        assert found.tasks["translate"] == expected.translate
    else:
        assert not found.languages and not found.tasks
    assert not found.translates
    odd = rules(
        {"alignment_heads": [[31, 0]], "suppress_tokens": [-1, 5, size]}, tokens, config, ROOT
    )
    assert odd.suppressed == (5,) and not odd.alignment_heads  # heads of the teacher


def test_vocabularies_of_other_sizes_must_be_named() -> None:
    from fairseq_openvino.export.whisper import vocabulary

    with pytest.raises(ModelError, match="--tokenizer"):
        vocabulary.find(ROOT, 40000, "x")


KEYS = [
    "no_timestamps_token_id", "lang_to_id", "task_to_id", "is_multilingual", "prev_sot_token_id",
    "decoder_start_token_id", "eos_token_id", "pad_token_id", "max_length",
]  # fmt: skip


def test_rules_that_are_not_stated_follow_from_the_tokenizer(copy: Path, original: Source) -> None:
    place = locate(copy)
    from fairseq_openvino.export.whisper import huggingface
    from fairseq_openvino.export.whisper.rules import rules

    whole = json.loads((copy / "generation_config.json").read_text())
    for key in KEYS:
        left = {name: value for name, value in whole.items() if name != key}
        (copy / "generation_config.json").write_text(json.dumps(left))
        stated = huggingface._stated(place)
        assert rules(stated, original.tokenizer, original.model.config, copy) == original.whisper, (
            key
        )
    (copy / "generation_config.json").unlink()
    found = load_source(copy).whisper
    for name in ("start", "previous", "no_speech", "no_timestamps", "languages", "tasks"):
        assert getattr(found, name) == getattr(original.whisper, name), name


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["openvino_encoder_model.xml", "config.json"], "an OpenVINO export of optimum-intel"),
        (["decoder_model.onnx", "config.json"], "an ONNX export"),
        (["ggml-base.bin"], "whisper.cpp"),
        (["tf_model.h5", "config.json"], "TensorFlow"),
        (["config.json"], "expected model.safetensors, got config.json"),
        (["readme.md"], "or config.json of a model, got readme.md"),
        ([], "an empty directory"),
    ],
)
def test_what_is_no_model_is_named(files: list[str], reason: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    for given in (tmp_path, *(tmp_path / name for name in files if name.endswith(".bin"))):
        with pytest.raises(CheckpointError, match=reason):
            locate(given)


@pytest.mark.parametrize(
    "name", ["basee", "a/b/c", "x.pt", "./base", "/nowhere", "model.safetensors"]
)
def test_names_that_are_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such file.*short names are tiny"):
        locate(name)


def test_short_names_are_found_in_the_cache_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="hf download openai/whisper-tiny.en"):
        locate("tiny.en")
    commit = "0" * 40
    repository = tmp_path / "models--openai--whisper-tiny.en"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(MINI, repository / "snapshots" / commit)
    place = locate("tiny.en")
    assert place.form == sources.HUGGING_FACE and place.origin == {"hub": "openai/whisper-tiny.en"}


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_texts_equal_ctranslate2_s(kind: str, converted: Any, tmp_path: Path) -> None:
    """Its engine in float32 on the same features, greedily, in both languages of the model."""
    import ctranslate2 as library

    from fairseq_openvino import load_model

    directory = converted(kind)
    model: Any = load_model(directory, cache_dir=tmp_path)
    config, vocabulary = model.family.config, model.family.vocabulary
    engine = library.models.Whisper(str(directory), compute_type="float32")
    paths = sorted((MINI / "clips").iterdir())[:12]
    clips = [model.read(path) for path in paths]
    for language in ("en", "de"):
        prompt = [
            config.start, config.languages[language], config.tasks["transcribe"],
            config.no_timestamps,
        ]  # fmt: skip
        found = model.transcribe_clips(clips, beam=1, language=language)
        for clip, transcript in zip(clips, found, strict=True):
            features = library.StorageView.from_array(np.ascontiguousarray(clip.features.T[None]))
            (expected,) = engine.generate(features, [prompt], beam_size=1)
            assert transcript.text == vocabulary.text(expected.sequences_ids[0]), clip.path


def test_adapters_that_lack_matrices_are_refused(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    whole = load_file(path)
    for kept in (list(whole)[1:], []):
        save_file({name: whole[name] for name in kept} | {"x": torch.ones(1)}, path)
        with pytest.raises(CheckpointError, match="Found missing adapter keys"):
            load_source(adapter)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"r": 10**8}, "ranks of at most"),
        ({"rank_pattern": {"q_proj": 10**8}}, "ranks of at most"),
        ({"target_modules": r"([a-z_.0-9]+)+!"}, "found. Please check"),
        ({"target_modules": "("}, "a pattern of modules in target_modules"),
        ({"rank_pattern": {"(a+)+$": 4}}, "names of modules in rank_pattern"),
        ({"peft_type": "PROMPT_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 10**9},
         "an adapter that can be merged"),
        ({"peft_type": "XLORA", "hidden_size": 64, "adapters": {"0": "nobody/nothing"}},
         "an adapter that can be merged"),
    ],
    ids=["rank", "rank of a module", "pattern", "no pattern", "ranks by pattern", "prompt", "others"],
)  # fmt: skip
def test_adapters_that_cost_too_much(change: dict[str, Any], reason: str, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    size = sum(each.stat().st_size for each in (*adapter.iterdir(), MINI / WEIGHTS))
    error = contained(lambda: load_source(adapter), size, reason)
    assert isinstance(error, CheckpointError) and re.search(reason, str(error)), error


def test_adapters_of_modules_by_pattern(adapter: Path, original: Source) -> None:
    path = adapter / "adapter_config.json"
    content = json.loads(path.read_text())
    names = "|".join(content["target_modules"])
    path.write_text(json.dumps(content | {"target_modules": rf".*\.({names})"}))
    by_name, found = load_file(adapter.parent / "merged" / WEIGHTS), load_source(adapter)
    for name, weights in by_name.items():
        torch.testing.assert_close(found.model.state_dict()[name], weights.float())
