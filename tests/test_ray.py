"""Jobs on a real local Ray: the bytes of a serial run, whoever is killed (`make test-ray`)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import MINI, ROOT, Shared, child_environment

from fairseq_openvino.errors import (
    BundleError,
    DeviceError,
    MissingDependencyError,
    OptionError,
)
from fairseq_openvino.jobs import job as jobs
from fairseq_openvino.jobs import ray
from fairseq_openvino.jobs.index import Index
from fairseq_openvino.jobs.leases import Lease, holder, identity
from fairseq_openvino.jobs.plan import Input, Plan
from fairseq_openvino.jobs.transcribe import Transcribe
from fairseq_openvino.jobs.work import LANES
from fairseq_openvino.jobs.worker import Worker

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # background shells ignore it, and so do children
on_ray = pytest.mark.skipif(find_spec("ray") is None, reason="make test-ray")
SCALE = ROOT / "examples" / "scale"
BATCH_SIZE, CLIPS = 4, 100
SECONDS = 900


@pytest.fixture(scope="module")
def bundle(shared: Shared) -> Path:
    """The shipped Whisper, exported by the environment that can."""

    def make(directory: Path) -> None:
        source = ROOT / "examples" / "covost" / "whisper" / "mini"
        command = ["export", "--source", str(source), "--output", str(directory / "bundle")]
        python = ROOT / ".venv" / "bin" / "python"
        subprocess.run(
            [python, "-m", "fairseq_openvino", *command], check=True, env=child_environment()
        )

    return shared("ray-whisper", make) / "bundle"


@pytest.fixture(scope="module")
def clips(shared: Shared) -> Path:
    """The shipped clips, and one that is none."""

    def make(directory: Path) -> None:
        for clip in sorted((MINI / "clips").iterdir())[:CLIPS]:
            shutil.copy(clip, directory)
        (directory / "broken.mp3").write_bytes(b"no audio")

    return shared("ray-clips", make)


class Run:
    """A job and its command."""

    def __init__(self, clips: Path, bundle: Path, directory: Path) -> None:
        self.directory, self.texts = directory / "job", directory / "texts"
        self._command = [
            sys.executable, "-m", "fairseq_openvino", "transcribe", str(clips), "--model", str(bundle),
            "--threads", "1", "--batch-size", str(BATCH_SIZE), "--job", str(self.directory),
            "--output-dir", str(self.texts), "--format", "text,srt",
        ]  # fmt: skip

    def begin(self, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *flags], stderr=subprocess.PIPE, text=True, env=child_environment()
        )

    def end(self, *flags: str) -> tuple[int, str]:
        return ended(self.begin(*flags))

    @property
    def bytes(self) -> dict[str, bytes]:
        """What came of it."""
        files = [self.directory / "results.jsonl", *self.texts.iterdir()]
        return {path.name: path.read_bytes() for path in files}

    def index(self) -> Index:
        index = Index(self.directory / "journals")
        index.refresh()
        return index

    def wait_for(self, batches: int) -> None:
        until = time.monotonic() + SECONDS
        while len(self.index().batches) < batches:
            assert time.monotonic() < until
            time.sleep(0.02)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, text = process.communicate(timeout=SECONDS)
    return process.returncode, text


@pytest.fixture
def run(clips: Path, bundle: Path, tmp_path: Path) -> Run:
    return Run(clips, bundle, tmp_path)


@pytest.fixture(scope="module")
def serial(clips: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a process alone makes of the same command."""
    run = Run(clips, bundle, tmp_path_factory.mktemp("serial"))
    code, text = run.end()
    assert code == 1 and "broken.mp3" in text, text
    assert len(run.bytes) == 1 + 2 * CLIPS
    return run.bytes


@on_ray
def test_two_actors_give_the_bytes_of_a_serial_run(run: Run, serial: dict[str, bytes]) -> None:
    code, text = run.end("--ray")
    assert code == 1 and "broken.mp3" in text and "1 of 101 files failed" in text, text
    assert run.bytes == serial
    index = run.index()
    assert len(index.paces) == 2, "one worker an actor"
    assert all(pace.audio_seconds for pace in index.paces.values())
    assert not list((run.directory / "workers").iterdir()), "they have signed off"

    (run.directory / "results.jsonl").unlink()
    again, _ = run.end("--ray")  # nothing is left to do: no Ray is started
    assert again == code and run.bytes == serial and run.index().batches == index.batches

    code, text = run.end("--ray", "--retry-failed")
    assert code == 1 and run.bytes == serial, text
    anew = {b for b, entry in run.index().batches.items() if entry.epoch}
    assert anew == {b for b, entry in index.batches.items() if entry.failed} and len(anew) == 1


