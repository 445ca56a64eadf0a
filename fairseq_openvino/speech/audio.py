"""Audio files to float32 waveforms, with bounds on what a header may claim.

Decoding is libsndfile's, or FFmpeg's for what libsndfile refuses; resampling is soxr's (the resampler
behind SoX's `rate` effect, which Fairseq uses in `data/audio/audio_utils.py:convert_waveform`). Damaged
audio is decoded as far as it goes, never silently: see `damage_collected`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np

from fairseq_openvino.speech import media
from fairseq_openvino.speech.containers import Inspection, inspect
from fairseq_openvino.speech.options import MIX, SPLIT
from fairseq_openvino.speech.sndfile import SoundFileDecoder, reason
from fairseq_openvino.speech.sources import Source, opened, source_name
from fairseq_openvino.speech.waveform import check_loudness, resampled, unusable

logger = logging.getLogger(__name__)

AUDIO_EXTENSIONS = (
    ".wav", ".flac", ".ogg", ".mp3", ".oga", ".opus", ".aiff", ".aif", ".aifc", ".au", ".snd", ".w64",
    ".caf",
)  # fmt: skip
"""Of what libsndfile reads; `media.EXTENSIONS` are the others."""
MAX_AUDIO_SECONDS = 3_600.0
"""Of what is held in memory as a whole."""
CANCELLED_RMS = 0.1
"""Speech on one of 8 channels is 1/8 of it in their mean; below this share they cancel out."""
JUDGED_SECONDS = 300.0
"""Enough of a file to hear whether its channels cancel each other out."""

_damage: ContextVar[list[str] | None] = ContextVar("_damage", default=None)


@dataclass(frozen=True)
class Audio:
    """A decoded file."""

    name: str
    waveforms: np.ndarray
    """Shape (1, samples), or of `split` (channels, samples); float32 in about [-1, 1]."""
    rate_hz: int
    stored_hz: int
    """The rate before resampling."""
    damage: str | None = None
    """What is missing, in words; None if nothing is known to be."""
    is_cancelled: bool = False
    """The channels had opposite phase; this is the strongest of them."""

    def report(self) -> Audio:
        """Log what is wrong with it, and tell `damage_collected`."""
        if self.is_cancelled:
            logger.warning(
                f"{self.name!r}: its channels cancel each other out; taking the strongest one"
            )
        if self.damage:
            logger.warning(f"{self.name!r} is damaged: {self.damage}")
            collected = _damage.get()
            if collected is not None:
                collected.append(self.damage)
        return self


@contextmanager
def damage_collected() -> Iterator[list[str]]:
    """What is reported missing in the files that are read within this block, as texts."""
    found: list[str] = []
    outer = _damage.get()
    token = _damage.set(found)
    try:
        yield found
    finally:
        _damage.reset(token)
        if outer is not None:
            outer += found


def read_audio(source: Source, sample_rate_hz: int | None = None) -> tuple[np.ndarray, int]:
    """Decode one audio file to mono.

    A file that is damaged or cut is decoded as far as it goes; what is missing is logged as a
    warning and reported to `damage_collected`. Channels are averaged; where that would silence
    them, being of opposite phase, the strongest is taken, with a warning.

    Args:
        source: a path, `-` for standard input, an open binary file, or its content.
        sample_rate_hz: resample to this rate; `None` keeps the file's own.

    Returns:
        The waveform, shape (samples,), float32 in about [-1, 1], and its rate in Hz.

    Raises:
        AudioError: the file is missing, not decodable, empty, outside the limits above or not finite.
    """
    audio = decode(source, sample_rate_hz).report()
    return audio.waveforms[0], audio.rate_hz


def decode(
    source: Source,
    sample_rate_hz: int | None = None,
    channel: str | int = MIX,
    name: str | None = None,
) -> Audio:
    """As `read_audio`, which reports what is wrong; `channel` as in `options.AudioOptions`."""
    name = source_name(source) if name is None else name
    with opened(source) as file:
        track = Track(name, file, channel, sample_rate_hz, MAX_AUDIO_SECONDS)
        parts = list(track.blocks())
        if (strongest := track.cancelled_by) is not None:
            track = track.again(strongest)
            parts = list(track.blocks())
    return Audio(
        name,
        np.ascontiguousarray(np.concatenate(parts).T),
        sample_rate_hz or track.stored_hz,
        track.stored_hz,
        track.damage(),
        strongest is not None,
    )


class _Decoder(Protocol):
    """An open file, of libsndfile or FFmpeg."""

    rate_hz: int
    channels: int

    def __iter__(self) -> Iterator[np.ndarray]:
        """Blocks of shape (samples, channels), float32."""
        ...

    def inspection(self) -> Inspection:
        """What is missing, once all blocks were read."""
        ...


class Track:
    """What is heard of a file in one pass; `heard` or `blocks` is iterated once."""

    def __init__(
        self,
        name: str,
        file: BinaryIO,
        channel: str | int,
        wanted_hz: int | None,
        limit_seconds: float = math.inf,
        inspection: Inspection | None = None,
    ) -> None:
        self._name, self._file, self.channel, self._wanted_hz = name, file, channel, wanted_hz
        self._limit_seconds = limit_seconds
        self.inspection = inspect(file) if inspection is None else inspection
        self._decoder = self._opened()
        self.stored_hz, self.channels = self._decoder.rate_hz, self._decoder.channels
        if isinstance(channel, int) and channel >= self.channels:
            known = f"a channel below {self.channels}, counted from 0"
            raise unusable(name, known, str(channel), "Choose another one, or mix them")
        self.is_cancelled = False
        """See `Audio`."""
        self._samples = 0
        self._energies, self._energy = np.zeros(self.channels), 0.0

    def again(self, channel: str | int) -> Track:
        """Another pass over the same file."""
        return Track(
            self._name, self._file, channel, self._wanted_hz, self._limit_seconds, self.inspection
        )

    def settled(self) -> Iterator[np.ndarray]:
        """As `blocks`; of channels that cancel each other out, the strongest one.

        That is judged by the first `JUDGED_SECONDS`, which are held for this.
        """
        blocks = self.blocks()
        if self.channel == MIX and self.channels > 1:
            held: deque[np.ndarray] = deque()
            for block in blocks:
                held.append(block)
                if self._samples > JUDGED_SECONDS * self.stored_hz:
                    break
            strongest = self.cancelled_by
            if strongest is not None:
                self.channel, self.is_cancelled = strongest, True
                self._samples, self._decoder = 0, self._opened()
                held, blocks = deque(), self.blocks()
            while held:
                yield held.popleft()
        yield from blocks

    def blocks(self) -> Iterator[np.ndarray]:
        """Shape (samples, 1), or of `split` (samples, channels); float32, resampled."""
        channels = self.channels if self.channel == SPLIT else 1
        yield from resampled(self.heard(), self.stored_hz, self._wanted_hz, channels)
        if not self._samples:
            problem = self._decoder.inspection().problem
            got = f"none that can be decoded ({problem})" if problem else "an empty file"
            raise unusable(self._name, "samples", got, "Drop the file")

    def damage(self) -> str | None:
        """What is missing, once all blocks were read."""
        return self._decoder.inspection().damage(self._samples / self.stored_hz)

    @property
    def cancelled_by(self) -> int | None:
        """The strongest channel, if a mean of all has lost it."""
        strongest = int(self._energies.argmax())
        is_lost = self._energy < CANCELLED_RMS**2 * self._energies[strongest]
        return strongest if is_lost else None

    def _opened(self) -> _Decoder:
        try:
            return SoundFileDecoder(self._name, self._file, self.inspection)
        except RuntimeError as error:  # soundfile's
            return media.decoder(self._name, self._file, self.inspection, reason(error))

    def heard(self) -> Iterator[np.ndarray]:
        """As `blocks`, at the file's own rate."""
        for block in self._decoder:
            self._samples += len(block)
            if self._samples > self._limit_seconds * self.stored_hz:
                limit = f"at most {self._limit_seconds:.0f} s"
                raise unusable(self._name, limit, "more", "Split the file")
            if self.channel == MIX and self.channels > 1:
                mixed = block.mean(axis=1, keepdims=True)
                self._energies += np.square(block, dtype=np.float64).sum(axis=0)
                self._energy += float(np.square(mixed, dtype=np.float64).sum())
            elif isinstance(self.channel, int):
                mixed = np.ascontiguousarray(block[:, self.channel, np.newaxis])
            else:
                mixed = block
            check_loudness(self._name, mixed)
            yield mixed
