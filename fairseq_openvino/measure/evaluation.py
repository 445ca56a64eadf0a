"""The run of an evaluation: batch by batch, every engine decodes the same utterances.

Engines take turns in the passes over a batch. Features are computed before a turn and are not timed,
except beside peers, which compute them within.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.errors import FairseqOpenVINOError, OptionError
from fairseq_openvino.measure.engines import EngineSpec
from fairseq_openvino.measure.journal import (
    ENGINE,
    FAILED,
    FILE,
    RUN,
    SPELLINGS,
    UTTERANCE,
    Journal,
    begun,
    changed,
    spellings,
)
from fairseq_openvino.measure.options import EVALUATING, EvaluationOptions
from fairseq_openvino.measure.turns import Turns
from fairseq_openvino.metrics import (
    TRANSLATION_METRICS,
    WORD_METRICS,
    check,
    default_metrics,
    whisper_normalizer,
)
from fairseq_openvino.speech import corpus
from fairseq_openvino.speech.corpus import Utterance
from fairseq_openvino.whisper.options import TRANSLATE

WARM_UP_BATCHES = 2
"""Decoded by every engine before anything is timed; the first counts as part of loading."""
PROGRESS_SECONDS = 10.0
PACKAGES = ("transformers", "nncf", "sacrebleu", "jiwer")
"""Named with the versions in `machine.provenance`."""
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""PyTorch's idle threads sleep: spinning on, they would slow down the engine whose turn it is. What
the caller's environment says goes first. It costs PyTorch about 5 % at one utterance a batch."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Survey:
    """What a first look at the corpus, without its audio, says."""

    total: int
    """Utterances of this shard."""
    metrics: tuple[str, ...]
    normalizer: dict[str, str | None] | None
    """`language` of the references for the Whisper normaliser; None if there is none to apply."""


def evaluate(
    options: EvaluationOptions, progress: Progress = lambda _: None, resume: bool = False
) -> bool:
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
        closing(Journal(options.output / FILE)) as records,
        tempfile.TemporaryDirectory(prefix="fairseq-openvino-evaluate-") as scratch,
    ):
        _keep_spellings(table, options.output)
        records.write(RUN, **run)
        measurement = _Measurement(options, records, progress, Path(scratch))
        try:
            if len(before.done()) == survey.total:
                return True
            measurement.load()
            numbers = [int(record["batch"].partition(".")[2]) for record in before.utterances]
            measurement.decode(survey.total, before.done(), max(numbers, default=-1) + 1)
        except KeyboardInterrupt:
            return False
        finally:
            measurement.turns.stop()
    return True


def look(options: EvaluationOptions, table: Mapping[str, str]) -> Survey:
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
        raise EVALUATING.fail("shard", "a share with utterances", "/".join(map(str, options.shard)))
    metrics = options.metrics or default_metrics(
        corpus.kind_of(options.corpus), first, options.text_column
    )
    if options.search.task == TRANSLATE and not options.metrics:
        metrics = TRANSLATION_METRICS
    if options.normalizer != "none" and any(metric in WORD_METRICS for metric in metrics):
        language = _normalizer_language(options, languages)
        normalizer = {"language": language}
        function = whisper_normalizer(language, table)
        for utterance in _utterances(options):
            check([utterance.reference], function, [utterance.id])
    return Survey(total, metrics, normalizer)


def _normalizer_language(options: EvaluationOptions, languages: set[str | None]) -> str | None:
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


def _spellings_source(options: EvaluationOptions) -> Path:
    """The directory with a table of spellings, if a model brings one."""
    for directory in (options.checkpoint, options.bundle):
        if directory is not None and (directory / SPELLINGS).is_file():
            return directory
    return options.output


def _keep_spellings(source: Path, output: Path) -> None:
    """With their table the records are complete."""
    if source != output:
        shutil.copyfile(source / SPELLINGS, output / SPELLINGS)


def _run(options: EvaluationOptions, survey: Survey) -> dict[str, Any]:
    stated = machine.provenance() | machine.versions(PACKAGES)
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


def _utterances(options: EvaluationOptions) -> Iterator[Utterance]:
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

    def has_problem(self, position: int, engine: str, problem: str) -> None:
        """Note why an engine cannot decode an utterance."""
        self.problems.setdefault(self.utterances[position].id, {})[engine] = problem


class _Measurement:
    """The engines and what they are asked."""

    def __init__(
        self, options: EvaluationOptions, records: Journal, progress: Progress, scratch: Path
    ) -> None:
        self.options, self.records, self.progress = options, records, progress
        self.turns = Turns(options.timeout, scratch, self._given_up, WAITING)
        self.spoken = 0.0
        """When progress was last reported, s."""

    def load(self) -> None:
        """Load and warm up every engine; those that fail are given up."""
        loads: dict[str, float] = {}
        for spec in self.options.specs:
            self.progress(f"loading {spec.name}")
            prepared = self.turns.start(spec) and self.turns.ask(spec, "prepare") is not None
            answer = self.turns.ask(spec, "load") if prepared else None
            if answer is not None:
                loads[spec.name] = float(answer["load_seconds"])
        self._check_alive()
        self.progress("warming up")
        warm = 0
        for utterances in self._batches(set()):
            batch = self._read(utterances)
            while batch.good and not self._generate(batch, warm):
                continue
            if batch.good:
                for name, times in batch.times.items():
                    loads[name] += times[0] if warm == 0 and name in loads else 0.0
                warm += 1
            if warm == WARM_UP_BATCHES:
                break
        self._check_alive()
        for spec in list(self.turns.alive):
            answer = self.turns.ask(spec, "describe")
            if answer is not None:
                self.records.write(
                    ENGINE,
                    engine=spec.name,
                    load_seconds=loads[spec.name],
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

    def _batches(self, done: set[str]) -> Iterator[list[Utterance]]:
        left = (one for one in _utterances(self.options) if one.id not in done)
        return batches(left, self.options.batch_size)

    def _read(self, utterances: list[Utterance]) -> _Batch:
        """Every engine computes its features."""
        batch = _Batch(utterances)
        for spec in list(self.turns.alive):
            clips = self.turns.read(spec, [one.path for one in utterances]) or []
            for position, clip in enumerate(clips):
                one = utterances[position]
                if "problem" in clip:
                    batch.has_problem(position, spec.name, clip["problem"])
                else:
                    batch.seconds.setdefault(one.id, float(clip["seconds"]))
                if "damage" in clip:
                    batch.damage[one.id] = clip["damage"]
        return batch

    def _generate(self, batch: _Batch, turn: int) -> bool:
        """One pass over the batch by every engine; False if it has to begin anew without a clip."""
        named = {
            "positions": batch.good,
            "search": asdict(self.options.search),
            "language": batch.utterances[0].language,
        }
        for spec in self.turns.order(turn):
            answer = self.turns.ask(spec, "generate", **named)
            if answer is None:
                continue
            if "problems" in answer:
                for position, problem in answer["problems"]:
                    batch.has_problem(position, spec.name, problem)
                batch.times.clear()
                return False
            batch.times.setdefault(spec.name, []).append(float(answer["seconds"]))
            batch.outputs[spec.name] = answer["outputs"]
            batch.peaks[spec.name] = float(answer["peak_mb"])
        return True

    def _record(self, batch: _Batch, number: int) -> None:
        alive = [spec.name for spec in self.turns.alive]
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

    def _given_up(self, spec: EngineSpec, error: str) -> None:
        self.records.write(ENGINE, engine=spec.name, error=error)
        self.progress(f"{spec.name} is given up: {error}")

    def _check_alive(self) -> None:
        if not self.turns.alive:
            raise FairseqOpenVINOError(
                "Evaluating failed in --engines: expected at least one that works, got none (see "
                "above). Correct the models."
            )
