"""The light door: features, batches, sessions, and equality with the plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import MINI, PACKAGE, ROOT, child_environment, generate

from fairseq_openvino import load_model
from fairseq_openvino.errors import (
    AudioError,
    BatchError,
    BundleError,
    ModelError,
    NumericsError,
    OptionError,
    UtteranceTooLongError,
)
from fairseq_openvino.export.fairseq import export_checkpoint
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.model import Ask, Head, Memory, Session
from fairseq_openvino.runtime.engine import Variant
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.s2t.search import TokenIds, decode_batch
from fairseq_openvino.speech.frontend import FilterBanks

CLIPS = sorted((MINI / "clips").glob("*.mp3"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint as a bundle."""
    path = tmp_path_factory.mktemp("mini") / "bundle"
    export_checkpoint(MINI / "checkpoint.pt", DataDirectory(MINI, "config_st_en_de.yaml"), path)
    return path


@pytest.fixture(scope="module")
def model(bundle: Path) -> Any:
    return load_model(bundle)


def encoded(model: Any, clip: Path) -> Memory:
    """One clip, alone."""
    features = model.read(clip).features
    memory: Memory = model.model.encode(features[None], np.array([len(features)]))
    return memory


def log_probs(session: Session, tokens: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """Of one call of a session without candidates, (R, l, V)."""
    order = np.arange(len(tokens)) if order is None else order
    return session.step(Ask(tokens, order)).scores.copy()


def test_features_equal_fairseqs_dataset(model: Any) -> None:
    from fairseq.data.audio.audio_utils import get_features_or_waveform
    from fairseq.data.audio.feature_transforms.utterance_cmvn import UtteranceCMVN

    import fairseq_openvino.tasks.speech_to_text_openvino  # noqa: F401  audio shims

    for clip in CLIPS[:20]:
        expected = UtteranceCMVN()(get_features_or_waveform(str(clip)))
        read = model.read(clip)
        found, seconds = read.features, read.seconds
        assert found.shape == expected.shape and seconds > 0.3
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_hypotheses_equal_the_plugins(model: Any, bundle: Path) -> None:
    run = generate(
        MINI, "--gen-subset", "test_st_en_de", "--batch-size", "1", "--beam", "5", "--nbest", "3",
        config="config_st_en_de.yaml", path=str(bundle),
    )  # fmt: skip
    found = model.transcribe_batch(CLIPS[:24], beam=5, nbest=3)
    names = [
        row.split("\t")[1] for row in (MINI / "test_st_en_de.tsv").read_text().splitlines()[1:]
    ]
    index = {Path(name).name: i for i, name in enumerate(names)}
    for transcript in found:
        lines = run.hypotheses[index[Path(transcript.path).name]]
        assert [text for text, _ in transcript.hypotheses] == [line.text for line in lines]
        for (_, hypothesis), line in zip(transcript.hypotheses, lines, strict=True):
            assert abs(hypothesis.score - line.score) < 1e-3


def test_results_do_not_depend_on_the_batch(model: Any) -> None:
    together = model.transcribe_batch(CLIPS[:12], nbest=5)
    for path, transcript in zip(CLIPS[:12], together, strict=True):
        alone = model.transcribe(path, nbest=5)
        assert [h.tokens.tolist() for _, h in alone.hypotheses] == [
            h.tokens.tolist() for _, h in transcript.hypotheses
        ]
        assert abs(alone.score - transcript.score) < 1e-4


def test_repeated_and_interleaved_sessions_are_independent(model: Any) -> None:
    memory = [encoded(model, clip) for clip in CLIPS[:2]]
    tokens = np.full((2, 1), 2)

    def alone(i: int) -> list[np.ndarray]:
        with model.model.open(memory[i], 2, Head()) as session:
            return [log_probs(session, tokens + step) for step in range(5)]

    expected = [alone(0), alone(1)]
    with (
        model.model.open(memory[0], 2, Head()) as a,
        model.model.open(memory[1], 2, Head()) as b,
    ):
        for step in range(5):
            for i, session in enumerate((a, b)):
                np.testing.assert_array_equal(log_probs(session, tokens + step), expected[i][step])


@pytest.mark.parametrize("precision", ["bf16", "int8", "fast"])
def test_low_precision_keeps_the_translations(model: Any, bundle: Path, precision: str) -> None:
    low = load_model(bundle, precision=precision)
    expected = [t.text for t in model.transcribe_batch(CLIPS[:40])]
    found = [t.text for t in low.transcribe_batch(CLIPS[:40])]
    assert sum(a == b for a, b in zip(expected, found, strict=True)) >= 36


def test_parallel_parts_give_the_result_of_one_request(model: Any) -> None:
    """The whole batch keeps its padding, so splitting it changes no hypothesis."""
    features = [model.read(clip).features for clip in CLIPS[:24]]
    lengths = np.array([len(x) for x in features])
    batch = np.zeros((len(features), max(lengths), 80), np.float32)
    for row, x in zip(batch, features, strict=True):
        row[: len(x)] = x
    tokens = model.manifest.tokens
    ids = TokenIds(tokens.pad, tokens.eos, tokens.unk)
    split, single = (load_model(model.bundle, streams=streams).model for streams in (3, 1))
    assert (split.streams(24), single.streams(24)) == (3, 1)
    whole, parts = (
        decode_batch(each, batch, lengths, S2TOptions(), ids) for each in (single, split)
    )
    for a, b in zip(whole, parts, strict=True):
        assert [h.tokens.tolist() for h in a] == [h.tokens.tolist() for h in b]
        assert max(abs(x.score - y.score) for x, y in zip(a, b, strict=True)) < 1e-4


def test_a_session_that_raised_is_not_reused(model: Any) -> None:
    compiled, memory = model.model, encoded(model, CLIPS[0])
    start = np.full((2, 1), 2)
    with compiled.open(memory, 2, Head()) as session:
        expected = log_probs(session, start)
    variant = Variant("decoder", "f32", 1)
    before = compiled.engine.idle(variant)
    with pytest.raises(RuntimeError), compiled.open(memory, 2, Head()) as session:
        session.step(Ask(np.full((3, 1), 2), np.arange(3)))  # 3 rows are not 1 utterance of 2
        session.step(Ask(np.full((3, 1), 2), np.arange(5)))
    assert compiled.engine.idle(variant) == before - 1
    with compiled.open(memory, 2, Head()) as session:
        np.testing.assert_array_equal(log_probs(session, start), expected)


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 2e-5), ("bf16", 0.2), ("int8", 0.2)])
def test_keeping_utterances_continues_their_rows(
    bundle: Path, precision: str, tolerance: float
) -> None:
    model = load_model(bundle, precision=precision)
    memory = Memory.join([encoded(model, clip) for clip in CLIPS[:3]], model.manifest.memory)
    tokens = np.random.default_rng(0).integers(4, 100, (3, 6))
    with model.model.open(memory, 1, Head()) as session:
        full = [log_probs(session, tokens[:, i : i + 1]) for i in range(6)]
    with model.model.open(memory, 1, Head()) as session:
        for i in range(3):
            log_probs(session, tokens[:, i : i + 1])
        session.keep(np.array([0, 2]))
        rest = tokens[[0, 2]]
        found = [log_probs(session, rest[:, 3:4], np.array([0, 2]))]
        found += [log_probs(session, rest[:, i : i + 1]) for i in (4, 5)]
    for step, scores in enumerate(found, 3):
        np.testing.assert_allclose(scores, full[step][[0, 2]], atol=tolerance)
        assert np.abs(scores - full[step][[0, 1]]).max() > 2 * tolerance  # not another utterance


