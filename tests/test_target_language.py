"""A target language in `fairseq-generate`, `fairseq-interactive` and `predict`, and the hub interface."""

from __future__ import annotations

import contextlib
import inspect
import io
import runpy
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from conftest import (
    MINI,
    PACKAGE,
    ROOT,
    TINY,
    Shared,
    assert_identical,
    generate,
    generate_both,
    mini_data,
    write_checkpoint,
    write_data,
)

from fairseq_openvino.errors import AudioError, OptionError

LANGUAGES = ("de", "fr")
FLAGS = ("--beam", "3", "--max-len-b", "8", "--lenpen", "0.7", "--batch-size", "1")
PREPENDED, APPENDED = "prepend_tgt_lang_tag", "prepend_bos_and_append_tgt_lang_tag"


def multilingual(directory: Path, setting: str) -> Path:
    """A data directory of a tiny random model with tags; `test` says no language, `french` does."""
    write_checkpoint(directory, "s2t_transformer_s", vocabulary=60, **TINY)
    write_data(directory, utterances=5, frames=(30, 120))
    symbols = (directory / "dict.txt").read_text()
    for language, symbol in zip(LANGUAGES, ("t50", "t51"), strict=True):
        symbols = symbols.replace(f"{symbol} ", f"<lang:{language}> ")
    (directory / "dict.txt").write_text(symbols)
    with open(directory / "config.yaml", "a") as config:
        config.write(f"{setting}: true\n")
    header, *rows = (directory / "test.tsv").read_text().splitlines()
    lines = [header + "\ttgt_lang", *(f"{row}\tfr" for row in rows)]
    (directory / "french.tsv").write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture(scope="session")
def tagged(shared: Shared) -> Path:
    return shared("tagged", lambda directory: multilingual(directory, PREPENDED))


