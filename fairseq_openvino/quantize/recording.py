"""What the real pipeline feeds its two graphs, recorded by a wrapper around its infer requests.

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
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import StorageError
from fairseq_openvino.runtime.engine import Engine, EngineOptions, Lease, Variant
from fairseq_openvino.speech.corpus import Utterance

FORMAT = 1
"""Changes whenever recordings of an earlier version cannot be used."""
FINGERPRINT_TENSOR = "cross_value.0"


@dataclass(frozen=True)
class EncoderCall:
    """One call of the encoder and the decoder sessions on its output."""

    features: np.ndarray
    """Shape (N, T, F), float32."""
    lengths: np.ndarray
    """Shape (N,), int64."""
    sequences: tuple[np.ndarray, ...]
    """Decoder tokens of each session, shape (1, L), int64."""


class Recorder:
    """Collects the calls of one utterance at a time."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._inputs: list[tuple[np.ndarray, np.ndarray]] = []
        self._sessions: dict[int, list[list[np.ndarray]]] = defaultdict(list)
        self._calls: dict[bytes, int] = {}  # fingerprint of the output to encoder call

    def encoded(self, inputs: dict[str, ov.Tensor], output: np.ndarray) -> None:
        """An encoder call and its FINGERPRINT_TENSOR (N, H, S, dh)."""
        self._calls[_fingerprint(output)] = len(self._inputs)
        self._inputs.append((inputs["features"].data.copy(), inputs["lengths"].data.copy()))

    def stepped(self, session: list[np.ndarray] | None, inputs: dict[str, ov.Tensor]) -> Any:
        """A decoder call; returns the session it belongs to, to be passed with the next call.

        Sessions of several rows, as of windows of a long clip decoded together, are left out.
        """
        tokens = inputs["tokens"].data
        call = self._calls.get(_fingerprint(inputs[FINGERPRINT_TENSOR].data))
        if len(tokens) > 1 or call is None:
            return []
        if session is None:
            session = []
            self._sessions[call].append(session)
        session.append(tokens.copy())
        return session

    def take(self) -> list[EncoderCall]:
        """The calls since the last time."""
        calls = []
        for index, (features, lengths) in enumerate(self._inputs):
            sequences = [np.concatenate(steps, 1) for steps in self._sessions[index]]
            calls.append(EncoderCall(features, lengths, tuple(sequences)))
        self._start()
        return calls


class RecordingRequest:
    """An infer request that shows its inputs to a recorder; everything else is the request's."""

    def __init__(self, request: ov.InferRequest, graph: str, recorder: Recorder) -> None:
        self._request, self._graph, self._recorder = request, graph, recorder
        self._inputs: dict[str, ov.Tensor] = {}
        self._session: list[np.ndarray] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def set_tensor(self, name: str, tensor: ov.Tensor) -> None:
        """Remember and pass on."""
        self._inputs[name] = tensor
        self._request.set_tensor(name, tensor)

    def reset_state(self) -> None:
        """A new session begins."""
        self._session = None
        self._request.reset_state()

    def infer(self, **options: Any) -> Any:
        """Run, and record what went in."""
        result = self._request.infer(**options)
        if self._graph == "encoder":
            output = self._request.get_tensor(FINGERPRINT_TENSOR).data
            self._recorder.encoded(self._inputs, output)
        else:
            self._session = self._recorder.stepped(self._session, self._inputs)
        return result


class RecordingEngine(Engine):
    """An engine whose requests are recorded."""

    def __init__(self, bundle: Bundle, options: EngineOptions, recorder: Recorder) -> None:
        super().__init__(bundle, options)
        self._recorder = recorder

    def lease(self, variant: Variant) -> Lease:
        """As the engine's."""
        lease = super().lease(variant)
        if not isinstance(lease.request, RecordingRequest):
            lease.request = RecordingRequest(lease.request, variant.graph, self._recorder)
        return lease


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
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for utterance in progress(utterances):
            path = directory / f"{_file_name(utterance)}.npz"
            if not path.is_file():
                _write(path, decode(utterance))
            paths.append(path)
    except OSError as error:
        raise StorageError(
            f"Recording failed in {str(directory)!r}: expected a writable directory with free space, "
            f"got {error}. Give another --work-dir."
        ) from error
    return paths


def read(path: Path) -> list[EncoderCall]:
    """The calls of a recorded utterance."""
    with np.load(path, allow_pickle=False) as arrays:
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
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(partial, path)


def _fingerprint(tensor: np.ndarray) -> bytes:
    """Of cross-attention values (N, H, S, dh): the first frame's, which no two clips share."""
    return tensor[:, :, 0].tobytes()
