"""A job's batches decoded by Ray: each actor is a worker of the job, with a compiled model of its own.

Ray places and restarts actors and hands out numbers of batches; what is done is in the job's directory, which
all machines share, as they share the bundle and the audio files. So a run can be killed and resumed, with
Ray or without, and its bytes are those of any other.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.errors import (
    DeviceError,
    MissingDependencyError,
    OptionError,
    failure,
    invalid,
)
from fairseq_openvino.jobs import job as jobs
from fairseq_openvino.jobs.index import Index
from fairseq_openvino.jobs.transcribe import Transcribe
from fairseq_openvino.jobs.work import LANES
from fairseq_openvino.jobs.worker import Worker

LOCAL = "local"
"""Address of a cluster that this process starts on its own machine, and ends."""
OBJECT_STORE_BYTES = 80 << 20
"""Of such a cluster: only texts go through it. Ray's least is 75 MB."""
RETRIES = 3
"""Of batches whose actors die, while no other is done; then the run ends, as they may be the reason."""
CONNECT_SECONDS = 10
logger = logging.getLogger(__name__)


class Actor:
    """A callable of `map_batches`, in a process of Ray's; its lanes call it at the same time.

    Args:
        directory: of the job.
        transcribe: by its bundle.
    """

    def __init__(self, directory: Path, transcribe: Transcribe) -> None:
        self._transcribe, self._open = transcribe, ExitStack()
        self._failure: Exception | None = None
        try:
            transcribe.recognizer()
            self._worker = self._open.enter_context(
                Worker(jobs.read(directory), isolated=transcribe.isolates)
            )
        except Exception as error:
            self._failure = error

    def __call__(self, rows: dict[str, Sequence[int]]) -> dict[str, list[bytes]]:
        """Decode batches.

        Args:
            rows: `batch` (n,) and `epoch` (n,), see `Worker.claim_batch`.

        Returns:
            `found` (n,), the records of each, pickled, or an error: one that is raised loses its type in Ray.
        """
        batches = zip(map(int, rows["batch"]), map(int, rows["epoch"]), strict=True)
        return {"found": [pickle.dumps(self._found(*each)) for each in batches]}

    def _found(self, batch: int, epoch: int) -> list[dict[str, Any]] | Exception:
        if self._failure is not None:
            return self._failure
        try:
            lease = self._worker.claim_batch(batch, epoch)
            if lease is None:  # somebody else has decoded it
                return []
            files = [each.path for each in self._worker.job.plan.batches[batch]]
            records = self._transcribe.follow(files, ledger=self._worker.ledger(lease))
            self._worker.commit(lease, records)
            self._worker.check()
        except Exception as error:
            return error
        return records

    def __del__(self) -> None:
        """Sign off; Ray Data drops its reference when the actor has no more to do."""
        self._open.close()


