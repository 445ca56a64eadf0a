"""`fairseq-openvino cache list|prune`: exported bundles and compiled models that are kept for later runs."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from fairseq_openvino.atomic import clear_leftovers
from fairseq_openvino.errors import EXIT_OK, invalid
from fairseq_openvino.export.cache import BUNDLES, Entry, default_cache_dir, entries
from fairseq_openvino.flags import add_flags, flag, given
from fairseq_openvino.tables import aligned, human_bytes

GB = 1e9
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class PruneOptions:
    """What may go; without any of them only what killed processes left behind."""

    older_than: float | None = field(default=None, metadata=flag(metavar="DAYS"))
    """What was not used for this many days."""
    max_size: float | None = field(default=None, metadata=flag(metavar="GB"))
    """What was used longest ago, until the rest has at most this size in GB (10^9 bytes)."""
    all: bool = False
    """Everything."""

    def __post_init__(self) -> None:
        for name in ("older_than", "max_size"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise invalid("Pruning", name, "at least 0", value)

    def release(self, entry: Entry, size: int, now: float) -> bool:
        """Whether an entry goes from a cache of `size` bytes; `now` in seconds since 1970."""
        too_old = self.older_than is not None and entry.used < now - self.older_than * DAY_SECONDS
        too_much = self.max_size is not None and size > self.max_size * GB
        return self.all or too_old or too_much


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two actions and their flags."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="what is kept, how large it is, when it was used")
    pruning = actions.add_parser("prune", help="remove what no process uses", description=PRUNE)
    add_flags(pruning, PruneOptions)
    for action, function in ((listing, show), (pruning, prune)):
        action.add_argument(
            "--cache-dir", type=Path, metavar="DIR", help="another than the default"
        )
        action.set_defaults(act=function, parser=action)


PRUNE = "Removes bundles and compiled models that no process uses; they are made again when needed."


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """List or prune one cache directory."""
    arguments.act(arguments, arguments.cache_dir or default_cache_dir())
    return EXIT_OK


def show(_: argparse.Namespace, cache_dir: Path) -> None:
    """Print a row for each bundle and for each directory of compiled models."""
    found = list(entries(cache_dir))
    print(f"{cache_dir}: {human_bytes(sum(entry.bytes for entry in found))}")
    rows = [("SOURCE", "SIZE", "LAST USED", "DIRECTORY")]
    for path, group in groupby(found, key=lambda entry: entry.directory):
        together = list(group)
        used = time.localtime(max(entry.used for entry in together))
        rows.append((
            together[0].source, human_bytes(sum(entry.bytes for entry in together)),
            time.strftime("%Y-%m-%d %H:%M", used), str(path.relative_to(cache_dir)),
        ))  # fmt: skip
    if found:
        print("\n".join(aligned(rows)))


def prune(arguments: argparse.Namespace, cache_dir: Path) -> None:
    """Remove what the flags say, and print each."""
    options = PruneOptions(**given(arguments, PruneOptions))
    clear_leftovers(cache_dir / BUNDLES)
    found = sorted(entries(cache_dir), key=lambda entry: entry.used)
    size = before = sum(entry.bytes for entry in found)
    for entry in found:
        if not options.release(entry, size, time.time()):
            continue
        try:
            outcome = "removed" if entry.remove() else "kept, in use"
        except OSError as error:
            outcome = f"kept, {error}"
        size -= entry.bytes if outcome == "removed" else 0
        print(f"{outcome}: {entry.path.relative_to(cache_dir)} ({human_bytes(entry.bytes)})")
    print(f"{cache_dir}: {human_bytes(before - size)} freed, {human_bytes(size)} kept")
