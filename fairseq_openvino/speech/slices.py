"""Parts of audio files, `<file>:<first sample>:<samples>`, as manifests may name them.

Samples are the file's own, at its rate. Of a ZIP file the two numbers mean bytes, see `stored`.
Source of the notation: facebookresearch/fairseq#3962 and #4138.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import soundfile

from fairseq_openvino.errors import AudioError, failure
from fairseq_openvino.speech.audio import AUDIO_EXTENSIONS

SEPARATOR = ":"
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
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):  # noqa: PLR2004
            return None
        if Path(file).suffix.lower() not in AUDIO_EXTENSIONS:
            return None
        return cls(file, *map(int, numbers))

    def wav(self) -> bytes:
        """A WAV file of these samples, float32, all channels.

        Raises:
            AudioError: the file cannot be decoded, or ends before.
        """
        name = f"{self.file}:{self.first}:{self.samples}"
        try:
            with soundfile.SoundFile(self.file) as file:
                total, rate_hz = file.frames, file.samplerate
                if self.samples < 1 or self.first + self.samples > total:
                    expected = f"a part of the {total} samples of the file"
                    raise _fail(repr(name), expected, "an empty one or one beyond them")
                file.seek(self.first)
                samples = file.read(self.samples, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
            reason = str(error).rstrip(".")
            raise _fail(repr(name), "a readable audio file", reason) from error
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
