"""Jobs: whoever is killed, stopped or late, the same plan gives the same bytes."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import MINI, child_environment, write_table

from fairseq_openvino import cli
from fairseq_openvino.errors import ModelError, OptionError, StorageError
from fairseq_openvino.jobs import job as jobs
from fairseq_openvino.jobs import leases
from fairseq_openvino.jobs.answers import SHORT_BYTES, Answers, is_long
from fairseq_openvino.jobs.index import Index
from fairseq_openvino.jobs.leases import Identity, Lease, Leases, Watch, holder, sign_on
from fairseq_openvino.jobs.plan import Input, Plan
from fairseq_openvino.jobs.status import status
from fairseq_openvino.jobs.transcribe import Transcribe
from fairseq_openvino.jobs.work import work
from fairseq_openvino.jobs.worker import Worker
from fairseq_openvino.journal import Journal, records

SEED = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "0"))
CLIPS = sorted((MINI / "clips").glob("*.mp3"))

SERVER = """
import json, os, signal, sys
sys.path.insert(0, os.environ["TESTS"])
import fairseq_openvino.jobs.work, fairseq_openvino.recognizer, test_jobs
signal.signal(signal.SIGINT, signal.default_int_handler)
for line in sys.stdin:
    name, *arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os._exit(getattr(test_jobs, name)(*arguments))
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
"""Processes that begin with everything imported: one at a time, functions of this module."""


