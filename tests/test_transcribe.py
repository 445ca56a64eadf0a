"""`fairseq-openvino transcribe`: what it prints, how it ends, and what it needs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import MINI, PACKAGE, ROOT, child_environment
from media_files import encoded

from fairseq_openvino import cli
from fairseq_openvino.speech.audio import read_audio

CLIPS = sorted((MINI / "clips").glob("*.mp3"))


def test_transcribe_command(
    recognizer: Any, mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    files = [str(CLIPS[0]), str(tmp_path / "bad.wav"), str(CLIPS[1])]
    model = ["--model", str(mini_bundle)]
    assert cli.main(["transcribe", *files, *model, "--format", "jsonl", "--nbest", "2"]) == 1
    printed = capsys.readouterr()
    assert "bad.wav" in printed.err and "1 of 3 files" in printed.err
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["path"] for line in lines] == [files[0], files[2]]
    assert [len(line["hypotheses"]) for line in lines] == [2, 2]
    expected = [recognizer.transcribe(CLIPS[i]).text for i in (0, 1)]
    assert [line["text"] for line in lines] == expected
    assert cli.main(["transcribe", files[0], *model]) == 0
    assert capsys.readouterr().out == f"{files[0]}\t{expected[0]}\n"
    assert cli.main(["transcribe", files[0], "--model", str(tmp_path)]) == 3
    assert cli.main(["transcribe", files[0], *model, "--nbest", "9"]) == 2
    assert "in --nbest: expected 1 to beam, 5, got 9" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["transcribe", files[0]])


def test_transcribe_writes_every_name_and_says_what_is_damaged(
    recognizer: Any, mini_bundle: Path, tmp_path: Path
) -> None:
    """Names of bytes, tabs and line breaks, in a locale without UTF-8."""
    waveform, rate = soundfile.read(CLIPS[0], dtype="float32")
    soundfile.write(tmp_path / "whole.wav", waveform, rate)
    content = (tmp_path / "whole.wav").read_bytes()
    odd, tab = tmp_path / os.fsdecode(b"x\xff.wav"), tmp_path / "a\tb\nc.wav"
    odd.write_bytes(content)
    tab.write_bytes(content[:-8000])
    words = ["transcribe", odd, tmp_path / "absent.wav", tab, "--model", mini_bundle]
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


def test_transcribe_takes_directories_pipes_channels_and_strictness(
    recognizer: Any, mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Text is that of the same samples, whatever they come in."""
    left, right = (read_audio(clip, 16_000)[0] for clip in CLIPS[:2])
    both = np.zeros((max(len(left), len(right)), 2), np.float32)
    both[: len(left), 0], both[: len(right), 1] = left, right
    flac, mka = tmp_path / "a.flac", tmp_path / "b.mka"
    soundfile.write(flac, both, 16_000, "PCM_24")
    mka.write_bytes(encoded(soundfile.read(flac, dtype="float32")[0], "matroska", "pcm_f32le"))
    texts = [recognizer.transcribe(both[:, i].copy(), 16_000).text for i in (0, 1)]
    words = ["--model", str(mini_bundle), "--channel"]

    def printed(*arguments: str, code: int = 0) -> list[str]:
        assert cli.main(["transcribe", *arguments]) == code
        return capsys.readouterr().out.splitlines()

    expected = [f"{path}#{i}\t{text}" for path in (flac, mka) for i, text in enumerate(texts)]
    assert printed(str(tmp_path), *words, "split") == expected
    assert printed(f"{tmp_path}/*.mka", *words, "1", "--isolate-audio") == [f"{mka}\t{texts[1]}"]
    with subprocess.Popen(["cat", mka], stdout=subprocess.PIPE, text=True) as cat:
        monkeypatch.setattr(sys, "stdin", cat.stdout)
        assert printed("-", *words, "0") == [f"-\t{texts[0]}"]
    mka.write_bytes(mka.read_bytes()[:-9000])
    strict = ["--strict-audio", *words, "1"]
    assert printed(str(tmp_path), *strict, code=1) == [f"{flac}\t{texts[1]}"]
    (tmp_path / "empty").mkdir()
    assert not printed(str(tmp_path / "empty"), *words, "mix", code=2)


def test_output_may_be_cut_as_by_head(mini_bundle: Path) -> None:
    words = ["transcribe", *map(str, CLIPS[:4]), "--model", str(mini_bundle), "--batch-size", "1"]
    run = subprocess.Popen(
        [sys.executable, "-m", "fairseq_openvino", *words], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=child_environment(),
    )  # fmt: skip
    assert run.stdout is not None and run.stderr is not None
    assert run.stdout.readline()
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait() == 141


@pytest.mark.soak
def test_a_moved_bundle_runs_without_torch_and_fairseq(
    recognizer: Any, mini_bundle: Path, tmp_path: Path
) -> None:
    """A virtual environment with the runtime dependencies of setup.py and nothing else."""
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
    shutil.copytree(mini_bundle, tmp_path / "moved")
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
    assert done.stdout.strip() == recognizer.transcribe(CLIPS[3]).text
