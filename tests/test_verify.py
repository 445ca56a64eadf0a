"""`verify`: what it refuses to compare, and how it ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import PACKAGE

from fairseq_openvino import cli
from fairseq_openvino.commands import verify
from fairseq_openvino.commands.verify import (
    Line,
    Run,
    compare,
    parse_generate,
    report,
    run_generate,
)
from fairseq_openvino.errors import FairseqOpenVINOError


def run(*numbers: int, skipped: int = 0) -> Run:
    found = {number: [Line("x", -1.0, "x")] for number in numbers}
    return Run(found, {}, "", 1.0, 3, skipped)


def test_nothing_compared_is_not_passed() -> None:
    assert not compare(run(), run()).passed
    assert compare(run(0), run(0)).passed


def test_skipped_utterances_are_said_and_the_others_compared() -> None:
    eager, engine = run(0, 2, skipped=1), run(0, 2, skipped=1)
    comparison = compare(eager, engine)
    assert not comparison.passed and comparison.identical == 2
    text = report(eager, engine, comparison)
    assert "identical n-best lists: 2 of 2\nskipped utterances: 1 eager, 1 OpenVINO" in text
    assert compare(run(0, 2), run(0)).first_difference == (
        "utterance 2, rank 1:\n  eager    x\n  OpenVINO (none)"
    )


def test_the_first_difference_and_both_deltas_are_told() -> None:
    a = Run({0: [Line("x y", -1.0, "")], 1: [Line("z", -2.0, "")]}, {}, "BLEU = 50.0 ", 1.0, 3)
    b = Run({0: [Line("x y", -1.1, "")], 1: [Line("w", -2.0, "")]}, {}, "BLEU = 40.5 ", 1.0, 3)
    comparison = compare(a, b)
    assert not comparison.passed and comparison.identical == 1
    assert comparison.metric_delta == -9.5 and abs(comparison.score_delta - 0.1) < 1e-9
    assert "utterance 1" in (comparison.first_difference or "")


def test_symbols_may_hold_line_separators() -> None:
    found = parse_generate("H-0\t-1.0\ta\u2028b c\x85d\nD-0\t-1.0\ta\u2028b\x85\n")
    assert found.hypotheses[0][0].tokens == "a\u2028b c\x85d"
    assert found.hypotheses[0][0].text == "a\u2028b\x85"


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ([], 2, "--path"),
        (["data"], 2, "--path"),
        (["data", "--path", "CHECKPOINT", "--quiet"], 2, "--quiet"),
        (["data", "--path", "CHECKPOINT", "--qui"], 2, "--quiet"),
        (["data", "--path=CHECKPOINT", "--results-path=there"], 2, "--results-path"),
        (["data", "--pat=CHECKPOINT", "--results-p", "there"], 2, "--results-path"),
        (["data", "--path", "CHECKPOINT", "--ov-engine"], 2, "--ov-engine"),
        (["data", "--path", "CHECKPOINT:absent.pt"], 3, "absent.pt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_has_the_exit_code_of_the_readme(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], code: int, named: str
) -> None:
    (tmp_path / "x.pt").write_bytes(b"x")
    given = [word.replace("CHECKPOINT", str(tmp_path / "x.pt")) for word in words]
    assert cli.main(["verify", *given]) == code
    assert named in capsys.readouterr().err


def verified(tiny: Path, directory: Path, *rows: str) -> Path:
    """The tiny model's data directory with two utterances and these rows."""
    copy = directory / "data"
    shutil.copytree(tiny, copy, ignore=shutil.ignore_patterns("features"))
    lines = (copy / "test.tsv").read_text().splitlines()[:3]
    (copy / "test.tsv").write_text("\n".join([*lines, *rows]) + "\n")
    return copy


def arguments(data: Path, cache_dir: Path, *flags: str) -> list[str]:
    return [
        str(data), "--task", "speech_to_text", "--path", str(data / "checkpoint.pt"),
        "--max-tokens", "5000", "--max-len-b", "9", "--num-workers", "0", "--ov-cache-dir",
        str(cache_dir), *flags,
    ]  # fmt: skip


def test_the_exit_code_says_whether_both_agree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for engine, code in ((run(0, 1), 0), (run(0), 1)):
        monkeypatch.setattr(verify, "generate_twice", lambda _, engine=engine: (run(0, 1), engine))
        assert cli.main(["verify", "data"]) == code
        assert f"identical n-best lists: {2 - code} of 2" in capsys.readouterr().out


@pytest.mark.soak
def test_two_runs_that_agree_pass(
    tiny: Path, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    data = verified(tiny, tmp_path)
    assert cli.main(["verify", *arguments(data, cache_dir, "--nbest", "5")]) == 0
    printed = capsys.readouterr()
    assert "identical n-best lists: 2 of 2\nlargest score" in printed.out and not printed.err


@pytest.mark.soak
def test_one_unreadable_clip_does_not_hide_the_others(
    tiny: Path, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF not a wave file")
    data = verified(tiny, tmp_path, f"b\t{tmp_path}/broken.wav\t40\tt1 t2\ts")
    assert cli.main(["verify", *arguments(data, cache_dir)]) == 1
    printed = capsys.readouterr()
    assert "identical n-best lists: 2 of 2\nskipped utterances: 1 eager, 1 OpenVINO" in printed.out
    assert not printed.err


@pytest.mark.soak
def test_the_exit_code_of_a_run_is_passed_on(tiny: Path) -> None:
    words = [str(tiny), "--path", str(tiny / "checkpoint.pt"), "--task", "speech_to_text"]
    words += ["--user-dir", str(PACKAGE), "--ov-engine", "--retain-dropout"]
    with pytest.raises(FairseqOpenVINOError, match="--retain-dropout") as error:
        run_generate(words)
    assert error.value.exit_code == 2
