"""`fairseq-generate` and `fairseq-interactive` as processes: several at once, and how they end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import (
    MINI,
    PACKAGE,
    child_environment,
    generate,
    mini_data,
)

from fairseq_openvino.bundle import is_bundle

CLIPS = sorted((MINI / "clips").glob("*.mp3"))


def run(
    name: str, data: Path, *flags: str, user_dir: str = str(PACKAGE), **options: Any
) -> subprocess.Popen[str]:
    """`fairseq-generate` or `-interactive` with the engine, as a user starts it."""
    words = [
        sys.executable, "-W", "ignore", "-m", f"fairseq_cli.{name}", str(data), "--task",
        "speech_to_text", "--path", str(data / "checkpoint.pt"), "--max-tokens", "50000", "--beam", "2",
        "--max-len-b", "9", "--scoring", "sacrebleu", "--user-dir", user_dir, "--ov-engine", *flags,
    ]  # fmt: skip
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        **{"env": child_environment()} | options,
    )  # fmt: skip


def hypotheses(output: str) -> dict[str, str]:
    """`D-` lines by number."""
    lines = [line.split("\t") for line in output.splitlines() if line.startswith("D-")]
    return {number: text for number, _, text in lines}


def test_unreadable_clip_loses_only_itself(tiny: Path, cache_dir: Path, tmp_path: Path) -> None:
    """Read by worker processes, of which the command learns."""
    data = tmp_path / "data"
    shutil.copytree(tiny, data, ignore=shutil.ignore_patterns("features"))
    (data / "broken.wav").write_bytes(b"RIFF not a wave file")
    soundfile.write(data / "good.wav", np.random.randn(16000) * 0.1, 16000)
    rows = (data / "test.tsv").read_text().splitlines()[:9]
    rows += [f"b\t{data}/broken.wav\t70\tt1 t2\ts", f"g\t{data}/good.wav\t98\tt1 t2\ts"]
    (data / "test.tsv").write_text("\n".join(rows) + "\n")
    done = run("generate", data, "--num-workers", "2", "--ov-cache-dir", str(cache_dir))
    output = "".join(done.communicate())
    assert done.returncode == 1, output
    eager = generate(data, "--beam", "2", "--max-len-b", "9")
    expected = {f"D-{number}": lines[0].text for number, lines in eager.hypotheses.items()}
    assert len(expected) == 9 and hypotheses(output) == expected and "Generate test" in output
    assert "broken.wav" in output and "1 utterances were skipped" in output


@pytest.mark.fault
def test_several_processes_share_one_export(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    runs = [run("generate", tiny, "--ov-cache-dir", str(cache)) for _ in range(2)]
    outputs = ["".join(each.communicate()) for each in runs]
    for each, output in zip(runs, outputs, strict=True):
        assert each.returncode == 0, output[-1500:]
    assert sum("exporting" in output for output in outputs) == 1
    assert hypotheses(outputs[0]) == hypotheses(outputs[1]) and len(hypotheses(outputs[0])) == 21
    (bundle,) = (path for path in (cache / "bundles").iterdir() if path.is_dir())
    assert is_bundle(bundle) and not list(bundle.glob("*.onnx"))


@pytest.mark.soak
def test_user_dir_resolves_by_bare_name_from_site_packages(
    tiny: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A copy of Fairseq's folder layout: site-packages/fairseq beside site-packages/plugin."""
    import fairseq

    site = tmp_path / "site-packages"
    site.mkdir()
    for name in ("fairseq", "fairseq_cli"):  # Fairseq looks for plugins in its own parent directory
        (site / name).mkdir()
        for part in (Path(fairseq.__file__).parent.parent / name).iterdir():
            os.symlink(part, site / name / part.name)
    shutil.copytree(PACKAGE, site / "fairseq_openvino")
    done = run(
        "generate", tiny, "--ov-model", str(tiny_bundle), user_dir="fairseq_openvino", cwd=tmp_path,
        env=child_environment(PYTHONPATH=str(site)),
    )  # fmt: skip
    output, error = done.communicate()
    assert done.returncode == 0, error[-800:]
    assert "Generate test" in output


def test_interactive_goes_on_after_bad_inputs(mini_bundle: Path, tmp_path: Path) -> None:
    clips = CLIPS[:2]
    data = mini_data(tmp_path, clips)
    expected = generate(data, "--beam", "2", "--max-len-b", "9", "--batch-size", "1")
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write(data / "rate.wav", samples[:100], 8_000)
    soundfile.write(data / "short.wav", samples[:100], 16_000)
    soundfile.write(data / "long.wav", np.tile(samples, 5), 16_000)
    soundfile.write(data / "whole.wav", samples, 16_000)
    (data / "cut.wav").write_bytes((data / "whole.wav").read_bytes()[:-9000])
    bad = [data / f"{name}.wav" for name in ("absent", "rate", "short", "long", "cut")]
    lines = [*bad[:3], clips[0], *bad[3:], clips[1]]  # three at a time
    done = run(
        "interactive", data, "--max-source-positions", "400", "--buffer-size", "3", "--ov-model",
        str(mini_bundle),
    )  # fmt: skip
    output, error = done.communicate("".join(f"{line}\n" for line in lines))
    assert done.returncode == 1 and "Traceback" not in output + error, error[-2000:]
    found = hypotheses(output)
    assert list(found) == ["D-3", "D-5", "D-6"]
    assert [found["D-3"], found["D-6"]] == [expected.hypotheses[i][0].text for i in (0, 1)]
    assert "4 utterances were skipped" in error and "1 utterances were damaged" in error
    for path in bad:
        assert path.name in error


def test_what_fairseq_misses_is_one_line(tiny: Path, tmp_path: Path) -> None:
    for name in ("checkpoint.pt", "test.tsv", "config.yaml"):
        (tmp_path / name).symlink_to(tiny / name)
    done = run("generate", tmp_path)
    _, error = done.communicate()
    assert done.returncode == 3
    assert "Traceback" not in error and "error: Dict not found" in error
