"""Recordings of any length: their samples in blocks, as often as they are needed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np

from fairseq_openvino.speech import isolation, stored
from fairseq_openvino.speech.audio import Audio, Track
from fairseq_openvino.speech.containers import Inspection
from fairseq_openvino.speech.options import SPLIT, AudioOptions
from fairseq_openvino.speech.sndfile import BLOCK_SAMPLES
from fairseq_openvino.speech.sources import Source, is_source, lasting, opened, source_name
from fairseq_openvino.speech.waveform import as_waveform, of_equal_size, unusable


class Recording(ABC):
    """One channel of a source, or the mean of all."""

    def __init__(self, name: str, rate_hz: int, hashed: Callable[[], bytes]) -> None:
        self.name, self._hashed = name, hashed
        """Of the source; with `split`, `<source>#<channel>`."""
        self.rate_hz = rate_hz
        """Of the samples."""
        self.stored_hz = rate_hz
        """Before resampling; of a file, once it is heard."""
        self.damage: str | None = None
        """What is missing, in words; of a file, once it was heard to its end."""

    @cached_property
    def digest(self) -> int:
        """SHA-256 of the file's content, or of samples that were given; with `split`, of the channel too.

        Raises:
            AudioError: the file cannot be read any more.
        """
        return int.from_bytes(self._hashed())

    @abstractmethod
    def blocks(self) -> Iterator[np.ndarray]:
        """All samples, anew each time, also beside another pass.

        Yields:
            `BLOCK_SAMPLES` samples, shape (samples,), float32 in about [-1, 1]; the last time fewer.

        Raises:
            AudioError: the file is missing, not decodable, empty, not finite, or damaged where that is
                refused; in the place where it shows.
        """


def recordings(
    source: Any,
    rate_hz: int,
    options: AudioOptions | None = None,
    sample_rate_hz: int | None = None,
) -> list[Recording]:
    """A recording, or with `split` one of each channel. What is wrong with a file is reported once.

    Args:
        source: a path as `corpus.Utterance` has it, `-` for standard input, an open binary file, the
            content of one, or an array as `waveform.as_waveform` takes it. A pipe is stored.
        rate_hz: resample to this rate.
        options: how files are read.
        sample_rate_hz: of an array; default: `rate_hz`.

    Raises:
        AudioError: the source cannot be used, or holds features.
    """
    options = options or AudioOptions()
    if not is_source(source):
        samples, _ = as_waveform(source, sample_rate_hz or rate_hz, rate_hz)
        audio = Audio("waveform", samples[np.newaxis], rate_hz, rate_hz)
        return [_Samples(audio.name, audio, partial(_parts, samples), lambda: _digest(samples))]
    name, content = source_name(source), stored.content_of(source, options.isolate_audio)
    if content is not None and content.startswith(stored.NPY_MAGIC):
        raise unusable(name, "audio", "stored features", "Give audio files")
    again = lasting(source if content is None else content)
    if options.isolate_audio:
        found = isolation.pool().store(again(), rate_hz, options.channel, name)
        return _isolated(found, options, again)
    if options.channel != SPLIT:
        return [_File(name, again, rate_hz, options, options.channel)]
    with opened(again()) as file:
        channels = Track(name, file, SPLIT, rate_hz).channels
    return [_File(name, again, rate_hz, options, i, f"#{i}") for i in range(channels)]


def _isolated(
    found: isolation.Stored, options: AudioOptions, again: Callable[[], Source]
) -> list[Recording]:
    stored.check_damage(found.audio, options)
    audio = found.audio.report()
    if options.channel != SPLIT:
        return [_Samples(audio.name, audio, partial(found.blocks, 0), partial(_sha256, again))]
    return [
        _Samples(
            f"{audio.name}#{i}", audio, partial(found.blocks, i), partial(_sha256, again, f"#{i}")
        )
        for i in range(len(audio.waveforms))
    ]


def _digest(samples: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(samples).data).digest()


def _sha256(again: Callable[[], Source], part: str = "") -> bytes:
    with opened(again()) as file:
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
    digest.update(part.encode())
    return digest.digest()


def _parts(samples: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(samples), BLOCK_SAMPLES):
        yield samples[begin : begin + BLOCK_SAMPLES]


class _Samples(Recording):
    """What is decoded already."""

    def __init__(
        self, name: str, audio: Audio, blocks: Callable[[], Iterator[np.ndarray]],
        hashed: Callable[[], bytes],
    ) -> None:  # fmt: skip
        super().__init__(name, audio.rate_hz, hashed)
        self.stored_hz, self.damage = audio.stored_hz, audio.damage
        self._blocks = blocks

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Recording`."""
        return self._blocks()


class _File(Recording):
    """A file that is decoded in every pass."""

    def __init__(
        self, file_name: str, again: Callable[[], Source], rate_hz: int, options: AudioOptions,
        channel: str | int, part: str = "",
    ) -> None:  # fmt: skip
        super().__init__(file_name + part, rate_hz, partial(_sha256, again, part))
        self._file_name, self._again, self._options = file_name, again, options
        self._channel = channel
        self._inspection: Inspection | None = None
        self._is_new = True

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Recording`."""
        with opened(self._again()) as file:
            track = Track(
                self._file_name, file, self._channel, self.rate_hz, inspection=self._inspection
            )
            self.stored_hz = track.stored_hz
            blocks = track.settled() if self._is_new else track.blocks()
            yield from of_equal_size((block[:, 0] for block in blocks), BLOCK_SAMPLES)
            if self._is_new:
                self._is_new, self._channel = False, track.channel
                if track.inspection.content is None:  # else it refers to this opened file
                    self._inspection = track.inspection
                self._tell(track)

    def _tell(self, track: Track) -> None:
        """What was wrong with it in the first pass; of several channels, the first one does."""
        self.damage, nothing = track.damage(), np.empty((1, 0), np.float32)
        found = Audio(
            self._file_name, nothing, self.rate_hz, self.stored_hz, self.damage, track.is_cancelled
        )
        stored.check_damage(found, self._options)
        if self._options.channel != SPLIT or self._channel == 0:
            found.report()
