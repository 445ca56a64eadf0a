"""The run of an evaluation: batch by batch, every engine decodes the same utterances.

Engines take turns in the passes over a batch. Features are computed before a turn and are not timed,
except beside peers, which compute them within.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.atomic import locked, sha256
from fairseq_openvino.bundle import MANIFEST
from fairseq_openvino.errors import FairseqOpenVINOError, OptionError, failure, invalid
from fairseq_openvino.jobs.plan import Input
from fairseq_openvino.measure.engines import EngineSpec
from fairseq_openvino.measure.journal import (
    ENGINE,
    FILE,
    RUN,
    SPELLINGS,
    Journal,
    begun,
    changed,
    spellings,
)
from fairseq_openvino.measure.options import ACTION, EvaluationOptions
from fairseq_openvino.measure.turns import Batch, Turns
from fairseq_openvino.metrics import (
    TRANSLATION_METRICS,
    WORD_METRICS,
    check,
    default_metrics,
    whisper_normalizer,
)
from fairseq_openvino.speech import corpus
from fairseq_openvino.speech.corpus import Utterance
from fairseq_openvino.speech.languages import language_code
from fairseq_openvino.whisper.options import TRANSLATE

LOCK = ".lock"
WARM_UP_BATCHES = 2
"""Decoded by every engine before anything is timed; the first counts as part of loading."""
PROGRESS_SECONDS = 10.0
PACKAGES = ("transformers", "nncf", "sacrebleu", "jiwer")
"""Named with the versions in `machine.provenance`."""
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""PyTorch's idle threads sleep: spinning on, they would slow down the engine whose turn it is. What
the caller's environment says goes first. It costs PyTorch about 5 % at one utterance a batch."""
Progress = Callable[[str], None]


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
        OptionError: the options contradict each other, or those of the run to go on with; or another
            process is at it.
        FairseqOpenVINOError: no engine could be loaded.
    """
    run = look(options)
    with locked(options.output / LOCK, wait=False) as is_held:
        if not is_held:
            expected, got = "a directory that nobody evaluates in", "one that another process is at"
            raise invalid(ACTION, "output", expected, got, "Wait for it, or end it")
        return _evaluate(options, run, progress, resume)


def _evaluate(
    options: EvaluationOptions, run: dict[str, Any], progress: Progress, resume: bool
) -> bool:
    before = begun(options.output, resume)
    if before.runs:
        _check_same(options.output, before.runs[0], run)
    with (
        closing(Journal(options.output / FILE)) as records,
        tempfile.TemporaryDirectory(prefix="fairseq-openvino-evaluate-") as scratch,
    ):
        table = _spellings_source(options)
        if table != options.output:  # with it the records are complete
            shutil.copyfile(table / SPELLINGS, options.output / SPELLINGS)
        records.write(RUN, **run)
        measurement = _Measurement(options, records, progress, Path(scratch))
        try:
            if len(before.done()) == run["total"]:
                return True
            measurement.load()
            numbers = [int(record["batch"].partition(".")[2]) for record in before.utterances]
            measurement.decode(run["total"], before.done(), max(numbers, default=-1) + 1)
        except KeyboardInterrupt:
            return False
        finally:
            measurement.turns.stop()
    return True


def _check_same(output: Path, begun: dict[str, Any], run: dict[str, Any]) -> None:
    """Raise OptionError if what follows from these runs is not one evaluation."""
    states = begun.get("states", {})
    names = changed(begun["options"], run["options"])
    names += [name for name in states if states[name] != run["states"].get(name)]
    names += [] if begun["shard"] == run["shard"] else ["shard"]
    if names:
        raise failure(
            OptionError, "Resuming", output, "the options, corpus and models of the run begun",
            f"others in {', '.join(names)}", "Repeat the command as it was",
        )  # fmt: skip


def look(options: EvaluationOptions) -> dict[str, Any]:
    """Read the corpus without its audio: every row is checked before anything is computed.

    Returns:
        The record of the run: what is compared, on which machine; `total` utterances of this shard;
        `states` of the corpus and the models; `metrics`; and for the Whisper normaliser the `language`
        of the references.

    Raises:
        ModelError: a row is malformed, or a reference is empty.
    """
    first, languages, total, seen = None, set(), 0, hashlib.sha256()
    for utterance in _utterances(options):
        first = first or utterance
        languages.add(utterance.language)
        total += 1
        file = Input.of(utterance.path, utterance.id)
        row = utterance.id, utterance.reference, utterance.language
        seen.update(repr((*row, file.bytes, file.modified_ns)).encode())
    share = "/".join(map(str, options.shard))
    if first is None:
        raise invalid(ACTION, "shard", "a share with utterances", share)
    metrics = options.metrics or default_metrics(
        corpus.kind_of(options.corpus, options.text_column), first, options.text_column
    )
    if options.search.task == TRANSLATE and not options.metrics:
        metrics = TRANSLATION_METRICS
    normalizer: dict[str, str | None] | None = None
    if options.normalizer != "none" and any(metric in WORD_METRICS for metric in metrics):
        normalizer = {"language": _normalizer_language(options, languages)}
        table = spellings(_spellings_source(options))
        function = whisper_normalizer(normalizer["language"], table)
        for utterance in _utterances(options):
            check([utterance.reference], function, [utterance.id])
    return {
        "options": options.recorded(),
        "model": options.model_name,
        "shard": share,
        "states": {"corpus": seen.hexdigest(), **_states(options)},
        "total": total,
        "metrics": list(metrics),
        "normalizer": normalizer,
        "provenance": {
            **machine.provenance(),
            **machine.versions(PACKAGES),
            "threads": str(options.threads),
            **{name: os.environ.get(name, value) for name, value in WAITING.items()},
        },
    }


def _states(options: EvaluationOptions) -> dict[str, Any]:
    """Of each model: the digest of a bundle; else bytes, and times in ns since 1970, of its files by name."""
    found: dict[str, Any] = {}
    for name in ("checkpoint", "bundle", "int8_bundle"):
        place: Path | None = getattr(options, name)
        if place is None:
            continue
        if (place / MANIFEST).is_file():
            found[name] = sha256(place / MANIFEST)
        else:
            files = sorted(place.iterdir()) if place.is_dir() else [place]
            inputs = [Input.of(str(file), file.name) for file in files]
            found[name] = {each.name: [each.bytes, each.modified_ns] for each in inputs}
    return found


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
        return None if language_code(language or "") == "en" else language
    return language


def _spellings_source(options: EvaluationOptions) -> Path:
    """The directory with a table of spellings, if a model brings one."""
    for directory in (options.checkpoint, options.bundle):
        if directory is not None and (directory / SPELLINGS).is_file():
            return directory
    return options.output


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
            batch = self.turns.read(utterances)
            while batch.good and not self._decode(batch, warm):
                continue
            if batch.good:
                for name, passes in batch.passes.items():
                    loads[name] += passes[0]["seconds"] if warm == 0 else 0.0
                warm += 1
            if warm == WARM_UP_BATCHES:
                break
        self._check_alive()
        for spec in list(self.turns.alive):
            answer = self.turns.ask(spec, "describe")
            if answer is not None:
                stated = {"load_seconds": loads[spec.name], "precision": answer["precision"]}
                self.records.write(ENGINE, engine=spec.name, **stated)

    def decode(self, total: int, done: set[str], number: int) -> None:
        """Measure all batches that are not done; the first gets this number."""
        finished = len(done)
        for offset, utterances in enumerate(self._batches(done)):
            batch = self.turns.read(utterances)
            repeat = 0
            while batch.good and repeat < self.options.repeats:
                repeat = repeat + 1 if self._decode(batch, offset + repeat) else 0
            self._check_alive()
            self._record(batch, number + offset, done)
            finished += sum(one.id not in done for one in utterances)
            if time.monotonic() - self.spoken > PROGRESS_SECONDS or finished == total:
                self.spoken = time.monotonic()
                self.progress(f"{finished} of {total} utterances")

    def _batches(self, done: set[str]) -> Iterator[list[Utterance]]:
        """The same batches, whatever is done: scores depend on them by what rounding makes of it."""
        planned = batches(_utterances(self.options), self.options.batch_size)
        return (batch for batch in planned if not all(one.id in done for one in batch))

    def _decode(self, batch: Batch, turn: int) -> bool:
        search, language = asdict(self.options.search), batch.utterances[0].language
        return self.turns.decode(batch, turn, search=search, language=language)

    def _record(self, batch: Batch, number: int, done: set[str]) -> None:
        alive = {spec.name for spec in self.turns.alive}
        engines = [name for name in self.options.engines if name in alive]
        self.records.write_batch(batch, number, engines, done=done)
        for i, problems in batch.problems.items():
            for name, problem in problems.items():
                self.progress(f"{batch.utterances[i].id} failed in {name}: {problem}")

    def _given_up(self, spec: EngineSpec, error: str) -> None:
        self.records.write(ENGINE, engine=spec.name, error=error)
        self.progress(f"{spec.name} is given up: {error}")

    def _check_alive(self) -> None:
        if not self.turns.alive:
            raise failure(
                FairseqOpenVINOError, ACTION, "--engines", "at least one that works",
                "none (see above)", "Correct the models",
            )  # fmt: skip