class Server:
    """The parent of such processes."""

    def __init__(self) -> None:
        environment = child_environment(TESTS=str(Path(__file__).parent), OMP_NUM_THREADS="1")
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip

    def start(self, name: str, *arguments: Any) -> int:
        """Call a function of this module in a new process; its id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._line()

    def wait(self) -> int:
        """The exit code of the process, negative if a signal ended it."""
        return self._line()

    def _line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@contextmanager
def served() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served() as found:
        yield found


def waiting(log: str, words: list[str]) -> int:
    """The command line tool in this process; it commits nothing before it is stopped."""
    commit = Worker.commit

    def late(worker: Worker, *arguments: Any) -> None:
        worker.stopping.wait(60)
        commit(worker, *arguments)

    Worker.commit = late  # type: ignore[method-assign]
    return command(log, words)


def command(log: str, words: list[str], file_bytes: int | None = None) -> int:
    """The command line tool in this process; no file gets larger than `file_bytes`."""
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = cli.main(words)
    sys.stderr.flush()
    return code


def stopped(directory: str, mark: str) -> int:
    """A worker that holds the first batch until `mark` is gone, and then commits something else."""
    with Worker(jobs.read(Path(directory))) as worker:
        lease = worker.claim()
        assert lease is not None
        Path(mark).touch()
        while Path(mark).exists():
            time.sleep(0.01)
        batch = worker.job.plan.batches[lease.batch]
        worker.commit(lease, [record(each.path, "late") for each in batch])
    return 0


def answering(directory: str, mark: str) -> int:
    """A worker that is killed after three calls of its first batch."""
    with Worker(jobs.read(Path(directory))) as worker:
        ledger = ledger_of(worker)
        for call in range(3):
            assert ledger.known() is None
            ledger.add([call, 0.1 * call])
        Path(mark).touch()
        time.sleep(60)
    return 1


def ledger_of(worker: Worker) -> Answers:
    """Of the batch that it claims."""
    lease = worker.claim()
    assert lease is not None
    ledger = worker.ledger(lease)
    assert ledger is not None
    return ledger


def record(path: str, text: str, error: str | None = None) -> dict[str, Any]:
    """As `Transcribe` gives it."""
    line = json.dumps({"path": path, "text": text}) + "\n"
    results = [] if error else [{"path": path, "documents": {"jsonl": line, "text": text}}]
    return {"path": path, "seconds": 2.0, "results": results, "damage": None, "error": error}


class Echo:
    """In place of a model: a text that follows from the path; it can fail, and count."""

    def __init__(self, fails: Callable[[str], bool] = lambda _: False) -> None:
        self.calls: list[list[str]] = []
        self._fails = fails

    def follow(
        self, files: list[str], heard: Callable[[Any], None], _: Any = None
    ) -> list[dict[str, Any]]:
        self.calls.append(files)
        heard(None)
        return [record(path, path[::-1], "no" if self._fails(path) else None) for path in files]


def plan(files: int = 20, batch_size: int = 3, **options: Any) -> Plan:
    inputs = [Input(f"/data/{i}.wav", str(i), 1000 + i, 10**18 + i) for i in range(files)]
    return Plan.of("d1" * 32, {"batch_size": batch_size, "beam": 5, **options}, inputs)


def finish(job: jobs.Job, echo: Echo, retry_failed: bool = False) -> bytes:
    """Work until it is merged; the results."""
    with Worker(job, retry_failed) as worker:
        for _ in work(worker, echo):  # type: ignore[arg-type]
            pass
    assert job.merge()
    return job.results.read_bytes()


def expected(some: Plan) -> bytes:
    lines = (record(each.path, each.path[::-1])["results"][0]["documents"] for each in some.inputs)
    return "".join(each["jsonl"] for each in lines).encode()


def test_a_plan_is_a_function_of_what_it_is_made_of(tmp_path: Path) -> None:
    assert plan() == plan()
    batches = plan().batches
    assert [one for batch in batches for one in batch] == list(plan().inputs)
    assert [len(batch) for batch in batches] == [3] * 6 + [2]
    job = jobs.begin(tmp_path / "a", plan(temperature=(0.0, 0.2), threshold=float("inf")))
    again = jobs.read(tmp_path / "a").plan
    assert again == job.plan == plan(temperature=[0.0, 0.2], threshold=float("inf"))
    with pytest.raises(OptionError, match="expected files, got standard input"):
        Plan.of("", {}, [Input.of("-", "stdin")])
    for path in ("https://host/a.wav", "/data/a.wav"):
        assert Input.of(path, "a") == Input(path, "a", None, None)
    with pytest.raises(OptionError, match="expected each once, got '/data/0.wav' again"):
        Plan.of("", {}, [plan().inputs[0], plan().inputs[0]])


def test_what_has_changed_is_named(tmp_path: Path) -> None:
    before = plan()
    jobs.begin(tmp_path, before)
    first, second, *rest = before.inputs
    changed = [replace(first, bytes=1), replace(second, path="/data/x.wav"), *rest[:-4]]
    for now, words in (
        (plan(batch_size=4), "got batch_size 3 -> 4. Repeat"),
        (plan(nbest=2), "got nbest None -> 2. Repeat"),
        (replace(before, bundle="e" * 64), "got bundle d1d1d1d1d1d1 -> eeeeeeeeeeee. Repeat"),
        (replace(before, inputs=changed), (
            "got 1 inputs new (/data/x.wav); 5 inputs gone (/data/1.wav, /data/16.wav, /data/17.wav, "
            "...); 1 inputs changed (/data/0.wav). Repeat")),
        (replace(before, inputs=before.inputs[::-1]), "got the order of the inputs. Repeat"),
    ):  # fmt: skip
        with pytest.raises(OptionError) as caught:
            jobs.begin(tmp_path, now)
        assert words in str(caught.value)
    assert jobs.begin(tmp_path, before).plan == before


def test_isolation_changes_bytes_where_channels_fail_alone(mini_bundle: Path) -> None:
    """A decoder in a child has one answer for a file."""
    for channel, changes in (("mix", False), ("split", True)):
        transcribe = Transcribe(mini_bundle, channel=channel, isolate_audio=True)
        assert ("isolate_audio" in transcribe.described()) == changes


def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    job = jobs.begin(tmp_path / "a", plan())
    for name in (jobs.PLAN, jobs.INPUTS):
        content = (job.directory / name).read_bytes()
        for damaged in (content[: len(content) // 2], content.replace(b"1", b"2")):
            (job.directory / name).write_bytes(damaged)
            with pytest.raises((ModelError, OptionError)):
                jobs.begin(tmp_path / "a", plan())
        (job.directory / name).write_bytes(content)
    tmp_path.joinpath("b").mkdir()
    tmp_path.joinpath("b", "x.txt").touch()
    with pytest.raises(OptionError, match="got one with 'x.txt'"):
        jobs.begin(tmp_path / "b", plan())


def test_records_without_their_plan_are_not_gone_on_with(tmp_path: Path) -> None:
    """They may follow from other options."""
    job = jobs.begin(tmp_path, plan())
    (tmp_path / jobs.PLAN).unlink()
    assert jobs.begin(tmp_path, plan()).plan == job.plan  # killed as it began: nothing is lost
    finish(job, Echo())
    for name in (jobs.PLAN, jobs.RESULTS):
        (tmp_path / name).unlink()
    with pytest.raises(OptionError, match="expected an empty directory.* got one with 'journals'"):
        jobs.begin(tmp_path, plan(beam=1))


def test_many_workers_share_a_job_and_nobody_decodes_what_another_has(tmp_path: Path) -> None:
    job, echoes = jobs.begin(tmp_path, plan(200, 2)), [Echo() for _ in range(6)]
    threads = [threading.Thread(target=finish, args=(job, echo)) for echo in echoes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert job.results.read_bytes() == expected(job.plan)
    calls = [tuple(files) for echo in echoes for files in echo.calls]
    assert sorted(calls) == sorted({*calls}) and len(calls) == 100
    assert not any((tmp_path / jobs.LEASES).iterdir()) and not any(job.workers.iterdir())


def test_a_stopped_worker_loses_its_batch_and_its_late_record_counts_for_nothing(
    tmp_path: Path, server: Server
) -> None:
    job, mark = jobs.begin(tmp_path / "job", plan()), tmp_path / "mark"
    process = server.start("stopped", str(job.directory), str(mark))
    while not mark.exists():
        time.sleep(0.01)
    os.kill(process, signal.SIGSTOP)
    with Worker(job, lease_seconds=0.4) as worker:
        held = [lease for _ in range(7) if (lease := worker.claim()) is not None]
        assert held == [*(Lease(batch, 0) for batch in range(1, 7)), Lease(0, 1)]
        for lease in held[:-1]:
            worker.commit(lease, Echo().follow(paths(job, lease), lambda _: None))
        mark.unlink()
        os.kill(process, signal.SIGCONT)
        assert server.wait() == 0
        late = [each for path in job.journals.iterdir() for each in records(path)]
        assert sum(each.get("batch") == 0 for each in late) == 1
        assert not job.merge()
        worker.commit(held[-1], Echo().follow(paths(job, held[-1]), lambda _: None))
    assert job.merge()
    assert job.results.read_bytes() == expected(job.plan)


def paths(job: jobs.Job, lease: Lease) -> list[str]:
    return [each.path for each in job.plan.batches[lease.batch]]


def test_who_waits_does_not_look_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a job so large that a look takes 2 s."""
    job, now, looks = jobs.begin(tmp_path, plan()), [0.0], list[float]()
    highest = Leases.highest

    def slow(self: Leases) -> dict[int, int]:
        looks.append(now[0])
        now[0] += 2.0
        return highest(self)

    with Worker(job) as other, Worker(job) as worker:
        for _ in job.plan.batches:
            other.claim()
        monkeypatch.setattr(Leases, "highest", slow)
        clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
        monkeypatch.setattr("fairseq_openvino.jobs.worker.time", clock)
        while now[0] < 100.0:
            assert worker._next() is None
            now[0] += 0.5
    assert looks == [0.0, 22.0, 44.0, 66.0, 88.0]


