"""Cost per hour of audio from 1 to 1,000 workers, SIMULATED from what `measure.py` found on one machine.

    python cost.py measured.json --price 0.05 [--json simulated.json]

Each batch passes three stations: the driver hands it out (one at a time), shared storage reads it (one at a
time, at full bandwidth), a worker decodes it, for as long as one of the measured batches took, and syncs. All
workers are paid from their start until the last batch is done. Not in it: failures, slower machines, other
users of the storage, the network, its price.
"""

import argparse
import heapq
import json
import random
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fairseq_openvino.tables import markdown_table

WORKERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Outcome:
    """SIMULATED."""

    workers: int
    hours: float
    """From the start of the machines to the last batch."""
    speed: float
    """Hours of audio an hour."""
    decoding: float
    """Share of the workers' time; the rest is starting and waiting."""
    driver: float
    """Share of the time that it hands out batches."""
    storage: float
    """Share of the time that it is read."""
    cost_per_audio_hour: float


@dataclass(frozen=True)
class Assumptions:
    """What was not measured."""

    price: float
    """Of a worker and hour, in any currency."""
    hours: float
    """Of audio."""
    storage: float
    """Bandwidth that all workers share, MB/s."""
    boot: float
    """Until a machine runs, s."""
    seed: int
    """Of the batches that are drawn."""


def simulate(workers: int, measured: dict, given: Assumptions) -> Outcome:
    """A run."""
    draw = random.Random(given.seed)
    batches = max(round(given.hours * 3600 / measured["batch_audio_seconds"]), 1)
    dispatch, sync = measured["dispatch_seconds"], measured["sync_seconds"]
    moved = measured["batch_read_bytes"] + measured["batch_written_bytes"]
    read, load = (count / (given.storage * 1e6) for count in (moved, measured["model_bytes"]))
    begin = given.boot + measured["start_seconds"]
    free = [begin + load * (worker + 1) for worker in range(workers)]  # one by one
    driver = storage = end = busy = 0.0
    for _ in range(batches):
        driver = max(heapq.heappop(free), driver) + dispatch
        storage = max(driver, storage) + read
        decode = draw.choice(measured["batch_seconds"])
        done = storage + decode + sync
        heapq.heappush(free, done)
        busy, end = busy + decode, max(end, done)
    return Outcome(
        workers, end / 3600, given.hours * 3600 / end, busy / (workers * end), batches * dispatch / end,
        (batches * read + workers * load) / end, workers * end / 3600 * given.price / given.hours,
    )  # fmt: skip


def main() -> None:
    """Print the table, and a check against what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, metavar="JSON")
    parser.add_argument("--price", type=float, required=True, help="of a worker and hour")
    parser.add_argument("--hours", type=float, default=1000.0, help="of audio (default: 1000)")
    parser.add_argument(
        "--storage", type=float, default=1000.0, metavar="MB/S", help="shared (1000)"
    )
    parser.add_argument("--boot", type=float, default=120.0, metavar="S", help="of a machine (120)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    measured = json.loads(asked.measured.read_text())
    given = Assumptions(asked.price, asked.hours, asked.storage, asked.boot, asked.seed)
    found = [simulate(workers, measured, given) for workers in WORKERS]
    print(
        f"SIMULATED from {asked.measured}, measured on {measured['cores']} cores of {measured['cpu']}. "
        f"A worker has {measured['threads']} thread. Assumed: {asdict(given)}\n"
    )
    rows = [
        (
            str(each.workers), f"{each.hours:.2f}", f"{each.speed:.0f}", f"{each.decoding:.1%}",
            f"{each.driver:.1%}", f"{each.storage:.1%}", f"{each.cost_per_audio_hour:.5f}",
        )
        for each in found
    ]  # fmt: skip
    heads = (
        "workers", "hours", "x real time", "decoding", "driver busy", "storage busy", "cost per hour of audio"
    )  # fmt: skip
    print(*markdown_table(heads, rows), sep="\n")
    check = simulate(measured["actors"], measured, replace(given, boot=0.0))
    real = statistics.median(measured["actors_rates"])
    print(
        f"\nCheck: {measured['actors']} workers are {check.speed:.1f} x real time SIMULATED, "
        f"{real:.1f} measured"
    )
    if asked.json is not None:
        content = {"simulated": True, "measured": measured, "assumptions": asdict(given)}
        content["results"] = [asdict(each) for each in found]
        asked.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
