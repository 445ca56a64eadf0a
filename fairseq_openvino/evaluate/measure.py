"""The run: one process per engine, all loaded, and only one of them computing at any time.

Engines take turns batch by batch, each turn beginning with another one, so that whatever else the
machine does falls on all of them. Features are computed before a turn and are not timed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.benchmark.process import EngineFailed
from fairseq_openvino.errors import FairseqOpenVINOError, OptionError
from fairseq_openvino.evaluate.options import TRANSLATE, Options, default_metrics, fail
from fairseq_openvino.evaluate.process import WAITING, EngineProcess
from fairseq_openvino.evaluate.records import (
    ENGINE,
    FAILED,
    RUN,
    SPELLINGS,
    UTTERANCE,
    Journal,
    begun,
    changed,
    spellings,
)
from fairseq_openvino.machine import provenance
from fairseq_openvino.metrics import WORD_METRICS, check, whisper_normalizer
from fairseq_openvino.speech import corpus
from fairseq_openvino.speech.corpus import Utterance

WARM_UP_BATCHES = 2
"""Decoded by every engine before anything is timed; the first counts as part of loading."""
PROGRESS_SECONDS = 10.0
PACKAGES = ("transformers", "nncf", "sacrebleu", "jiwer")
"""Named with the versions in `benchmark.provenance`."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Survey:
    """What a first look at the corpus, without its audio, says."""

    total: int
    """Utterances of this shard."""
    metrics: tuple[str, ...]
    normalizer: dict[str, str | None] | None
    """`language` of the references for the Whisper normaliser; None if there is none to apply."""


def evaluate(options: Options, progress: Progress = lambda _: None, resume: bool = False) -> bool:
    """Measure all engines on the corpus and append what is found to the records.

    Args:
        options: what to compare.
        progress: called with one line now and then.
        resume: go on with the records of an interrupted run.

    Returns:
        False if it was interrupted from the keyboard.

    Raises:
        ModelError: the corpus is malformed.
        OptionError: the options contradict each other, or those of the run to go on with.
        FairseqOpenVINOError: no engine could be loaded.
    """
    table = _spellings_source(options)
    survey = look(options, spellings(table))
    run = _run(options, survey)
    before = begun(options.output, resume)
    if before.runs:
        difference = changed(before.runs[0]["options"], run["options"])
        if difference:
            raise OptionError(
                f"Resuming failed in {str(options.output)!r}: expected the options of the run "
                f"begun, got others in {', '.join(difference)}. Repeat the command as it was."
            )
    with (
        closing(Journal(options.output)) as records,
        tempfile.TemporaryDirectory(prefix="fairseq-openvino-evaluate-") as logs,
    ):
        _keep_spellings(table, options.output)
        records.write(RUN, **run)
        measurement = _Measurement(options, records, progress, Path(logs))
        try:
            if len(before.done()) == survey.total:
                return True
            measurement.start()
            numbers = [int(record["batch"].partition(".")[2]) for record in before.utterances]
            measurement.decode(survey.total, before.done(), max(numbers, default=-1) + 1)
        except KeyboardInterrupt:
            return False
        finally:
            measurement.stop()
    return True


def look(options: Options, table: Mapping[str, str]) -> Survey:
    """Read the corpus without its audio: every row is checked before anything is computed.

    `table` are the spellings for the English normaliser.

    Raises:
        ModelError: a row is malformed, or a reference is empty.
    """
    first, languages, total = None, set(), 0
    normalizer: dict[str, str | None] | None = None
    for utterance in _utterances(options):
        first = first or utterance
        languages.add(utterance.language)
        total += 1
    if first is None:
        raise fail("--shard", "a share with utterances", "/".join(map(str, options.shard)))
    metrics = default_metrics(corpus.kind_of(options.corpus), first, options)
    if options.normalizer != "none" and any(metric in WORD_METRICS for metric in metrics):
        language = _normalizer_language(options, languages)
        normalizer = {"language": language}
        function = whisper_normalizer(language, table)
        for utterance in _utterances(options):
            check([utterance.reference], function, [utterance.id])
    return Survey(total, metrics, normalizer)


