"""Run `fairseq-generate` twice, eagerly and with the engine, and compare what came out."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

from fairseq_openvino.errors import (
    EXIT_OK,
    EXIT_PARTIAL,
    CheckpointError,
    FairseqOpenVINOError,
    MissingDependencyError,
    OptionError,
)

PACKAGE = Path(__file__).parent.parent
SCORE_TOLERANCE = 1e-3
"""Largest accepted difference of a hypothesis score, base e."""
REFUSED_FLAGS = ("results_path", "quiet", "ov_engine")
"""They hide what is compared, or are set here."""
SKIPPED = re.compile(r"error: (\d+) utterances were skipped")
METRIC = re.compile(r"^Generate .*?: (.*)$", re.M)
METRIC_VALUE = re.compile(r"-?\d+(?:\.\d+)?")
TIMING = re.compile(r"Translated [\d,]+ sentences \(([\d,]+) tokens\) in .*? ([\d.]+) tokens/s\)")


@dataclass(frozen=True)
class Line:
    """One hypothesis: an H- line and its D- line."""

    tokens: str
    score: float
    """Base e."""
    text: str


@dataclass(frozen=True)
class Run:
    """What one `fairseq-generate` printed."""

    hypotheses: dict[int, list[Line]]
    """By utterance, best first."""
    references: dict[int, str]
    metric: str
    """Text after `Generate ... beam=K:`, empty without references."""
    seconds: float
    """Fairseq's own generation timer."""
    tokens: int
    skipped: int = 0
    """Utterances that could not be read."""

    @property
    def metric_value(self) -> float | None:
        """First number of the metric, or None."""
        found = METRIC_VALUE.search(self.metric)
        return float(found.group()) if found else None


@dataclass(frozen=True)
class Comparison:
    """Engine against eager."""

    utterances: int
    identical: int
    """Utterances whose n-best lists have the same tokens in the same order."""
    first_difference: str | None
    score_delta: float
    """Largest score difference of identical hypotheses, base e."""
    metric_delta: float | None
    skipped: tuple[int, int] = (0, 0)
    """Utterances that the eager run and the engine's could not read."""

    @property
    def passed(self) -> bool:
        """There are hypotheses, of all utterances, identical, with scores within the tolerance."""
        complete = self.utterances > 0 and not any(self.skipped)
        agree = self.identical == self.utterances and self.score_delta <= SCORE_TOLERANCE
        return complete and agree


def generate_twice(arguments: Sequence[str]) -> tuple[Run, Run]:
    """The eager run and the engine's, for arguments as `fairseq-generate` takes them.

    --ov-* flags go to the second run only; the plugin itself is active in both, so that both read
    audio and checkpoints the same way.

    Raises:
        OptionError: there are no arguments, or a flag would hide the results.
        CheckpointError: a file of --path does not exist.
        MissingDependencyError: Fairseq is not installed.
        FairseqOpenVINOError: a run failed; the message ends with its last lines.
    """
    given = _read_flags(arguments)
    for name in REFUSED_FLAGS:
        if getattr(given, name):
            flag = "--" + name.replace("_", "-")
            raise OptionError(
                f"Verifying failed in {flag}: expected it unset, as both runs are compared, got it. "
                f"Leave out {flag}."
            )
    if given.path is None:
        raise OptionError(
            "Verifying failed in --path: expected the arguments of fairseq-generate, got none of it. "
            "Give DATA, --path and what else fairseq-generate needs."
        )
    for path in given.path.split(":"):
        if not Path(path).exists():
            raise CheckpointError(
                f"Verifying failed in {path!r}: expected a checkpoint, got no such file. Check --path."
            )
    if importlib.util.find_spec("fairseq") is None:
        raise MissingDependencyError(
            "Verifying failed: expected the package fairseq, got none. Install it as the README says "
            "(pip install 'fairseq-openvino[fairseq]')."
        )
    common, engine = split_engine_flags(arguments)
    if given.user_dir is None:
        common = [*common, "--user-dir", str(PACKAGE)]
    return run_generate(common), run_generate([*common, "--ov-engine", *engine])


def _read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags that matter here, in every form that argparse accepts."""
    parser = argparse.ArgumentParser(prog="fairseq-openvino verify", add_help=False)
    for flag in ("--path", "--user-dir", "--results-path"):
        parser.add_argument(flag)
    for flag in ("--quiet", "--ov-engine"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_known_args(arguments)[0]


def split_engine_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags of both runs, and --ov-* flags of the engine with their values."""
    common: list[str] = []
    engine: list[str] = []
    remaining = list(arguments)
    while remaining:
        word = remaining.pop(0)
        if word.startswith("--ov-") and not word.startswith("--ov-tgt-lang"):
            engine.append(word)
            if "=" not in word and remaining:
                engine.append(remaining.pop(0))
        else:
            common.append(word)
    return common, engine


