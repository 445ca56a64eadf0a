"""`fairseq-openvino transcribe`: formats, files, live output, progress, and runs that are stopped."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pysubs2
import pytest
import soundfile
from conftest import MINI, child_environment

from fairseq_openvino import cli
from fairseq_openvino.atomic import write_file
from fairseq_openvino.commands import progress
from fairseq_openvino.commands.delivery import Delivery
from fairseq_openvino.commands.progress import AudioBar
from fairseq_openvino.errors import AudioError, StorageError
from fairseq_openvino.model import News, Segment, Transcript
from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.writers import document

CLIPS = sorted((MINI / "clips").glob("*.mp3"))
EVERY = "text,jsonl,json,srt,vtt,tsv"

Run = Callable[..., int]


@pytest.fixture
def run(mini_bundle: Path) -> Run:
    """The command with the shipped model; returns its exit code."""

    def transcribe(*words: object, model: Path = mini_bundle) -> int:
        return cli.main(["transcribe", "--model", str(model), *map(str, words)])

    return transcribe


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_file_for_each_input_and_format(
    recognizer: Any, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "texts"
    output.mkdir(parents=True)
    (output / f"{CLIPS[0].stem}.srt").write_text("older")
    words = ("--format", "text,srt,srt", "--format", "jsonl,json,vtt,tsv", "--output-dir", output)
    assert run(*CLIPS[:2], *words) == 0
    assert capsys.readouterr().out == ""
    extensions = ("txt", "jsonl", "json", "srt", "vtt", "tsv")
    assert names(output) == {f"{clip.stem}.{each}" for clip in CLIPS[:2] for each in extensions}
    for clip in CLIPS[:2]:
        transcript = recognizer.transcribe(clip)
        for name, extension in zip(EVERY.split(","), extensions, strict=True):
            content = (output / f"{clip.stem}.{extension}").read_text("utf-8")
            assert content == document(name, transcript)
        (cue,) = pysubs2.load(str(output / f"{clip.stem}.srt"))
        assert (cue.start, cue.end) == (0, round(1000 * transcript.seconds))
        assert cue.text == transcript.text
    assert run(CLIPS[0], "--format", "srt") == 0
    assert capsys.readouterr().out == document("srt", recognizer.transcribe(CLIPS[0]))


def test_files_are_named_as_the_audio(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels, standard input, bytes that are no UTF-8, line ends, a leading dash."""
    left, right = (read_audio(clip, 16_000)[0] for clip in CLIPS[:2])
    both = np.zeros((max(len(left), len(right)), 2), np.float32)
    both[: len(left), 0], both[: len(right), 1] = left, right
    odd = [os.fsdecode(b"-x\xff.y.wav"), "a\nb.wav"]
    monkeypatch.chdir(tmp_path)
    for name in odd:
        with open(name, "wb") as file:
            soundfile.write(file, both, 16_000, format="WAV")
    words = ("--channel", "split", "--output-dir", tmp_path / "texts")
    with open(odd[1]) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert run(*words, "--", *odd, "-") == 0
    stems = [odd[0].removesuffix(".wav"), "a\nb", "stdin"]
    assert names(tmp_path / "texts") == {f"{stem}#{i}.txt" for stem in stems for i in (0, 1)}
    found = [(tmp_path / "texts" / f"{stem}#1.txt").read_bytes() for stem in stems]
    assert found[0].startswith(b"-x\xff.y.wav#1\t") and found[1].startswith(b"a\\nb.wav#1\t")
    assert found[1].partition(b"\t")[2] == found[2].removeprefix(b"-#1\t")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("a/x.wav b/x.mp3 --output-dir {}/o", 2, "in --output-dir: expected inputs whose files have "
         "different names, got 'a/x.wav' and 'b/x.mp3', both 'x'"),
        ("x.wav --format srt,vtt", 2, "in --format: expected one on standard output, and text or jsonl "
         "for several results, got srt, vtt"),
        ("x.wav y.wav --format srt", 2, "text or jsonl for several results, got srt. Give --output"),
        ("x.wav --format tsv --channel split", 2, "text or jsonl for several results, got tsv. Give --o"),
        ("x.wav --output-dir {}/file/o", 5, "Writing failed in '{}/file/o': expected a writable"),
        ("x.wav --output-dir /proc/o", 5, "Writing failed in '/proc/o': expected a writable"),
        ("x.wav --max-line-width 20", 2, "in --max-line-width: expected a format with a layout"),
        ("x.wav --format srt --max-line-count 2", 2, "in --max-line-count: expected max_line_width"),
    ],
)  # fmt: skip
def test_outputs_are_refused_before_any_work(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: str,
    code: int,
    message: str,
) -> None:
    """The model is not even looked for."""
    (tmp_path / "file").touch()
    assert run(*words.format(tmp_path).split(), model=tmp_path / "none") == code
    printed = capsys.readouterr()
    assert message.format(tmp_path) in printed.err and not printed.out
    assert names(tmp_path) == {"file"}