def test_what_a_model_answered_outlives_the_worker(tmp_path: Path, server: Server) -> None:
    long = replace(plan(), inputs=[replace(each, bytes=10**6) for each in plan().inputs])
    job, mark = jobs.begin(tmp_path / "job", long), tmp_path / "mark"
    process = server.start("answering", str(job.directory), str(mark))
    while not mark.exists():
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    server.wait()
    failed = [record(each.path, "", "no") for each in long.batches[0]]
    (dead,) = status(job).workers
    assert dead.is_dead and dead.holds == (0,)
    with Worker(job) as worker:
        ledger = ledger_of(worker)
        assert [ledger.known() for _ in range(4)] == [[0, 0.0], [1, 0.1], [2, 0.2], None]
        assert [each.holds for each in status(job).workers] == [(0,)]  # the dead one has lost it
        ledger.add("more")
        worker.commit(Lease(0, 1), failed)
    with Worker(job, retry_failed=True) as worker:
        assert ledger_of(worker).known() is None  # or it would fail again


def test_late_answers_of_a_stopped_worker_are_no_part_of_the_story(tmp_path: Path) -> None:
    for worker, epoch, calls in (("a", 0, (0, 1, 2, 3, 4)), ("b", 1, (2, 3)), ("c", 2, (6,))):
        journal = Journal(tmp_path / f"{worker}.jsonl")
        for call in calls:
            answer = f"{worker}{call}"
            found = {"kind": "answer", "batch": 7, "epoch": epoch, "call": call, "answer": answer}
            journal.append(found)
        journal.close()
    index = Index(tmp_path)
    index.refresh()
    assert [each.read() for each in index.answered(7)] == ["a0", "a1", "b2", "b3"]