def _normalizer_language(options: Options, languages: set[str | None]) -> str | None:
    """Language of the references; None takes the basic normaliser."""
    language = next(iter(languages)) if len(languages) == 1 else None
    if options.search.task == TRANSLATE:
        language = "en"  # Whisper translates into English only
    elif options.search.language is not None:
        language = options.search.language
    if options.normalizer == "english":
        return "en"
    if options.normalizer == "basic":
        return None if (language or "").startswith("en") else language
    return language


def _spellings_source(options: Options) -> Path:
    """The directory with a table of spellings, if a model brings one."""
    for directory in (options.checkpoint, options.bundle):
        if directory is not None and (directory / SPELLINGS).is_file():
            return directory
    return options.output


def _keep_spellings(source: Path, output: Path) -> None:
    """With their table the records are complete."""
    if source != output:
        shutil.copyfile(source / SPELLINGS, output / SPELLINGS)


def _run(options: Options, survey: Survey) -> dict[str, Any]:
    stated = provenance() | machine.versions(PACKAGES)
    stated["threads"] = str(options.threads)
    stated |= {name: os.environ.get(name, value) for name, value in WAITING.items()}
    return {
        "options": options.recorded(),
        "model": options.model_name,
        "shard": "/".join(map(str, options.shard)),
        "total": survey.total,
        "metrics": list(survey.metrics),
        "normalizer": survey.normalizer,
        "provenance": stated,
    }


def _utterances(options: Options) -> Iterator[Utterance]:
    return corpus.read(
        options.corpus, options.data_config, options.text_column, options.limit, options.shard
    )


def batches(utterances: Iterator[Utterance], size: int) -> Iterator[list[Utterance]]:
    """Up to `size` utterances in a row that are decoded into one language."""
    batch: list[Utterance] = []
    for utterance in utterances:
        if batch and (len(batch) == size or utterance.language != batch[0].language):
            yield batch
            batch = []
        batch.append(utterance)
    if batch:
        yield batch


@dataclass
class _Batch:
    """One batch under way."""

    utterances: list[Utterance]
    problems: dict[str, dict[str, str]] = field(default_factory=dict)
    """By id, then by engine."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of the audio by id."""
    damage: dict[str, str] = field(default_factory=dict)
    """What is missing of the audio, by id."""
    times: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of generate() in each pass, by engine."""
    outputs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By engine, of the good utterances."""
    peaks: dict[str, float] = field(default_factory=dict)

    @property
    def good(self) -> list[int]:
        """Positions of the utterances no engine has a problem with."""
        return [i for i, one in enumerate(self.utterances) if one.id not in self.problems]


