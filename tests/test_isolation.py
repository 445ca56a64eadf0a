"""Decoding in a child: the same results, and its death costs one file."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import MINI, child_environment
from growth import family, held
from media_files import encoded

from fairseq_openvino.errors import AudioError
from fairseq_openvino.speech import audio, isolation, stored
from fairseq_openvino.speech.forkserver import ForkServer
from fairseq_openvino.speech.isolation import Pool
from fairseq_openvino.speech.options import AudioOptions
from fairseq_openvino.speech.recordings import recordings
from fairseq_openvino.speech.slices import Slice

SEED = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "1"))
CLIPS = sorted((MINI / "clips").glob("*.mp3"))[:3]
MEMORY_BYTES = 2 << 30


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    found = Pool(MEMORY_BYTES, timeout_seconds=20.0, files_per_child=4, children=3)
    yield found
    found.close()


def children(pool: Pool) -> list[int]:
    """Numbers of those that wait; the last is the next to work."""
    return [child.pid for child in pool._idle]


def killed(pool: Pool) -> None:
    """Those that wait."""
    for child in pool._idle:
        os.kill(child.pid, signal.SIGKILL)
        while child.is_waiting:
            time.sleep(0.01)


def emptied(pool: Pool) -> None:
    """The next file has a new child."""
    while pool._idle:
        pool._idle.pop().end()


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What takes seconds to decode: half a minute of noise on eight channels."""
    path = tmp_path_factory.mktemp("endless") / "noise.flac"
    noise = np.random.default_rng(0).integers(-9, 9, (48_000, 8), np.int16)
    with soundfile.SoundFile(path, "w", 48_000, 8, "PCM_16") as file:
        for _ in range(30):
            file.write(noise)
    return path


def test_results_are_those_of_this_process(pool: Pool) -> None:
    samples = np.stack([audio.read_audio(clip, 16_000)[0][:16_000] for clip in CLIPS], axis=1)
    stereo = io.BytesIO()
    soundfile.write(stereo, samples[:, :2], 16_000, format="WAV")
    damaged = encoded(samples[:, 0], "matroska", "flac")[:-5000]
    cases = [(str(CLIPS[0]), "mix"), (stereo, "split"), (stereo, 1), (damaged, "mix")]
    cases += [(io.BytesIO(damaged), "mix"), (memoryview(stereo.getvalue()), "mix")]
    for source, channel in cases:
        expected = audio.decode(source, 11_025, channel)
        found = pool.decode(source, 11_025, channel)
        np.testing.assert_array_equal(found.waveforms, expected.waveforms)
        assert found.waveforms.flags.writeable
        assert vars(found) | {"waveforms": 0} == vars(expected) | {"waveforms": 0}
    assert found.damage is None and pool.decode(damaged).damage