@pytest.mark.fault
def test_a_long_recording_goes_on_where_it_was_killed(
    mini_bundle: Path, server: Server, tmp_path: Path
) -> None:
    """Killed five times in its 11 minutes; no answer is computed twice."""
    samples = np.concatenate([soundfile.read(clip)[0] for clip in CLIPS])
    rate_hz = soundfile.info(CLIPS[0]).samplerate
    soundfile.write(tmp_path / "long.wav", np.resize(samples, 660 * rate_hz), rate_hz)
    inputs, log, kept = [tmp_path / "long.wav"], str(tmp_path / "log"), set[tuple[int, str]]()
    assert cli.main(words(mini_bundle, tmp_path / "0", inputs, "--batch-size", 2)) == 0
    job, killed, code = tmp_path / "1", 0, -1
    while code:
        child = server.start("command", log, words(mini_bundle, job, inputs, "--batch-size", 2))
        before = len(answers(job))
        while killed < 5 and len(answers(job)) == before and not (job / jobs.RESULTS).exists():
            time.sleep(0.01)
        if killed < 5:
            os.kill(child, signal.SIGKILL)
        code = server.wait()
        killed += code != 0
        kept |= {*answers(job)}
    assert killed == 5 and len(answers(job)) == len(kept) == len({call for call, _ in kept})
    assert (job / jobs.RESULTS).read_bytes() == (tmp_path / "0" / jobs.RESULTS).read_bytes()
    print(f"{len(kept)} calls")


def answers(job: Path) -> list[tuple[int, str]]:
    """Calls that were kept, and their answers."""
    lines = [each for path in job.glob("journals/*") for each in records(path)]
    return [
        (each["call"], json.dumps(each["answer"])) for each in lines if each["kind"] == "answer"
    ]


