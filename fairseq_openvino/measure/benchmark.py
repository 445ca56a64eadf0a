"""The run of a benchmark: every engine decodes the same clips in rounds.

Engines take turns within each round, and ratios are taken within a round. Threads of some libraries
spin for a while after their work; where Whisper engines of several libraries meet, a pause between
turns lets them fall asleep.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from math import inf
from pathlib import Path

from fairseq_openvino import machine
from fairseq_openvino.errors import FairseqOpenVINOError, failure
from fairseq_openvino.measure.engines import EngineSpec, Search
from fairseq_openvino.measure.journal import CASE, END, ENGINE, PROFILE, RUN, Journal
from fairseq_openvino.measure.plan import (
    ACTION,
    SLOW_TO_CACHE,
    BenchmarkOptions,
    Case,
    cases,
    fairseq_batches,
)
from fairseq_openvino.measure.process import EngineFailed
from fairseq_openvino.measure.subject import Subject, subject_of
from fairseq_openvino.measure.turns import Answer, Batch, Turns
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
FIGURES = ("generation_seconds", "encode_seconds", "steps")
"""What Fairseq's engines tell besides, see `engines.fairseq`."""
DESCRIBED = ("precision", "summary", "versions", "batches")
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
            work_dir = options.kept_work_dir
        else:
            prefix = "fairseq-openvino-benchmark-"
            work_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
        records = Journal(options.output / f"{options.name}.jsonl", anew=True)
        stack.callback(records.close)
        specs = [[spec.name, spec.meaning, spec.is_ours] for spec in options.chosen_engines]
        stated = machine.provenance()
        records.write(RUN, options=options.recorded(), engines=specs, provenance=stated)
        measurement = _Measurement(options, work_dir, records, progress)
        stack.callback(measurement.turns.stop)
        try:
            for group in cases(options):
                measurement.measure(group)
        except KeyboardInterrupt:
            return False
        records.write(END)
    return True


