"""An engine's process: its loop of requests, and the parent's side: start, ask, time out, stop.

Requests are JSON lines `[request, {arguments}]` on stdin, answered by JSON objects on stdout; whatever
else is printed goes to the log. The child is told what to be by a JSON object as its last argument
(`engines.EngineSpec`). An answer with `error` is the end of the engine, not of the measurement.

| request    | arguments             | answer                                                   |
|------------|-----------------------|----------------------------------------------------------|
| `prepare`  |                       | what it loads is made from `checkpoint`, if need be      |
| `load`     |                       | `load_seconds`, without importing packages               |
| `read`     | `paths`               | `clips`: of each `seconds` of audio, maybe `damage`; or  |
|            |                       | its `problem`. They replace those read before            |
| `generate` | `positions` of clips, | `seconds`; `outputs`: of each `text`, `tokens` (their    |
|            | `search`, `language`, | number), `score`; `peak_mb`. Or `problems`: pairs of the |
|            | `tokens`              | position of a clip that fails and why                    |
| `describe` |                       | `precision` by name and `summary`, once it has decoded;  |
|            |                       | of peers also `versions`, and `batches` if it has none   |

Only engines of this package: `make` (random models), `profile` (of a decoder step).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 16
MAX_ERROR_CHARACTERS = 400
STOP_SECONDS = 5.0
PREPARING = ("make", "prepare")
PREPARING_SECONDS = 900.0
"""What exporting, quantizing or converting may take, whatever --timeout says."""


def answer_requests(child: Any) -> None:
    """The child's loop: requests are methods of `child`, until stdin ends."""
    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to the log
    for line in sys.stdin:
        name, named = json.loads(line)
        try:
            answer = getattr(child, name)(**named)
        except Exception as error:  # noqa: BLE001  an engine may fail in any way: report it
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {first_line(error)}"}
        print(json.dumps(answer), file=answers, flush=True)


def first_line(error: Exception) -> str:
    """The first line of an error's text that is not empty, cut to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:MAX_ERROR_CHARACTERS]


class EngineFailed(Exception):  # noqa: N818  not an error of this program: a finding
    """An engine could not do what it was asked; the text is its error line."""


class Conversation:
    """One child that answers JSON lines with JSON lines; `ask` blocks until it does."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], log: Path, timeout: float
    ) -> None:
        self.log, self.timeout = log, timeout
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        self._unread = b""

    def ask(self, request: str, **named: Any) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises:
            EngineFailed: the child failed, died or took longer than --timeout; it is stopped.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([request, named]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has died: reading says how
        try:
            limit = PREPARING_SECONDS if request in PREPARING else self.timeout
            answer: dict[str, Any] = json.loads(self._read_line(limit))
        except EngineFailed:
            self.stop()
            raise
        if "error" in answer:
            self.stop()
            raise EngineFailed(answer["error"])
        return answer

    def stop(self) -> None:
        """End the child and whatever it started."""
        process = self._process
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is not None:
                break
            try:
                os.killpg(process.pid, number)
                process.wait(STOP_SECONDS)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue

    def _read_line(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise EngineFailed(f"no answer within --timeout {timeout:g} s: stopped")
            block = os.read(self._process.stdout.fileno(), BLOCK_BYTES)
            if not block:
                raise EngineFailed(self._last_words())
            self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        code = self._process.wait()
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"ended with {how}: {lines[-1] if lines else 'no message'}"
