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
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from fairseq_openvino.benchmark.material import prepare, source
from fairseq_openvino.benchmark.plan import Case, Options

MAX_ERROR_CHARACTERS = 300


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

    def prepare(self, onnx: bool) -> dict[str, Any]:
        """Write models and data."""
        prepare(self.case, self.options, self.work_dir, onnx)
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


def main() -> None:
    """Answer requests until stdin ends."""
    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to the log
    child = Child(json.loads(sys.argv[1]))
    for line in sys.stdin:
        name, named = json.loads(line)
        try:
            answer = getattr(child, name)(**named)
        except Exception as error:  # noqa: BLE001  an engine may fail in any way: report it
            traceback.print_exc()
            answer = {"error": _first_line(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:MAX_ERROR_CHARACTERS]


if __name__ == "__main__":
    main()