def run_generate(arguments: Sequence[str]) -> Run:
    """Run `fairseq-generate` in a process of its own and parse its output.

    Raises:
        FairseqOpenVINOError: it ended early, with the exit code that it had.
    """
    command = [sys.executable, "-W", "ignore", "-m", "fairseq_cli.generate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    ended = done.returncode == EXIT_PARTIAL and TIMING.search(output)
    if done.returncode and not ended:
        tail = "\n".join(output.strip().splitlines()[-4:])
        error = FairseqOpenVINOError(
            f"Verifying failed in fairseq-generate {' '.join(arguments)}: expected exit code 0, "
            f"got {done.returncode}. Its last lines:\n{tail}"
        )
        error.exit_code = max(done.returncode, EXIT_PARTIAL)  # negative: killed by a signal
        raise error
    return parse_generate(output)


def parse_generate(output: str) -> Run:
    """S-/T-/H-/D-/P- lines, metric and timing of a run's output."""
    hypotheses: dict[int, list[Line]] = {}
    references: dict[int, str] = {}
    for line in output.split("\n"):  # symbols may hold other line separators
        kind, _, rest = line.partition("-")
        if kind not in ("T", "H", "D"):
            continue
        number, _, content = rest.partition("\t")
        if not number.isdigit():
            continue
        if kind == "T":
            references[int(number)] = content
            continue
        score, _, text = content.partition("\t")
        found = hypotheses.setdefault(int(number), [])
        if kind == "H":
            found.append(Line(text, float(score) * log(2), ""))
        else:
            found[-1] = Line(found[-1].tokens, found[-1].score, text)
    metric, timing = METRIC.search(output), TIMING.search(output)
    skipped = SKIPPED.search(output)
    tokens = int(timing.group(1).replace(",", "")) if timing else 0
    return Run(
        hypotheses,
        references,
        metric.group(1) if metric else "",
        tokens / float(timing.group(2)) if timing else 0.0,  # the seconds are rounded to 0.1
        tokens,
        int(skipped.group(1)) if skipped else 0,
    )


def compare(eager: Run, engine: Run) -> Comparison:
    """Token by token, in n-best order."""
    identical, delta, first = 0, 0.0, None
    for number in sorted(eager.hypotheses.keys() | engine.hypotheses.keys()):
        expected = eager.hypotheses.get(number, [])
        found = engine.hypotheses.get(number, [])
        if [line.tokens for line in expected] == [line.tokens for line in found]:
            identical += 1
            pairs = zip(expected, found, strict=True)
            delta = max([delta, *(abs(a.score - b.score) for a, b in pairs)])
        elif first is None:
            first = _describe(number, expected, found)
    before, after = eager.metric_value, engine.metric_value
    change = None if before is None or after is None else after - before
    count = len(eager.hypotheses.keys() | engine.hypotheses.keys())
    skipped = (eager.skipped, engine.skipped)
    return Comparison(count, identical, first, delta, change, skipped)


def _describe(number: int, expected: list[Line], found: list[Line]) -> str:
    for rank in range(max(len(expected), len(found))):
        a = expected[rank].tokens if rank < len(expected) else "(none)"
        b = found[rank].tokens if rank < len(found) else "(none)"
        if a != b:
            return f"utterance {number}, rank {rank + 1}:\n  eager    {a}\n  OpenVINO {b}"
    return f"utterance {number}"


def report(eager: Run, engine: Run, comparison: Comparison) -> str:
    """Table of both runs and the verdict."""
    speed = eager.seconds / engine.seconds if engine.seconds else float("nan")
    lines = [
        "|                  | PyTorch (eager) | OpenVINO |",
        "|------------------|-----------------|----------|",
        f"| generation, s    | {eager.seconds:.2f} | {engine.seconds:.2f} ({speed:.1f}x) |",
        f"| tokens generated | {eager.tokens} | {engine.tokens} |",
    ]
    if eager.metric:
        lines.append(f"| score            | {_short(eager.metric)} | {_short(engine.metric)} |")
    lines += [
        "",
        f"identical n-best lists: {comparison.identical} of {comparison.utterances}",
        *_skipped(comparison),
        f"largest score difference: {comparison.score_delta:.1e} (tolerance {SCORE_TOLERANCE:g})",
    ]
    if comparison.metric_delta is not None:
        lines.append(f"score difference on the corpus: {comparison.metric_delta:+.2f}")
    if comparison.first_difference:
        lines.append(f"first difference: {comparison.first_difference}")
    return "\n".join(lines)


def _skipped(comparison: Comparison) -> list[str]:
    if not any(comparison.skipped):
        return []
    return ["skipped utterances: {} eager, {} OpenVINO".format(*comparison.skipped)]


def _short(metric: str) -> str:
    """`BLEU = 94.1` of `BLEU = 94.1 97.0/...`."""
    number = METRIC_VALUE.search(metric)
    return metric[: number.end()] if number else metric


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `fairseq-generate`, which stay unparsed."""
    parser.usage = "fairseq-openvino verify FAIRSEQ_GENERATE_ARGUMENTS... [--ov-FLAG ...]"


def run(_: argparse.Namespace, arguments: list[str]) -> int:
    """Print the comparison; exit code 1 if it does not hold."""
    eager, engine = generate_twice(arguments)
    comparison = compare(eager, engine)
    print(report(eager, engine, comparison))
    return EXIT_OK if comparison.passed else EXIT_PARTIAL