class _Measurement:
    """The engines of the cases under way."""

    def __init__(
        self, options: BenchmarkOptions, work_dir: Path, records: Journal, progress: Progress
    ) -> None:
        self.options, self.work_dir = options, work_dir
        self.records, self.progress = records, progress
        pause = PAUSE_SECONDS if options.whisper else 0.0
        self.turns = Turns(options.timeout, work_dir / "logs", self._given_up, pause=pause)
        self.numbers = [0]
        """Of the cases under way: what an engine says or fails to do concerns them."""
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
        self.numbers = [case.number for case in group]
        for case in group:
            self.records.write(CASE, **asdict(case))
        self.loading = group[0].material
        for spec in subject.engines:
            self._load(spec, group[0], clips)
        self.loading, loaded = None, list(self.turns.alive)
        for case in group:
            self.numbers = [case.number]
            for spec in loaded:  # what failed in the case before is loaded again
                if spec not in self.turns.alive:
                    self.progress(f"loading {spec.name} again")
                    self._first_tokens(spec, case, clips)
            chosen = clips[: case.utterances]
            for number, part in enumerate(self._batches(subject, chosen)):
                self._rounds(case, number, part)
            for spec in list(self.turns.alive):
                self._describe(spec, case)
        self.turns.stop()

    def _make(self, case: Case, subject: Subject) -> None:
        """Random models are made where torch is: in a process of this package."""
        if subject.making is None:
            return
        spec = replace(subject.engines[0], name="model", kind="ours")
        try:
            if self.turns.start(spec):
                self.turns.alive[spec].ask("make", **subject.making)
        except EngineFailed as error:
            raise failure(
                FairseqOpenVINOError, ACTION, case.title, "a model and its data", error,
                "Correct --models or --model-overrides",
            ) from error  # fmt: skip
        self.turns.stop(spec)

    def _load(self, spec: EngineSpec, case: Case, clips: list[Utterance]) -> None:
        """Load an engine; one that keeps compiled models in two processes, if its cache is new."""
        reason = self.hopeless.get((spec.name, case.material))
        available = machine.available_megabytes()
        if self.options.whisper and available is not None and available < RESERVED_MB:
            reason = f"not loaded: {available:.0f} MB of memory left; see --engines"
        if reason is not None:
            self._given_up(spec, reason)
            return
        self.progress(f"{case.title}: loading {spec.name}")
        key, cache = (spec.name, spec.cache_dir), Path(str(spec.cache_dir))
        first = key not in self.cold
        if self.options.whisper:
            shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        seconds = self._first_tokens(spec, case, clips, prepare=True)
        if first and seconds is not None:
            self.cold[key] = seconds
            if spec.is_ours or self.options.whisper:
                seconds = self._first_tokens(spec, case, clips)
        if seconds is not None:
            warm = None if first and spec.name in SLOW_TO_CACHE else seconds
            loads = {"cold_seconds": self.cold[key], "load_seconds": warm}
            self.records.write(ENGINE, cases=self.numbers, engine=spec.name, **loads)

    def _first_tokens(
        self, spec: EngineSpec, case: Case, clips: list[Utterance], prepare: bool = False
    ) -> float | None:
        """Seconds from the files to two tokens of the first clip; None after giving the engine up.

        A new process does it, which is ready then.
        """
        if not self.turns.start(spec):
            return None
        if prepare and self.turns.ask(spec, "prepare") is None:
            return None
        loaded = self.turns.ask(spec, "load")
        if loaded is None or self.turns.read(clips[:1], [spec]).problems:
            return None
        found = self.turns.ask(spec, "generate", positions=[0], **self._how(case, FIRST_TOKENS))
        return None if found is None else float(loaded["load_seconds"]) + float(found["seconds"])

    def _how(self, case: Case, tokens: int | None) -> Answer:
        """Arguments of `generate`."""
        language = "en" if self.options.whisper else None
        return {"search": asdict(Search(beam=case.beam)), "language": language, "tokens": tokens}

    def _batches(self, subject: Subject, clips: list[Utterance]) -> list[list[Utterance]]:
        """What is decoded together."""
        if subject.max_tokens is None or not self.turns.alive:
            return [clips]
        read = self.turns.read(clips, [next(iter(self.turns.alive))])
        frames = [int(clip["frames"]) for clip in read.clips]
        batches = fairseq_batches(frames, subject.max_tokens)
        return [[clips[i] for i in positions] for positions in batches]

    def _rounds(self, case: Case, number: int, clips: list[Utterance]) -> None:
        """A warm-up and the measured rounds of one batch."""
        batch = self.turns.read(clips)
        self._round(case, batch, 0, set())
        warm, batch.passes = batch.passes, {}
        limit = SLOW_SECONDS if self.options.whisper else inf
        slow = {name for name, passes in warm.items() if passes[0]["seconds"] > limit}
        try:
            for round_number in range(1, self.options.rounds + 1):
                self._round(case, batch, round_number, slow)
        finally:
            count = len(batch.good)  # if it is what was warmed up with
            same = {name: p for name, p in warm.items() if len(p[0]["outputs"]) == count}
            batch.passes = same | batch.passes  # the only round of slow engines, and of failed ones
            self.records.write_batch(batch, number, list(batch.passes), FIGURES, case=case.number)

    def _round(self, case: Case, batch: Batch, number: int, without: set[str]) -> None:
        self.progress(f"{case.title}: {f'round {number}' if number else 'warm-up'}")
        while batch.good and not self.turns.decode(
            batch, number, without, **self._how(case, case.tokens)
        ):
            continue

    def _describe(self, spec: EngineSpec, case: Case) -> None:
        """Precision and versions; of PROFILED where a decoder step spends its time."""
        answer = self.turns.ask(spec, "describe")
        if answer is not None:
            described = {name: answer[name] for name in DESCRIBED if name in answer}
            self.records.write(ENGINE, cases=self.numbers, engine=spec.name, **described)
        if spec.name != PROFILED or self.options.whisper or answer is None:
            return
        self.progress(f"{case.title}: profiling {spec.name}")
        try:
            found = self.turns.alive[spec].ask("profile", beam=case.beam)
        except EngineFailed as error:
            self.turns.stop(spec)  # it is loaded again if there is another case
            found = {"note": f"no profile: {error}"}
        self.records.write(PROFILE, case=case.number, engine=spec.name, **found)

    def _given_up(self, spec: EngineSpec, error: str) -> None:
        self.records.write(ENGINE, cases=self.numbers, engine=spec.name, error=error)
        self.progress(f"{spec.name} failed: {error}")
        if self.loading is not None:
            self.hopeless[spec.name, self.loading] = error
