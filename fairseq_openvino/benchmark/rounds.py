"""The measurement: one child per engine, all loaded, and only one of them computing at any time.

Engines take turns within each round, so that whatever else the machine does falls on all of them,
and ratios are taken within a round. Each round starts with another engine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from fairseq_openvino.benchmark.plan import (
    BASELINE,
    NNCF,
    OURS,
    SLOW_TO_CACHE,
    Case,
    Options,
    cases,
    chosen_engines,
)
from fairseq_openvino.benchmark.process import EngineFailed, Process
from fairseq_openvino.benchmark.results import Results, Row
from fairseq_openvino.errors import FairseqOpenVINOError
from fairseq_openvino.machine import provenance

ON_ONNX = ("onnxruntime", "openvino-stateless")
PROFILED = f"{OURS}f32"
Progress = Callable[[str], None]
T = TypeVar("T")


def run_benchmark(options: Options, progress: Progress = lambda _: None) -> Results:
    """Measure all configurations.

    Args:
        options: what to measure.
        progress: called with one line whenever something begins.

    Returns:
        All rows; after Ctrl-C those measured so far, with `interrupted` set.

    Raises:
        OptionError: an engine is unknown.
        FairseqOpenVINOError: models or data could not be made.
    """
    engines = chosen_engines(options.engines)
    results = Results(options, engines, provenance())
    with ExitStack() as stack:
        if options.work_dir is None:
            prefix = "fairseq-openvino-benchmark-"
            work_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
        else:
            work_dir = options.work_dir.absolute()
        measurement = _Measurement(results, work_dir, progress)
        try:
            for number, case in enumerate(cases(options)):
                measurement.measure(number, case)
        except KeyboardInterrupt:
            results.interrupted = True
        finally:
            measurement.stop()
    return results


@dataclass
class _Measurement:
    """Children and rows of the configuration under way."""

    results: Results
    work_dir: Path
    progress: Progress
    processes: list[Process] = field(default_factory=list)
    cold: dict[tuple[str, str], float] = field(default_factory=dict)
    """Seconds of the first start, by engine and cache."""
    given_up: dict[tuple[str, str], str] = field(default_factory=dict)
    """Why an engine did not load, by engine and material: it is not tried again."""

    def measure(self, number: int, case: Case) -> None:
        self.progress(f"{case.title}: preparing")
        self._prepare(case)
        children = []
        for engine in self.results.engines:
            row = Row(engine, case)
            self.results.rows.append(row)
            self.progress(f"{case.title}: loading {engine}")
            process = self._guarded(row, partial(self._load, row))
            if process is not None:
                children.append((row, process))
            elif row.error is not None:
                self.given_up[engine, case.material] = row.error
        for round_number in range(-1, self.results.options.rounds):  # -1 is the warm-up
            self._round(number, round_number, case, children)
        for row, process in children:
            if row.engine == PROFILED and row.error is None:
                self._profile(row, process)
        self.stop()

    def stop(self) -> None:
        """Stop all children."""
        for process in self.processes:
            process.stop()
        self.processes.clear()

    def _start(self, engine: str, case: Case) -> Process:
        cache = self.work_dir / "caches" / case.cache / engine
        cache.mkdir(parents=True, exist_ok=True)
        process = Process(engine, case, self.results.options, self.work_dir, cache)
        self.processes.append(process)
        return process

    def _prepare(self, case: Case) -> None:
        engines = self.results.engines
        onnx, quantized = any(engine in ON_ONNX for engine in engines), NNCF in engines
        process = self._start(BASELINE, case)
        try:
            process.ask("prepare", onnx=onnx, quantized=quantized)
        except EngineFailed as error:
            raise FairseqOpenVINOError(
                f"Benchmarking failed in {case.title}: expected a model and its data, got {error}. "
                "Correct --models or --model-overrides."
            ) from error
        process.stop()

    def _load(self, row: Row) -> Process:
        """A child with the engine loaded: for ours the second one with this cache."""
        key = (row.engine, row.case.cache)
        reason = self.given_up.get((row.engine, row.case.material))
        if reason is not None:
            raise EngineFailed(reason)
        process = self._start(row.engine, row.case)
        answer = process.ask("load")
        first = key not in self.cold
        if first:
            self.cold[key] = float(answer["load_seconds"])
        if first and row.engine.startswith(OURS):
            process.stop()
            process = self._start(row.engine, row.case)
            answer = process.ask("load")
        row.load_cold_seconds = self.cold[key]
        if not (first and row.engine in SLOW_TO_CACHE):
            row.load_seconds = float(answer["load_seconds"])
        row.audio_seconds, row.precision = answer["audio_seconds"], answer["precision"]
        return process

    def _round(
        self, number: int, round_number: int, case: Case, children: list[tuple[Row, Process]]
    ) -> None:
        shift = (round_number + 1) % max(len(children), 1)
        name = "warm-up" if round_number < 0 else f"round {round_number + 1}"
        self.progress(f"{case.title}: {name}")
        for row, process in children[shift:] + children[:shift]:
            if row.error is not None:
                continue
            answer = self._guarded(row, partial(process.ask, "run"))
            if answer is None:
                continue
            if round_number < 0:
                row.warm_up = answer
            else:
                row.rounds.append(answer)
                self.results.order.append((number, round_number, row.engine))

    def _profile(self, row: Row, process: Process) -> None:
        self.progress(f"{row.case.title}: profiling {row.engine}")
        try:
            row.profile = process.ask("profile")
        except EngineFailed as error:
            row.notes.append(f"no profile: {error}")

    def _guarded(self, row: Row, action: Callable[[], T]) -> T | None:
        """The action's result, or None after noting the error in the row."""
        try:
            return action()
        except EngineFailed as error:
            row.error = str(error)
            self.progress(f"{row.case.title}: {row.engine} failed: {error}")
            return None