def test_formats_and_layouts_are_checked(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("x.wav", "--format", "srt,xyz")
    assert "argument --format: invalid choice: 'xyz' (choose from text" in capsys.readouterr().err
    assert run(CLIPS[0], "--format", "srt", "--max-words-per-line", 3) == 2
    message = "in --max-words-per-line: expected a model that finds when words are said"
    assert message in capsys.readouterr().err


def test_what_cannot_be_written_costs_no_other_file(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is too long with its extension, one that just fits, and one of a directory."""
    stems = ["l" * 251, "m" * 249, "n"]
    for stem in stems:
        (tmp_path / f"{stem}.wav").symlink_to(CLIPS[0])
    output = tmp_path / "texts"
    (output / "n.jsonl" / "x").mkdir(parents=True)
    assert run(tmp_path, "--format", "jsonl", "--output-dir", output) == 5
    output_text, error = capsys.readouterr()
    assert f"{stems[0]}.jsonl': expected a writable" in error and "n.jsonl': expected" in error
    assert "2 of 3 files failed" in error and "Traceback" not in error
    assert names(output) == {f"{stems[1]}.jsonl", "n.jsonl"}
    written = json.loads((output / f"{stems[1]}.jsonl").read_text("utf-8"))
    assert json.loads(output_text) == written | {"path": str(tmp_path / "n.wav")}


FULL = """
import resource, sys
from pathlib import Path
from fairseq_openvino.atomic import write_file
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
write_file(Path(sys.argv[1]), b"short")
try:
    write_file(Path(sys.argv[1]), bytes(1000))
except OSError as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "a"], capture_output=True, text=True,
        env=child_environment(),
    )  # fmt: skip
    assert done.stdout.startswith(f"StorageError Writing failed in '{tmp_path}/a': expected a"), (
        done
    )
    assert names(tmp_path) == {"a"} and (tmp_path / "a").read_bytes() == b"short"
    with pytest.raises(StorageError, match="Writing failed"):
        write_file(tmp_path / "none" / "a", b"")


LIVE = """
import sys
from types import SimpleNamespace
from fairseq_openvino import cli, loading
from fairseq_openvino.model import News, Segment, Transcript
from fairseq_openvino.recognizer import Recognizer
from fairseq_openvino.whisper.options import WhisperOptions

class Fake(Recognizer):
    family = SimpleNamespace(options=WhisperOptions)
    def __init__(self): pass
    def check_supported(self): pass
    def follow(self, audios, batch_size, **options):
        assert options.get("timestamps", False) is ("srt" in " ".join(sys.argv))
        for path in audios:
            found = ()
            while path != "whole.wav" or not found:
                if path != "whole.wav":
                    print("more?", file=sys.stderr, flush=True)
                    sys.stdin.readline()
                n = len(found)
                found += (Segment(n, n + 1.5, f"Teil {n}", 0.0, -0.5, 1.0, 0.0),)
                yield News(path, 750.0 * n + 4.9, 4000.0, found[-1:])
            yield News(path, 9.0, 9.0, (), Transcript(path, "Ganz", -1.0, 9.0, (), segments=found))

loading.load_model = lambda *_, **__: Fake()
sys.exit(cli.main(sys.argv[1:]))
"""
"""A model that asks for a line before each segment; `whole.wav` ends after the first."""


