"""`--ov-resume DIR`: what a stopped `fairseq-generate` has decoded, batch by batch, is not decoded again.

`plan.json` says what hypotheses follow from: options, files, models, versions. A journal for each shard,
`shard-I-of-N.jsonl`, holds the hypotheses of each batch, or why an utterance has none.
"""

from __future__ import annotations

import base64
import functools
import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from fairseq.utils import split_paths

from fairseq_openvino import machine
from fairseq_openvino.atomic import locked, sha256, write_file
from fairseq_openvino.errors import ModelError, OptionError, failure, invalid
from fairseq_openvino.journal import Journal, records
from fairseq_openvino.plugin.model import S2TOpenVINOModel

ACTION = "Resuming"
PLAN = "plan.json"
PACKAGES = ("fairseq_openvino", "openvino", "torch")
IMMATERIAL = (
    "path", "ov_model", "ov_resume", "ov_cache_dir", "shard_id", "user_dir", "num_workers",
    "data_buffer_size", "log_file", "log_format", "log_interval", "no_progress_bar", "quiet",
    "results_path",
)  # fmt: skip
"""Options on which no hypothesis depends; of models their content counts."""
NAMED = 5
"""Differences that a refusal names."""
Found = list[Any]
"""Of each utterance its hypotheses, dictionaries as Fairseq's generators make them; or, in a text, why it
has none."""


class Resumption:
    """Of the shard that this process decodes."""

    def __init__(self, directory: Path, arguments: Namespace) -> None:
        self.directory, self.arguments = directory, arguments
        number, shards = getattr(arguments, "shard_id", 0), getattr(arguments, "num_shards", 1)
        self.path = directory / f"shard-{number}-of-{shards}.jsonl"
        self._journal: Journal | None = None
        self._done: dict[tuple[int, ...], dict[str, Any]] = {}

    def begin(self, task: Any, models: Sequence[Any]) -> None:
        """Read what is done, if it follows from the same.

        Raises:
            OptionError: options, files, models or versions differ.
            ModelError: the plan is damaged or lost.
            StorageError: the directory cannot be written.
        """
        options = _options(self.arguments)
        options["ov_threads"] = getattr(self.arguments, "ov_threads", None) or machine.threads()
        plan = {
            "options": options,
            "files": {str(path): _state(path) for path in sorted(_files(task, self.arguments))},
            "models": _digests(task, models, self.arguments.path),
            "versions": machine.versions(PACKAGES),
        }
        content = json.dumps(plan, ensure_ascii=False, default=str).encode(
            "utf-8", "surrogateescape"
        )
        with locked(self.directory / f".{PLAN}.lock"):
            if (self.directory / PLAN).exists():
                self._check(json.loads(content.decode("utf-8", "surrogateescape")))
            elif any(self.directory.glob("*.jsonl")):
                raise failure(
                    ModelError, ACTION, self.directory, f"the {PLAN} that its journals follow from", "none",
                    "Give another directory",
                )  # fmt: skip
            else:
                write_file(self.directory / PLAN, content)
        self._journal = Journal(self.path)
        self._done = {tuple(record["ids"]): record for record in records(self.path)}
        self.batch((), lambda: [])  # from which random numbers all others go on

    def batch(self, ids: Sequence[int], decode: Callable[[], Found]) -> Found:
        """What a batch became, or becomes now; random numbers go on behind it as they would.

        Raises:
            StorageError: it cannot be kept.
        """
        assert self._journal is not None
        known = self._done.pop(tuple(ids), None)
        if known is not None:
            if known["random"] is not None:
                state = bytearray(base64.b64decode(known["random"]))
                torch.set_rng_state(torch.frombuffer(state, dtype=torch.uint8))
            return [_restored(each) for each in known["found"]]
        before, found = torch.get_rng_state(), decode()
        after, random = torch.get_rng_state(), None
        if not ids or not torch.equal(before, after):
            random = base64.b64encode(after.numpy().tobytes()).decode()
        plain = [_plain(each) for each in found]
        self._journal.append({"ids": [*ids], "found": plain, "random": random})
        return found

    def close(self) -> None:
        """What was decoded is on the disk afterwards."""
        if self._journal is not None:
            self._journal.close()

    def _check(self, plan: dict[str, Any]) -> None:
        path = self.directory / PLAN
        try:
            begun = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
            different = [*_differences(begun, plan)]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            advice = "Give another directory"
            raise failure(ModelError, ACTION, path, "a readable plan", error, advice) from error
        if different:
            more = f", and {len(different) - NAMED} more" if len(different) > NAMED else ""
            raise failure(
                OptionError, ACTION, self.directory,
                "the options, files, models and versions that it was begun with",
                ", ".join(different[:NAMED]) + more,
                "Repeat the command as it was, or give another --ov-resume",
            )  # fmt: skip


_current: ContextVar[Resumption | None] = ContextVar("_current", default=None)