def test_several_tokens_in_one_call_equal_single_steps(model: Any) -> None:
    memory = encoded(model, CLIPS[0])
    tokens = np.random.default_rng(0).integers(4, 100, (2, 7))
    with model.model.open(memory, 2, Head()) as session:
        steps = [log_probs(session, tokens[:, i : i + 1]) for i in range(7)]
    with model.model.open(memory, 2, Head()) as session:
        found = np.concatenate(
            [log_probs(session, part) for part in (tokens[:, :4], tokens[:, 4:])], 1
        )
    np.testing.assert_allclose(found, np.concatenate(steps, 1), atol=2e-5)


def test_resampled_audio_gives_nearly_the_same_features(model: Any, tmp_path: Path) -> None:
    waveform, rate = soundfile.read(CLIPS[0], dtype="float32")
    import soxr

    up = soxr.resample(waveform, rate, 44_100)
    soundfile.write(tmp_path / "up.wav", np.stack([up, up], 1), 44_100, subtype="FLOAT")
    transcript = model.transcribe(tmp_path / "up.wav")
    assert transcript.text == model.transcribe(CLIPS[0]).text


def test_arrays_and_files_of_the_same_samples_give_the_same_result(
    model: Any, tmp_path: Path
) -> None:
    import soxr

    waveform, rate = soundfile.read(CLIPS[0], dtype="float32")
    for rate_hz in (rate, 44_100, 8_000):
        samples = np.clip(soxr.resample(waveform, rate, rate_hz) * 2**15, -(2**15), 2**15 - 1)
        array = samples.astype(np.int16)
        soundfile.write(tmp_path / "same.wav", array, rate_hz)
        clip, file = model.clip(array, rate_hz), model.read(tmp_path / "same.wav")
        assert np.array_equal(clip.features, file.features) and clip.seconds == file.seconds
        found = model.transcribe(array, rate_hz, beam=2)
        assert found.text == model.transcribe(tmp_path / "same.wav", beam=2).text
    assert np.array_equal(model.clip(waveform).features, model.clip(waveform, rate).features)
    assert model.transcribe(waveform.tolist()).text == model.transcribe(CLIPS[0]).text
    with open(CLIPS[0], "rb") as file:
        assert model.transcribe(file).text == model.transcribe(CLIPS[0]).text
    with pytest.raises(AudioError, match=r"got \(9, 2\)"):
        model.transcribe(np.zeros((9, 2)))
    with pytest.raises(OptionError, match="sample_rate_hz"):
        model.transcribe(CLIPS[0], 16_000)
    with pytest.raises(OptionError, match="in beams: expected an option of the model family 's2t'"):
        model.transcribe(CLIPS[0], beams=3)