@contextmanager
def live(*words: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command with it, for a minute at most; it heeds Ctrl-C even where the tests' own shell does not."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-c", LIVE, "transcribe", *map(str, words), "--model", "fake"]
    environment = child_environment(PYTHONUNBUFFERED="")
    with subprocess.Popen(command, text=True, env=environment, **pipes | options) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        yield process
        watchdog.cancel()


def next_lines(process: subprocess.Popen[str], count: int) -> str:
    """What is printed when the model has found one segment more, and nothing else."""
    assert process.stdin and process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return "".join(process.stdout.readline() for _ in range(count))


def test_cues_are_printed_as_they_are_found_and_kept_when_interrupted() -> None:
    with live("talk.m4a", "--format", "srt") as process:
        first = next_lines(process, 4)
        assert first == "1\n00:00:00,000 --> 00:00:01,500\nTeil 0\n\n"
        assert next_lines(process, 4) == "2\n00:00:01,000 --> 00:00:02,500\nTeil 1\n\n"
        process.send_signal(signal.SIGINT)
        output, error = process.communicate()
    assert (process.returncode, output) == (130, "")
    assert error.endswith("more?\nstopped at 00:12:34 of talk.m4a\ninterrupted\n")


def test_files_of_an_interrupted_recording_say_so(tmp_path: Path) -> None:
    words = ("whole.wav", "talk.m4a", "--output-dir", tmp_path, "--format", "text,srt,jsonl")
    with live(*words) as process:
        next_lines(process, 0)
        assert [process.stderr.readline() for _ in range(2)] == ["more?\n"] * 2
        process.send_signal(signal.SIGINT)
        error = process.communicate()[1]
    assert process.returncode == 130
    assert error == "stopped at 00:00:04 of talk.m4a\ninterrupted\n"
    kinds = ("txt", "srt", "jsonl")
    kept = {f"{stem}.{kind}" for stem in ("whole", "talk.partial") for kind in kinds}
    assert names(tmp_path) == kept
    assert pysubs2.load(str(tmp_path / "talk.partial.srt"))[0].text == "Teil 0"
    content = json.loads((tmp_path / "talk.partial.jsonl").read_text())
    assert content["damage"] == "stopped at 00:00:04 of 01:06:40" and content["text"] == "Teil 0"
    assert "damage" not in json.loads((tmp_path / "whole.jsonl").read_text())


def test_a_full_standard_output_is_an_error() -> None:
    with open("/dev/full", "w") as full, live("whole.wav", stdout=full) as process:
        error = process.communicate()[1]
    assert process.returncode == 5
    assert error.startswith("error: Writing failed in standard output: expected a writable")
    assert error.count("\n") == 1


SEGMENT = Segment(0.0, 4.0, "Eins", 0.0, -0.5, 1.0, 0.0)
DONE = Transcript(
    "a\tb.wav", "Eins", -1.0, 60.0, (), segments=(SEGMENT,),
    uncovered=((62.0, 65.5), *((100.0 + i, 101.0 + i) for i in range(5))),
)  # fmt: skip


def test_speech_without_text_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    delivery = Delivery([])
    delivery.take(News(DONE.path, 60.0, 60.0, (), DONE))
    assert delivery.exit_code() == 0
    assert capsys.readouterr().err == (
        "note: speech without text in a\\tb.wav: 00:01:02 - 00:01:05, 00:01:40 - 00:01:41, "
        "00:01:41 - 00:01:42, 00:01:42 - 00:01:43, 00:01:43 - 00:01:44 and 1 more\n"
    )


class Terminal(io.StringIO):
    """What a terminal shows of what was written to it."""

    def isatty(self) -> bool:
        return True

    def shown(self) -> list[str]:
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


def test_a_terminal_shows_how_far_a_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never in the way of other output, and gone at the end."""
    terminal, clock = Terminal(), SimpleNamespace(monotonic=lambda: 5.0)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler(terminal)])
    monkeypatch.setenv("COLUMNS", "100")
    with AudioBar(["x.wav", "a\tb.wav"]) as bar:
        bar.take(News("x.wav", 10.0, 10.0, (), DONE))
        clock.monotonic = lambda: 7.0
        bar.take(News("a\tb.wav#0", 30.0, 3730.0))
        assert terminal.shown()[-1] == (
            "2/2  00:00:30 of 01:02:10  20.0 x real time  00:03:05 left  a\\tb.wav#0"
        )
        logging.getLogger("fairseq_openvino").warning("careful")
        bar.take(News("a\tb.wav#0", 60.0, 3730.0))
        bar.clear()
        print("text", file=sys.stderr)
        bar.take(News("x" * 200, 60.0, 3730.0))
        assert len(terminal.shown()[-1]) == 99
    assert terminal.shown() == ["careful", "text", ""]


def test_nothing_is_shown_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with AudioBar(["x.wav"]) as bar:
        bar.take(News("x.wav", 5.0, 10.0))
    assert capsys.readouterr() == ("", "")


def test_segments_are_streamed(recognizer: Any, tmp_path: Path) -> None:
    (only,) = recognizer.stream(CLIPS[0], beam=2)
    whole = recognizer.transcribe(CLIPS[0], beam=2)
    assert (only.text, only.start, only.end) == (whole.text, 0.0, whole.seconds)
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    with pytest.raises(AudioError, match=r"bad\.wav"):
        list(recognizer.stream(tmp_path / "bad.wav"))
    with pytest.raises(ValueError, match="in channel: expected mix"):
        list(recognizer.stream(CLIPS[0], channel="split"))
