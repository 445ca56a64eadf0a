"""`load_model` and `transcribe --model` with what was never exported."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import MINI, Shared, child_environment, tone

from fairseq_openvino import cli, load_model
from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import CheckpointError, OptionError
from fairseq_openvino.export.first_use import DIGESTS, remembered_sha256
from fairseq_openvino.loading import find_bundle
from fairseq_openvino.measure.material.whisper import Layout, write_whisper
from fairseq_openvino.speech.languages import CODES, LANGUAGES, language_code


@pytest.fixture(scope="module")
def source(shared: Shared) -> Path:
    """A small random Whisper that was exported once, as a user's first run does it."""

    def make(directory: Path) -> None:
        write_whisper(directory / "small", Layout(positions=50, targets=32, layers=1, languages=3))
        find_bundle(directory / "small", cache_dir=directory / "cache")

    return shared("never-exported", make)


def test_the_second_run_finds_the_bundle_without_torch(source: Path, tmp_path: Path) -> None:
    clip, words = tone(tmp_path / "x.wav"), ["--model", str(source / "small")]
    code = "import sys; sys.modules['torch'] = None; from fairseq_openvino import cli; cli.main(sys.argv[1:])"
    words += ["--cache-dir", str(source / "cache"), "--max-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-c", code, "transcribe", str(clip), *words], capture_output=True,
        text=True, env=child_environment(),
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith(str(clip)), done.stderr
    assert "exporting" not in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", code, "transcribe", str(clip), *words[:2], "--cache-dir", str(tmp_path)],
        capture_output=True, text=True, env=child_environment(),
    )  # fmt: skip
    assert 'pip install "fairseq-openvino[whisper-export]"' in done.stderr
    assert "exporting small for the first use (about" in done.stderr


def test_what_changes_is_exported_again(source: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(source / "small", tmp_path / "small"))
    assert find_bundle(changed, cache_dir=source / "cache") == find_bundle(
        source / "small", cache_dir=source / "cache"
    )
    content = json.loads((changed / "generation_config.json").read_text())
    (changed / "generation_config.json").write_text(json.dumps(content | {"max_length": 20}))
    before = len(list((source / "cache" / "bundles").glob("small-*/manifest.json")))
    assert find_bundle(changed, cache_dir=source / "cache").manifest.whisper.max_tokens == 20  # type: ignore[union-attr]
    assert len(list((source / "cache" / "bundles").glob("small-*/manifest.json"))) == before + 1


def test_digests_are_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairseq_openvino.export import first_use

    monkeypatch.setattr(first_use, "REMEMBERED_BYTES", 1)
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    fresh = remembered_sha256(file, tmp_path)
    assert not (tmp_path / DIGESTS).exists()  # it may still change within a tick of the clock
    monkeypatch.setattr(first_use, "SETTLED_SECONDS", -1)
    assert remembered_sha256(file, tmp_path) == fresh
    (memo,) = (tmp_path / DIGESTS).iterdir()
    memo.write_text("0" * 64)
    assert remembered_sha256(file, tmp_path) == "0" * 64
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(b"two")
    os.utime(file, ns=times)  # the time of the change itself cannot be set
    assert remembered_sha256(file, tmp_path) not in (fresh, "0" * 64)


def test_fairseq_checkpoints_need_their_data(
    tiny: Path, tiny_bundle: Path, cache_dir: Path, tmp_path: Path
) -> None:
    path = tiny / "checkpoint.pt"
    assert find_bundle(path, tiny, None, cache_dir).directory == tiny_bundle
    assert find_bundle(path, tiny, "config.yaml", cache_dir).directory == tiny_bundle
    with pytest.raises(CheckpointError, match="--data DIR"):
        load_model(path, cache_dir=tmp_path)
    for names, got in (
        ((), "got none"),
        (("config_a.yaml", "config_b.yaml"), "config_a.yaml, config_b"),
    ):
        for name in names:
            (tmp_path / name).touch()
        with pytest.raises(OptionError, match=got):
            load_model(path, data=tmp_path)
    assert MINI.is_dir() and not (MINI / "config.yaml").exists()  # its only one is found
    with pytest.raises(OptionError, match="config_yaml"):
        find_bundle(MINI / "checkpoint.pt", tiny.parent)
    for options in ({"data": tiny}, {"config_yaml": "config.yaml"}):
        with pytest.raises(OptionError, match="expected a Fairseq checkpoint with its data"):
            find_bundle(tiny_bundle, **options)  # type: ignore[arg-type]


def test_a_bundle_without_its_manifest_is_damaged(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(tiny_bundle / "encoder.xml", tmp_path / "encoder.xml")
    assert cli.main(["transcribe", "x.wav", "--model", str(tmp_path)]) == 3
    assert "expected a readable manifest.json" in capsys.readouterr().err


def test_languages_are_openai_s() -> None:
    from whisper import tokenizer

    assert list(LANGUAGES.items()) == list(tokenizer.LANGUAGES.items())
    assert CODES == tokenizer.TO_LANGUAGE_CODE
    for text in ("en", "EN", "English", "en-US", "en_US", " english "):
        assert language_code(text) == "en"
    assert language_code("Haitian Creole") == "ht" and language_code("zh-Hant-TW") == "zh"
    assert language_code("klingon") == "klingon"


def test_languages_by_name(source: Path, tmp_path: Path) -> None:
    model: Any = load_model(source / "small", cache_dir=source / "cache")
    clip = model.read(tone(tmp_path / "x.wav"))
    for language in ("German", "de-AT", "DE"):
        (found,) = model.transcribe_clips([clip], beam=1, max_tokens=2, language=language)
        assert found.language == "de"
    with pytest.raises(OptionError, match="one of de, en, zh, got 'klingon'"):
        model.transcribe_clips([clip], language="klingon")
    options = model.options()
    assert model.family.language("German", options) == "de"


def test_distilled_models_warn_once_before_they_translate(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from dataclasses import replace

    bundle = find_bundle(source / "small", cache_dir=source / "cache")
    assert bundle.manifest.whisper is not None and bundle.manifest.whisper.translates
    distilled = replace(bundle.manifest.whisper, translates=False)
    model: Any = load_model(Bundle(bundle.directory, replace(bundle.manifest, whisper=distilled)))
    clip = model.read(tone(tmp_path / "x.wav"))
    with caplog.at_level(logging.WARNING):
        model.transcribe_clips([clip], beam=1, max_tokens=2)
        assert "not trained to translate" not in caplog.text
        for _ in range(2):
            model.transcribe_clips([clip], beam=1, max_tokens=2, task="translate")
    assert caplog.text.count("not trained to translate") == 1


@pytest.mark.soak
def test_fairseq_generate_takes_a_checkpoint_directory(source: Path, tmp_path: Path) -> None:
    from conftest import generate

    clip = tone(tmp_path / "x.wav")
    (tmp_path / "test.tsv").write_text(f"id\taudio\nx\t{clip}\n")
    run = generate(
        tmp_path, "--task", "speech_to_text_openvino", "--beam", "2", "--max-len-b", "4",
        "--ov-cache-dir", str(source / "cache"), path=str(source / "small"),
    )  # fmt: skip
    model = load_model(source / "small", cache_dir=source / "cache")
    assert run.hypotheses[0][0].text == model.transcribe(clip, beam=2, max_tokens=4).text
