"""Commands of ours in processes that are killed, or refused something, at the n-th call to the file system.

Nothing is preloaded: `fault_calls` replaces functions in the process that runs the command. A `Nursery` has
imported everything already and forks, so that a run costs what the command itself does.

    nursery = Nursery(root)
    calls = nursery.run(words).calls              # undisturbed: every call, in order
    nursery.run(words, Fault(at=7, kill="half"))  # killed when half of what call 7 writes is written
    nursery.run(words, Fault(at=7, errno=errno.ENOSPC))
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import io
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fault_calls import Calls, Fault

CLEANING = ("rmdir", "unlink", "remove")
"""Where one of these is refused, what it was to remove stays for the next run."""
WARM = (
    "torch", "torch.fx.experimental.symbolic_shapes", "onnx", "onnxruntime", "openvino", "fairseq",
    "fairseq_openvino.cli", "fairseq_openvino.loading", "fairseq_openvino.metrics",
    "fairseq_openvino.export.fairseq", "fairseq_openvino.export.procedure",
    "fairseq_openvino.quantize.procedure", "nncf.torch", "nncf.openvino.quantization.quantize_model",
    "sacrebleu", "soundfile", "sentencepiece", "scipy.fft",
)  # fmt: skip
COMMANDS = "fairseq_openvino.cli:main"
MANY_SECONDS, HANG_SECONDS = 600.0, 60.0
"""After which a process is killed: any, and one with little memory."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    signal: int = 0
    exit_code: int | None = None
    """None: by a signal, or by an exception that nobody expected."""
    raised: str = ""
    """That exception's traceback."""
    calls: list[str] = field(default_factory=list)
    """`<function> <path>`, in order, up to the end or to the fault."""
    left_open: list[str] = field(default_factory=list)
    """Files below the root whose descriptors are still open."""
    said: str = ""
    """On stdout and stderr."""
    took: float = 0.0
    """Seconds."""


class Nursery:
    """A process that has imported what commands need, and forks one for each run."""

    def __init__(self, root: Path, modules: Sequence[str] = WARM, entry: str = COMMANDS) -> None:
        self.root = root
        for name in ("home", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        here = Path(__file__).absolute().parent
        environment = os.environ | {
            "PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1", "HOME": str(root / "home"), "TMPDIR": str(root / "tmp"),
            "XDG_CACHE_HOME": str(root / "home" / ".cache"), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(root), entry, *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def run(self, words: Sequence[object], fault: Fault | None = None) -> Outcome:
        """The entry's result for these words, in a process of its own."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"words": list(map(str, words)), "fault": asdict(fault or Fault())}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def _serve(root: Path, entry: str, modules: Sequence[str]) -> None:
    """Answer requests until standard input ends."""
    if entry == COMMANDS:
        from fairseq_openvino.compat.telemetry import require_consent

        require_consent()  # as commands do before these imports
    for name in modules:
        importlib.import_module(name)
    module, _, function = entry.partition(":")
    main = getattr(importlib.import_module(module), function)
    if entry == COMMANDS:
        importlib.import_module(module).build_parser()  # reads the sources of all options
    gc.collect()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    said, report = root / "tmp.said", root / "tmp.report"
    for line in sys.stdin:
        request = json.loads(line)
        report.write_text("{}")
        started, fault = time.monotonic(), Fault(**request["fault"])
        child = os.fork()
        if child == 0:
            _become(partial(main, request["words"]), fault, root, said, report)
        most = HANG_SECONDS if fault.memory_bytes else MANY_SECONDS
        limit = started + (fault.seconds or most)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > limit:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.0005 if fault.seconds else 0.005)
        outcome = json.loads(report.read_text()) | {
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            "said": said.read_text(errors="replace"), "took": time.monotonic() - started,
        }  # fmt: skip
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()


def _become(run: Callable[[], int], fault: Fault, root: Path, said: Path, report: Path) -> None:
    """The process that runs a command; it does not return."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(root)
    logging.getLogger().setLevel(logging.WARNING)  # an import has changed it
    faulthandler.enable()
    if fault.memory_bytes:  # native code may wait for ever
        faulthandler.dump_traceback_later(HANG_SECONDS - 5)
    real, part = io.open, report.with_suffix(".part")
    calls = Calls(fault, root)
    calls.install()
    if fault.memory_bytes:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + fault.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    outcome: dict[str, Any] = {}
    try:
        outcome["exit_code"] = run()
    except SystemExit as error:
        outcome["exit_code"] = error.code if isinstance(error.code, int) else 1
    except BaseException:
        outcome["raised"] = traceback.format_exc()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    faulthandler.cancel_dump_traceback_later()
    atexit._run_exitfuncs()
    calls.is_over, io.open = True, real
    names = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    opened = [os.readlink(name) for name in names if os.path.islink(name)]
    outcome["left_open"] = [name for name in opened if name.startswith(f"{root}/work")]
    outcome["calls"] = calls.made
    part.write_text(json.dumps(outcome))
    os.replace(part, report)  # a clock may kill us even here
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def kills(calls: Sequence[str], seed: int) -> list[Fault]:
    """A kill at every one of some calls: before, half way and after by turns, as the seed has it."""
    chance = random.Random(seed)
    return [Fault(at=i, kill=chance.choice(("before", "half", "after"))) for i in range(len(calls))]


OLD, NEW = b"old", b"new"


def publish(words: list[str]) -> int:
    """Everything that commands publish with: directories and files, over those that are there, and records.

    Returns:
        0, or the exit code of an error.
    """
    from fairseq_openvino.atomic import staged_directory, writable_directory
    from fairseq_openvino.errors import FairseqOpenVINOError
    from fairseq_openvino.journal import Journal, records
    from fairseq_openvino.tables import write_json

    work = Path(words[0])
    try:
        writable_directory(work)
        with closing(Journal(work / "journal")) as journal:
            for number, content in enumerate((OLD, NEW)):
                done = sum(1 for _ in records(work / "journal"))
                for step in range(done, 3 * number + 3):
                    journal.append({"number": step})
                with staged_directory(work / "directory", overwrite=True) as stage:
                    for name in ("a", "b", "c"):
                        (stage / name).write_bytes(content)
                write_json(work / "report.json", {"is": content.decode()})
    except FairseqOpenVINOError as error:
        return error.exit_code
    return 0


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
