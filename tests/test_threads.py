"""One model in many threads and processes (bar R9): every result is that of one thread, to the bit."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import MICRO_WHISPER, MINI, child_environment

from fairseq_openvino import load_model
from fairseq_openvino.model import Transcript
from fairseq_openvino.runtime.engine import MAX_IDLE

SEED = int(os.environ.get("FAIRSEQ_OPENVINO_SEED", "9"))
THREADS = 8
WATCHDOG_SECONDS = 60
CLIPS = {
    "s2t": sorted((MINI / "clips").glob("*.mp3"))[:20],
    "whisper": sorted((MICRO_WHISPER / "clips").iterdir())[:20],
}
CLIPS["ctc"] = CLIPS["s2t"]
SOAK = pytest.mark.soak


@pytest.fixture
def bundles(mini_bundle: Path, micro_whisper: Path, ctc_head: Path) -> dict[str, Path]:
    """By family."""
    return {"s2t": mini_bundle, "whisper": micro_whisper, "ctc": ctc_head / "bundle"}


def exact(found: Transcript) -> object:
    """All that was found, to be compared with ==: an equal one has equal bits."""
    hypotheses = [
        (text, each.score, each.tokens.tobytes(), each.positional_scores.tobytes())
        for text, each in found.hypotheses
    ]
    return found.path, found.text, found.segments, found.uncovered, hypotheses


def together(works: Sequence[Callable[[], Iterable[object]]]) -> None:
    """Run each in a thread of its own, taking turns as often as the interpreter can.

    If none yields anything for a minute they are stuck.

    Raises:
        BaseException: what one of them raised.
        AssertionError: they are stuck.
    """
    told: Queue[BaseException | bool] = Queue()

    def run(i: int) -> None:
        try:
            for _ in works[i]():
                told.put(False)
            told.put(True)
        except BaseException as error:
            told.put(error)

    left, interval = len(works), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for i in range(left):
            Thread(target=run, args=(i,), daemon=True).start()
        while left:
            end = told.get(timeout=WATCHDOG_SECONDS)
            if isinstance(end, BaseException):
                raise end
            left -= end
    except Empty:
        faulthandler.dump_traceback()
        raise AssertionError(f"{left} of {len(works)} threads are stuck") from None
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    ("family", "count"),
    [("s2t", 6), ("ctc", 6)]
    + [pytest.param(family, 500, marks=SOAK) for family in ("s2t", "whisper", "ctc")],
)
def test_threads_share_a_model(family: str, count: int, bundles: dict[str, Path]) -> None:
    serial, shared = (load_model(bundles[family]) for _ in range(2))
    clips = [serial.read(clip) for clip in CLIPS[family]]
    random = np.random.default_rng(SEED)
    sizes = ((1, 1), (2, 5), (1, 5), (2, 1), (3, 1), (4, 5), *((1, 1), (1, 5)) * 8)
    batches = [  # a few, each of which many threads have to decode
        (random.integers(0, len(clips), size).tolist(), {} if family == "ctc" else {"beam": beam})
        for size, beam in (sizes if count > 6 else sizes[:2])
    ]

    def decoded(model: Any, number: int) -> list[object]:
        chosen, options = batches[number]
        return [
            exact(each) for each in model.transcribe_clips([clips[i] for i in chosen], **options)
        ]

    expected = [decoded(serial, number) for number in range(len(batches))]

    def worker(seed: int) -> Iterator[int]:
        random = np.random.default_rng((SEED, seed))
        left = count
        while left > 0:
            number = int(random.integers(len(batches)))
            time.sleep(max(random.uniform(-3e-3, 1e-3), 0.0))
            assert decoded(shared, number) == expected[number], f"{batches[number]}, seed {SEED}"
            left -= len(batches[number][0])
            yield left

    together([lambda seed=seed: worker(seed) for seed in range(THREADS)])  # type: ignore[misc]
    engine = shared.model.engine
    assert engine.compiled and all(engine.idle(each) <= MAX_IDLE for each in engine.compiled)


def test_what_is_left_of_a_large_batch_is_bounded(recognizer: Any) -> None:
    """Every clip of it has a request of its own while it is decoded."""
    clip = recognizer.read(CLIPS["s2t"][0])
    recognizer.transcribe_clips([clip] * (3 * MAX_IDLE), beam=1)
    engine = recognizer.model.engine
    assert max(engine.idle(each) for each in engine.compiled) == MAX_IDLE


def recordings(family: str, directory: Path, count: int) -> list[str]:
    """Clips, and one that is longer than Whisper hears at once; of the full form, than any model does."""
    sounds = [soundfile.read(clip, dtype="float32") for clip in CLIPS[family]]
    whole = np.concatenate([samples for samples, _ in sounds])
    long_seconds = (65 if family == "s2t" else 18) if count == 20 else 10
    samples = np.resize(whole, long_seconds * sounds[0][1])
    soundfile.write(directory / "long.flac", samples, sounds[0][1])
    return [str(directory / "long.flac"), *map(str, CLIPS[family][: count - 1])]


LANES: list[Any] = [("s2t", "f32", 3)]
LANES += [pytest.param(each, "f32", 20, marks=SOAK) for each in ("ctc", "s2t", "whisper")]
LANES += [
    pytest.param(family, precision, 20, marks=SOAK)
    for family in ("s2t", "whisper")
    for precision in ("bf16", "int8")
]


@pytest.mark.parametrize(("family", "precision", "count"), LANES)
def test_two_batches_at_the_same_time(
    family: str, precision: str, count: int, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Files of any length, `follow`ed in two threads: what lanes of a process rest on."""
    files = recordings(family, tmp_path, count)
    serial, shared = (load_model(bundles[family], precision=precision) for _ in range(2))

    def followed(model: Any, batch: Sequence[str]) -> Iterator[object]:
        options = {} if family == "ctc" else {"beam": 5 if count == 20 else 1}
        if family == "whisper" and count < 20:
            options["temperature"] = 0
        for each in model.follow(batch, 4, **options):
            yield each.path, each.seconds, each.segments, each.result and exact(each.result)

    batches = [files, files[::-1]]
    expected = [list(followed(serial, batch)) for batch in batches]

    def lane(i: int) -> Iterator[object]:
        for _ in range(3 if count == 20 else 1):
            for found, wanted in zip(followed(shared, batches[i]), expected[i], strict=True):
                assert found == wanted
                yield found

    together([lambda i=i: lane(i) for i in range(2)])  # type: ignore[misc]


PROCESS = """
import sys
from fairseq_openvino import load_model

bundle, cache, *clips = sys.argv[1:]
model = load_model(bundle, cache_dir=cache or None)
for clip in clips * 5:
    for text, found in model.transcribe(clip, beam=5).hypotheses:
        print(found.score.hex(), found.tokens.tolist(), found.positional_scores.tobytes().hex(), text)
"""


@pytest.mark.soak
@pytest.mark.parametrize("family", ["s2t", "whisper"])
def test_processes_share_a_bundle_and_a_cache(
    family: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Both compile at once, into one directory."""

    def start(cache: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROCESS, str(bundles[family]), cache]
        return subprocess.Popen(
            [*command, *map(str, CLIPS[family])], stdout=subprocess.PIPE, text=True,
            env=child_environment(),
        )  # fmt: skip

    alone = start("").communicate(timeout=300)[0]
    for _ in range(2):  # the second time from the cache
        both = [start(str(tmp_path / "cache")) for _ in range(2)]
        found = [process.communicate(timeout=300)[0] for process in both]
        assert alone and found == [alone, alone]
