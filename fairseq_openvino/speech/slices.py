"""Parts of audio files, `<file>:<first sample>:<samples>`, as manifests may name them.

Samples are the file's own, at its rate. Of a ZIP file the two numbers mean bytes, see `stored`.
Source of the notation: facebookresearch/fairseq#3962 and #4138.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import soundfile

from fairseq_openvino.atomic import open_regular
from fairseq_openvino.errors import AudioError, failure
from fairseq_openvino.speech.audio import AUDIO_EXTENSIONS, MAX_AUDIO_SECONDS
from fairseq_openvino.speech.sndfile import reason
from fairseq_openvino.speech.waveform import check_channels, check_rate

SEPARATOR = ":"
NUMBER = re.compile("[0-9]{1,18}")
"""Below 2^63."""
BLOCK_SAMPLES = 1 << 16
_fail = partial(failure, AudioError, "Reading a part of an audio file", advice="Repair the row")


@dataclass(frozen=True)
class Slice:
    """A part of an audio file."""

    file: str
    first: int
    samples: int

    @classmethod
    def parse(cls, path: str) -> Slice | None:
        """Of a path as manifests have it; None if it names no part of an audio file."""
        file, *numbers = path.rsplit(SEPARATOR, 2)
        if len(numbers) != 2 or not all(map(NUMBER.fullmatch, numbers)):  # noqa: PLR2004
            return None
        if Path(file).suffix.lower() not in AUDIO_EXTENSIONS:
            return None
        return cls(file, *map(int, numbers))

    @property
    def name(self) -> str:
        """As `parse` takes it."""
        return SEPARATOR.join(map(str, (self.file, self.first, self.samples)))

    def opened(self) -> io.FileIO:
        """The file.

        Raises:
            AudioError: it cannot be read, or is a pipe or a device.
        """
        try:
            return cast(io.FileIO, open_regular(self.file, buffering=0))
        except OSError as error:
            got = error.strerror
            raise _fail(repr(self.name), "a readable audio file", got) from error

    def wav(self) -> bytes:
        """A WAV file of these samples, float32, all channels.

        Raises:
            AudioError: the file cannot be decoded, or ends before.
        """
        with self.opened() as file:
            return self.wav_of(file)

    def wav_of(self, file: io.FileIO) -> bytes:
        """The same of the file as `opened` gives it."""
        name = self.name
        try:
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                total, rate_hz = sound.frames, check_rate(name, sound.samplerate)
                check_channels(name, sound.channels)
                if self.samples < 1 or self.first + self.samples > total:
                    expected = f"a part of the {total} samples of the file"
                    raise _fail(repr(name), expected, "an empty one or one beyond them")
                if self.samples > MAX_AUDIO_SECONDS * rate_hz:
                    raise _fail(repr(name), f"at most {MAX_AUDIO_SECONDS:.0f} s", "more")
                sound.seek(self.first)
                samples = _read(sound, self.samples)
        except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
            raise _fail(repr(name), "a readable audio file", reason(error)) from error
        if len(samples) < self.samples:
            raise _fail(repr(name), f"{self.samples} samples", len(samples))
        content = io.BytesIO()
        soundfile.write(content, samples, rate_hz, format="WAV", subtype="FLOAT")
        return content.getvalue()


def file_of(path: str) -> str:
    """The file that a path of a manifest names all or a part of, of audio or of a ZIP."""
    file, *numbers = path.rsplit(SEPARATOR, 2)
    is_part = len(numbers) == 2 and all(number.isdecimal() for number in numbers)  # noqa: PLR2004
    return file if is_part and not os.path.exists(path) else path


def _read(file: soundfile.SoundFile, count: int) -> np.ndarray:
    """The next samples, at most `count`: a header may claim more than there is room for."""
    blocks, left = [np.zeros((0, file.channels), np.float32)], count
    while left and len(block := file.read(min(left, BLOCK_SAMPLES), "float32", always_2d=True)):
        blocks.append(block)
        left -= len(block)
    return np.concatenate(blocks)
