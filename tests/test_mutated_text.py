"""Mutated manifests, configurations, vocabularies and weights end in what they hold or in our errors."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import MINI, ROOT, TINY
from contained import contained
from media_files import flac_silence
from safetensors.torch import save
from test_mutants import mutants
from test_whisper_sources import small_ctranslate2
from tokenizers import Tokenizer, decoders, models, normalizers

from fairseq_openvino.checkpoint import load_checkpoint
from fairseq_openvino.compat.shims import apply_shims
from fairseq_openvino.errors import (
    AudioError,
    BundleError,
    CheckpointError,
    FairseqOpenVINOError,
)
from fairseq_openvino.export.fairseq import averaging
from fairseq_openvino.export.fairseq import checkpoint as fairseq_checkpoint
from fairseq_openvino.export.fairseq.data import DataDirectory, check_pieces
from fairseq_openvino.export.sources import Place, locate
from fairseq_openvino.export.whisper import ctranslate2, huggingface, openai, vocabulary
from fairseq_openvino.export.whisper.checkpoint import build
from fairseq_openvino.export.whisper.rules import rules
from fairseq_openvino.measure.material.s2t import write_checkpoint
from fairseq_openvino.s2t.vocabulary import load_dictionary, load_pieces
from fairseq_openvino.speech import corpus, stored
from fairseq_openvino.speech.manifest import read_manifest
from fairseq_openvino.whisper.tokenizer import WhisperTokenizer

WHISPER = ROOT / "examples" / "covost" / "whisper" / "mini"
MALFORMED = Path(__file__).parent / "malformed"
"""Files that once did something else than to be refused; the kind, and what is wrong."""
SEED = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "15"))
WORDS = (
    b"", b"\0", b"-1", b"1.5", b"1e999", b"NaN", b"9" * 5000, "\u00b2".encode(), b"../../x", b"[" * 3000,
    b"{}", b"[]", b"null", b"true", b"\xff\xfe", b"&a [*a, *a]", b'""', b"1:2:3", b"2001-99-99",
    b"!!python/object/apply:os.getcwd []", b"!!binary x", b"\t", b"\n", b" ", b"\xef\xbb\xbf", b"<<: *a",
    b"10000000000", b"0x", b"4294967296", b"[[1]]", b"{\"a\": 1}", b"'", b"(a+)+$",
)  # fmt: skip
"""What a word of a text becomes."""
ONE_ALIAS = b"\1\0\0\0\6\0alias\0\2\0a\0"
"""At the end of what `small_ctranslate2` makes."""
WORD = re.compile(rb"[\w.<>|-]+|[^\w\s]")


@dataclass(frozen=True)
class Kind:
    """A kind of file: whole ones, where they lie, and what reads them."""

    path: Path
    wholes: list[bytes]
    read: Callable[[Path], Any]
    is_text: bool = True
    share: int = 1
    """Of the mutants."""


def texts(files: list[bytes], seed: int) -> Iterator[bytes]:
    """Files with some of their words replaced, else as `mutants` has them."""
    random, bytewise = np.random.default_rng(seed), mutants(files, seed)
    while True:
        content = next(bytewise) if random.random() < 0.2 else files[random.integers(len(files))]
        for _ in range(random.integers(1, 3)):
            start = int(random.integers(len(content) + 1))
            begin, end = word.span() if (word := WORD.search(content, start)) else (start, start)
            put = WORDS[random.integers(len(WORDS))]
            if random.random() < 0.2:
                put = content[slice(*sorted(random.integers(0, len(content) + 1, 2)))][:300]
            content = content[:begin] + put + content[end:]
        yield content


def configuration(path: Path) -> None:
    """All that an export asks of a data directory."""
    data = DataDirectory(path.parent, path.name)
    data.described()
    data.sources()


def table(path: Path) -> None:
    """A manifest, as a run of Fairseq and as a corpus."""
    read_manifest(str(path.parent), path.stem)
    list(corpus.read(path, path.parent / "config.yaml"))


def fairseq_model(data: DataDirectory) -> Callable[[Path], Any]:
    from fairseq_openvino.export.fairseq import ARCHITECTURES

    def read(path: Path) -> None:
        averaging.average([path], path.with_name("averaged.pt"))
        fairseq_checkpoint.load(path, data, {}, ARCHITECTURES)

    return read


def whisper_model(path: Path) -> None:
    """Of the directory of a file."""
    place = locate(path.parent)
    found = (ctranslate2 if place.path.name == "ct2" else huggingface).read(place)
    build(found, place.path)
    tokenizer = Tokenizer.from_file(str(WHISPER / "tokenizer.json"))
    rules(found.stated, tokenizer, found.config, place.path)


def openai_model(path: Path) -> None:
    build(openai.read(Place("", path, path.name, {})), path)


def tokenizer(path: Path) -> None:
    found = vocabulary.find(path.parent if path.stem in ("vocab", "merges") else path, 521, "it")
    found.encode("a b", add_special_tokens=False)


def arrays(*shape: int) -> list[bytes]:
    found = []
    for kind in ("<f4", ">f8", "<f2", "|i1"):
        file = io.BytesIO()
        np.save(file, np.ones(shape, kind))
        found.append(file.getvalue())
    return found


def saved(content: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def openai_checkpoint() -> dict[str, Any]:
    sizes = (
        "n_mels", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer", "n_vocab",
        "n_text_ctx", "n_text_state", "n_text_head", "n_text_layer",
    )  # fmt: skip
    dims = dict(zip(sizes, (80, 4, 4, 1, 1, 9, 4, 4, 1, 1), strict=True))
    return {"dims": dims, "model_state_dict": {"decoder.ln.weight": torch.ones(4)}}


def cheap(root: Path) -> dict[str, Kind]:
    """Files of Fairseq and of weights that are read in a few milliseconds."""
    import fairseq.models  # noqa: F401  not within the limits

    apply_shims()
    data, ct2 = root / "data", root / "ct2"
    shutil.copytree(MINI, data, ignore=shutil.ignore_patterns("clips", "checkpoint.pt"))
    ct2.mkdir()
    shutil.copyfile(WHISPER / "config.json", ct2 / "config.json")
    np.savez(data / "cmvn.npz", mean=np.zeros(80), std=np.ones(80))
    plain = (data / "config_st_en_de.yaml").read_bytes()
    old = yaml.safe_load(plain) | {"global_cmvn": {"stats_npz_path": "cmvn.npz"}}
    old |= {"transforms": {"_train": ["specaugment"], "_eval": ["global_cmvn", "utterance_cmvn"]}}
    (data / "config.yaml").write_text(yaml.safe_dump(old))
    (data / "b.zip").write_bytes(bytes(100))
    (data / "a.npy").write_bytes(arrays(3, 80)[0])
    pieces = (data / "spm_bpe450_st_en_de.txt").read_bytes().splitlines(keepends=True)
    rows = b"id\taudio\tn_frames\ttgt_text\n1\ta.npy\t3\tx y\n2\tb.zip:0:100\t3\tz\n"
    tiny = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}
    ranks = b"".join(b"%s %d\n" % each for each in ((b"IQ==", 0), (b"Ig==", 1), (b"ISI=", 2)))
    layer = "encoder/layer_0/self_attention/linear_0/weight"
    variables = [
        [("encoder/conv1/weight", (4, 80, 3), 0, bytes(3840)), ("a", (), 2, bytes(2))],
        [(layer, (12, 4), 1, bytes(48)), (f"{layer}_scale", (12,), 0, bytes(48))],
    ]

    def features(path: Path) -> None:
        stored.frames(str(path), 16_000, 80)

    def part(path: Path) -> None:
        stored.frames(f"{path}:9:{path.stat().st_size}", 16_000, 80)

    return {
        "manifest": Kind(data / "m.tsv", [rows], table, share=60),
        "configuration": Kind(
            data / "c.yaml", [plain, yaml.safe_dump(old).encode()], configuration, share=40
        ),
        "dictionary": Kind(data / "d.txt", [b"".join(pieces[:40])], load_dictionary, share=60),
        "pieces": Kind(data / "p.json", [b'{"a": 0, "\\u0120b": 1, "c": 2}'], load_pieces, share=20),
        "features": Kind(data / "f.npy", arrays(3, 80), features, False, 40),
        "slice": Kind(data / "s.zip", [b"x" * 9 + each for each in arrays(3, 80)], part, False, 10),
        "safetensors": Kind(root / "w.safetensors", [save(tiny)], huggingface._safetensors, share=20),
        "CTranslate2": Kind(
            ct2 / "model.bin", [small_ctranslate2(*each) for each in variables], whisper_model,
            False, 30,
        ),
        "ranks": Kind(root / "r.tiktoken", [ranks], tokenizer, share=10),
    }  # fmt: skip


def dear(root: Path) -> dict[str, Kind]:
    """Those of whole models."""
    data, whisper, words, trained = (
        root / name for name in ("data", "whisper", "words", "trained")
    )
    shutil.copytree(WHISPER, whisper, ignore=shutil.ignore_patterns("clips", "*.tsv"))
    shutil.copytree(whisper, words, ignore=shutil.ignore_patterns("model.*"))
    (words / "tokenizer.json").unlink()
    trained.mkdir()
    write_checkpoint(trained, "s2t_transformer_s", vocabulary=20, **TINY)
    checkpoint = load_checkpoint(trained / "checkpoint.pt")
    spm = data / "spm_bpe450_st_en_de.model"

    def statistics(path: Path) -> None:
        configuration(path.with_name("config.yaml"))

    def sentencepiece(path: Path) -> None:
        check_pieces(path, path, ("a",) * 9)

    def json_of(directory: Path, name: str, read: Callable[[Path], Any], share: int) -> Kind:
        return Kind(directory / name, [(directory / name).read_bytes()], read, share=share)

    return {
        "statistics": Kind(data / "cmvn.npz", [(data / "cmvn.npz").read_bytes()], statistics, False, 10),
        "checkpoint": Kind(
            trained / "c.pt", [saved(checkpoint), saved(checkpoint, False)],
            fairseq_model(DataDirectory(trained)), False, 20,
        ),
        "pickle": Kind(
            root / "p.pt", [saved(openai_checkpoint()), saved(openai_checkpoint(), False)],
            openai_model, False, 20,
        ),
        "Whisper": json_of(whisper, "config.json", whisper_model, 5),
        "generation": json_of(whisper, "generation_config.json", whisper_model, 5),
        "front end": json_of(whisper, "preprocessor_config.json", whisper_model, 2),
        "tokenizer": json_of(whisper, "tokenizer.json", tokenizer, 5),
        "vocabulary": json_of(words, "vocab.json", tokenizer, 3),
        "merges": json_of(words, "merges.txt", tokenizer, 3),
        "SentencePiece": Kind(data / "s.model", [spm.read_bytes()], sentencepiece, False, 10),
    }  # fmt: skip


def survive(kinds: dict[str, Kind], count: int, seed: int) -> Counter[tuple[str, str]]:
    """Read mutants of all kinds; what happened, by kind."""
    print(f"seed={seed}")
    random, found = np.random.default_rng(seed), Counter[tuple[str, str]]()
    shares = np.array([kind.share for kind in kinds.values()], float)
    sources = {
        name: (texts if kind.is_text else mutants)(kind.wholes, seed)
        for name, kind in kinds.items()
    }
    for kind in kinds.values():  # what is imported by then is not within the limits
        before = kind.path.read_bytes() if kind.path.exists() else kind.wholes[0]
        kind.path.write_bytes(kind.wholes[0])
        with suppress(FairseqOpenVINOError):
            kind.read(kind.path)
        kind.path.write_bytes(before)
    for number in range(count):
        name = [*kinds][random.choice(len(kinds), p=shares / shares.sum())]
        kind, content = kinds[name], next(sources[name])
        before = kind.path.read_bytes()
        kind.path.write_bytes(content)
        what = f"seed={seed} mutant {number}, {name}"
        error = contained(partial(kind.read, kind.path), len(content), what)
        found[name, "read" if error is None else "refused"] += 1
        kind.path.write_bytes(before)
    return found


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR")


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    kinds = cheap(tmp_path)
    found = survive(kinds, 200, SEED)
    assert {name for name, what in found if what == "refused"} == kinds.keys()
    assert len({name for name, what in found if what == "read"}) > len(kinds) / 2


@pytest.mark.fault
def test_twenty_thousand_mutants_are_read_or_refused(tmp_path: Path) -> None:
    found = survive(cheap(tmp_path) | dear(tmp_path), 20_000, SEED)
    print(sorted(found.items()))


@pytest.mark.parametrize("case", sorted(MALFORMED.glob("*.*")), ids=lambda path: path.name)
def test_what_was_found_before_is_refused(case: Path, tmp_path: Path) -> None:
    kind = cheap(tmp_path)[case.name.partition("-")[0]]
    shutil.copyfile(case, kind.path)
    error = contained(partial(kind.read, kind.path), case.stat().st_size, case.name)
    assert error is not None and str(tmp_path) in str(error)


@pytest.mark.parametrize(
    "stated",
    [
        {"suppress_tokens": "1, 2"}, {"suppress_tokens": [[1]]}, {"begin_suppress_tokens": {"a": 1}},
        {"lang_to_id": [1]}, {"lang_to_id": {"<|en|>": "x"}}, {"task_to_id": {"transcribe": -1}},
        {"max_length": "long"}, {"max_initial_timestamp_index": 10**30}, {"alignment_heads": [[1]]},
        {"no_timestamps_token_id": -1}, {"decoder_start_token_id": [1]}, {"prev_sot_token_id": "a"},
    ],
    ids=lambda stated: next(iter(stated)),
)  # fmt: skip
def test_rules_of_other_types_are_refused(stated: dict[str, Any], tmp_path: Path) -> None:
    found = Tokenizer.from_file(str(WHISPER / "tokenizer.json"))
    with pytest.raises(
        CheckpointError, match=f"a generation configuration of Whisper.*{next(iter(stated))}"
    ):
        rules(stated, found, None, tmp_path)


def test_tokenizers_that_grow_what_they_read(tmp_path: Path) -> None:
    found, path = Tokenizer(models.BPE({"a": 0}, [])), tmp_path / "tokenizer.json"
    found.enable_padding(length=1 << 30)
    found.save(str(path))
    assert len(vocabulary.find(path, 9, "it").encode("a").ids) == 1
    found.normalizer = normalizers.Sequence([normalizers.Replace("a", "aa")] * 40)
    found.save(str(path))
    error = contained(partial(vocabulary.find, path, 9, "it"), path.stat().st_size, "replacements")
    assert "the normalizers Replace" in str(error)
    found.normalizer = None
    found.decoder = decoders.Sequence([decoders.Replace("a", "aa")] * 40)
    found.save(str(path))
    for read in (partial(vocabulary.find, path, 9, "it"), partial(WhisperTokenizer, path, 9)):
        error = contained(read, path.stat().st_size, "replacements")
        assert "the decoders Replace" in str(error)


def test_a_tokenizer_that_rust_panics_at_is_refused(tmp_path: Path) -> None:
    content = json.loads((WHISPER / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (path := tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="expected a tokenizer file, got .*precompiled_charsmap"):
        WhisperTokenizer(path, 9)


def test_statistics_that_unpack_to_more(tmp_path: Path) -> None:
    path = cheap(tmp_path)["configuration"].path.with_name("cmvn.npz")
    np.savez_compressed(path, mean=np.zeros(10**6), std=np.ones(10**6))
    read = partial(configuration, path.with_name("config.yaml"))
    error = contained(read, path.stat().st_size, "statistics")
    assert "bytes of statistics, got 16000" in str(error)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    for name, read in (
        ("dict.txt", load_dictionary),
        ("pieces.json", load_pieces),
        ("c.yaml", configuration),
    ):
        os.mkfifo(tmp_path / name)
        error = contained(partial(read, tmp_path / name), 0, name)
        assert "no regular file" in str(error)
    for name, part in (("pipe.npy", ""), ("pipe.zip", ":0:100"), ("pipe.wav", ":0:100")):
        if part:
            os.mkfifo(tmp_path / name)
        path = f"{tmp_path / name}{part}"
        error = contained(partial(stored.frames, path, 16_000, 80), 0, name)
        assert "no regular file" in str(error)
        assert stored.frame_count(path) is None is stored.frame_count(str(tmp_path / name))
        nameless = contained(partial(stored.frames, f"\0{path}", 16_000, 80), 0, name)
        assert "null byte" in str(nameless)


def test_slices_are_no_longer_than_files_may_be(tmp_path: Path) -> None:
    (path := tmp_path / "s.flac").write_bytes(flac_silence(1))
    error = contained(lambda: stored.frames(f"{path}:0:30000000", 16_000, 80), 20_000, "slice")
    assert "at most 3600 s" in str(error)
    with soundfile.SoundFile(tmp_path / "s.wav", "w", 8000, 9, "PCM_16") as file:
        file.write(np.zeros((800, 9)))
    error = contained(lambda: stored.frames(f"{file.name}:0:800", 16_000, 80), 15_000, "slice")
    assert "1 to 8 channels, got 9" in str(error)


def test_names_for_the_same_weights_take_no_memory(tmp_path: Path) -> None:
    """Each was made floats of its own."""
    path = cheap(tmp_path)["CTranslate2"].path
    size = 1 << 20
    content = small_ctranslate2(("w", (size,), 1, bytes(size)), ("w_scale", (1,), 0, bytes(4)))
    names = [
        (f"{i}{end}".encode(), f"w{end}".encode()) for i in range(99) for end in ("", "_scale")
    ]
    aliases = b"".join(
        struct.pack("<H", len(name) + 1) + name + b"\0" for pair in names for name in pair
    )
    count = struct.pack("<I", len(names))
    path.write_bytes(content[: -len(ONE_ALIAS)] + count + aliases)
    error = contained(partial(whisper_model, path), path.stat().st_size, "aliases")
    assert "bytes as floats" in str(error)


def test_slices_take_no_more_than_there_is(tmp_path: Path) -> None:
    for name in ("s.zip", "s.wav"):
        (tmp_path / name).write_bytes(arrays(3, 80)[0])
        for part in (f"1:{10**15}", f"{10**17}:8", f"{10**40}:8", "²:8"):
            read = partial(stored.frames, f"{tmp_path / name}:{part}", 16_000, 80)
            error = contained(read, 1000, part)
            assert isinstance(error, AudioError)
