"""The run of a benchmark: every engine decodes the same clips in rounds.

Engines take turns within each round, and ratios are taken within a round. Threads of some libraries
spin for a while after their work; where Whisper engines of several libraries meet, a pause between
turns lets them fall asleep.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.errors import FairseqOpenVINOError
from fairseq_openvino.measure.engines import EngineSpec, Search
from fairseq_openvino.measure.journal import Journal
from fairseq_openvino.measure.plan import (
    SLOW_TO_CACHE,
    BenchmarkOptions,
    Case,
    cases,
    fairseq_batches,
)
from fairseq_openvino.measure.process import EngineFailed
from fairseq_openvino.measure.subject import Subject, subject_of
from fairseq_openvino.measure.turns import Turns
from fairseq_openvino.speech.corpus import Utterance

PROFILED = "ours-f32"
FIRST_TOKENS = 2
"""Length of the hypothesis that ends the time to load."""
PAUSE_SECONDS = 0.25
"""Longer than the 200 ms for which OpenMP threads wait for more work."""
SLOW_SECONDS = 10.0
"""A Whisper engine that takes longer in the warm-up is not asked again: the warm-up is its round."""
RESERVED_MB = 3000
"""Memory that must be available for another Whisper engine to be loaded."""
DIGEST_DIGITS = 12
Progress = Callable[[str], None]


def benchmark(options: BenchmarkOptions, progress: Progress = lambda _: None) -> bool:
    """Measure all cases and write what is found to the records.

    Args:
        options: what to measure.
        progress: called with one line whenever something begins.

    Returns:
        False if it was interrupted from the keyboard.

    Raises:
        FairseqOpenVINOError: models or data could not be made.
        StorageError: the records cannot be written.
    """
    with ExitStack() as stack:
        if options.work_dir is not None or options.whisper:
            work_dir = (options.work_dir or options.output / "whisper-work").absolute()
        else:
            prefix = "fairseq-openvino-benchmark-"
            work_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
        records = Journal(options.output / f"{options.name}.jsonl", anew=True)
        stack.callback(records.close)
        specs = [[spec.name, spec.meaning, spec.is_ours] for spec in options.chosen_engines]
        records.write(
            "run", options=options.recorded(), engines=specs, provenance=machine.provenance()
        )
        measurement = _Measurement(options, work_dir, records, progress)
        stack.callback(measurement.turns.stop)
        try:
            for group in cases(options):
                measurement.measure(group)
        except KeyboardInterrupt:
            return False
        records.write("end")
    return True


class _Measurement:
    """The engines of the cases under way."""

    def __init__(
        self, options: BenchmarkOptions, work_dir: Path, records: Journal, progress: Progress
    ) -> None:
        self.options, self.work_dir = options, work_dir
        self.records, self.progress = records, progress
        self.turns = Turns(options.timeout, work_dir / "logs", self._given_up)
        self.number, self.numbers = 0, [0]
        """Of the next case, and of those that an engine given up now does not decode."""
        self.cold: dict[tuple[str, str | None], float] = {}
        """Seconds of the first start, by engine and cache."""
        self.hopeless: dict[tuple[str, str], str] = {}
        """Why an engine did not load, by engine and material: it is not tried again."""
        self.loading: str | None = None
        """The material, while its engines load."""

    def measure(self, group: list[Case]) -> None:
        """All cases that one load of every engine serves."""
        self.progress(f"{group[0].title}: preparing")
        subject = subject_of(group[0], self.options, self.work_dir)
        self._make(group[0], subject)
        clips = subject.clips()
        whole = group[0].utterances is None
        self.numbers = [self.number + i for i in range(len(group))]
        self.number += len(group)
        for number, case in zip(self.numbers, group, strict=True):
            references = [clip.reference for clip in clips] if whole else None
            self.records.write("case", number=number, **asdict(case), references=references)
        frames: list[int] = []
        self.loading = group[0].material
        for spec in subject.engines:
            frames = self._load(spec, group[0], clips) or frames
        self.loading = None
        loaded = list(self.turns.alive)
        every = self.numbers
        for number, case in zip(every, group, strict=True):
            self.numbers = [number]
            for spec in loaded:  # what failed in the case before is loaded again
                if spec not in self.turns.alive:
                    self.progress(f"loading {spec.name} again")
                    self._first_tokens(spec, case, clips)
            everything = list(range(case.utterances or len(clips)))
            batches = [everything]
            if subject.max_tokens is not None and frames:
                batches = fairseq_batches(frames, subject.max_tokens)
            self._rounds(case, batches)
        self.numbers = every
        for spec in list(self.turns.alive):
            self._describe(spec, group[0], batches[0])
        self.turns.stop()

    def _make(self, case: Case, subject: Subject) -> None:
        """Random models are made where torch is."""
        if subject.making is None:
            return
        spec = subject.engines[0]
        try:
            if self.turns.start(spec):
                self.turns.alive[spec].ask("make", **subject.making)
        except EngineFailed as error:
            raise FairseqOpenVINOError(
                f"Benchmarking failed in {case.title}: expected a model and its data, got {error}. "
                "Correct --models or --model-overrides."
            ) from error
        self.turns.stop(spec)

    def _load(self, spec: EngineSpec, case: Case, clips: list[Utterance]) -> list[int] | None:
        """Load an engine, for the first time with this cache in two processes if it keeps one.

        Returns the frames of the clips as the engine reads them; None if it was given up.
        """
        reason = self.hopeless.get((spec.name, case.material))
        available = machine.available_megabytes()
        if self.options.whisper and available is not None and available < RESERVED_MB:
            reason = f"not loaded: {available:.0f} MB of memory left; see --engines"
        if reason is not None:
            self._given_up(spec, reason)
            return None
        self.progress(f"{case.title}: loading {spec.name}")
        key = (spec.name, spec.cache_dir)
        first = key not in self.cold
        if spec.cache_dir is not None:
            if self.options.whisper:
                shutil.rmtree(spec.cache_dir, ignore_errors=True)
            Path(spec.cache_dir).mkdir(parents=True, exist_ok=True)
        found = self._first_tokens(spec, case, clips, prepare=True)
        if found is not None and first:
            self.cold[key] = found[0]
            if spec.is_ours or self.options.whisper:
                found = self._first_tokens(spec, case, clips)
        if found is None:
            return None
        seconds, audio = found
        unknown = first and spec.name in SLOW_TO_CACHE
        self.records.write(
            "load", cases=self.numbers, engine=spec.name, cold_seconds=self.cold[key],
            seconds=None if unknown else seconds, clip_seconds=[clip["seconds"] for clip in audio],
        )  # fmt: skip
        return [clip["frames"] for clip in audio if "frames" in clip]

    def _first_tokens(
        self, spec: EngineSpec, case: Case, clips: list[Utterance], prepare: bool = False
    ) -> tuple[float, list[dict[str, Any]]] | None:
        """Seconds from the files to two tokens of the first clip, and what was read.

        A new process does it, which is ready then; None after giving the engine up.
        """
        if not self.turns.start(spec):
            return None
        if prepare and self.turns.ask(spec, "prepare") is None:
            return None
        loaded = self.turns.ask(spec, "load")
        read = self.turns.read(spec, [clip.path for clip in clips]) if loaded else None
        if loaded is None or read is None:
            return None
        problem = next((clip["problem"] for clip in read if "problem" in clip), None)
        if problem is not None:
            self.turns.stop(spec)
            self._given_up(spec, problem)
            return None
        found = self._generate(spec, case, [0], FIRST_TOKENS)
        if found is None:
            return None
        return float(loaded["load_seconds"]) + float(found["seconds"]), read

    def _generate(
        self, spec: EngineSpec, case: Case, positions: list[int], tokens: int | None
    ) -> dict[str, Any] | None:
        """One batch; None after giving the engine up."""
        answer = self.turns.ask(
            spec, "generate", positions=positions, search=asdict(Search(beam=case.beam)),
            language="en" if self.options.whisper else None, tokens=tokens,
        )  # fmt: skip
        if answer is not None and "problems" in answer:
            self.turns.stop(spec)
            self._given_up(spec, answer["problems"][0][1])
            return None
        return answer

    def _rounds(self, case: Case, batches: list[list[int]]) -> None:
        """A warm-up, which is round -1, and the measured rounds."""
        alone: dict[EngineSpec, dict[str, Any]] = {}
        """Whisper engines whose only round is the warm-up: slow ones, and those that fail after it."""
        slow: set[EngineSpec] = set()
        for number in range(-1, self.options.rounds):
            self.progress(f"{case.title}: {f'round {number + 1}' if number >= 0 else 'warm-up'}")
            for spec in self.turns.order(number + 1):
                found = None if spec in slow else self._round(spec, case, batches)
                if found is None:
                    continue
                self.records.write("round", engine=spec.name, round=number, **found)
                if number >= 0:
                    alone.pop(spec, None)
                elif self.options.whisper:
                    alone[spec] = found
                    slow |= {spec} if found["seconds"] > SLOW_SECONDS else set()
        for spec, found in alone.items():
            self.records.write("round", engine=spec.name, round=0, **found)

    def _round(
        self, spec: EngineSpec, case: Case, batches: list[list[int]]
    ) -> dict[str, Any] | None:
        """All batches by one engine."""
        if self.options.whisper:
            time.sleep(PAUSE_SECONDS)
        answers = []
        for positions in batches:
            answer = self._generate(spec, case, positions, case.tokens)
            if answer is None:
                return None
            answers.append(answer)
        return self._of_round(case, batches, answers)

    def _of_round(
        self, case: Case, batches: list[list[int]], answers: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """One record: sums over the batches, hypotheses in the order of the clips."""
        positions = [position for batch in batches for position in batch]
        outputs = [output for answer in answers for output in answer["outputs"]]
        digests = [each for answer in answers for each in _digests(answer)]
        order = sorted(range(len(positions)), key=positions.__getitem__)
        by_fairseq = "generation_seconds" in answers[0]
        record: dict[str, Any] = {
            "case": self.numbers[0],
            "seconds": sum(
                answer["generation_seconds" if by_fairseq else "seconds"] for answer in answers
            ),
            "encode_seconds": sum(a["encode_seconds"] for a in answers) if by_fairseq else None,
            "steps": sum(a["steps"] for a in answers) if by_fairseq else None,
            "counts": [outputs[i]["tokens"] for i in order],
            "digests": [digests[i] for i in order],
            "peak_mb": max(answer["peak_mb"] for answer in answers),
        }
        if case.utterances is None:
            record["texts"] = [outputs[i]["text"] for i in order]
        return record

    def _describe(self, spec: EngineSpec, case: Case, positions: list[int]) -> None:
        """Precision and versions; of PROFILED where a decoder step spends its time."""
        answer = self.turns.ask(spec, "describe")
        if answer is not None:
            self.records.write("describe", cases=self.numbers, engine=spec.name, **answer)
        if spec.name != PROFILED or self.options.whisper or answer is None:
            return
        self.progress(f"{case.title}: profiling {spec.name}")
        try:
            found = self.turns.alive[spec].ask("profile", positions=positions, beam=case.beam)
        except EngineFailed as error:
            found = {"note": f"no profile: {error}"}
        self.records.write("profile", case=self.numbers[0], engine=spec.name, **found)

    def _given_up(self, spec: EngineSpec, error: str) -> None:
        self.records.write("failed", cases=self.numbers, engine=spec.name, error=error)
        if self.loading is not None:
            self.hopeless[spec.name, self.loading] = error
        self.progress(f"{spec.name} failed: {error}")


def _digests(answer: dict[str, Any]) -> list[str]:
    """What is compared: tokens where the engine tells them, else the text."""
    if "digests" in answer:
        found: list[str] = answer["digests"]
        return found
    texts = [output["text"].strip().encode() for output in answer["outputs"]]
    return [hashlib.sha256(text).hexdigest()[:DIGEST_DIGITS] for text in texts]