def test_errors_are_those_of_this_process(pool: Pool, tmp_path: Path) -> None:
    for source, channel in ((b"nothing" * 99, "mix"), (str(tmp_path / "x"), "mix"), (CLIPS[0], 7)):
        with pytest.raises(AudioError) as expected:
            audio.decode(source, None, channel)
        with pytest.raises(AudioError) as found:
            pool.decode(source, None, channel)
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("name", ["clip.mp3", "clip.mp3:800:16000", "none.mp3:0:9", "clip.mp3:0:0"])
def test_this_process_decodes_nothing_of_a_file_that_is_isolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nor of a part of one."""
    shutil.copy(CLIPS[0], tmp_path / "clip.mp3")
    path, isolated = str(tmp_path / name), AudioOptions(isolate_audio=True)

    def outcome(options: AudioOptions) -> Any:
        try:
            found, (recording,) = (
                stored.read(path, 11_025, options),
                recordings(path, 11_025, options),
            )
        except AudioError as error:
            return str(error)
        assert found is not None
        blocks = np.concatenate(list(recording.blocks()))
        return found.waveforms.tobytes(), found.stored_hz, blocks.tobytes(), recording.digest

    expected = outcome(AudioOptions())
    monkeypatch.setattr(soundfile.SoundFile, "__init__", None)
    assert not stored.holds_features(path)
    assert outcome(isolated) == expected


def test_a_child_is_exchanged_after_some_files(pool: Pool) -> None:
    emptied(pool)
    seen: list[int] = []
    for _ in range(9):
        pool.decode(CLIPS[0])
        seen += children(pool)
    assert len(set(seen)) == 3 and len(seen) == 7  # none waits after the fourth and the eighth


def test_a_child_that_crashes_costs_one_file(pool: Pool, endless: Path) -> None:
    pool.decode(CLIPS[0])
    child = children(pool)[-1]

    def crash() -> None:
        while child in children(pool):
            time.sleep(0.01)
        os.kill(child, signal.SIGSEGV)
        os.kill(child, signal.SIGCONT)

    os.kill(child, signal.SIGSTOP)  # it crashes with the file in its hands, however fast it is
    threading.Thread(target=crash).start()
    with pytest.raises(
        AudioError, match=r"noise.flac': expected an answer .* got signal 11 \(Segm"
    ):
        pool.decode(endless, None, "split")
    pool.decode(CLIPS[0])
    killed(pool)  # idle
    pool.decode(CLIPS[0])


def test_threads_decode_at_the_same_time_in_children_of_one_thread(pool: Pool) -> None:
    expected = audio.decode(CLIPS[0]).waveforms
    pool.decode(CLIPS[0])
    stopped = children(pool)[-1]
    os.kill(stopped, signal.SIGSTOP)  # keeps its file until it may go on
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(pool.decode, CLIPS[0])
        while stopped in children(pool):
            time.sleep(0.01)
        others = [threads.submit(pool.decode, CLIPS[0]) for _ in range(20)]
        for each in others:
            np.testing.assert_array_equal(each.result(20).waveforms, expected)
        assert not first.done()
        os.kill(stopped, signal.SIGCONT)
        np.testing.assert_array_equal(first.result(20).waveforms, expected)
    assert len(children(pool)) <= 3
    for pid in (pool._server.pid, *children(pool)):
        assert len(os.listdir(f"/proc/{pid}/task")) == 1


def test_nothing_is_left_behind(pool: Pool) -> None:
    pool.decode(CLIPS[0])
    before = held(with_children=True)
    other = Pool(MEMORY_BYTES)
    other.decode(CLIPS[0])
    more = held(with_children=True)
    other.close()
    after = held(with_children=True)
    assert more.processes == before.processes + 2 and more.descriptors > before.descriptors
    assert replace(after, resident_bytes=0) == replace(before, resident_bytes=0)


def test_the_process_they_are_forked_from_is_replaced(pool: Pool) -> None:
    pool.decode(CLIPS[0])
    assert pool._server is not None
    server = pool._server
    os.kill(server.pid, signal.SIGKILL)
    server._process.wait()
    killed(pool)
    assert pool.decode(CLIPS[0]).waveforms.any()
    assert pool._server is not server


def test_a_fork_of_this_process_has_children_of_its_own() -> None:
    ours, fork = isolation.pool(), os.fork()
    if not fork:
        os._exit(isolation.pool() is ours)
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
    assert isolation.pool() is ours


def test_a_program_that_ignores_the_end_of_children_keeps_its_decoders() -> None:
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    pool = Pool(MEMORY_BYTES, files_per_child=1)
    try:
        pool.decode(CLIPS[0])
        server = pool._server
        pool.decode(CLIPS[0])
        assert pool._server is server is not None and server.is_alive
    finally:
        signal.signal(signal.SIGCHLD, previous)
        pool.close()


def test_modules_of_the_working_directory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an interactive Python in a checkout, whose `sys.path` begins with ''."""
    code = "from fairseq_openvino.speech.forkserver import serve\n"
    (tmp_path / "only_here.py").write_text(
        code + "def work(connection): connection.send_bytes(b'x')"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    server = ForkServer("import only_here, sys; only_here.serve(int(sys.argv[1]), only_here.work)")
    _, connection = server.fork(20.0)
    assert connection.recv_bytes() == b"x"
    server.close()


def test_no_room_for_a_child_costs_the_file_and_says_so(pool: Pool) -> None:
    emptied(pool)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(CLIPS[0], "rb", buffering=0) as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 1, hard))
        try:
            with pytest.raises(AudioError, match="expected a decoder, got .*Too many open files"):
                pool.decode(file)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert pool.decode(CLIPS[0]).waveforms.any()


def head(**changes: object) -> bytes:
    """What a child says of four samples."""
    about = {"rate_hz": 8000, "stored_hz": 8000, "damage": None, "is_cancelled": False}
    return json.dumps({"waveforms": [1, 4]} | about | changes).encode()


