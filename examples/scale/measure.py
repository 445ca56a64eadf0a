"""What one machine does: an actor's pace, Ray's overhead a batch, storage; `cost.py` reads the result.

    python measure.py FILE ... --model BUNDLE --work DIR --output measured.json

One process with a thread a core and an actor a core with one thread take turns. Rates are taken while all
workers are at work: between the last first batch and the first last batch, so starting is not in them.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fairseq_openvino import machine
from fairseq_openvino.commands.job import finish
from fairseq_openvino.jobs import job as jobs
from fairseq_openvino.jobs import ray as scale
from fairseq_openvino.jobs.index import BATCH
from fairseq_openvino.jobs.plan import Input, Plan
from fairseq_openvino.jobs.transcribe import Transcribe
from fairseq_openvino.journal import records
from fairseq_openvino.speech.files import audio_files

TOLERANCE = 0.05
EMPTY_BATCHES = 300
SYNCS = 50


@dataclass(frozen=True)
class Run:
    """A job that was done."""

    start_seconds: float
    """Until each worker has committed its first batch."""
    rate: float
    """Seconds of audio a second, while all work."""
    intervals: list[float]
    """Seconds between two batches of a worker, while all work."""
    audio_seconds: float
    written_bytes: int


def run(transcribe: Transcribe, files: list[str], directory: Path, address: str | None) -> Run:
    """A job from its beginning to its results; at an address by Ray."""
    inputs = [Input.of(file, Path(file).stem) for file in files]
    digest = transcribe.recognizer().bundle.digest
    job = jobs.begin(directory, Plan.of(digest, transcribe.described(), inputs))
    begun = time.time()
    finish(job, transcribe, None, False, address)
    done = {
        path.stem: [
            (record["time"], sum(file["seconds"] for file in record["files"]))
            for record in records(path)
            if record["kind"] == BATCH
        ]
        for path in job.journals.iterdir()
    }
    first = max(batches[0][0] for batches in done.values())
    last = min(batches[-1][0] for batches in done.values())
    if last <= first:
        sys.exit("too few files: some worker was done before another had begun")
    warm = [[each for each in batches if first <= each[0] <= last] for batches in done.values()]
    audio = sum(seconds for batches in warm for at, seconds in batches if at > first)
    intervals = [b[0] - a[0] for each in warm for a, b in zip(each, each[1:], strict=False)]
    written = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    total = sum(seconds for batches in done.values() for _, seconds in batches)
    return Run(first - begun, audio / (last - first), intervals, total, written)


def empty_batch_seconds(threads: int) -> float:
    """Of Ray Data and its actors for a batch in which nothing is done."""
    import ray.data

    with scale.cluster(scale.LOCAL, threads):
        numbers = [{"n": n} for n in range(EMPTY_BATCHES)]
        rows = ray.data.from_items(numbers, override_num_blocks=EMPTY_BATCHES)
        pool = ray.data.ActorPoolStrategy(size=machine.threads() // threads)
        found = rows.map_batches(Nothing, compute=pool, batch_size=1, num_cpus=threads)
        at = [time.monotonic() for _ in found.iter_rows()]
    return (at[-1] - at[0]) / (len(at) - 1)


class Nothing:
    """An actor without work."""

    def __call__(self, rows: dict) -> dict:
        """The same."""
        return rows


def sync_seconds(directory: Path) -> float:
    """Of one fsync behind 4 KB, the median."""

    def once(file: int) -> float:
        os.write(file, bytes(4096))
        begin = time.monotonic()
        os.fsync(file)
        return time.monotonic() - begin

    with tempfile.TemporaryFile(dir=directory) as file:
        return statistics.median(once(file.fileno()) for _ in range(SYNCS))


def main() -> int:
    """Measure in turns; 1 if the actors are slower than the tolerance allows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--model", required=True, metavar="BUNDLE")
    parser.add_argument("--work", required=True, type=Path, metavar="DIR", help="on the storage")
    parser.add_argument("--output", required=True, type=Path, metavar="JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    files, cores = audio_files(arguments.files), machine.threads()
    kinds: dict[str, tuple[int, str | None]] = {
        "process": (cores, None),
        "actors": (1, scale.LOCAL),
    }
    found: dict[str, list[Run]] = {kind: [] for kind in kinds}
    arguments.work.mkdir(parents=True, exist_ok=True)
    for turn in range(arguments.rounds):
        for kind, (threads, address) in kinds.items():
            transcribe = Transcribe(
                arguments.model, batch_size=arguments.batch_size, load={"threads": threads}
            )
            with tempfile.TemporaryDirectory(dir=arguments.work) as directory:
                found[kind].append(run(transcribe, files, Path(directory), address))
            print(f"round {turn + 1}: {kind} {found[kind][-1].rate:.2f} x real time", flush=True)
    process, actors = (statistics.median(each.rate for each in found[kind]) for kind in kinds)
    ratio = actors / process
    bundle = Path(arguments.model)
    read = sum(Path(file).stat().st_size for file in files)
    batches = -(-len(files) // arguments.batch_size)
    measured = {
        "cpu": machine.cpu().model, "cores": cores, "model": transcribe.recognizer().bundle.digest,
        "rounds": arguments.rounds, "threads": 1, "actors": cores,
        "process_rates": [each.rate for each in found["process"]],
        "actors_rates": [each.rate for each in found["actors"]], "ratio": ratio,
        "start_seconds": statistics.median(each.start_seconds for each in found["actors"]),
        "batch_audio_seconds": found["actors"][-1].audio_seconds / batches,
        "batch_seconds": [seconds for each in found["actors"] for seconds in each.intervals],
        "batch_read_bytes": read / batches,
        "batch_written_bytes": found["actors"][-1].written_bytes / batches,
        "model_bytes": sum(path.stat().st_size for path in bundle.iterdir()),
        "dispatch_seconds": empty_batch_seconds(1), "sync_seconds": sync_seconds(arguments.work),
    }  # fmt: skip
    arguments.output.write_text(json.dumps(measured, indent=1) + "\n")
    is_within = ratio >= 1 - TOLERANCE
    print(
        f"{cores} actors of 1 thread / 1 process of {cores} threads: {ratio:.3f} "
        f"({'within' if is_within else 'NOT within'} {TOLERANCE:.0%})"
    )
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
