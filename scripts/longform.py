"""Long recordings of real speech: every engine for Whisper on the CPU, its speed and word error rate.

Clips of a TSV (path, seconds, language, transcript, maybe speaker) are joined with pauses of 0.3 to
1.7 s until there is enough; `--recording` adds whole files with `<name>.segments.json` beside them.
Engines have one process each and take turns; all get the same beam, fallback, conditioning and
timestamps, or what they have of it. What is measured already is not measured again: the figures come
from the records alone. The others run in `.venv-peers` (`make peers`).

    python scripts/longform.py base=DIR --corpus clips.tsv --recording talk.mp3 --output WORK
"""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from longform_report import Figures, write
from peers.protocol import Long
from recordings import RATE_HZ, Recording, join_all, read_clips, whole, write_wav

from fairseq_openvino import machine
from fairseq_openvino.measure.engines import PEER, EngineSpec
from fairseq_openvino.measure.journal import Journal, lines
from fairseq_openvino.measure.turns import Turns
from fairseq_openvino.speech.audio import read_audio

ROOT = Path(__file__).parents[1]
SEQUENTIAL, CHUNKED = Long(), Long(batch=8)
ENGINES = {
    "ours": ("ours.py f32", SEQUENTIAL),
    "ours-fast": ("ours.py fast", SEQUENTIAL),
    "ours-chunked": ("ours.py f32", CHUNKED),
    "ours-chunked-fast": ("ours.py fast", CHUNKED),
    "openai-whisper": ("openai_whisper.py f32", SEQUENTIAL),
    "faster-whisper-f32": ("fasterwhisper.py f32", SEQUENTIAL),
    "faster-whisper-int8": ("fasterwhisper.py int8", SEQUENTIAL),
    "faster-whisper-batched-f32": ("fasterwhisper.py f32", CHUNKED),
    "faster-whisper-batched-int8": ("fasterwhisper.py int8", CHUNKED),
    "faster-whisper-batched-int8-untimed": (
        "fasterwhisper.py int8",
        replace(CHUNKED, timestamps=False),
    ),
    "openvino-genai-bf16": ("genai.py bf16", SEQUENTIAL),
    "openvino-genai-int8": ("genai.py int8", SEQUENTIAL),
    "whisper.cpp-f16": ("whisper_cpp.py f16", SEQUENTIAL),
    "whisper.cpp-q8_0": ("whisper_cpp.py q8_0", SEQUENTIAL),
}
"""Program and precision, and how it transcribes; without timestamps is a default of faster-whisper."""
HERE = ("ours.py", "openai_whisper.py")
"""Programs of `.venv`; the others are those of `.venv-peers`."""
WORDS = (
    "ours",
    "ours-chunked",
    "openai-whisper",
    "faster-whisper-f32",
    "faster-whisper-batched-f32",
)
"""Whose word times are looked at, in a pass of its own that is not timed."""
RUN, ENGINE, HEARD, FAILED = KINDS = ("run", "engine", "heard", "failed")
WARM_UP_SECONDS = 40.0
TIMEOUT_SECONDS = 7200.0


@dataclass(frozen=True)
class Case:
    """One engine, one recording."""

    engine: str
    recording: str
    beam: int
    round: int
    words: bool = False


def main() -> int:
    """Run what has not been run yet, then write the report."""
    options = _parsed()
    recordings = _recordings(options)
    records = options.output / f"{options.name}.jsonl"
    done = set(_heard(records))
    missing = [case for case in _cases(options, recordings) if case not in done]
    if missing:
        _measure(options, recordings, missing, records)
    engines = {each["name"]: each for each in lines(records, KINDS) if each["kind"] == ENGINE}
    figures = Figures(
        recordings, {n: each["summary"] for n, each in engines.items()}, _heard(records)
    )
    *_, run = (each for each in lines(records, KINDS) if each["kind"] == RUN)
    chart = options.output / f"{options.name}.svg"
    written = write(chart, options.name, figures, run["provenance"])
    print(written[0].read_text("utf-8"), *written, sep="\n")
    return 0


