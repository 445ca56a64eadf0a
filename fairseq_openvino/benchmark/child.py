"""The child's side: one engine, one configuration; JSON requests on stdin, answers on stdout.

| request                | answer                                                              |
|------------------------|---------------------------------------------------------------------|
| `prepare`              | models and data are in the work directory                           |
| `load`                 | seconds to the first two tokens, precision in use                   |
| `run`                  | one round, see `workload.measure_round`                             |
| `profile`              | see `profile.profile_step`                                          |

An answer with `error` is the end of an engine, not of the benchmark.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fairseq_openvino.benchmark.material import prepare, source
from fairseq_openvino.benchmark.plan import Case, Options
from fairseq_openvino.benchmark.process import answer_requests


class Child:
    """State between requests."""

    def __init__(self, settings: dict[str, Any]) -> None:
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in settings["options"].items()
        }
        self.options = Options(**fields)
        self.case, self.engine = Case(**settings["case"]), settings["engine"]
        self.work_dir, self.cache = Path(settings["work_dir"]), Path(settings["cache"])
        self.source = source(self.case, self.work_dir)
        self.loaded: Any = None

    def prepare(self, onnx: bool, quantized: bool) -> dict[str, Any]:
        """Write models and data."""
        prepare(self.case, self.options, self.work_dir, onnx, quantized)
        return {}

    def load(self) -> dict[str, Any]:
        """Load the engine."""
        from fairseq_openvino.benchmark.engines import load, precision_in_use

        self.loaded = load(self.engine, self.source, self.case, self.options, self.cache)
        return {
            "load_seconds": self.loaded.first_seconds,
            "audio_seconds": self.loaded.audio_seconds,
            "precision": precision_in_use(self.loaded, self.engine),
        }

    def run(self) -> dict[str, Any]:
        """Measure one round."""
        from fairseq_openvino.benchmark.workload import measure_round

        return measure_round(self.loaded, self.source)

    def profile(self) -> dict[str, Any]:
        """Profile a decoder step."""
        from fairseq_openvino.benchmark.profile import profile_step

        return profile_step(self.loaded, self.case.beam)


if __name__ == "__main__":
    answer_requests(Child(json.loads(sys.argv[1])))