def test_clocks_of_others_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign worker lives while its heartbeat changes, whatever time it states, and no longer."""
    now = 0.0
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: now))
    foreign = replace(Identity.mine(), machine="another", pid=1, started="1")
    worker, lease = sign_on(tmp_path, "w", foreign), tmp_path / "0.0"
    lease.symlink_to("w")
    watch = Watch(tmp_path, lease_seconds=30.0)
    for stamp in (0, 10**19, 10**18, 5, 10**18 + 1):
        os.utime(worker, ns=(stamp, stamp))
        assert not watch.is_free(lease, "me")
        now += 29.0
        assert not watch.is_free(lease, "me")
    now += 1.0
    assert watch.is_free(lease, "me")
    os.utime(worker)
    assert not watch.is_free(lease, "me")
    assert watch.is_free(lease, "w")
    worker.unlink()
    assert watch.is_free(lease, "me")


def test_the_dead_are_known_at_once_on_the_same_machine(tmp_path: Path) -> None:
    lease, watch = tmp_path / "0.0", Watch(tmp_path, lease_seconds=60.0)
    lease.symlink_to("w")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        started = (
            (Path("/proc") / str(child.pid) / "stat").read_text().rpartition(")")[2].split()[19]
        )
        found = replace(Identity.mine(), pid=child.pid, started=started)
        sign_on(tmp_path, "w", found)
        assert not watch.is_free(lease, "me")
        sign_on(tmp_path, "w", replace(found, started="1"))  # the pid is another process's now
        assert watch.is_free(lease, "me")
        sign_on(tmp_path, "w", found)
        child.kill()
        while not found.is_dead():  # a zombie: nobody has waited for it
            time.sleep(0.01)
        assert watch.is_free(lease, "me")
    finally:
        child.kill()
        child.communicate()


@pytest.mark.fault
@pytest.mark.parametrize(
    "view",
    [
        "exec unshare -T --boottime 100000",
        "mount -t proc -o hidepid=2 proc /proc; exec setpriv --reuid 65534 --regid 65534 --clear-groups",
    ],
    ids=["other clock", "other user"],
)
def test_the_living_are_not_dead_to_whoever_sees_less_of_them(view: str) -> None:
    """Or two would take their batches from each other for ever."""
    who = json.dumps(asdict(Identity.mine()))
    code = "import json, sys; from fairseq_openvino.jobs.leases import Identity as I;"
    code += "print(I(**json.loads(sys.argv[1])).is_dead())"
    shell = ["unshare", "-m", "sh", "-c", f'{view} "$@"', "sh", sys.executable, "-c", code]
    run = subprocess.run([*shell, who], capture_output=True, text=True, env=child_environment())
    if "not permitted" in run.stderr:
        pytest.skip(run.stderr)
    assert run.stdout.strip() == "False", run.stderr


def test_a_lease_is_there_with_its_holder_or_not_at_all(tmp_path: Path) -> None:
    """One that has no holder would be waited for, or taken from who is about to write it."""
    leases, names, taken, is_over = Leases(tmp_path), [f"w{i}" for i in range(4)], [], False

    def take(name: str) -> None:
        taken.extend(batch for batch in range(500) if leases.take(Lease(batch, 0), name))

    def look() -> None:
        while not is_over:
            seen.update(holder(leases.path(Lease(b, e))) for b, e in leases.highest().items())

    seen = set[str | None]()
    threads = [threading.Thread(target=take, args=(name,)) for name in names]
    watching = threading.Thread(target=look)
    for thread in (watching, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    is_over = True
    watching.join()
    assert sorted(taken) == list(range(500)) and seen <= {*names}


@pytest.mark.parametrize("times", [4, pytest.param(300, marks=pytest.mark.fault)])
def test_cut_and_rotten_journals_cost_their_batches_only(times: int, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    job = jobs.begin(tmp_path, plan(60))
    whole, again = finish(job, Echo()), 0
    for _ in range(times):
        path = max(job.journals.iterdir(), key=lambda each: each.stat().st_size)
        content = bytearray(path.read_bytes())
        if chance.random() < 0.3:
            del content[chance.randrange(len(content)) :]
        else:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        job.results.unlink()
        echo = Echo()
        assert finish(job, echo) == whole, f"seed {SEED}"
        again += len(echo.calls)
    assert again > 0
    assert len(list(job.records())) == 60


def test_a_job_that_was_copied_without_empty_directories_goes_on(tmp_path: Path) -> None:
    job = jobs.begin(tmp_path, plan())
    whole = finish(job, Echo())
    for room in (jobs.LEASES, jobs.WORKERS):
        (tmp_path / room).rmdir()
    assert status(jobs.read(tmp_path)).is_complete
    shutil.rmtree(job.journals)
    assert status(jobs.read(tmp_path)).done == 0
    assert finish(jobs.begin(tmp_path, plan()), Echo()) == whole


def test_failed_files_are_kept_and_retried_on_request(tmp_path: Path) -> None:
    job = jobs.begin(tmp_path, plan())
    fails = {"/data/4.wav", "/data/19.wav"}
    first = finish(job, Echo(fails.__contains__))
    lines = [json.loads(line) for line in first.splitlines()]
    assert [line["path"] for line in lines if "error" in line] == ["/data/4.wav", "/data/19.wav"]
    assert status(job).failed == 2
    echo = Echo()
    with Worker(job) as worker:
        assert list(work(worker, echo)) == [] and not echo.calls  # type: ignore[arg-type]
    assert finish(job, Echo(fails.__contains__), retry_failed=True) == first
    stuck = Worker(job, retry_failed=True)
    with stuck as worker:  # which is killed when it has claimed one of them
        assert worker.claim() == Lease(1, 2) and not job.results.exists()
    assert finish(job, echo) != first and [len(files) for files in echo.calls] == [3]
    assert finish(job, echo, retry_failed=True) == expected(job.plan)
    assert [len(files) for files in echo.calls] == [3, 2]


def test_a_full_disk_stops_a_job_and_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, write, left = jobs.begin(tmp_path, plan(60)), os.write, [3000]

    def bounded(file: int, content: Any) -> int:
        if left[0] <= 0:
            raise OSError(28, "No space left on device")
        left[0] -= (size := min(len(content), left[0]))
        return write(file, bytes(content)[:size])

    monkeypatch.setattr(os, "write", bounded)
    with pytest.raises(StorageError, match="No space left"):
        finish(job, Echo())
    monkeypatch.undo()
    before = status(job).batches_done
    assert 0 < before < 20 and not job.results.exists()
    echo = Echo()
    assert finish(job, echo) == expected(job.plan)
    assert len(echo.calls) == 20 - before


def test_the_status_of_a_job_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = jobs.begin(tmp_path, plan())
    assert status(job).eta_seconds is None
    with Worker(job) as worker:
        lease = worker.claim()
        assert lease is not None
        time.sleep(0.05)
        worker.commit(lease, [record("/data/0.wav", "a"), record("/data/1.wav", "b", "no")])
        worker.claim()
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert cli.main(["job", "status", str(tmp_path), "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["inputs"], found["done"], found["failed"]) == (20, 2, 1)
        assert (found["batches"], found["batches_done"], found["audio_seconds"]) == (7, 1, 4.0)
        assert found["eta_seconds"] == pytest.approx(18 * 2 / found["speed"])
        (one,) = found["workers"]
        assert one["name"] == worker.name and one["holds"] == [1] and not one["is_dead"]
        assert cli.main(["job", "status", str(tmp_path)]) == 0
        table = capsys.readouterr().out
        assert "2 of 20 done, 1 failed" in table and worker.name in table
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with open(worker.journal.path, "ab") as file:
            file.write(b"0000 rot\nand a torn li")
        assert status(job).done == 2
    assert cli.main(["job", "status", str(tmp_path / "x")]) == 3
    assert "expected a file job.json, got none" in capsys.readouterr().err


def test_records_cost_less_than_a_millisecond_a_file(tmp_path: Path) -> None:
    """CPU of claims, records, status of others and merging; waiting for the disk apart."""
    job = jobs.begin(tmp_path, plan(2000, 8))
    began = time.process_time()
    finish(job, Echo())
    each = (time.process_time() - began) / 2000
    print(f"{1e3 * each:.3f} ms of CPU a file")
    assert each < 1e-3


def words(bundle: Path, job: Path, files: Any, *more: object) -> list[str]:
    """Of the command."""
    some = [str(each) for each in (files if isinstance(files, list) else [files])]
    flags = ("--model", bundle, "--beam", 1, "--threads", 1, "--job", job, *more)
    return ["transcribe", *some, *map(str, flags)]


def everything(job: Path, output: Path) -> dict[str, bytes]:
    """The results, and all files of the output directory, by name."""
    found = {path.name: path.read_bytes() for path in output.iterdir()}
    return found | {"results": (job / jobs.RESULTS).read_bytes()}


FORMATS = ("--format", "text,srt", "--output-dir")


def clips(directory: Path, count: int) -> Path:
    """A directory with so many clips."""
    directory.mkdir()
    for i in range(count):
        (directory / f"{i:04d}.mp3").symlink_to(CLIPS[i % len(CLIPS)])
    return directory


@pytest.mark.parametrize(
    ("files", "batch", "kills", "workers"),
    [
        (8, 2, 3, 1),
        pytest.param(1000, 8, 100, 1, marks=pytest.mark.fault),
        pytest.param(200, 4, 20, 2, marks=pytest.mark.fault),
    ],
)
def test_a_job_killed_at_random_points_gives_the_bytes_of_an_undisturbed_one(
    files: int, batch: int, kills: int, workers: int, mini_bundle: Path, server: Server, tmp_path: Path
) -> None:  # fmt: skip
    """Killed in loading, decoding, committing, writing and merging; once it is done, another begins."""
    chance, inputs = random.Random(SEED), clips(tmp_path / "clips", files)
    flags = ("--batch-size", batch, *FORMATS)
    began = time.monotonic()
    assert cli.main(words(mini_bundle, tmp_path / "0", inputs, *flags, tmp_path / "o0")) == 0
    seconds, whole = time.monotonic() - began, everything(tmp_path / "0", tmp_path / "o0")
    assert len(whole) == 2 * files + 1
    killed, rounds = 0, 0
    with ExitStack() as stack:
        servers = [server, *(stack.enter_context(served()) for _ in range(workers - 1))]
        while killed < kills or rounds == 0:
            rounds += 1
            job, output, codes = tmp_path / str(rounds), tmp_path / f"o{rounds}", {-1}
            while codes != {0}:
                line = words(mini_bundle, job, inputs, *flags, output)
                found = [each.start("command", str(tmp_path / "log"), line) for each in servers]
                if killed < kills:
                    time.sleep(chance.uniform(0.0, min(seconds, 3.0)))
                    with suppress(ProcessLookupError):  # it was done before
                        os.kill(chance.choice(found), signal.SIGKILL)
                codes = {each.wait() for each in servers}
                assert codes <= {0, -signal.SIGKILL}, (tmp_path / "log").read_text()
                killed += -signal.SIGKILL in codes
            assert everything(job, output) == whole, f"seed {SEED}"
    print(f"seed {SEED}: {killed} kills, {rounds} jobs of {files} files in {seconds:.1f} s")


def test_ctrl_c_and_a_full_disk_stop_a_job_that_can_go_on(
    mini_bundle: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, job, log = clips(tmp_path / "clips", 6), tmp_path / "job", tmp_path / "log"
    line = words(mini_bundle, job, inputs, "--batch-size", 1)
    server.start("command", str(log), line, 2500)  # as much as one record has
    assert server.wait() == 5
    assert re.search("error: Writing failed in .*File too large", log.read_text())
    child = server.start("waiting", str(log), line)
    while not any((job / jobs.LEASES).glob("*.1")):
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    assert server.wait() == 130
    assert re.search(
        r"^stopped: \d of 6 files are done; the same command goes on$", log.read_text(), re.M
    )
    assert not any((job / "workers").iterdir()) and not (job / jobs.RESULTS).exists()
    assert cli.main(line) == 0
    assert cli.main(words(mini_bundle, tmp_path / "2", inputs, "--batch-size", 1)) == 0
    assert (job / jobs.RESULTS).read_bytes() == (tmp_path / "2" / jobs.RESULTS).read_bytes()
    assert (
        capsys.readouterr().err
        == f"results: {job / jobs.RESULTS}\nresults: {tmp_path / '2' / jobs.RESULTS}\n"
    )


def test_threads_are_part_of_the_plan(
    mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another number gives the same tokens, and scores that differ by roundings."""
    inputs, found = clips(tmp_path / "clips", 8), []
    for threads in (1, 2):
        line = words(mini_bundle, tmp_path / str(threads), inputs, "--threads", threads)
        assert cli.main(line) == 0
        at = line.index("--threads")
        assert cli.main(line[:at] + line[at + 2 : -2]) == 0  # as it was begun
        lines = (tmp_path / str(threads) / jobs.RESULTS).read_text().splitlines()
        found.append([json.loads(each)["hypotheses"][0] for each in lines])
    for one, other in zip(*found, strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    assert cli.main(words(mini_bundle, tmp_path / "1", inputs, "--threads", 2)) == 2
    assert "got threads 1 -> 2. Repeat" in capsys.readouterr().err


def test_a_worker_that_isolates_reads_no_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(path := tmp_path / "a.wav", np.zeros(200_000), 16_000)
    some = Input.of(str(path), "a")
    assert some.bytes is not None and some.bytes > SHORT_BYTES
    assert not is_long(some)
    job = jobs.begin(tmp_path / "job", Plan.of("d1" * 32, {"batch_size": 1}, [some]))
    monkeypatch.setattr(soundfile.SoundFile, "__init__", None)
    with Worker(job, isolated=Transcribe("m", isolate_audio=True).isolates) as worker:
        assert ledger_of(worker).known() is None


def test_a_manifest_names_its_outputs(
    mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts of files, an audio_root, ids; --skip-existing is decided when the job begins."""
    (tmp_path / "data").mkdir()
    audio, output, job = clips(tmp_path / "clips", 3), tmp_path / "o", tmp_path / "job"
    samples, rate_hz = soundfile.read(CLIPS[3])
    soundfile.write(audio / "two.wav", np.concatenate([samples, samples]), rate_hz)
    (tmp_path / "data" / "config.yaml").write_text("audio_root: ../clips\n")
    n = len(samples)
    table = write_table(
        tmp_path / "data" / "test.tsv", ("id", "audio"), ("a/1", "0000.mp3"), ("b", "0001.mp3"),
        ("first", f"two.wav:0:{n}"), ("second", f"two.wav:{n}:{n}"), ("c", str(CLIPS[4])),
    )  # fmt: skip
    output.mkdir()
    (output / "b.txt").write_text("there")
    line = words(mini_bundle, job, table, "--output-dir", output, "--skip-existing")
    assert cli.main(line) == 0
    texts = {path.stem: path.read_text().partition("\t")[2] for path in output.iterdir()}
    assert sorted(texts) == ["a_1", "b", "c", "first", "second"] and texts.pop("b") == ""
    assert texts["first"] == texts["second"] and len({*texts.values()}) == 3
    results = [json.loads(each) for each in (job / jobs.RESULTS).read_text().splitlines()]
    assert [Path(each["path"]).name for each in results] == [
        "0000.mp3", f"two.wav:0:{n}", f"two.wav:{n}:{n}", CLIPS[4].name,
    ]  # fmt: skip
    assert status(jobs.read(job)).skipped == 1
    assert cli.main(line) == 0
    (output / "c.txt").unlink()
    plain = ["transcribe", str(table), "--model", str(mini_bundle), "--beam", "1"]
    assert cli.main([*plain, "--output-dir", str(output), "--skip-existing"]) == 0
    assert (output / "c.txt").read_text().endswith(texts["c"]) and (
        output / "b.txt"
    ).read_text() == "there"
    assert cli.main([*plain, "--skip-existing"]) == 2
    assert cli.main([*plain, "--retry-failed"]) == 2
    write_table(table, ("id", "audio"), ("n" * 300, "0000.mp3"), ("b", "0001.mp3"))
    assert cli.main(words(mini_bundle, tmp_path / "job2", table, "--output-dir", output)) == 5
    assert not (tmp_path / "job2").exists()  # before anything is decoded
    error = capsys.readouterr().err
    assert "in --skip-existing: expected --output-dir too, got it alone" in error
    assert "in --retry-failed: expected --job too, got it alone" in error


def test_what_is_lost_after_the_end_is_made_again(
    mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outputs, results and journals; outputs are kept out of the job's own directory."""
    inputs, job, output = clips(tmp_path / "clips", 2), tmp_path / "job", tmp_path / "o"
    line = words(mini_bundle, job, inputs, "--output-dir", output)
    assert cli.main(line) == 0
    whole = everything(job, output)
    for lost in (
        [*output.iterdir()],
        [job / jobs.RESULTS],
        [*output.iterdir(), *job.glob("journals/*")],
    ):
        for path in lost:
            path.unlink()
        assert cli.main(line) == 0
        assert everything(job, output) == whole
    for inside in (job, job / "o", tmp_path / "o" / ".." / "job"):
        assert cli.main([*line[:-1], str(inside)]) == 2
        assert "in --output-dir: expected a directory outside of --job" in capsys.readouterr().err
    assert not (job / "o").exists()


def test_a_file_that_failed_is_decoded_in_its_batch_again(
    mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the bytes of a job in which nothing ever failed."""
    inputs = clips(tmp_path / "clips", 5)
    (audio := inputs / "0001.mp3").unlink()
    audio.write_bytes(content := CLIPS[1].read_bytes())
    stamp = audio.stat().st_mtime_ns
    line = [
        *words(mini_bundle, tmp_path / "1", inputs, "--batch-size", 2, *FORMATS),
        str(tmp_path / "o1"),
    ]
    audio.write_bytes(bytes(len(content)))
    os.utime(audio, ns=(stamp, stamp))
    for _ in range(2):
        assert cli.main(line) == 1
        error = capsys.readouterr().err
        assert f"error: Decoding audio failed in {str(audio)!r}" in error
        assert "1 of 5 files failed (--retry-failed)" in error
    audio.write_bytes(content)
    assert cli.main(line) == 2
    assert "1 inputs changed" in capsys.readouterr().err
    assert cli.main([*line, "--retry-failed"]) == 0
    assert cli.main(line) == 0
    other = [
        *words(mini_bundle, tmp_path / "2", inputs, "--batch-size", 2, *FORMATS),
        str(tmp_path / "o2"),
    ]
    assert cli.main(other) == 0
    assert everything(tmp_path / "1", tmp_path / "o1") == everything(
        tmp_path / "2", tmp_path / "o2"
    )
