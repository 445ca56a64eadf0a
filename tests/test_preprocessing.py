"""Features and text of a bundle against Fairseq's: `transcribe` gives the D- lines of eager runs."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from conftest import MINI, generate, write_checkpoint, write_data

from fairseq_openvino import cli, load_model
from fairseq_openvino.bundle import DIGEST, MANIFEST, Bundle, open_bundle, write_manifest
from fairseq_openvino.errors import ModelError, OptionError
from fairseq_openvino.export.fairseq import cached_bundle, export_checkpoint
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.s2t.vocabulary import load_pieces
from fairseq_openvino.speech.audio import read_audio

CLIPS = sorted((MINI / "clips").glob("*.mp3"))[:12:11]
CHECKPOINT = MINI / "checkpoint.pt"
PIECES = MINI / "spm_bpe450_st_en_de.txt"
SENTENCEPIECE = {"bpe": "sentencepiece", "sentencepiece_model": str(PIECES.with_suffix(".model"))}
CMVN = ["utterance_cmvn"]
STATS = {"mean": np.linspace(9, 15, 80, dtype=np.float32), "std": np.full(80, 4, np.float32)}
LONGEST = 30


@dataclass(frozen=True)
class Case:
    """A configuration in place of the shipped model's, and whether its text is another one."""

    name: str
    differs: bool
    config: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    symbols: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    subset: str | None = None
    language: str | None = None


def listed(**splits: Any) -> dict[str, Any]:
    return {"transforms": {"*" if name == "star" else name: of for name, of in splits.items()}}


AUGMENT = {"freq_mask_N": 1, "freq_mask_F": 27, "time_mask_N": 1, "time_mask_T": 100}
TAGS = {"▁und": "<lang:de>", "▁aber": "<lang:fr>"}
APPENDED = {"prepend_bos_and_append_tgt_lang_tag": True}
CASES = [
    Case("star", False),
    Case("eval", False, listed(_eval=CMVN)),
    Case("own", False, listed(_train=[*CMVN, "specaugment"], test=CMVN) | {"specaugment": AUGMENT}),
    Case("own-and-dev", False, listed(dev=CMVN, test=CMVN, train_2=[])),
    Case("eval-empty", True, listed(_eval=[], star=CMVN)),
    Case("eval-null", False, listed(_eval=None, star=CMVN)),
    Case("own-null", False, listed(test=None, star=CMVN)),
    Case("own-empty", True, listed(_eval=CMVN, test=[]), subset="test"),
    Case("own-not-empty", False, listed(_eval=[], test=CMVN), subset="test"),
    Case("other-subset", True, listed(_eval=[], dev=CMVN), subset="test"),
    Case("two-subsets", False, listed(_eval=[], a=CMVN, test=CMVN), subset="a,test"),
    Case("train-only", True, listed(_train=CMVN)),
    Case("none", True, {"transforms": {}}),
    Case("feature", False, {"transforms": {}, "feature_transforms": {"*": CMVN}}),
    Case("feature-after", False, {"feature_transforms": {"_eval": CMVN}}),
    Case("feature-of-eval", True, listed(_train=CMVN) | {"feature_transforms": {"_eval": []}}),
    Case("no-means", True, {"utterance_cmvn": {"norm_means": False}}),
    Case("no-vars", True, {"utterance_cmvn": {"norm_vars": False}}),
    Case("neither", True, {"utterance_cmvn": {"norm_vars": 0, "norm_means": None}}),
    Case("no-options", False, {"utterance_cmvn": None}),
    Case("global", True, listed(star=["global_cmvn"]), STATS),
    Case("global-scalar", True, listed(star=["global_cmvn"]), {"mean": np.array(9), "std": [3.5]}),
    Case(
        "global-then-utterance", True, listed(star=["global_cmvn", *CMVN]),
        {"mean": STATS["mean"][None].astype(float), "std": -STATS["std"].astype(float)},
    ),
    Case("utterance-then-global", True, listed(star=[*CMVN, "global_cmvn"]), STATS),
    Case("no-masks", False, listed(star=["specaugment", *CMVN])),
    Case("waveform-training", False, {"waveform_transforms": {"_train": ["musicaugment"]}}),
    Case("dataset-training", False, {"dataset_transforms": {"_train": ["concataugment"]}}),
    Case("pieces", True, {"bpe_tokenizer": {"bpe": None}}),
    Case("characters", True, {"bpe_tokenizer": {"bpe": "characters"}}),
    Case("bytes", True, {"bpe_tokenizer": {"bpe": "bytes"}}),
    Case("byte-bpe", True, {"bpe_tokenizer": {"bpe": "byte_bpe", "sentencepiece_model_path": "SPM"}}),
    Case("space", False, {"pre_tokenizer": {"tokenizer": "space"}}),
    Case("eos", True, {"eos_token": "▁ist"}),
    Case("eos-unknown", True, {"eos_token": "absent"}),
    Case("appended-tag", True, APPENDED | {"eos_token": "<lang:de>"}, symbols=TAGS),
    Case(
        "appended-tag-of-flag", True, APPENDED, symbols=TAGS, flags=("--eos-token", "<lang:fr>"),
        language="fr",
    ),
    Case(
        "prepended-tag", True, {"prepend_tgt_lang_tag": True}, symbols=TAGS,
        flags=("--prefix-size", "1"), language="de",
    ),
    Case("tag-within", True, symbols={"▁ist": "<lang:x>y"}),
    Case("line-separators", True, symbols={"▁ist": "▁i\u2028s\x85t"}),
]  # fmt: skip