def _parsed() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="NAME=DIR", help="Hugging Face directory")
    parser.add_argument("--corpus", type=Path, required=True, help="TSV of clips")
    parser.add_argument("--recording", type=Path, action="append", default=[], metavar="AUDIO")
    parser.add_argument("--minutes", type=float, default=30.0, help="of audio at least")
    parser.add_argument("--engines", default=",".join(ENGINES), help="comma-separated")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of orders and pauses")
    parser.add_argument("--output", type=Path, required=True, metavar="WORK")
    parser.add_argument("--peers", default=str(ROOT / ".venv-peers/bin/python"), metavar="PYTHON")
    options = parser.parse_args()
    options.name, _, options.checkpoint = options.model.partition("=")
    options.engines = options.engines.split(",")
    if not options.checkpoint or set(options.engines) - set(ENGINES):
        parser.error(f"expected NAME=DIR and --engines of {', '.join(ENGINES)}")
    return options


def _recordings(options: Namespace) -> list[Recording]:
    directory = options.output / "recordings"
    found = [whole(audio, directory) for audio in options.recording]
    minutes = options.minutes - sum(each.seconds for each in found) / 60
    return [*found, *join_all(read_clips(options.corpus), directory, minutes, options.seed)]


def _cases(options: Namespace, recordings: Sequence[Recording]) -> list[Case]:
    """In turn: each round and recording begins with another engine."""
    found, shift = [], 0
    for number in range(options.rounds):
        for beam in options.beams:
            for recording in recordings:
                engines = options.engines[shift:] + options.engines[:shift]
                found += [Case(engine, recording.name, beam, number) for engine in engines]
                shift = (shift + 1) % len(engines)
    timed = [engine for engine in WORDS if engine in options.engines]
    return found + [Case(e, each.name, 1, 0, words=True) for each in recordings for e in timed]


def _heard(records: Path) -> dict[Case, dict[str, Any]]:
    """The answers so far."""
    if not records.exists():
        return {}
    found = [each for each in lines(records, KINDS) if each["kind"] == HEARD]
    return {Case(**each["case"]): each for each in found}


def _measure(
    options: Namespace, recordings: Sequence[Recording], cases: Sequence[Case], records: Path
) -> None:
    """All engines are loaded, one computes."""
    journal = Journal(records)
    journal.write(RUN, provenance=machine.provenance() | {"threads": str(options.threads)})

    def given_up(spec: EngineSpec, reason: str) -> None:
        journal.write(FAILED, name=spec.name, reason=reason)
        _say(f"{spec.name} given up: {reason}")

    turns = Turns(TIMEOUT_SECONDS, options.output / "logs", given_up)
    paths = {each.name: each.path for each in recordings}
    try:
        specs = {name: _spec(name, options) for name in dict.fromkeys(c.engine for c in cases)}
        warm_up = options.output / "recordings" / "warm-up.wav"
        write_wav(
            warm_up, read_audio(recordings[-1].path, RATE_HZ)[0][: int(WARM_UP_SECONDS * RATE_HZ)]
        )
        for spec in specs.values():
            _load(turns, spec, warm_up, options.beams, journal)
        for number, case in enumerate(cases, 1):
            spec = specs[case.engine]
            if spec in turns.alive:
                _say(f"{number} of {len(cases)}: {case}")
                answer = _ask(turns, spec, paths[case.recording], case.beam, case.words)
                if answer is not None:
                    journal.write(HEARD, case=asdict(case), **answer)
    finally:
        turns.stop()
        journal.close()


def _spec(name: str, options: Namespace) -> EngineSpec:
    program, precision = ENGINES[name][0].split()
    python = sys.executable if program in HERE else options.peers
    work = options.output / "converted" / options.name
    command = shlex.join([python, str(ROOT / "scripts" / "peers" / program), precision])
    return EngineSpec(
        name, command, PEER, threads=options.threads, checkpoint=options.checkpoint,
        work_dir=str(work), cache_dir=str(work / "cache"),
    )  # fmt: skip


def _load(
    turns: Turns, spec: EngineSpec, warm_up: Path, beams: Sequence[int], journal: Journal
) -> None:
    """Converted, loaded and, on some seconds of speech, compiled for what is to come."""
    _say(f"loading {spec.name}")
    if not turns.start(spec):
        return
    for request in ("prepare", "load"):
        if turns.ask(spec, request) is None:
            return
    if all(_ask(turns, spec, str(warm_up), beam) for beam in beams):
        described = turns.ask(spec, "describe")
        if described is not None:
            journal.write(ENGINE, name=spec.name, **described)


def _ask(
    turns: Turns, spec: EngineSpec, path: str, beam: int, words: bool = False
) -> dict[str, Any] | None:
    how = replace(ENGINES[spec.name][1], beam=beam, words=words)
    return turns.ask(spec, "recording", path=path, how=asdict(how), language="en")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