def test_one_clip_that_fails_loses_no_other(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At every stage: reading, features, numbers of the model, and anything at all."""
    expected = [each.text for each in model.transcribe_batch(CLIPS[:3], beam=2)]
    paths = [tmp_path / f"{name}.wav" for name in ("nan", "bug", "short")]
    for path, samples in zip(paths, (4000, 4001, 99), strict=True):
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, samples), 16_000)
    front_end, encode = FilterBanks.__call__, CompiledModel.encode

    def broken(self: Any, waveform: np.ndarray, rate_hz: int) -> np.ndarray:
        found = front_end(self, waveform, rate_hz)
        return {4000: found * np.float32(np.nan), 4001: found * 0 + 7}.get(len(waveform), found)

    def fails(self: Any, features: np.ndarray, *rest: Any) -> Any:
        if (features == 7).all():
            raise KeyError("a bug")
        return encode(self, features, *rest)

    monkeypatch.setattr(FilterBanks, "__call__", broken)
    monkeypatch.setattr(CompiledModel, "encode", fails)
    audios = [CLIPS[0], paths[0], CLIPS[1], paths[1], tmp_path / "absent.wav", paths[2], CLIPS[2]]
    with caplog.at_level("DEBUG"), pytest.raises(BatchError, match="4 of 7 clips") as caught:
        model.transcribe_batch(audios, beam=2)
    results = caught.value.results
    assert [results[i].text for i in (0, 2, 6)] == expected
    assert isinstance(results[1], NumericsError) and "nan.wav: Decoding failed" in str(results[1])
    assert "'bug.wav'" not in str(results[3]) and "got KeyError: 'a bug'" in str(results[3])
    assert str(paths[1]) in str(results[3]) and 'raise KeyError("a bug")' in caplog.text
    assert "absent.wav" in str(results[4]) and "short.wav" in str(results[5])
    with pytest.raises(OptionError, match="in nbest: "):  # not a clip's failure
        model.transcribe_batch(audios, beam=2, nbest=3)


def test_a_damaged_file_says_so_in_its_transcript(model: Any, tmp_path: Path) -> None:
    waveform, rate = soundfile.read(CLIPS[0], dtype="float32")
    soundfile.write(tmp_path / "whole.wav", waveform, rate)
    content = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[:-8000])
    whole, cut = model.transcribe_batch([tmp_path / "whole.wav", tmp_path / "cut.wav"])
    assert whole.damage is None and cut.damage.startswith("0.25 s of ")


def test_too_short_too_long_and_empty_audio(model: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(100, np.float32), 16_000)
    with pytest.raises(AudioError, match=r"short.wav.*25 ms"):
        model.transcribe(tmp_path / "short.wav")
    soundfile.write(tmp_path / "long.flac", np.zeros(16_000 * 61, np.int16), 16_000)
    with pytest.raises(UtteranceTooLongError, match=r"long.flac.*6000 frames"):
        model.transcribe(tmp_path / "long.flac")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(AudioError, match=r"empty.wav"):
        model.transcribe(tmp_path / "empty.wav")
    frame = np.random.default_rng(0).standard_normal(16 * 26).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "frame.wav", frame, 16_000)
    assert model.transcribe(tmp_path / "frame.wav").score < 0  # one frame is enough to decode


def test_bad_options_and_features(model: Any) -> None:
    with pytest.raises(OptionError, match="in nbest: "):
        model.transcribe(CLIPS[0], beam=2, nbest=3)
    with pytest.raises(OptionError, match="in language: "):
        model.transcribe(CLIPS[0], language="fr")
    with pytest.raises(OptionError, match="in beam: "):
        model.transcribe(CLIPS[0], beam=0)
    with pytest.raises(ModelError, match="features"):
        model.model.encode(np.zeros((1, 50, 40), np.float32), np.array([50]))
    with pytest.raises(OptionError, match="in precision: "):
        load_model(model.bundle, precision="f8")
    with pytest.raises(BundleError):
        load_model(MINI)


def cli(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fairseq_openvino", *words], capture_output=True, text=True,
        env=child_environment(**environment),
    )  # fmt: skip


def test_transcribe_command(model: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    files = [str(CLIPS[0]), str(tmp_path / "bad.wav"), str(CLIPS[1])]
    done = cli("transcribe", *files, "--model", str(bundle), "--format", "jsonl", "--nbest", "2")
    assert done.returncode == 1 and "bad.wav" in done.stderr and "1 of 3 files" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in lines] == [files[0], files[2]]
    assert [len(line["hypotheses"]) for line in lines] == [2, 2]
    assert [line["text"] for line in lines] == [model.transcribe(CLIPS[i]).text for i in (0, 1)]
    text = cli("transcribe", files[0], "--model", str(bundle))
    assert text.returncode == 0 and text.stdout == f"{files[0]}\t{lines[0]['text']}\n"
    assert cli("transcribe", files[0], "--model", str(tmp_path)).returncode == 3
    assert cli("transcribe", files[0]).returncode == 2
    refused = cli("transcribe", files[0], "--model", str(bundle), "--nbest", "9")
    assert refused.returncode == 2 and "in --nbest: expected 1 to beam, 5, got 9" in refused.stderr


def test_transcribe_writes_every_name_and_says_what_is_damaged(
    model: Any, bundle: Path, tmp_path: Path
) -> None:
    """Names of bytes, tabs and line breaks, in a locale without UTF-8."""
    waveform, rate = soundfile.read(CLIPS[0], dtype="float32")
    soundfile.write(tmp_path / "whole.wav", waveform, rate)
    content = (tmp_path / "whole.wav").read_bytes()
    odd, tab = tmp_path / os.fsdecode(b"x\xff.wav"), tmp_path / "a\tb\nc.wav"
    odd.write_bytes(content)
    tab.write_bytes(content[:-8000])
    words = ["transcribe", odd, tmp_path / "absent.wav", tab, "--model", bundle]
    locale = {"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}
    for extra in (["--batch-size", "1"], ["--format", "jsonl"]):
        done = subprocess.run(
            [sys.executable, "-m", "fairseq_openvino", *words, *extra], capture_output=True,
            env=child_environment(**locale),
        )  # fmt: skip
        assert done.returncode == 1 and b"Traceback" not in done.stderr
        assert b"absent.wav" in done.stderr and b"are missing" in done.stderr
        assert b"1 of 3 files failed\n1 of 3 files are damaged" in done.stderr
        first, second = done.stdout.splitlines()
        if extra[0] == "--format":
            assert json.loads(first)["path"] == str(odd) and "damage" not in json.loads(first)
            found = json.loads(second)
            assert found["path"] == str(tab) and found["damage"].startswith("0.25 s of")
            assert "Schlüssel" in json.loads(first)["text"]
        else:
            assert first.split(b"\t")[0] == os.fsencode(odd) and "Schlüssel".encode() in first
            assert second.split(b"\t")[0].endswith(rb"a\tb\nc.wav")


def test_output_may_be_cut_as_by_head(bundle: Path) -> None:
    words = ["transcribe", *map(str, CLIPS[:4]), "--model", str(bundle), "--batch-size", "1"]
    run = subprocess.Popen(
        [sys.executable, "-m", "fairseq_openvino", *words], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=child_environment(),
    )  # fmt: skip
    assert run.stdout is not None and run.stderr is not None
    assert run.stdout.readline()
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait() == 141


def test_a_moved_bundle_runs_without_torch_and_fairseq(
    model: Any, bundle: Path, tmp_path: Path
) -> None:
    """A virtual environment with the runtime dependencies of setup.py and nothing else."""
    import re
    import shutil

    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    source = re.search(r"install_requires=\[(.*?)\]", (ROOT / "setup.py").read_text(), re.S)
    assert source
    requirements = re.findall(r'"([^"]+)"', source.group(1))
    constraints = str(ROOT / ".ci" / "constraints.txt")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", *requirements, "-c", constraints], check=True
    )
    shutil.copytree(PACKAGE, tmp_path / "site" / "fairseq_openvino")
    shutil.copytree(bundle, tmp_path / "moved")
    code = (
        "import sys, importlib.util\n"
        "assert not any(importlib.util.find_spec(m) for m in ('torch', 'fairseq', 'onnx'))\n"
        "from fairseq_openvino import load_model\n"
        "print(load_model(sys.argv[1]).transcribe(sys.argv[2], beam=5).text)"
    )
    done = subprocess.run(
        [python, "-c", code, tmp_path / "moved", CLIPS[3]], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == model.transcribe(CLIPS[3]).text


def test_verify_command_passes_and_names_the_first_difference(bundle: Path, tmp_path: Path) -> None:
    from fairseq_openvino.commands.verify import Line, Run, compare

    words = [
        str(MINI), "--config-yaml", "config_st_en_de.yaml", "--gen-subset", "test_st_en_de",
        "--task", "speech_to_text", "--path", str(MINI / "checkpoint.pt"), "--max-tokens", "50000",
        "--beam", "2", "--scoring", "sacrebleu", "--ov-model", str(bundle),
    ]  # fmt: skip
    done = cli("verify", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical n-best lists: 100 of 100" in done.stdout
    a = Run({0: [Line("x y", -1.0, "")], 1: [Line("z", -2.0, "")]}, {}, "BLEU = 50.0 ", 1.0, 3)
    b = Run({0: [Line("x y", -1.1, "")], 1: [Line("w", -2.0, "")]}, {}, "BLEU = 40.5 ", 1.0, 3)
    comparison = compare(a, b)
    assert not comparison.passed and comparison.identical == 1
    assert comparison.metric_delta == -9.5 and abs(comparison.score_delta - 0.1) < 1e-9
    assert "utterance 1" in (comparison.first_difference or "")