def write_case(directory: Path, case: Case) -> DataDirectory:
    """The data directory of a case, with the two clips as subsets `test` and `a`."""
    lines = PIECES.read_text("utf-8").split("\n")
    rows = [line.rpartition(" ") for line in lines if line]
    symbols = [case.symbols.get(symbol, symbol) + space + count for symbol, space, count in rows]
    (directory / "pieces.txt").write_text("\n".join(symbols) + "\n", "utf-8")
    config = {
        "vocab_filename": "pieces.txt",
        "input_feat_per_channel": 80,
        "input_channels": 1,
        "sample_rate": 16000,
        "bpe_tokenizer": SENTENCEPIECE,
    } | listed(star=CMVN)
    shutil.copy(PIECES.with_suffix(".model"), directory / "SPM")
    if case.stats:
        np.savez(directory / "stats.npz", **case.stats)
        config["global_cmvn"] = {"stats_npz_path": str(directory / "stats.npz")}
    (directory / "config.yaml").write_text(yaml.safe_dump(config | case.config), "utf-8")
    manifest = ["id\taudio\tn_frames\ttgt_text\ttgt_lang"]
    manifest += [f"{i}\t{clip}\t300\tein Satz\tde" for i, clip in enumerate(CLIPS)]
    for subset in ("test", "a"):
        (directory / f"{subset}.tsv").write_text("\n".join(manifest) + "\n")
    return DataDirectory(directory, gen_subset=case.subset)


def described(base: Bundle, data: DataDirectory, directory: Path) -> Path:
    """The bundle that an export with this data directory writes; the graphs are those of `base`."""
    directory.mkdir()
    for name in base.manifest.files:
        if name.endswith((".xml", ".bin")):
            os.link(base.path(name), directory / name)
    data.copy_into(directory)
    write_manifest(directory, replace(base.manifest, **data.described()))
    return directory


@pytest.fixture(scope="module")
def mini(mini_bundle: Path) -> Bundle:
    return open_bundle(mini_bundle)