@on_ray
def test_a_killed_actor_costs_the_batches_it_was_at(run: Run, serial: dict[str, bytes]) -> None:
    process = run.begin("--ray")
    run.wait_for(4)
    path = next(iter((run.directory / "workers").iterdir()))
    who = identity(path)
    assert who is not None
    os.kill(who.pid, signal.SIGKILL)
    job = jobs.read(run.directory)
    leases = {b: job.leases.path(Lease(b, e)) for b, e in job.leases.highest().items()}
    held = {batch for batch, lease in leases.items() if holder(lease) == path.name}
    code, text = ended(process)
    assert code == 1 and run.bytes == serial, text
    anew = {b for b, entry in run.index().batches.items() if entry.epoch}
    assert anew <= held and len(anew) <= LANES
    assert len(run.index().paces) > 2, "the actor was started again"


@on_ray
def test_a_machine_that_is_lost_for_good_costs_the_batches_it_was_at(
    run: Run, serial: dict[str, bytes]
) -> None:
    from ray.cluster_utils import Cluster

    room: dict[str, Any] = {"object_store_memory": ray.OBJECT_STORE_BYTES}
    head = {"num_cpus": 0, "include_dashboard": False, **room}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        lost, _ = [cluster.add_node(num_cpus=1, **room) for _ in range(2)]
        process = run.begin("--ray", cluster.address)
        run.wait_for(4)
        cluster.remove_node(lost, allow_graceful=False)
        code, text = ended(process)
    finally:
        cluster.shutdown()
    assert code == 1 and run.bytes == serial, text
    assert "batches are decoded again: their actors died" in text


@on_ray
@pytest.mark.parametrize("moment", ["load", "decode"])
def test_what_always_kills_its_process_ends_the_run(
    moment: str, clips: Path, bundle: Path, tmp_path: Path
) -> None:
    driver, inputs = os.getpid(), [Input.of(str(clip), clip.stem) for clip in clips.iterdir()]
    deadly = inputs[5].path

    class Deadly(Transcribe):
        def recognizer(self) -> Any:
            if moment == "load" and os.getpid() != driver:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().recognizer()

        def follow(self, files: Any, *rest: Any, **named: Any) -> Any:
            if moment == "decode" and deadly in files:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().follow(files, *rest, **named)

    transcribe = Deadly(bundle, batch_size=BATCH_SIZE, load={"threads": 1})
    digest = transcribe.recognizer().bundle.digest
    job = jobs.begin(tmp_path / "job", Plan.of(digest, transcribe.described(), inputs))
    with pytest.raises(DeviceError, match=f"an actor: expected it to live.*{ray.RETRIES} deaths"):
        list(ray.work(job, transcribe, False, ray.LOCAL))
    lost = len(job.plan.batches) - len(job.done(Index(job.journals)))
    assert lost == len(job.plan.batches) if moment == "load" else 1 <= lost <= LANES