NO_ANSWER = "an answer of its decoder, got (signal 9|exit code 1)"
LIES = {
    "no JSON": ([b"\xff"], NO_ANSWER),
    "no object": ([b"7"], NO_ANSWER),
    "too long": ([b"7" * 70_000], NO_ANSWER),
    "no numbers": ([head(rate_hz="fast")], NO_ANSWER),
    "more than memory": ([head(waveforms=[8, 1 << 40])], NO_ANSWER),
    "fewer than none": ([head(waveforms=[-1, 4])], NO_ANSWER),
    "five of four": ([head(), bytes(20)], NO_ANSWER),
    "none of four": ([head(), b""], NO_ANSWER),
    "half a number": ([head(), b"123"], NO_ANSWER),
    "half of them": ([head(), bytes(8)], "an answer of its decoder, got none within 0.3 s"),
    "loud": ([head(), np.full(4, 99, np.float32).tobytes()], r"samples in about \[-1, 1\], got 99"),
    "NaN": ([head(), np.full(4, np.nan, np.float32).tobytes()], "finite samples, got NaN"),
    "silence": ([], "an answer of its decoder, got none within 0.3 s"),
    f"{CLIPS[0]}:7:8": ([b'{"bytes": 4}', bytes(5)], NO_ANSWER),
    f"{CLIPS[0]}:7:9": ([b'{"bytes": 4}', b""], NO_ANSWER),
    f"{CLIPS[0]}:8:9": ([b'{"bytes": 1000000000000}'], NO_ANSWER),
}
LIAR = """
import json, sys, time
from fairseq_openvino.speech.forkserver import serve
def lie(connection):
    _, name, *_ = json.loads(connection.recv_bytes())
    for each in LIES[name]:
        connection.send_bytes(each)
    time.sleep(60)
serve(int(sys.argv[1]), lie)
"""


def test_nothing_that_a_child_says_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = {name: answers for name, (answers, _) in LIES.items()}
    monkeypatch.setattr(isolation, "COMMAND", LIAR.replace("LIES", repr(messages)))
    patient, hasty = Pool(MEMORY_BYTES), Pool(MEMORY_BYTES, timeout_seconds=0.3)
    for name, (_, message) in LIES.items():
        pool = hasty if "within 0.3 s" in message else patient
        with pytest.raises(AudioError, match=f"in '{name}': expected {message}"):
            if (part := Slice.parse(name)) is not None:
                pool.part_wav(part)
            pool.decode(CLIPS[0], name=name)
        assert not children(pool)
    patient.close()
    hasty.close()


@pytest.mark.fault
def test_whatever_is_killed_costs_its_files_alone() -> None:
    """Eight threads decode while children, now and then all of them with what forks them, are killed."""
    print(f"seed={SEED}")
    random, stopped = np.random.default_rng(SEED), threading.Event()
    pool = Pool(MEMORY_BYTES, timeout_seconds=20.0, files_per_child=5, children=4)
    expected = [audio.decode(clip).waveforms for clip in CLIPS]
    pool.decode(CLIPS[0])
    before = held(with_children=True)

    def kill() -> None:
        while not stopped.wait(0.05):
            assert pool._server is not None
            found = list(family(pool._server.pid))  # the first is what forks the others
            for pid in found if random.random() < 0.03 else found[1:][-1:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def work(number: int) -> bool:
        try:
            found = pool.decode(CLIPS[number % 3]).waveforms
        except AudioError as error:
            assert "its decoder, got" in str(error) or "a decoder, got" in str(error), error
            return False
        np.testing.assert_array_equal(found, expected[number % 3])
        return True

    killer = threading.Thread(target=kill)
    killer.start()
    with ThreadPoolExecutor(8) as workers:
        done = list(workers.map(work, range(1000)))
    stopped.set()
    killer.join()
    print(f"{sum(done)} of {len(done)} decoded")
    assert sum(done) > 500 and not all(done)
    emptied(pool)
    pool.decode(CLIPS[0])
    after = held(with_children=True)
    assert replace(after, resident_bytes=0) == replace(before, resident_bytes=0)
    pool.close()


@pytest.mark.soak
def test_memory_and_time_are_bounded(endless: Path) -> None:
    for memory_bytes, seconds, message in (
        (300 << 20, 20.0, "expected audio that is decoded in 300 MiB, got more. Split the file"),
        (MEMORY_BYTES, 0.1, "expected an answer of its decoder, got none within 0.1 s. Drop"),
    ):
        bounded = Pool(memory_bytes, seconds)
        with pytest.raises(AudioError, match=message):
            bounded.decode(endless, 96_000, "split")
        bounded.close()


@pytest.mark.soak
def test_children_end_with_their_parent(endless: Path) -> None:
    code = (
        "import os, sys, threading, time\nfrom fairseq_openvino.speech import isolation\n"
        "assert isolation.pool().decode(sys.argv[1]).waveforms.any()\n"
        "threading.Thread(target=isolation.pool().decode, args=sys.argv[2:3], daemon=True).start()\n"
        "pool = isolation.pool()\n"
        "isolation.pool().decode(sys.argv[1])\n"
        "print(pool._server.pid, *(child.pid for child in pool._idle), flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, CLIPS[0], endless], capture_output=True, text=True,
        env=child_environment(),
    )  # fmt: skip
    assert not done.stderr and len(done.stdout.split()) >= 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in done.stdout.split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
