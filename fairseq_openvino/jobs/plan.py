"""What a job computes: its batches follow from inputs, bundle and options alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from fairseq_openvino.errors import invalid
from fairseq_openvino.speech.slices import file_of
from fairseq_openvino.speech.sources import STANDARD_INPUT, URL

MOST_NAMED = 3
"""Of the inputs that differ."""


@dataclass(frozen=True)
class Input:
    """An audio file, or a part of one, when the job began."""

    path: str
    """Absolute; as `corpus.Utterance` has it. A URL, which cannot be read, stays one."""
    name: str
    """Of the files that it becomes, without an extension."""
    bytes: int | None
    """Of the file; None: there was none."""
    modified_ns: int | None
    """Of the file, in ns since 1970 by the clock of its file system."""
    skipped: bool = False
    """All that was wanted of it existed when the job began."""

    @classmethod
    def of(cls, path: str, name: str) -> Input:
        """As it is now."""
        absolute = path if URL.match(path) else os.path.abspath(path)
        try:
            status = os.stat(file_of(absolute))
        except (OSError, ValueError):
            return cls(absolute, name, None, None)
        return cls(absolute, name, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Plan:
    """Two equal plans give the same bytes, on processors and OpenVINO of the same kind."""

    bundle: str
    """Its digest."""
    options: Mapping[str, Any]
    """By name: all that changes bytes, with the defaults filled in; `batch_size` is one of them."""
    inputs: Sequence[Input]

    @classmethod
    def of(cls, bundle: str, options: Mapping[str, Any], inputs: Sequence[Input]) -> Plan:
        """A plan as it is after it was stored: of JSON's types.

        Raises:
            OptionError: an input has no file that can be read again, or is there twice.
        """
        seen = set[str]()
        for each in inputs:
            if os.path.basename(each.path) == STANDARD_INPUT:
                raise invalid(
                    "Planning a job", "files", "files", "standard input", "Store it first"
                )
            if each.path in seen:
                raise invalid("Planning a job", "files", "each once", f"{each.path!r} again")
            seen.add(each.path)
        return cls(bundle, json.loads(json.dumps(options)), tuple(inputs))

    @cached_property
    def batches(self) -> Sequence[Sequence[Input]]:
        """Consecutive inputs that are decoded together."""
        size, todo = self.options["batch_size"], [each for each in self.inputs if not each.skipped]
        return [todo[begin : begin + size] for begin in range(0, len(todo), size)]

    def differences(self, now: Plan) -> list[str]:
        """What has changed since, in words."""
        names = dict.fromkeys([*self.options, *now.options])
        changed = [
            f"{name} {self.options.get(name)!r} -> {now.options.get(name)!r}"
            for name in names
            if self.options.get(name) != now.options.get(name)
        ]
        if self.bundle != now.bundle:
            changed.append(f"bundle {self.bundle[:12]} -> {now.bundle[:12]}")
        return changed + _inputs_changed(self.inputs, now.inputs)


def _inputs_changed(before: Sequence[Input], now: Sequence[Input]) -> list[str]:
    old, new = (
        {each.path: replace(each, skipped=False) for each in some} for some in (before, now)
    )
    groups = {
        "new": [path for path in new if path not in old],
        "gone": [path for path in old if path not in new],
        "changed": [path for path, each in new.items() if path in old and old[path] != each],
    }
    found = [
        f"{len(paths)} inputs {what} ({', '.join(paths[:MOST_NAMED])}"
        f"{', ...' if len(paths) > MOST_NAMED else ''})"
        for what, paths in groups.items()
        if paths
    ]
    return found or ([] if list(old) == list(new) else ["the order of the inputs"])


def stored(inputs: Sequence[Input]) -> bytes:
    """The content of `inputs.jsonl`."""
    lines = (json.dumps(asdict(each)) + "\n" for each in inputs)
    return "".join(lines).encode()