def interactive(data: Path, lines: list[str], *flags: str, config: str = "config.yaml") -> Any:
    """Run fairseq-interactive in this process."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli.interactive import main

    import fairseq_openvino.tasks.speech_to_text_openvino  # noqa: F401  --user-dir does this
    from fairseq_openvino.commands.verify import parse_generate

    output = io.StringIO()
    with tempfile.NamedTemporaryFile("w") as typed, pytest.MonkeyPatch.context() as patch:
        typed.write("".join(f"{line}\n" for line in lines))
        typed.flush()
        words = [
            str(data), "--config-yaml", config, "--task", "speech_to_text", "--path",
            str(data / "checkpoint.pt"), "--user-dir", str(PACKAGE), "--input", typed.name, *flags,
        ]  # fmt: skip
        patch.setattr(sys, "argv", ["fairseq-interactive", *words])
        arguments = options.parse_args_and_arch(options.get_interactive_generation_parser(), words)
        with contextlib.redirect_stdout(output):
            inspect.unwrap(main)(convert_namespace_to_omegaconf(arguments))
    return parse_generate(output.getvalue())


def features_of(data: Path) -> list[str]:
    rows = (data / "test.tsv").read_text().splitlines()[1:]
    return [row.split("\t")[1] for row in rows]


def texts(run: Any) -> list[str]:
    return [run.hypotheses[i][0].text for i in sorted(run.hypotheses)]


@pytest.mark.soak
def test_generate_in_a_language_that_the_manifest_does_not_say(
    tagged: Path, cache_dir: Path
) -> None:
    french = generate(tagged, *FLAGS, "--gen-subset", "french", "--prefix-size", "1")
    assert_identical(french, generate(tagged, *FLAGS, "--ov-tgt-lang", "fr"))
    engine = ("--ov-engine", "--ov-cache-dir", str(cache_dir))
    assert_identical(french, generate(tagged, *FLAGS, "--ov-tgt-lang", "fr", *engine))
    german = generate(tagged, *FLAGS, "--gen-subset", "french", "--ov-tgt-lang", "de", *engine)
    assert texts(german) != texts(french)
    typed = interactive(tagged, features_of(tagged), *FLAGS, "--ov-tgt-lang", "fr", *engine)
    assert texts(typed) == texts(french)


def test_typing_in_a_language(tagged: Path) -> None:
    lines, flags = features_of(tagged), (*FLAGS, "--ov-tgt-lang")
    typed = interactive(tagged, [lines[0], "", "none.wav", lines[1]], *flags, "fr")
    french = generate(tagged, *FLAGS, "--gen-subset", "french", "--prefix-size", "1")
    assert [typed.hypotheses[i][0].text for i in (0, 3)] == texts(french)[:2]
    assert typed.hypotheses.keys() == {0, 3}  # one bad line ends nothing


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--ov-tgt-lang xx", r"in tgt_lang: expected one of de, fr, got 'xx'"),
        ("", r"languages that the dictionary has a tag for, got ''"),
    ],
)
def test_languages_that_there_are_not(tagged: Path, flags: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        generate(tagged, *FLAGS, "--prefix-size", "1", *flags.split())


@pytest.mark.soak
def test_a_model_that_knows_no_languages(tiny: Path, tagged: Path) -> None:
    with pytest.raises(OptionError, match="expected a data configuration with prepend_tgt_lang"):
        generate(tiny, "--ov-tgt-lang", "de")
    with pytest.raises(OptionError, match="expected the language to write, got none"):
        interactive(tagged, features_of(tagged)[:1], "--prefix-size", "1")


@pytest.mark.soak
def test_a_language_that_ends_a_hypothesis(tmp_path: Path) -> None:
    data, cache = multilingual(tmp_path, APPENDED), tmp_path / "cache"
    stated = ("--gen-subset", "french", "--eos-token", "<lang:fr>")
    french = generate(data, *FLAGS, *stated)
    words = (*FLAGS, "--ov-tgt-lang", "fr")
    for each in generate_both(data, cache, *words, "--gen-subset", "french"):
        assert_identical(french, each)
    typed = interactive(
        data, features_of(data), *words, "--ov-engine", "--ov-cache-dir", str(cache)
    )
    assert texts(typed) == texts(french)


@pytest.mark.soak
@pytest.mark.parametrize("engine", [{}, {"ov_engine": True}], ids=["eager", "engine"])
def test_predict_in_a_language(tagged: Path, cache_dir: Path, engine: dict[str, Any]) -> None:
    from fairseq.models.speech_to_text import S2TTransformerModel

    stated = {"user_dir": str(PACKAGE), "ov_cache_dir": str(cache_dir), **engine}
    options = {"beam": 3, "max_len_b": 8, "lenpen": 0.7}
    model = S2TTransformerModel.from_pretrained(
        str(tagged), "checkpoint.pt", str(tagged), generation_args=options, **stated
    )
    lines = features_of(tagged)[:2]
    for language in ("fr", "de", "fr"):
        expected = generate(tagged, *FLAGS, "--ov-tgt-lang", language)
        found = [model.predict(line, tgt_lang=language) for line in lines]
        assert found == texts(expected)[:2]
    with pytest.raises(OptionError, match="expected one of de, fr, got 'it'"):
        model.predict(lines[0], tgt_lang="it")
    assert type(model.generator).__name__ == (
        "OpenVINOGenerator" if engine else "SequenceGenerator"
    )


@pytest.mark.soak
def test_the_example_of_predict(
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clips = sorted((MINI / "clips").glob("*.mp3"))[:2]
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir))
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, clips)])
    found = runpy.run_path(str(ROOT / "examples" / "predict.py"))
    written = capsys.readouterr().out.splitlines()
    run = generate(mini_data(tmp_path, clips), "--beam", "5")
    assert written[-2:] == [run.hypotheses[i][0].text for i in (0, 1)]
    with pytest.raises(AudioError, match=r"absent\.wav"):
        found["model"].predict("absent.wav")


def test_typed_audio_is_resampled(tmp_path: Path) -> None:
    from fairseq_openvino.plugin.task import SpeechToTextTask

    arguments = Namespace(data=str(MINI), config_yaml="config_st_en_de.yaml")
    task = SpeechToTextTask.setup_task(arguments)
    wave = np.random.default_rng(0).normal(0, 0.1, 44_100).astype(np.float32)
    paths = [str(tmp_path / f"{name}.wav") for name in ("any", "own")]
    soundfile.write(paths[0], wave, 44_100)
    soundfile.write(paths[1], soxr.resample(wave, 44_100, 16_000), 16_000)
    dataset = task.build_dataset_for_inference(paths, [100, 100])
    found, expected = (dataset[i].source for i in (0, 1))
    assert found.shape == expected.shape == (98, 80)
    assert (found - expected).abs().max() < 0.02