@pytest.fixture(scope="module")
def usual(mini: Bundle) -> list[str]:
    """Text of the shipped configuration."""
    return [t.text for t in load_model(mini).transcribe_batch(CLIPS, beam=1, max_len_b=LONGEST)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_texts_are_those_of_eager_fairseq(
    mini: Bundle, usual: list[str], tmp_path: Path, case: Case
) -> None:
    data = write_case(tmp_path, case)
    flags = ("--batch-size", "1", "--beam", "1", "--max-len-b", str(LONGEST), *case.flags)
    eager = generate(tmp_path, *flags, path=str(CHECKPOINT))
    expected = [eager.hypotheses[i][0].text for i in range(len(CLIPS))]
    model = load_model(described(mini, data, tmp_path / "bundle"))
    assert not model.manifest.unsupported
    found = model.transcribe_batch(CLIPS, beam=1, max_len_b=LONGEST, language=case.language)
    # the line is read back without the spaces at its end
    assert [transcript.text.rstrip() for transcript in found] == [t.rstrip() for t in expected]
    assert (expected != usual) == case.differs


MASKED = listed(star=["specaugment"]) | {"specaugment": AUGMENT}
NOISE = {"waveform_transforms": {"*": ["musicaugment"]}, "musicaugment": {"samples_path": "WAV"}}
REFUSED = [
    (MASKED, "feature_transforms: specaugment"),
    (listed(star=["delta_deltas"]), "feature_transforms: delta_deltas"),
    (NOISE, "waveform_transforms: musicaugment"),
    ({"dataset_transforms": {"_eval": ["concataugment"]}}, "dataset_transforms: concataugment"),
    (listed(star=CMVN, test=[]), "depend on --gen-subset .*test"),
    (listed(dev=CMVN, test=[]), r"depend on --gen-subset .*dev: .*utterance_cmvn.*test: \{\}"),
    ({"pre_tokenizer": {"tokenizer": "moses"}}, "pre_tokenizer: moses"),
    *(
        ({"bpe_tokenizer": {"bpe": name} | options}, f"bpe_tokenizer: {name}")
        for name, options in (
            ("gpt2", {}),
            ("gpt2", {"gpt2_encoder_json": "absent.json"}),
            ("hf_byte_bpe", {"bpe_merges": "config.yaml"}),
        )
    ),
    ({"use_audio_input": True}, "use_audio_input: true"),
    ({"prepend_tgt_lang_tag_as_bos": True}, "prepend_tgt_lang_tag_as_bos: true"),
]


@pytest.mark.parametrize(("config", "named"), REFUSED, ids=[str(named) for _, named in REFUSED])
def test_what_cannot_be_reproduced_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    if config is NOISE:
        soundfile.write(tmp_path / "noise.wav", np.ones(800) / 2, 16000)
        config = config | {"musicaugment": {"samples_path": str(tmp_path)}}
    data = write_case(tmp_path, Case("refused", True, config))
    with pytest.raises(ModelError, match=named) as error:
        export_checkpoint(CHECKPOINT, data, tmp_path / "bundle")
    assert "config.yaml" in str(error.value) and not (tmp_path / "bundle").exists()


def test_files_of_a_byte_level_bpe_move_with_the_data_and_into_the_bundle(tmp_path: Path) -> None:
    paths = {"bpe_vocab": "/gone/vocab.json", "bpe_merges": "/gone/merges.txt"}
    data = write_case(tmp_path, Case("hf", True, {"bpe_tokenizer": {"bpe": "hf_byte_bpe"} | paths}))
    (tmp_path / "vocab.json").write_text('{"\u0120a": 7}', "utf-8")
    assert not data.unsupported and tmp_path / "vocab.json" in data.sources()
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    data.copy_into(bundle)
    text = data.text_config()
    assert text.bpe == "byte_pieces" and load_pieces(bundle / str(text.bpe_pieces)) == {
        7: "\u0120a"
    }
    (tmp_path / "vocab.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"vocab\.json.*a JSON object of pieces and their ids"):
        data.copy_into(bundle)


ARRAY = np.ones(80, np.float32)
BAD_STATISTICS: dict[str, Any] = {
    "bins": {"mean": np.ones(40), "std": np.ones(40)},
    "frames": {"mean": np.ones((7, 80)), "std": ARRAY},
    "no-mean": {"std": ARRAY},
    "objects": {"mean": np.array([None] * 80), "std": ARRAY},
    "text": {"mean": np.array(["1"] * 80), "std": ARRAY},
    "nan": {"mean": ARRAY * np.nan, "std": ARRAY},
    "zero": {"mean": ARRAY, "std": np.eye(80)[0]},
    "infinite": {"mean": ARRAY, "std": ARRAY * np.inf},
}


@pytest.mark.parametrize("kind", [*BAD_STATISTICS, "damaged", "empty", "npy", "absent"])
def test_bad_statistics_are_refused_with_their_file(tmp_path: Path, kind: str) -> None:
    stats = BAD_STATISTICS.get(kind, {"mean": ARRAY, "std": ARRAY})
    data = write_case(tmp_path, Case(kind, True, listed(star=["global_cmvn"]), stats))
    path = tmp_path / "stats.npz"
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, ARRAY)
    elif kind == "absent":
        path.unlink()
    with pytest.raises(ModelError, match=r"stats\.npz"):
        data.described()


MALFORMED = [
    {"transforms": CMVN},
    {"transforms": None},
    {"transforms": {"*": "utterance_cmvn"}},
    {"feature_transforms": {"*": [["utterance_cmvn"]]}},
    {"waveform_transforms": "none"},
    {"bpe_tokenizer": "sentencepiece"},
    {"bpe_tokenizer": None},
    {"bpe_tokenizer": {"bpe": "absent"}},
    {"pre_tokenizer": ["moses"]},
    {"pre_tokenizer": {"tokenizer": "absent"}},
    {"sample_rate": "abc"},
    {"sample_rate": 0},
    {"sample_rate": True},
    {"input_feat_per_channel": "80"},
    {"input_channels": -1},
    {"vocab_filename": 3},
    {"eos_token": ["</s>"]},
    {"prepend_tgt_lang_tag": "false"},
]


@pytest.mark.parametrize("config", MALFORMED, ids=str)
def test_malformed_configurations_name_the_key(tmp_path: Path, config: dict[str, Any]) -> None:
    data = write_case(tmp_path, Case("malformed", True, config))
    with pytest.raises(ModelError, match=rf"config\.yaml.*{next(iter(config))}"):
        data.described()


def test_transforms_that_fairseq_cannot_build_are_named(tmp_path: Path) -> None:
    for names in (["absent"], ["utterance_cmvn", "specaugment"]):
        config = listed(star=names) | {"specaugment": {"freq_mask_N": 1}}
        data = write_case(tmp_path, Case("unbuildable", True, config))
        with pytest.raises(ModelError, match=f"{names[-1]}.*Error"):
            data.described()


def test_one_place_for_the_language_tag(tmp_path: Path) -> None:
    config = APPENDED | {"prepend_tgt_lang_tag": True}
    with pytest.raises(ModelError, match="one place for the language tag"):
        write_case(tmp_path, Case("both", True, config)).described()


def test_a_language_is_needed_where_fairseq_needs_an_eos_token(
    mini: Bundle, tmp_path: Path
) -> None:
    data = write_case(tmp_path, Case("tag", True, APPENDED, symbols=TAGS))
    model = load_model(described(mini, data, tmp_path / "bundle"))
    with pytest.raises(OptionError, match=r"in language: expected one of de, fr .*got none"):
        model.transcribe(CLIPS[0])
    with pytest.raises(OptionError, match="got 'xx'"):
        model.transcribe(CLIPS[0], language="xx")


def test_splits_with_the_same_transforms_are_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_case(tmp_path, Case("noted", False, listed(_train=[], dev=CMVN, test=CMVN)))
    assert data.feature_config().transforms == ("utterance_cmvn",)
    assert "dev, test only" in caplog.text


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """Tiny data whose features only Fairseq can make: with masks, though of no width."""
    from conftest import TINY

    directory = tmp_path_factory.mktemp("words")
    write_checkpoint(directory, "s2t_transformer_s", **TINY)
    write_data(directory, utterances=3, frames=(30, 90))
    with open(directory / "config.yaml", "a") as file:
        file.write(
            "specaugment: {freq_mask_N: 1, freq_mask_F: 1}\ntransforms: {'*': [specaugment]}\n"
        )
    return directory


def test_generate_runs_where_only_transcribe_cannot(
    words: Path, cache_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ("--max-len-b", "20")
    eager = generate(words, *flags)
    engine = generate(words, *flags, "--ov-engine", "--ov-cache-dir", str(cache_dir))
    assert engine.hypotheses.keys() == eager.hypotheses.keys()
    for number, lines in eager.hypotheses.items():
        assert [line.text for line in engine.hypotheses[number]] == [line.text for line in lines]
    data = DataDirectory(words, gen_subset="test")
    bundle = cached_bundle(words / "checkpoint.pt", data, {}, cache_dir).directory
    assert cli.main(["transcribe", str(CLIPS[0]), "--model", str(bundle)]) == 3
    assert "feature_transforms: specaugment" in capsys.readouterr().err
    with pytest.raises(ModelError, match="feature_transforms: specaugment"):
        load_model(bundle).transcribe(CLIPS[0])
    exported = ["--data", str(words), "--output", str(words / "bundle")]
    assert cli.main(["export", "--path", str(words / "checkpoint.pt"), *exported]) == 3


def test_the_cache_tells_subsets_with_other_transforms_apart(tmp_path: Path, words: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"vocab_filename": str(words / "dict.txt")} | listed(star=CMVN, test=[]))
    )
    bundles = [
        cached_bundle(
            words / "checkpoint.pt", DataDirectory(tmp_path, "config.yaml", subset), {}, tmp_path
        )
        for subset in ("test", "dev", "valid")
    ]
    assert bundles[0].directory != bundles[1].directory == bundles[2].directory
    assert [bundle.manifest.features.transforms for bundle in bundles[:2]] == [(), tuple(CMVN)]


