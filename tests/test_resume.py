"""`fairseq-generate --ov-resume`: stopped anywhere and repeated, it prints what an undisturbed run prints."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from conftest import MINI, PACKAGE, TINY, mini_data, write_table
from test_plugin_commands import run as process
from test_translation import text_bundle, tiny_text  # noqa: F401  fixtures

from fairseq_openvino.atomic import locked
from fairseq_openvino.errors import (
    EXIT_INTERRUPTED,
    EXIT_MODEL,
    EXIT_OK,
    EXIT_PARTIAL,
    EXIT_USAGE,
    NumericsError,
)
from fairseq_openvino.measure.material.s2t import write_checkpoint
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
    """Stop, damage what is kept, resume, and resume again."""
    resumed, chance = (*flags, "--ov-resume", str(directory)), random.Random(SEED)
    with encoding() as calls:
        wanted = generate(data, *flags)
    assert wanted[0] == EXIT_OK and len(wanted[1]) > 2 and len(calls) > 3
    for _ in range(stops):
        stop = chance.randrange(len(calls) // 2 + 2, len(calls) + 1)
        with encoding(stopped(stop)):
            assert generate(data, *resumed)[0] == EXIT_INTERRUPTED
        (path,) = directory.glob("*.jsonl")
        kept = damaged(path, chance)
        with encoding() as after:
            assert generate(data, *resumed) == wanted, f"stop {stop}, seed {SEED}"
        assert kept > 0 and 0 < len(after) < len(calls), f"stop {stop}, seed {SEED}"
        with encoding() as after:
            assert generate(data, *resumed) == wanted
        assert not after
        (directory / "plan.json").unlink()
        with encoding() as after:
            assert generate(data, *resumed)[0] == EXIT_MODEL
        assert not after
        shutil.rmtree(directory)


def test_a_stopped_run_goes_on(tiny: Path, cache_dir: Path, tmp_path: Path) -> None:
    flags = (*SPEECH, "--beam", "1", "--ov-cache-dir", str(cache_dir))
    check_goes_on(tiny, tmp_path / "resume", *flags)


def refused(capsys: pytest.CaptureFixture[str], data: Path, *flags: str) -> str:
    """Before anything is decoded."""
    capsys.readouterr()
    with encoding() as calls:
        assert generate(data, *flags) == (EXIT_USAGE, [])
    assert not calls
    return capsys.readouterr().err


@pytest.mark.fault
def test_what_changed_is_named(
    tiny: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny, data)
    kept = ("--ov-cache-dir", str(cache_dir), "--ov-resume", str(tmp_path / "resume"))
    begun = (*SPEECH, "--beam", "2", *kept)
    wanted = generate(data, *begun)
    assert wanted[0] == EXIT_OK
    other_beam = refused(capsys, data, *SPEECH, "--beam", "3", *kept)
    assert "--beam 3 (it was 2)" in other_beam and "--ov-resume" in other_beam
    assert "--lenpen 0.5 (it was 1" in refused(capsys, data, *begun, "--lenpen", "0.5")
    assert "--ov-threads 3 (it was " in refused(capsys, data, *begun, "--ov-threads", "3")
    assert generate(data, *begun, "--log-interval", "7", "--quiet")[0] == EXIT_OK
    manifest = data / "test.tsv"
    content, times = manifest.read_bytes(), manifest.stat()
    manifest.write_bytes(content + content.splitlines(keepends=True)[-1].replace(b"20", b"21", 1))
    assert f"another file {manifest}" in refused(capsys, data, *begun)
    manifest.write_bytes(content)
    os.utime(manifest, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert generate(data, *begun) == wanted
    audio = Path(content.decode().splitlines()[1].split("\t")[1].split(":")[0])
    os.utime(audio if audio.is_absolute() else data / audio)
    assert "another file" in refused(capsys, data, *begun)
    os.utime(audio if audio.is_absolute() else data / audio, ns=(0, 0))
    shutil.rmtree(tmp_path / "resume")
    assert generate(data, *begun) == wanted
    write_checkpoint(data, "s2t_transformer_s", vocabulary=60, seed=9, **TINY)
    assert "another model" in refused(capsys, data, *begun)
    (tmp_path / "resume" / "plan.json").write_text('{"options": 1}')
    assert generate(data, *begun)[0] == EXIT_MODEL


@pytest.mark.fault
def test_skipped_utterances_are_skipped_again(
    tiny: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where they would be decoded now."""
    flags = (*SPEECH, "--beam", "2", "--ov-cache-dir", str(cache_dir))
    resumed = (*flags, "--ov-resume", str(tmp_path / "resume"))

    def failing(number: int) -> None:
        if number in (2, 4, 5):  # a batch, its second half, and the first one of that
            raise NumericsError("Decoding failed: scores are not numbers.")

    def run(at: Callable[[int], None], *flags: str) -> tuple[int, list[str], str]:
        capsys.readouterr()
        with encoding(at):
            return *generate(tiny, *flags), capsys.readouterr().err

    wanted = run(failing, *flags)
    assert wanted[0] == EXIT_PARTIAL and "1 utterances were skipped" in wanted[2]
    assert run(failing, *resumed) == wanted == run(lambda number: None, *resumed)


