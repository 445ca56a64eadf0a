"""What the real pipeline feeds its two graphs, recorded by a wrapper around the model.

Every utterance is decoded greedily, alone. Of its encoder calls the inputs are kept, of its decoder
sessions the tokens of every step in order. A decoder call with all tokens of a session passes
through the very activations of its steps, keys and values of all earlier tokens included, so
states need not be stored: they follow from encoder inputs and tokens. That keeps a recording small
(kilobytes to one megabyte an utterance) and makes an empty-state calibration impossible.

One `.npz` an utterance: `features.<c>` (N, T, F) and `lengths.<c>` (N,) of encoder call c, and
`tokens.<c>.<s>` (1, L) of the s-th session on its output.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairseq_openvino.atomic import staged_file, writable_directory
from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import StorageError, failure
from fairseq_openvino.model import Ask, Head, Memory, Model, Session, Step
from fairseq_openvino.speech.corpus import Utterance

FORMAT = 1
"""Changes whenever recordings of an earlier version cannot be used."""


@dataclass(frozen=True)
class EncoderCall:
    """One call of the encoder and the decoder sessions on its output."""

    features: np.ndarray
    """Shape (N, T, F), float32; or ids (N, T), int64."""
    lengths: np.ndarray
    """Shape (N,), int64."""
    sequences: tuple[np.ndarray, ...]
    """Decoder tokens of each session, shape (1, L), int64."""


@dataclass(frozen=True)
class _Call:
    """An encoder call under way, and the tokens of each step of each session on its memory."""

    features: np.ndarray
    lengths: np.ndarray
    memory: Memory
    sessions: list[list[np.ndarray]]


class RecordingModel:
    """A `model.Model` that keeps what goes into another one, one utterance at a time."""

    def __init__(self, model: Model) -> None:
        self._model, self.manifest = model, model.manifest
        self._calls: list[_Call] = []

    def streams(self, utterances: int) -> int:
        """As the model's."""
        return self._model.streams(utterances)

    def prepare(self, sizes: Collection[int], beam: int, head: Head) -> None:
        """As the model's."""
        self._model.prepare(sizes, beam, head)

    def encode(
        self, features: np.ndarray, lengths: np.ndarray, streams: int = 1, together: int = 0
    ) -> Memory:
        """As the model's, recorded."""
        memory = self._model.encode(features, lengths, streams, together)
        self._calls.append(_Call(features.copy(), lengths.copy(), memory, []))
        return memory

    def open(self, memory: Memory, beam: int, head: Head) -> Session:
        """As the model's; recorded are sessions of one row."""
        session = self._model.open(memory, beam, head)
        call = next((call for call in self._calls if call.memory is memory), None)
        if call is None or beam * memory.utterances > 1:
            return session
        call.sessions.append([])
        return _RecordingSession(session, call.sessions[-1])

    def take(self) -> list[EncoderCall]:
        """The calls since the last time."""
        calls = [
            EncoderCall(
                call.features,
                call.lengths,
                tuple(np.concatenate(steps, 1) for steps in call.sessions if steps),
            )
            for call in self._calls
        ]
        self._calls = []
        return calls


class _RecordingSession:
    def __init__(self, session: Session, steps: list[np.ndarray]) -> None:
        self._session, self._steps = session, steps

    def step(self, ask: Ask) -> Step:
        self._steps.append(ask.tokens.astype(np.int64))
        return self._session.step(ask)

    def keep(self, utterances: np.ndarray) -> None:
        self._session.keep(utterances)

    def __enter__(self) -> Session:
        self._session.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._session.__exit__(*raised)


def collect(
    utterances: Sequence[Utterance],
    directory: Path,
    decode: Callable[[Utterance], list[EncoderCall]],
    progress: Callable[[Iterable[Utterance]], Iterable[Utterance]],
) -> list[Path]:
    """Record utterances that are not recorded yet; one file each, in their order.

    Args:
        utterances: what to decode.
        directory: see `directory_name`; files of an interrupted run are reused.
        decode: decodes an utterance and returns its calls.
        progress: wraps the utterances, to show progress.

    Raises:
        AudioError: an utterance cannot be used.
        StorageError: a file could not be written.
    """
    paths = []
    writable_directory(directory)
    for utterance in progress(utterances):
        path = directory / f"{_file_name(utterance)}.npz"
        if not path.is_file():
            _write(path, decode(utterance))
        paths.append(path)
    return paths


def read(path: Path) -> list[EncoderCall]:
    """The calls of a recorded utterance.

    Raises:
        StorageError: the file cannot be read, or is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _calls(dict(arrays))
    except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        advice = "Check the disk; repeat it without the file, which is recorded again"
        raise failure(
            StorageError, "Reading a recording", path, "what was recorded", error, advice
        ) from error


def _calls(arrays: Mapping[str, np.ndarray]) -> list[EncoderCall]:
    calls = []
    for index in range(sum(name.startswith("features.") for name in arrays)):
        names = [name for name in arrays if name.startswith(f"tokens.{index}.")]
        names.sort(key=lambda name: int(name.rpartition(".")[2]))
        sequences = tuple(arrays[name] for name in names)
        calls.append(
            EncoderCall(arrays[f"features.{index}"], arrays[f"lengths.{index}"], sequences)
        )
    return calls


def directory_name(bundle: Bundle, language: str | None) -> str:
    """A name that differs whenever the recordings of an utterance would."""
    files = {name: file.sha256 for name, file in bundle.manifest.files.items()}
    content = json.dumps([FORMAT, files, language], sort_keys=True)
    return f"recordings-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _file_name(utterance: Utterance) -> str:
    """Readable, and distinct for distinct ids, paths and file states."""
    source = Path(utterance.path)
    stamp = source.stat().st_mtime_ns if source.is_file() else 0
    content = json.dumps([utterance.id, utterance.path, stamp])
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", utterance.id)[:40]
    return f"{readable}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _write(path: Path, calls: list[EncoderCall]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for index, call in enumerate(calls):
        arrays |= {f"features.{index}": call.features, f"lengths.{index}": call.lengths}
        for number, tokens in enumerate(call.sequences):
            arrays[f"tokens.{index}.{number}"] = tokens
    with staged_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
