"""Commands of ours in processes that are killed, or refused something, at the n-th call to the file system.

Nothing is preloaded: in the process that runs the command, the functions of `os`, `io.open` and the native
writers and readers of OpenVINO are replaced by ones that count. A `Nursery` has imported everything already
and forks, so that a run costs what the command itself does.

    nursery = Nursery(root)
    calls = nursery.run(words).calls              # undisturbed: every call, in order
    nursery.run(words, Fault(at=7, kill="half"))  # killed when half of what call 7 writes is written
    nursery.run(words, Fault(at=7, errno=errno.ENOSPC))
"""

from __future__ import annotations

import atexit
import builtins
import errno as codes
import faulthandler
import gc
import importlib
import io
import json
import logging
import os
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

WRITING = (
    "rename", "replace", "mkdir", "rmdir", "unlink", "remove", "link", "symlink", "utime", "truncate",
)  # fmt: skip
"""Functions of `os` that take paths."""
ON_DESCRIPTORS = (
    "write", "pwrite", "fsync", "fdatasync", "ftruncate", "sendfile", "copy_file_range",
)  # fmt: skip
CLEANING = ("rmdir", "unlink", "remove")
"""Where one of these is refused, what it was to remove stays for the next run."""
NATIVE_BYTES = 2048
"""What a native writer can write before its disk is full."""
WARM = (
    "torch", "torch.fx.experimental.symbolic_shapes", "onnx", "onnxruntime", "openvino", "fairseq",
    "fairseq_openvino.cli", "fairseq_openvino.loading", "fairseq_openvino.metrics",
    "fairseq_openvino.export.fairseq", "fairseq_openvino.export.procedure",
    "fairseq_openvino.quantize.procedure", "sacrebleu", "soundfile", "sentencepiece", "scipy.fft",
)  # fmt: skip
COMMANDS = "fairseq_openvino.cli:main"
MANY_SECONDS = 60.0


