"""`fairseq-generate --ov-resume`: stopped anywhere and repeated, it prints what an undisturbed run prints."""

from __future__ import annotations

import io
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGE
from test_translation import tiny_text  # noqa: F401  a fixture

from fairseq_openvino.errors import EXIT_OK
from fairseq_openvino.runtime.model import CompiledModel

SEED = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "1"))
PRINTED = ("S-", "T-", "H-", "D-", "P-", "Generate ")
SPEECH = ("--task", "speech_to_text", "--config-yaml", "config.yaml", "--ov-engine")
TEXT = ("--task", "translation", "--ov-engine")


def printed(output: str) -> list[str]:
    """All but what tells times."""
    return [line for line in output.splitlines() if line.startswith(PRINTED)]


def generate(data: Path, *flags: str) -> tuple[int, list[str]]:
    """`fairseq-generate` in this process, as its command ends: exit code and what it prints."""
    import fairseq_cli.generate
    from fairseq import options

    import fairseq_openvino.tasks.speech_to_text_openvino  # noqa: F401  --user-dir does this
    from fairseq_openvino.plugin import commands, skipping

    words = [
        str(data), "--path", str(data / "checkpoint.pt"), "--user-dir", str(PACKAGE),
        "--scoring", "sacrebleu", "--gen-subset", "test", "--max-len-b", "12", "--num-workers", "0",
        "--no-progress-bar", "--batch-size", "4", "--required-batch-size-multiple", "1", *flags,
    ]  # fmt: skip
    output, main = io.StringIO(), fairseq_cli.generate.main
    skipping.skipped.value = skipping.damaged.value = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.setattr(sys, "argv", ["fairseq-generate", *words])
        parser = options.get_generation_parser()
        parser.add_argument("--arch", default="wav2vec2")
        arguments = options.parse_args_and_arch(parser, input_args=words)
        try:
            commands.guarded(getattr(main, "__wrapped__", main))(arguments)
        except SystemExit as end:
            return int(end.code or 0), printed(output.getvalue())
        finally:
            skipping.skipped.value = skipping.damaged.value = 0
    return EXIT_OK, printed(output.getvalue())


@contextmanager
def encoding(at: Callable[[int], None] = lambda number: None) -> Iterator[list[int]]:
    """Utterances of each call of the encoder, of which `at` sees the number first."""
    encode, calls = CompiledModel.encode, list[int]()

    def counted(self: Any, features: Any, *args: Any, **named: Any) -> Any:
        calls.append(len(features))
        at(len(calls))
        return encode(self, features, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledModel, "encode", counted)
        yield calls


def stopped(call: int) -> Callable[[int], None]:
    def at(number: int) -> None:
        if number == call:
            raise KeyboardInterrupt

    return at


def damaged(path: Path, chance: random.Random) -> int:
    """Cut the last line and flip a bit in another; how many records are left."""
    lines = path.read_bytes().splitlines(keepends=True)
    place = chance.randrange(len(lines) - 1)
    hit = bytearray(lines[place])
    hit[chance.randrange(len(hit) - 1)] ^= 1 << chance.randrange(3)
    lines[place], lines[-1] = bytes(hit), lines[-1][: chance.randrange(1, len(lines[-1]))]
    path.write_bytes(b"".join(lines))
    return len(lines) - 2


def check_goes_on(data: Path, directory: Path, *flags: str, stops: int = 1) -> None:
    """Stop, resume, damage the journal, resume."""
    resumed, chance = (*flags, "--ov-resume", str(directory)), random.Random(SEED)
    with encoding() as calls:
        wanted = generate(data, *flags)
    assert wanted[0] == EXIT_OK and len(wanted[1]) > 2 and len(calls) > 3
    for _ in range(stops):
        stop = chance.randrange(2, len(calls))
        with encoding(stopped(stop)):
            generate(data, *resumed)
        with encoding() as after:
            assert generate(data, *resumed) == wanted, f"stop {stop}, seed {SEED}"
        assert len(after) < len(calls)
        (path,) = directory.glob("*.jsonl")
        lines = path.read_bytes().splitlines()
        kept = damaged(path, chance)
        with encoding() as after:
            assert generate(data, *resumed) == wanted, f"seed {SEED}"
        assert 0 < len(after) <= len(calls) * (1 - kept / len(lines)) + 1e-9
        with encoding() as after:
            assert generate(data, *resumed) == wanted
        assert not after
        shutil.rmtree(directory)


def test_a_stopped_run_goes_on(tiny: Path, cache_dir: Path, tmp_path: Path) -> None:
    flags = (*SPEECH, "--beam", "2", "--ov-cache-dir", str(cache_dir))
    check_goes_on(tiny, tmp_path / "resume", *flags)


@pytest.mark.fault
@pytest.mark.parametrize(
    "flags",
    [
        ("--beam", "5", "--nbest", "5"),
        ("--beam", "2", "--sampling", "--sampling-topk", "5", "--seed", "3"),
        ("--beam", "4", "--diverse-beam-groups", "2"),
        ("--beam", "2", "--prefix-size", "2"),
        ("--score-reference",),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("task", ["speech", "text"])
def test_every_generator_goes_on(
    request: pytest.FixtureRequest,
    cache_dir: Path,
    tmp_path: Path,
    task: str,
    flags: tuple[str, ...],
) -> None:
    data = request.getfixturevalue("tiny" if task == "speech" else "tiny_text")
    common = (*(SPEECH if task == "speech" else TEXT), "--ov-cache-dir", str(cache_dir))
    check_goes_on(data, tmp_path / "resume", *common, *flags, stops=3)
