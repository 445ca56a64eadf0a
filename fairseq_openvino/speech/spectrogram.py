"""Whisper's log-mel frames of a recording of any length, in the memory that a part of it takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice

import numpy as np

from fairseq_openvino.errors import AudioError, failure
from fairseq_openvino.speech.features import (
    DECADES,
    FFT_SAMPLES,
    HOP_SAMPLES,
    WHISPER_RATE_HZ,
    log10_mel,
    scaled,
)
from fairseq_openvino.speech.waveform import of_equal_size

HELD_BYTES = 32 << 20
"""Frames of a recording that are kept: 17 minutes of 80 bins. More are computed again as they are needed."""
PART_FRAMES = 200
"""Frames are always computed in these parts of the recording, so that they are the same bits each time."""
PART_SAMPLES = (PART_FRAMES - 1) * HOP_SAMPLES + FFT_SAMPLES


class Spectrogram:
    """The frames of one recording; for one thread.

    Equal to openai-whisper's `audio.py:log_mel_spectrogram(audio, padding=480000)` at the frames that hold
    audio: values are floored at the maximum of the whole recording. Hence two passes over the audio; the
    second one is behind `window`, where the frames take more than `HELD_BYTES`.
    """

    def __init__(
        self,
        blocks: Callable[[], Iterator[np.ndarray]],
        bins: int,
        hear: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        """Hear the recording once.

        Args:
            blocks: gives all samples at 16 kHz anew, in blocks of any shape (samples,), float32.
            bins: F.
            hear: is given every block.

        Raises:
            AudioError: of `blocks`.
        """
        self._blocks, self._bins = blocks, bins
        self.samples = 0
        """At 16 kHz."""
        self.maximum = -np.inf
        """Of all scaled values."""
        self._first = 0
        self._parts: deque[np.ndarray] = deque()
        self._following: Iterator[np.ndarray] | None = None
        held_bytes = 0
        for part in self._computed(self._counted(hear)):
            self.maximum = max(self.maximum, float(part.max()))
            held_bytes += part.nbytes
            if held_bytes <= HELD_BYTES:
                self._parts.append(part)
            else:
                self._parts.clear()
        self._is_held = held_bytes <= HELD_BYTES

    @property
    def frames(self) -> int:
        """T, of 10 ms; as openai-whisper counts them, without what follows the last whole one."""
        return self.samples // HOP_SAMPLES

    @property
    def seconds(self) -> float:
        """Duration of the audio."""
        return self.samples / WHISPER_RATE_HZ

    def window(self, seek: int, frames: int) -> np.ndarray:
        """Frames from `seek` on, shape (frames, F), float32; fewer where the recording ends.

        Windows in the order of time cost one pass over the audio in all; going back begins another.

        Raises:
            AudioError: of `blocks`, or the audio is shorter than when it was heard first.
        """
        end = min(seek + frames, self.frames)
        if end <= seek:
            return np.empty((0, self._bins), np.float32)
        first, last = seek // PART_FRAMES, -(-end // PART_FRAMES)
        if not self._is_held:
            self._go_on(first, last)
        parts = list(islice(self._parts, first - self._first, last - self._first))
        begin = seek - first * PART_FRAMES
        found = np.concatenate(parts)[begin : begin + end - seek]
        return np.maximum(found, np.float32(self.maximum - DECADES / 4.0))

    def _go_on(self, first: int, last: int) -> None:
        """Hear on until the parts from `first` to before `last` are in memory; older ones are dropped."""
        if self._following is None or first < self._first:
            self._first, self._parts = 0, deque()
            self._following = self._computed(self._heard_again())
        for part in islice(self._following, max(0, last - self._first - len(self._parts))):
            self._parts.append(part)
            if self._first < first:
                self._parts.popleft()
                self._first += 1

    def _counted(self, hear: Callable[[np.ndarray], None] | None) -> Iterator[np.ndarray]:
        """The blocks of the first pass."""
        for block in self._blocks():
            self.samples += len(block)
            if hear is not None:
                hear(block)
            yield block

    def _heard_again(self) -> Iterator[np.ndarray]:
        """The same samples; what a file has gained since is left out."""
        left = self.samples
        for block in self._blocks():
            yield block[:left]
            left -= len(block)
            if left <= 0:
                return
        raise failure(
            AudioError, "Reading audio again", "a recording", f"the {self.samples} samples of before",
            self.samples - left, "Do not change a file while it is transcribed",
        )  # fmt: skip

    def _computed(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Scaled, not floored, shape (at most PART_FRAMES, F): all frames that see any of the audio."""
        step, half = PART_FRAMES * HOP_SAMPLES, FFT_SAMPLES // 2
        zeros = np.zeros(FFT_SAMPLES - 1, np.float32)
        padded = of_equal_size(chain(blocks, [zeros]), step)
        first = next(padded)
        held = first[half:0:-1]  # reflected
        for block in chain([first], padded):
            held = np.concatenate([held, block])
            if len(held) >= PART_SAMPLES:
                yield scaled(log10_mel(held[:PART_SAMPLES], self._bins)).astype(np.float32)
                held = held[step:]
        if len(held) >= FFT_SAMPLES:
            yield scaled(log10_mel(held, self._bins)).astype(np.float32)