@on_ray
def test_a_killed_run_goes_on_with_ray_and_without(run: Run, serial: dict[str, bytes]) -> None:
    for batches in (3, 8):
        process = run.begin("--ray")
        run.wait_for(batches)
        process.kill()
        process.wait(SECONDS)
        assert process.stderr is not None
        process.stderr.close()
    before = run.index().batches
    assert len(before) < -(-CLIPS // BATCH_SIZE)
    code, text = run.end()
    assert code == 1 and run.bytes == serial, text
    after = run.index().batches
    assert {b: after[b].journal for b in before} == {b: before[b].journal for b in before}


@on_ray
def test_an_error_of_an_actor_is_the_runs(clips: Path, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    transcribe = Transcribe(copy, load={"threads": 1})
    inputs = [Input.of(str(clip), clip.stem) for clip in clips.iterdir()]
    digest = transcribe.recognizer().bundle.digest
    job = jobs.begin(tmp_path / "job", Plan.of(digest, transcribe.described(), inputs))
    (copy / "encoder.bin").write_bytes(b"")
    with pytest.raises(BundleError, match="encoder.bin"):
        list(ray.work(job, transcribe, False, ray.LOCAL))


@on_ray
def test_ctrl_c_says_how_to_go_on(run: Run) -> None:
    process = run.begin("--ray")
    run.wait_for(2)
    process.send_signal(signal.SIGINT)
    code, text = ended(process)
    assert code == 130 and "the same command goes on" in text, text


@on_ray
@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_without_a_cluster_is_refused(address: str) -> None:
    with (
        pytest.raises(OptionError, match=f"in ray: .*HOST:PORT.*'{address}'"),
        ray.cluster(address, 1),
    ):
        pass


@on_ray
@pytest.mark.parametrize("name", ["dask", "spark"])
def test_the_same_object_runs_without_ray(name: str, clips: Path, bundle: Path) -> None:
    if name == "spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    files = sorted(map(str, clips.glob("common*")))[:20]
    transcribe = Transcribe(bundle, load={"threads": 1})
    records = [each for begin in range(0, 20, 8) for each in transcribe(files[begin : begin + 8])]
    expected = "".join(each["results"][0]["documents"]["jsonl"] for each in records)
    command = [sys.executable, str(SCALE / f"{name}_transcribe.py"), str(bundle), *files]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    assert done.stdout == expected, done.stderr


def test_a_simulated_run_is_what_can_be_computed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCALE)
    cost = import_module("cost")
    measured = {
        "batch_audio_seconds": 100.0, "batch_seconds": [10.0], "dispatch_seconds": 0.0, "sync_seconds": 0.0,
        "batch_read_bytes": 0, "batch_written_bytes": 0, "model_bytes": 0, "start_seconds": 0.0,
    }  # fmt: skip
    given = cost.Assumptions(price=2.0, hours=100.0, storage=1000.0, boot=0.0, seed=0)
    for workers in (1, 10, 900):
        found = cost.simulate(workers, measured, given)
        assert found.speed == pytest.approx(10 * workers)
        assert found.cost_per_audio_hour == pytest.approx(0.2)
    serial = cost.simulate(1000, measured | {"dispatch_seconds": 1.0}, given)
    assert serial.speed == pytest.approx(100, rel=0.01), "the driver hands out a batch a second"
    full = cost.simulate(1000, measured | {"batch_read_bytes": 500e6}, given)
    assert full.speed == pytest.approx(200, rel=0.01), "storage reads two a second"


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    job: Any = None
    with pytest.raises(MissingDependencyError, match=r'pip install "fairseq-openvino\[ray\]"'):
        next(ray.work(job, job, False, ray.LOCAL))


def test_a_model_has_its_threads_on_one_machine() -> None:
    nodes = [machine(4), machine(7), machine(9, alive=False)]
    assert ray._places(nodes, 2) == 5
    assert ray._places([machine(0)], 8) == 1, "it starts machines when they are asked for"
    with pytest.raises(OptionError, match="at most 7 threads") as error:
        ray._places(nodes, 8)
    assert error.value.field == "threads"


def machine(cpus: int, alive: bool = True) -> dict[str, Any]:
    """As `ray.nodes` has it."""
    return {"Alive": alive, "Resources": {"CPU": float(cpus)} if cpus else {}}


def test_a_batch_is_claimed_by_its_number_once_nobody_has_it(tmp_path: Path) -> None:
    inputs = [Input(str(tmp_path / name), name, 1, 1) for name in "abc"]
    job = jobs.begin(tmp_path / "job", Plan("digest", {"batch_size": 1}, inputs))
    with Worker(job) as one, Worker(job) as other:
        lease = one.claim_batch(1)
        assert lease == Lease(1, 0)
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(other.claim_batch, 1)
            assert other.claim_batch(2) == Lease(2, 0) and not waiting.done()
            one.commit(lease, [])
            assert waiting.result(10) is None, "it is done"
        assert other.claim_batch(1, epoch=1) == Lease(1, 1), "a record of a higher epoch is wanted"
        assert one.claim_batch(0) == Lease(0, 0)
    with Worker(job) as successor:
        assert successor.claim_batch(0) == Lease(0, 1), "its holder has signed off"
        successor.stopping.set()
        assert successor.claim_batch(2) is None