@pytest.mark.fault
def test_whisper_goes_on(whisper_bundle: Path, tmp_path: Path) -> None:
    clips = sorted((MINI / "clips").glob("*.mp3"))[:18]
    rows = [("id", "audio"), *((clip.stem, str(clip)) for clip in clips)]
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "test.tsv", *rows)
    bundle = str(whisper_bundle)
    flags = ("--task", "speech_to_text_openvino", "--path", bundle, "--beam", "2", "--nbest", "2")
    check_goes_on(tmp_path / "data", tmp_path / "resume", *flags, stops=2)


@pytest.mark.fault
def test_shards_have_a_journal_each(tiny: Path, cache_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "resume"
    flags = (*SPEECH, "--beam", "2", "--ov-cache-dir", str(cache_dir), "--num-shards", "2")
    for shard in ("0", "1"):
        chosen = (*flags, "--shard-id", shard)
        with encoding(stopped(2)):
            generate(tiny, *chosen, "--ov-resume", str(directory))
        assert generate(tiny, *chosen, "--ov-resume", str(directory)) == generate(tiny, *chosen)
    assert len([*directory.glob("*.jsonl")]) == 2
    with locked(directory / "shard-1-of-2.lock") as is_held:
        assert is_held
        assert generate(tiny, *chosen, "--ov-resume", str(directory)) == (EXIT_USAGE, [])


@pytest.mark.fault
def test_kill_at_any_point(tmp_path: Path, cache_dir: Path) -> None:
    """The shipped model, killed at random moments, until it gets to the end."""
    (tmp_path / "data").mkdir()
    data = mini_data(tmp_path / "data", sorted((MINI / "clips").glob("*.mp3"))[:40])
    flags = ("--ov-cache-dir", str(cache_dir), "--batch-size", "2", "--num-workers", "0")
    wanted, _ = process("generate", data, *flags).communicate()
    assert len(printed(wanted)) == 40 * 4 + 1
    flags, chance, kills = (*flags, "--ov-resume", str(tmp_path / "resume")), random.Random(SEED), 0
    journal = tmp_path / "resume" / "shard-0-of-1.jsonl"
    while True:
        before = journal.read_bytes().count(b"\n") if journal.exists() else 0
        more, pause = chance.randrange(1, 6), chance.random() * 0.02
        child = process("generate", data, *flags)
        while child.poll() is None and before + more > (
            journal.read_bytes().count(b"\n") if journal.exists() else 0
        ):
            time.sleep(0.005)
        time.sleep(pause)
        child.send_signal(signal.SIGKILL)
        found, errors = child.communicate()
        if child.returncode != -signal.SIGKILL:
            break
        kills += 1
    print(f"{kills} kills, seed {SEED}")
    assert child.returncode == EXIT_OK, errors
    assert kills > 3 and printed(found) == printed(wanted)


@pytest.mark.fault
@pytest.mark.parametrize(
    "flags",
    [
        ("--beam", "5", "--nbest", "5"),
        ("--beam", "2", "--sampling", "--nbest", "2", "--seed", "3"),
        ("--beam", "2", "--no-repeat-ngram-size", "2"),
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
    request.getfixturevalue(
        "tiny_bundle" if task == "speech" else "text_bundle"
    )  # drawing follows it
    common = (*(SPEECH if task == "speech" else TEXT), "--ov-cache-dir", str(cache_dir))
    check_goes_on(data, tmp_path / "resume", *common, *flags, stops=2)