@dataclass
class _Measurement:
    """The processes and what they are asked."""

    options: Options
    records: Journal
    progress: Progress
    logs: Path
    processes: list[EngineProcess] = field(default_factory=list)
    spoken: float = 0.0
    """When progress was last reported, s."""

    def start(self) -> None:
        """Load and warm up every engine; those that fail are given up."""
        loads: dict[str, float] = {}
        for name in self.options.engines:
            self.progress(f"loading {name}")
            process = EngineProcess(name, self.options, self.logs / f"{name}.log")
            self.processes.append(process)
            answer = self._ask(process, "load")
            if answer is not None:
                loads[name] = float(answer["load_seconds"])
        self._check_alive()
        self.progress("warming up")
        warm = 0
        for batch in self._batches(set()):
            current = self._read(batch)
            while current.good and not self._generate(current, warm):
                continue
            if current.good:
                for name, times in current.times.items():
                    loads[name] += times[0] if warm == 0 and name in loads else 0.0
                warm += 1
            if warm == WARM_UP_BATCHES:
                break
        self._check_alive()
        for process in list(self.processes):
            answer = self._ask(process, "describe")
            if answer is not None:
                self.records.write(
                    ENGINE,
                    engine=process.engine,
                    load_seconds=loads[process.engine],
                    precision=answer["precision"],
                )

    def decode(self, total: int, done: set[str], number: int) -> None:
        """Measure all batches that are not done; the first gets this number."""
        finished = len(done)
        for offset, utterances in enumerate(self._batches(done)):
            batch = self._read(utterances)
            repeat = 0
            while batch.good and repeat < self.options.repeats:
                repeat = repeat + 1 if self._generate(batch, offset + repeat) else 0
            self._check_alive()
            self._record(batch, number + offset)
            finished += len(utterances)
            if time.monotonic() - self.spoken > PROGRESS_SECONDS or finished == total:
                self.spoken = time.monotonic()
                self.progress(f"{finished} of {total} utterances")

    def stop(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.stop()
        self.processes.clear()

    def _batches(self, done: set[str]) -> Iterator[list[Utterance]]:
        left = (one for one in _utterances(self.options) if one.id not in done)
        return batches(left, self.options.batch_size)

    def _read(self, utterances: list[Utterance]) -> _Batch:
        """Every engine computes its features."""
        batch = _Batch(utterances)
        for process in list(self.processes):
            answer = self._ask(process, "read", paths=[one.path for one in utterances])
            if answer is None:
                continue
            for one, clip in zip(utterances, answer["clips"], strict=True):
                if "problem" in clip:
                    batch.problems.setdefault(one.id, {})[process.engine] = clip["problem"]
                else:
                    batch.seconds.setdefault(one.id, float(clip["seconds"]))
                if "damage" in clip:
                    batch.damage[one.id] = clip["damage"]
        return batch

    def _generate(self, batch: _Batch, turn: int) -> bool:
        """One pass over the batch by every engine; False if it has to begin anew without a clip."""
        positions, language = batch.good, batch.utterances[0].language
        shift = turn % len(self.processes) if self.processes else 0
        for process in self.processes[shift:] + self.processes[:shift]:
            answer = self._ask(process, "generate", positions=positions, language=language)
            if answer is None:
                continue
            if "problems" in answer:
                for i, problem in answer["problems"]:
                    problems = batch.problems.setdefault(batch.utterances[i].id, {})
                    problems[process.engine] = problem
                batch.times.clear()
                return False
            batch.times.setdefault(process.engine, []).append(float(answer["seconds"]))
            batch.outputs[process.engine] = answer["outputs"]
            batch.peaks[process.engine] = float(answer["peak_mb"])
        return True

    def _record(self, batch: _Batch, number: int) -> None:
        alive = [process.engine for process in self.processes]
        for rank, i in enumerate(batch.good):
            one = batch.utterances[i]
            self.records.write(
                UTTERANCE,
                id=one.id,
                file=Path(one.path).name,
                language=one.language,
                seconds=batch.seconds[one.id],
                reference=one.reference,
                batch=number,
                damage=batch.damage.get(one.id),
                engines={
                    name: {
                        **batch.outputs[name][rank],
                        "seconds": batch.times[name],
                        "peak_mb": batch.peaks[name],
                    }
                    for name in self.options.engines
                    if name in alive
                },
            )
        for one in batch.utterances:
            if one.id in batch.problems:
                problems = batch.problems[one.id]
                self.records.write(FAILED, id=one.id, file=Path(one.path).name, problems=problems)
                for name, problem in problems.items():
                    self.progress(f"{one.id} failed in {name}: {problem}")

    def _ask(self, process: EngineProcess, request: str, **named: Any) -> dict[str, Any] | None:
        """The answer; None after giving the engine up."""
        try:
            return process.ask(request, **named)
        except EngineFailed as error:
            process.stop()
            self.processes.remove(process)
            self.records.write(ENGINE, engine=process.engine, error=str(error))
            self.progress(f"{process.engine} is given up: {error}")
            return None

    def _check_alive(self) -> None:
        if not self.processes:
            raise FairseqOpenVINOError(
                "Evaluating failed in --engines: expected at least one that works, got none (see "
                "above). Correct the models."
            )