def test_an_unknown_rate_is_assumed_and_said(
    mini: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_case(tmp_path, Case("rate", False, {"sample_rate": None}))
    config = data.feature_config()
    assert config.sample_rate_hz == 16000 and config.sample_rate_assumed
    model = load_model(described(mini, data, tmp_path / "bundle"))
    expected = model.transcribe(CLIPS[0]).text
    assert not caplog.text
    waveform, rate_hz = read_audio(CLIPS[0], 48000)
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, waveform, rate_hz)
    found = model.transcribe_batch([tmp_path / "a.wav", tmp_path / "b.wav"])
    assert [transcript.text for transcript in found] == [expected] * 2
    assert caplog.text.count("48000 Hz and is resampled to 16000 Hz") == 1

    manifest = json.loads((model.bundle.directory / MANIFEST).read_text())
    old = {"bins", "sample_rate_hz", "transforms", "global_cmvn"}
    manifest["features"] = {key: manifest["features"][key] for key in old}
    manifest["features"]["sample_rate_hz"] = None
    for key in ("bpe_separator", "append_language_tag", "eos_token"):
        del manifest["text"][key]
    heads, _, head_width = model.manifest.memory[1].dims[1:]
    manifest["dimensions"] |= {"heads": heads, "head_width": head_width}
    for key in ("unsupported", "memory", "state", DIGEST):
        del manifest[key]
    manifest["format"] = 1
    (model.bundle.directory / MANIFEST).write_text(json.dumps(manifest))
    assert open_bundle(model.bundle.directory).manifest == replace(model.manifest, format=1)


def test_a_rate_is_stated_once(tmp_path: Path) -> None:
    silent = write_case(tmp_path, Case("rate", False, {"sample_rate": None}))
    stated = replace(silent, rate_hz=48000).feature_config()
    assert stated.sample_rate_hz == 48000 and not stated.sample_rate_assumed
    with pytest.raises(OptionError, match="in sample_rate: expected 1000 to 384000 Hz, got -1"):
        replace(silent, rate_hz=-1)
    said = replace(write_case(tmp_path, Case("rate", False)), rate_hz=48000)
    with pytest.raises(OptionError, match="in sample_rate: expected 16000 Hz"):
        said.feature_config()


def test_export_says_what_it_assumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from fairseq_openvino.export.fairseq import _check_data

    config = {"sample_rate": None, "eos_token": "absent"}
    with caplog.at_level(logging.WARNING):
        _check_data(write_case(tmp_path, Case("said", False, config)), "s2t_transformer", 80)
    assert "16000 Hz is assumed" in caplog.text and "'absent' is not in the dict" in caplog.text
