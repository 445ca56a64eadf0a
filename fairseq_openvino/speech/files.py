"""Audio files as they are named on a command line: directories and patterns too."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from fairseq_openvino.errors import OptionError, failure
from fairseq_openvino.speech import media
from fairseq_openvino.speech.audio import AUDIO_EXTENSIONS


def audio_files(names: Iterable[str]) -> list[str]:
    """Directories replaced by the audio files directly in them, patterns by what they match, sorted.

    Raises:
        OptionError: a directory holds no audio files, by their extensions.
    """
    found: list[str] = []
    for name in names:
        if os.path.isdir(name):
            found += _in_directory(Path(name))
        elif glob.has_magic(name) and not os.path.lexists(name):
            found += sorted(glob.glob(name, recursive=True)) or [name]
        else:
            found.append(name)
    return found


def _in_directory(directory: Path) -> list[str]:
    known = (*AUDIO_EXTENSIONS, *media.EXTENSIONS)
    try:
        files = [
            str(path)
            for path in sorted(directory.iterdir())
            if path.suffix.lower() in known and path.is_file() and not path.name.startswith(".")
        ]
        got = "none"
    except OSError as error:
        files, got = [], str(error.strerror)
    if not files:
        raise failure(
            OptionError, "Finding audio", directory, f"files that end in {', '.join(known)}", got,
            "Name the files themselves",
        )  # fmt: skip
    return files