@dataclass(frozen=True)
class Fault:
    """What happens to a process, and at which call."""

    at: int = -1
    """Number of the call, from 0; -1: at none."""
    errno: int = 0
    """The call fails with this."""
    kill: str = ""
    """SIGKILL `before`, `half` way through what it writes, or `after` the call."""
    seconds: float = 0.0
    """SIGKILL so long after the start, wherever it is then."""
    memory_bytes: int = 0
    """Address space beyond that of the process as it starts; 0: no limit."""
    reads: bool = False
    """Count the calls that read below the root, not those that write."""


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
        limit = started + (fault.seconds or MANY_SECONDS)
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
        faulthandler.dump_traceback_later(MANY_SECONDS - 5)
    real, write = io.open, report.write_text
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
    write(json.dumps(outcome))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Calls:
    """Counts the calls of this process, and lets one of them fail or kill."""

    def __init__(self, fault: Fault, root: Path) -> None:
        self._fault, self._root = fault, f"{root}/"
        self.made: list[str] = []
        self.is_over = False
        self._do = {name: getattr(os, name) for name in (*WRITING, *ON_DESCRIPTORS, "open", "kill")}

    def install(self) -> None:
        """Replace what is counted."""
        for name in (*WRITING, *ON_DESCRIPTORS):
            setattr(os, name, partial(self._counted, name))
        os.open = self._os_open
        builtins.open = io.open = partial(_opened, self)
        if "openvino" in sys.modules:
            self._install_native()

    def _install_native(self) -> None:
        import openvino as ov

        save, read, compile_model = ov.save_model, ov.Core.read_model, ov.Core.compile_model

        def read_model(core: Any, path: Any, *more: Any, **named: Any) -> Any:
            return self.native("read_model", path, partial(read, core, path, *more, **named), True)

        def compiled(core: Any, *more: Any, **named: Any) -> Any:
            run = partial(compile_model, core, *more, **named)
            caches = [
                each["CACHE_DIR"] for each in more if isinstance(each, dict) and "CACHE_DIR" in each
            ]
            return self.native("compile_model", caches[0], run) if caches else run()

        def save_model(model: Any, path: Any, *more: Any, **named: Any) -> Any:
            return self.native("save_model", path, partial(save, model, path, *more, **named))

        ov.save_model, ov.Core.read_model, ov.Core.compile_model = save_model, read_model, compiled

    def counts(self, path: object, reads: bool) -> bool:
        """Whether a call on a path, or an open file, is one of those that may fail."""
        if self.is_over or reads != self._fault.reads:
            return False
        if isinstance(path, int):
            path = _name(path)
        return not reads or os.path.join(os.getcwd(), os.fsdecode(path)).startswith(self._root)

    def begin(self, name: str, path: object, reads: bool = False) -> bool:
        """A call begins: note it, and say whether this process dies within or after it.

        Raises:
            OSError: it is this one that fails.
        """
        if not self.counts(path, reads):
            return False
        self.made.append(f"{name} {_name(path) if isinstance(path, int) else os.fsdecode(path)}")
        if len(self.made) - 1 != self._fault.at:
            return False
        if self._fault.errno:
            raise OSError(self._fault.errno, os.strerror(self._fault.errno))
        if self._fault.kill == "before":
            self.die()
        return bool(self._fault.kill)

    def die(self) -> None:
        """As `kill -9`."""
        self._do["kill"](os.getpid(), signal.SIGKILL)

    def native(self, name: str, path: object, run: Callable[[], Any], reads: bool = False) -> Any:
        """A call into OpenVINO: its disk is full, or it gets no descriptor; or it dies as it writes."""
        errno, kill = self._fault.errno, self._fault.kill
        if reads and errno != codes.EMFILE:
            return run()
        is_hit = False
        try:
            is_hit = self.begin(name, path, reads)
        except OSError:
            limit, number = resource.RLIMIT_FSIZE, NATIVE_BYTES
            if errno == codes.EMFILE:
                limit, number = resource.RLIMIT_NOFILE, 3
            before = resource.getrlimit(limit)
            resource.setrlimit(limit, (number, before[1]))
            try:
                return run()
            finally:
                resource.setrlimit(limit, before)
        if is_hit and kill == "half":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (NATIVE_BYTES, resource.RLIM_INFINITY))
        result = run()
        if is_hit:
            self.die()
        return result

    def _counted(self, name: str, *arguments: Any, **named: Any) -> Any:
        is_hit = False
        if not (name in ON_DESCRIPTORS and arguments[0] in (1, 2)):
            is_hit = self.begin(name, arguments[0])
        if is_hit and self._fault.kill == "half" and name == "write":
            arguments = arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2]
        try:
            return self._do[name](*arguments, **named)
        finally:
            if is_hit:
                self.die()

    def _os_open(self, path: Any, flags: int, *more: Any, **named: Any) -> int:
        is_hit = self.begin("open", path, not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        result: int = self._do["open"](path, flags, *more, **named)
        if is_hit:
            self.die()
        return result


class _Raw(io.FileIO):
    """An open file whose calls are counted."""

    calls: Calls

    def write(self, content: Any) -> int:
        is_hit = self.fileno() not in (1, 2) and self.calls.begin("write", self.fileno())
        if is_hit and self.calls._fault.kill == "half":
            content = memoryview(content)[: len(content) // 2]
        written = super().write(content)
        if is_hit:
            self.calls.die()
        return written

    def truncate(self, size: int | None = None) -> int:
        self.calls.begin("ftruncate", self.fileno())
        return super().truncate(size)

    def readinto(self, buffer: Any) -> int:
        self.calls.begin("read", self.fileno(), reads=True)
        return super().readinto(buffer) or 0

    def readall(self) -> bytes:
        self.calls.begin("read", self.fileno(), reads=True)
        return super().readall()

    def read(self, size: int | None = -1) -> bytes:
        self.calls.begin("read", self.fileno(), reads=True)
        return super().read(-1 if size is None else size)


def _opened(
    calls: Calls,
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """As `open`, over a file that counts."""
    is_text, changes = "b" not in mode, bool(set("wxa+") & set(mode))
    if not isinstance(file, int) and opener is None:
        is_hit = calls.begin("open", file, reads=not changes)
    else:
        is_hit = False
    raw = _Raw(file, "".join(letter for letter in mode if letter in "rwxa+"), closefd, opener)
    raw.calls = calls
    if is_hit:
        calls.die()
    if buffering == 0 and not is_text:
        return raw
    kind = io.BufferedRandom if "+" in mode else io.BufferedWriter if changes else io.BufferedReader
    buffered = kind(raw, buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE)
    if not is_text:
        return buffered
    text = io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)
    text.mode = mode
    return text


def _name(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return str(descriptor)


def kills(calls: Sequence[str], seed: int) -> list[Fault]:
    """A kill at every one of some calls: before, half way and after by turns, as the seed has it."""
    import random

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