@contextmanager
def resuming(arguments: Any) -> Iterator[None]:
    """A command of Fairseq with these arguments, whose batches are kept if --ov-resume is set.

    Raises:
        OptionError: the command is `fairseq-interactive`, or another process does the same work.
        StorageError: the directory cannot be written.
    """
    chosen = getattr(arguments, "ov_resume", None)
    if chosen is None:
        yield
        return
    if hasattr(arguments, "buffer_size"):
        got = "fairseq-interactive"
        raise invalid(ACTION, "--ov-resume", "fairseq-generate", got, "Leave it out")
    run = Resumption(Path(chosen), arguments)
    with locked(run.path.with_suffix(".lock"), wait=False) as is_held:
        if not is_held:
            expected, got = "a shard that nobody decodes", "one that another process is at"
            raise invalid(ACTION, "--ov-resume", expected, got, "Wait for it, or end it")
        token = _current.set(run)
        try:
            yield
        finally:
            _current.reset(token)
            run.close()


def begin(task: Any, models: Sequence[Any]) -> None:
    """See `Resumption.begin`; called when the models are loaded and nothing is decoded."""
    run = _current.get()
    if run is not None:
        run.begin(task, models)


def kept(sample: dict[str, Any], decode: Callable[[], Found]) -> Found:
    """See `Resumption.batch`; of a collated batch."""
    run = _current.get()
    return decode() if run is None else run.batch(sample["id"].tolist(), decode)


def keeping(step: Callable[..., Any]) -> Callable[..., Any]:
    """`inference_step` of a task whose batches fail as a whole."""

    @functools.wraps(step)
    def inference_step(
        self: Any, generator: Any, models: Any, sample: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        return kept(sample, lambda: step(self, generator, models, sample, *args, **kwargs))

    return inference_step


def _options(arguments: Namespace) -> dict[str, Any]:
    """Those that hypotheses depend on."""
    return {name: value for name, value in vars(arguments).items() if name not in IMMATERIAL}


def _files(task: Any, arguments: Namespace) -> set[Path]:
    """What the options and the data configuration name, dictionaries, the subset, and its audio."""
    roots = [Path(root) for root in split_paths(arguments.data)]
    subsets = tuple(f"{subset}." for subset in (*arguments.gen_subset.split(","), "dict"))
    found = {path for root in roots for path in root.iterdir() if path.name.startswith(subsets)}
    config = getattr(getattr(task, "data_cfg", None), "config", {})
    for text in _texts([_options(arguments), config]):
        found |= {path for path in (Path(text), *(root / text for root in roots)) if _is_file(path)}
    for dataset in task.datasets.values():
        for part in getattr(dataset, "datasets", [dataset]):
            found |= {_file_of(path) for path in getattr(part, "audio_paths", ())}
    return found


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        yield from _texts([*content.values()])
    elif isinstance(content, (list, tuple)):
        for each in content:
            yield from _texts(each)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name
        return False


def _file_of(audio: str) -> Path:
    """The file that audio of a manifest is in; it may be a part of it."""
    return Path(audio if os.path.exists(audio) else audio.rsplit(":", 2)[0])


def _state(path: Path) -> list[int] | None:
    """Bytes, and when it was modified in ns; None if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _digests(task: Any, models: Sequence[Any], path: str) -> list[str]:
    """Of the bundles; of a model that has none, of its checkpoint."""
    if not models:  # Whisper's task has its own
        return [task.model.bundle.digest]
    return [
        model.compiled.bundle.digest if isinstance(model, S2TOpenVINOModel) else sha256(Path(name))
        for model, name in zip(models, split_paths(path), strict=True)
    ]


def _differences(begun: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """In words."""
    for name in _different(begun["options"], now["options"]):
        before, after = begun["options"].get(name), now["options"].get(name)
        yield f"--{name.replace('_', '-')} {after} (it was {before})"
    yield from (f"another file {name}" for name in _different(begun["files"], now["files"]))
    if begun["models"] != now["models"]:
        yield "another model"
    for name in _different(begun["versions"], now["versions"]):
        yield f"{name} {now['versions'].get(name)} (it was {begun['versions'].get(name)})"


def _different(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = sorted(before.keys() | after.keys())
    return [name for name in names if before.get(name) != after.get(name)]


def _plain(found: Any) -> Any:
    """Hypotheses in JSON's types."""
    if isinstance(found, torch.Tensor):
        kind = str(found.dtype).removeprefix("torch.")
        return {"type": kind, "shape": [*found.shape], "values": found.flatten().tolist()}
    if isinstance(found, dict):
        return {name: _plain(value) for name, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [_plain(each) for each in found]
    return found


def _restored(plain: Any) -> Any:
    """What `_plain` was given."""
    if isinstance(plain, list):
        return [_restored(each) for each in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {"type", "shape", "values"}:
        kind = getattr(torch, plain["type"])
        return torch.tensor(plain["values"], dtype=kind).reshape(plain["shape"])
    return {name: _restored(value) for name, value in plain.items()}