def work(
    job: jobs.Job, transcribe: Transcribe, retry_failed: bool, address: str
) -> Iterator[list[dict[str, Any]]]:
    """Decode what a job lacks, by as many actors as the cluster has CPUs for.

    Args:
        job: in a directory that all machines of the cluster have under the same path.
        transcribe: each actor takes as many CPUs as its model has threads.
        retry_failed: batches with files that failed, once more.
        address: of a cluster, as `ray.init` takes it, or LOCAL.

    Yields:
        The records of each batch that was decoded, once they are committed.

    Raises:
        OptionError: no machine of the cluster has as many CPUs as the model has threads.
        MissingDependencyError: Ray is not installed.
        FairseqOpenVINOError: the model, a machine or the job's directory is at fault.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise failure(
            MissingDependencyError, "Running on Ray", "this environment", "the package ray", "none",
            'Run pip install "fairseq-openvino[ray]"',
        ) from error  # fmt: skip
    done, wanted = job.done(Index(job.journals)), dict.fromkeys(range(len(job.plan.batches)), 0)
    if retry_failed:
        wanted |= {batch: entry.epoch + 1 for batch, entry in done.items() if entry.failed}
    todo = _lacking(job, wanted)
    if not todo:
        return
    threads, transcribe = transcribe.load["threads"], transcribe.by_bundle()
    with cluster(address, threads):
        try:
            load = ray.remote(num_cpus=threads, max_retries=RETRIES, scheduling_strategy="SPREAD")(
                _load
            )
            _records(ray.get(load.remote(transcribe)))
        except ray.exceptions.RayError as error:
            raise _died(error) from error
        left = RETRIES
        while todo:
            actors = min(_places(ray.nodes(), threads), len(todo))
            lost: Exception | None = None
            try:
                for row in _decoded(todo, (job.directory.absolute(), transcribe), actors, threads):
                    yield _records(row["found"])
            except ray.exceptions.RayError as error:
                lost = error
            before, todo = len(todo), _lacking(job, wanted)
            left = RETRIES if len(todo) < before else left - 1
            if left < 0:
                raise _died(lost)
            if todo:
                logger.warning("%d batches are decoded again: their actors died", len(todo))


def _lacking(job: jobs.Job, wanted: dict[int, int]) -> list[dict[str, int]]:
    """Rows of the batches without a record of the epoch that is wanted, or a higher one."""
    done = job.done(Index(job.journals))
    return [
        {"batch": batch, "epoch": epoch}
        for batch, epoch in wanted.items()
        if batch not in done or done[batch].epoch < epoch
    ]


def _load(transcribe: Transcribe) -> bytes:
    """On some machine, before there are actors: one that dies when it begins is started anew for ever."""
    try:
        transcribe.recognizer()
    except Exception as error:
        return pickle.dumps(error)
    return pickle.dumps([])


def _decoded(
    todo: list[dict[str, int]], arguments: tuple[Any, ...], actors: int, threads: int
) -> Iterator[dict[str, Any]]:
    """What `Actor(*arguments)` finds.

    An actor that dies is started anew, where and when the cluster has room. Its batches are dropped: Ray
    would try them again with that actor alone, and wait for ever if its machine does not come back.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = RETRIES * LANES * actors
    context.execution_no_progress_timeout_s = -1  # long recordings take their time
    rows = ray.data.from_items(todo, override_num_blocks=len(todo))
    pool = ray.data.ActorPoolStrategy(
        size=actors, max_tasks_in_flight_per_actor=LANES,
        max_concurrent_calls_per_actor=LANES, enable_true_multi_threading=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        # Of 2.60 only this argument says how often to try; it goes with 2.64.
        warnings.simplefilter("ignore", DeprecationWarning)
        found = rows.map_batches(
            Actor, batch_size=1, compute=pool, num_cpus=threads, max_task_retries=0,
            fn_constructor_args=arguments,
        )  # fmt: skip
    yield from found.iter_rows()


def _died(error: Exception | None) -> DeviceError:
    last = str(error or "one that dies").strip().splitlines()[-1].rstrip(".")
    return failure(
        DeviceError, "Running on Ray", "an actor", f"it to live, or to do so after {RETRIES} deaths", last,
        "The same command goes on; the logs of Ray say more",
    )  # fmt: skip


@contextmanager
def cluster(address: str, threads: int) -> Iterator[None]:
    """Joined, or started with room for a model of so many threads.

    Raises:
        OptionError: there is none at this address.
    """
    import ray

    own: dict[str, Any] = {}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would ask the network
        own = {
            "num_cpus": max(machine.threads(), threads), "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }  # fmt: skip
    # It reports each batch of an actor that died.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    _check_reachable(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _nowhere(address, error) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Where nobody listens, Ray would try for minutes.

    Raises:
        OptionError: nobody does, or it is the address of Ray Client, over which Ray Data does not run.
    """
    if "://" in address:
        raise _nowhere(address, "the command runs on a machine of the cluster, not in a client")
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _nowhere(address, error) from error


def _nowhere(address: str, reason: object) -> OptionError:
    expected = "auto, or the HOST:PORT of a cluster that runs"
    return invalid("Running on Ray", "ray", expected, f"{address!r} ({reason})")


def _places(nodes: Sequence[dict[str, Any]], threads: int) -> int:
    """How many models of so many threads the machines of a cluster have CPUs for, at least 1.

    Raises:
        OptionError: each machine has fewer CPUs than that; where none has any, they are started on demand.
    """
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    places = sum(each // threads for each in cpus)
    if not places and any(cpus):
        expected = f"at most {max(cpus)} threads, the CPUs of its largest machine"
        raise invalid("Running on Ray", "threads", expected, threads, "Run fewer a model")
    return max(places, 1)


def _records(found: bytes) -> list[dict[str, Any]]:
    """What an actor returned; its error is raised."""
    records: list[dict[str, Any]] | Exception = pickle.loads(found)
    if isinstance(records, Exception):
        raise records
    return records
