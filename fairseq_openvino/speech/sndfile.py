"""Decoding by libsndfile, which comes first: what it reads, it reads as ever."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import soundfile

from fairseq_openvino.speech.containers import Inspection
from fairseq_openvino.speech.waveform import check_channels, check_rate, unusable

FORMATS = (
    "WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "MPEG", "AIFF", "AU", "CAF",
)  # fmt: skip
CONVERT = "onvert the file, for instance: ffmpeg -i FILE FILE.flac"
BLOCK_SAMPLES = 1 << 18


class SoundFileDecoder:
    """One file as blocks of shape (samples, channels), float32; can be iterated once."""

    def __init__(self, name: str, file: BinaryIO, inspection: Inspection) -> None:
        """Open it.

        Raises:
            soundfile.LibsndfileError: libsndfile does not know the format.
            AudioError: the file is outside the limits.
        """
        self._inspection = inspection
        self._sound = _SoundFile(_rewound(file, inspection), closefd=False)
        if self._sound.format not in FORMATS:
            expected = f"one of {', '.join(FORMATS)}"
            raise unusable(name, expected, self._sound.format, f"C{CONVERT}")
        self.rate_hz = check_rate(name, self._sound.samplerate)
        self.channels = int(self._sound.channels)
        check_channels(name, self.channels)
        self._samples = 0
        self._error: str | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Read until the data or the decoder end, whatever length the header declares."""
        with self._sound:
            while self._error is None:
                # the decoder overwrites the NaN in front of the place where it fails
                block = np.full((BLOCK_SAMPLES, self.channels), np.nan, np.float32)
                try:
                    block = self._sound.read(out=block)
                except soundfile.LibsndfileError as failure:
                    self._error = reason(failure)
                    block = block[: int(np.append(np.isnan(block[:, 0]), True).argmax())]
                if not len(block):
                    break
                self._samples += len(block)
                yield block

    def inspection(self) -> Inspection:
        """What is missing, once all blocks were read."""
        found, declared = self._inspection, self._sound.frames
        is_exact = self._sound.format == "FLAC" and declared < np.iinfo(np.int64).max
        problem, seconds = found.problem or self._error, found.seconds
        if is_exact and self._samples < declared:
            problem = problem or f"{declared} samples are declared, {self._samples} are there"
            seconds = seconds or declared / self.rate_hz
        return replace(found, problem=problem, seconds=seconds)


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]
    """Without soundfile's seek to the present position after every read, which disturbs MP3."""

    def seekable(self) -> bool:
        """See above."""
        return False


def reason(error: Exception) -> str:
    """libsndfile's words, without what soundfile puts around them."""
    text = str(getattr(error, "error_string", "") or error).strip()
    return text.removeprefix("Error : ").rstrip(".: ") or type(error).__name__


def _rewound(file: BinaryIO, inspection: Inspection) -> Any:
    """What libsndfile reads; files by descriptor, as in Python a header's wild seeks print errors."""
    if inspection.content is not None:
        inspection.content.seek(0)
        return inspection.content
    file.seek(0)
    return file.fileno() if isinstance(file, io.FileIO) else file
