"""The measurement: one child per engine, all loaded, and only one of them computing at any time.

Engines take turns within each round and ratios are taken within a round, so that whatever else the
machine does falls on all of them. Each round starts with another engine. Threads of some libraries
spin for a while after their work; a pause between turns lets them fall asleep.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_openvino.benchmark.process import Conversation, EngineFailed, package_environment
from fairseq_openvino.benchmark.whisper import peer_child
from fairseq_openvino.benchmark.whisper.checkpoint import text_tokens
from fairseq_openvino.benchmark.whisper.material import (
    PEER_ENVIRONMENT,
    ConversionFailed,
    Material,
)
from fairseq_openvino.benchmark.whisper.plan import (
    OURS,
    PEERS_PYTHON,
    WORKLOADS,
    Engine,
    Options,
    Workload,
)
from fairseq_openvino.benchmark.whisper.results import Loaded, Results, Row, round_of
from fairseq_openvino.machine import provenance

PAUSE_SECONDS = 0.25
"""Longer than the 200 ms for which OpenMP threads wait for more work."""
SLOW_SECONDS = 10.0
"""What takes longer than this in the warm-up is not repeated: the warm-up is its only round."""
RESERVED_MB = 3000
"""Memory that must be available for another engine to be loaded."""
Progress = Callable[[str], None]


def run_whisper_benchmark(options: Options, progress: Progress = lambda _: None) -> Results:
    """Measure all sizes, engines and workloads.

    Args:
        options: what to measure.
        progress: called with one line whenever something begins.

    Returns:
        All rows; after Ctrl-C those measured so far, with `interrupted` set.

    Raises:
        MissingDependencyError: the checkpoint cannot be written.
    """
    results = Results(options, provenance())
    measurement = _Measurement(results, progress)
    try:
        for size in options.sizes:
            measurement.measure(size)
    except KeyboardInterrupt:
        results.interrupted = True
    finally:
        measurement.stop()
    peers = [each.versions for each in results.loaded if each.engine.package != OURS]
    versions = {name: found for each in peers for name, found in each.items()}
    if versions:
        named = ", ".join(f"{name} {found}" for name, found in sorted(versions.items()))
        results.provenance["of the peers"] = named
    return results


@dataclass
class _Measurement:
    """Children of the size under way."""

    results: Results
    progress: Progress
    children: dict[Engine, Conversation] = field(default_factory=dict)
    settings: dict[Engine, dict[str, Any]] = field(default_factory=dict)
    """What each child was started with; a child that ended is started again with them."""
    ended: set[Engine] = field(default_factory=set)
    spelled: dict[int, str] = field(
        default_factory=lambda: {number: token for token, number in text_tokens().items()}
    )
    """Spelling of the text tokens."""

    @property
    def options(self) -> Options:
        return self.results.options

    def measure(self, size: str) -> None:
        material = Material(self.options, size, self.progress)
        material.prepare()
        for engine in self.options.chosen:
            loaded = Loaded(size, engine)
            self.results.loaded.append(loaded)
            try:
                self._load(loaded, material)
            except (EngineFailed, ConversionFailed) as error:
                loaded.error = str(error)
                self.progress(f"{size}: {engine.name} failed: {error}")
        for workload in WORKLOADS:
            self._workload(size, workload)
        self.stop()

    def stop(self) -> None:
        """Stop all children."""
        for child in self.children.values():
            child.stop()
        for known in (self.children, self.settings, self.ended):
            known.clear()

    def _load(self, loaded: Loaded, material: Material) -> None:
        """Twice, in two processes: the first with an empty cache of compiled models."""
        engine = loaded.engine
        if engine.package != OURS and not PEERS_PYTHON.exists():
            raise EngineFailed("not installed: run `make peers`")
        available = available_mb()
        if available is not None and available < RESERVED_MB:
            raise EngineFailed(f"not loaded: {available:.0f} MB of memory left; see --engines")
        path = material.path(engine)
        cache = self.options.material / "caches" / loaded.size / engine.name
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        self.progress(f"{loaded.size}: loading {engine.name}")
        settings = {
            "package": engine.package, "precision": engine.precision, "source": str(material.source),
            "format": str(path), "clips": str(material.clips), "threads": self.options.threads,
            "tokens": self.options.tokens, "cache": str(cache),
        }  # fmt: skip
        self.settings[engine] = settings
        first = self._start(engine)
        loaded.cold_seconds = float(first.ask("load")["load_seconds"])
        first.stop()
        answer = self._start(engine).ask("load")
        loaded.warm_seconds = float(answer["load_seconds"])
        loaded.precision, loaded.versions = answer["precision"], answer["versions"]

    def _start(self, engine: Engine) -> Conversation:
        if engine.package == OURS:
            command = [sys.executable, "-m", "fairseq_openvino.benchmark.whisper.own_child"]
        else:
            command = [str(PEERS_PYTHON), "-I", peer_child.__file__]
        environment = package_environment(self.options.threads) | PEER_ENVIRONMENT
        log = self.options.material / "logs" / f"{engine.name}.log"
        command.append(json.dumps(self.settings[engine]))
        child = Conversation(command, environment, log, self.options.timeout)
        self.children[engine] = child
        return child

    def _workload(self, size: str, workload: Workload) -> None:
        rows = [
            Row(size, loaded.engine, workload, self.options.tokens, error=loaded.error)
            for loaded in self.results.loaded
            if loaded.size == size
        ]
        self.results.rows += rows
        self._restart()
        slow: set[str] = set()
        warm_ups: dict[str, dict[str, Any]] = {}
        for number in range(-1, self.options.rounds):  # -1 is the warm-up
            name = "warm-up" if number < 0 else f"round {number + 1} of {self.options.rounds}"
            self.progress(f"{size}: {workload.title}: {name}")
            turns = [row for row in rows if row.error is None and row.engine.name not in slow]
            shift = (number + 1) % max(len(turns), 1)
            for row in turns[shift:] + turns[:shift]:
                measured = self._run(row)
                if measured is None:
                    if not row.rounds and row.engine.name in warm_ups:
                        row.rounds.append(warm_ups[row.engine.name])
                    continue
                if number < 0:
                    warm_ups[row.engine.name] = measured
                if measured["seconds"] > SLOW_SECONDS and number < 0:
                    slow.add(row.engine.name)
                if number >= 0 or row.engine.name in slow:
                    row.rounds.append(measured)
                    self.results.order.append((size, workload.name, number, row.engine.name))

    def _restart(self) -> None:
        """Load again what ended in the workload before; where that fails, turns fail too."""
        for engine in sorted(self.ended, key=lambda engine: engine.name):
            self.progress(f"loading {engine.name} again")
            with suppress(EngineFailed):
                self._start(engine).ask("load")
        self.ended.clear()

    def _run(self, row: Row) -> dict[str, Any] | None:
        """One turn; None after noting the error in the row."""
        time.sleep(PAUSE_SECONDS)
        request = {"clips": row.workload.clips, "beam": row.workload.beam}
        try:
            answer = self.children[row.engine].ask("run", **request)
        except EngineFailed as error:
            row.error = str(error)
            self.ended.add(row.engine)
            self.progress(f"{row.size}: {row.engine.name} failed: {error}")
            return None
        for loaded in self.results.loaded:
            if (loaded.size, loaded.engine) == (row.size, row.engine):
                loaded.peak_mb = max(loaded.peak_mb, float(answer["peak_mb"]))
        return round_of(answer, self.spelled)


def available_mb() -> float | None:
    """Memory that can be had without swapping, MB; None where the system does not say."""
    status = Path("/proc/meminfo")
    if not status.is_file():
        return None
    for line in status.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None
