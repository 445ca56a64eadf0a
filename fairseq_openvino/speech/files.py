"""Audio files as they are named on a command line: directories, patterns and manifests too."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fairseq_openvino.errors import OptionError, failure
from fairseq_openvino.speech import corpus, media
from fairseq_openvino.speech.audio import AUDIO_EXTENSIONS

MANIFEST = ".tsv"
CONFIGS, CONFIG = "config*.yaml", "config.yaml"


def named_audio(
    names: Iterable[str], config_yaml: Path | None = None
) -> Iterator[tuple[str, str | None]]:
    """As `audio_files`, and in place of a `.tsv` file what it lists, with the ids it has.

    Args:
        names: as on a command line.
        config_yaml: Fairseq's data configuration, for the `audio_root` of manifests (default: config.yaml
            beside a manifest, or the only one).

    Raises:
        OptionError: a directory holds no audio files, by their extensions.
        ModelError: a manifest, or a row of it, is damaged.
    """
    for name in audio_files(names):
        if name.endswith(MANIFEST):
            yield from corpus.audio(name, config_yaml or _config_beside(Path(name)))
        else:
            yield name, None


def _config_beside(manifest: Path) -> Path | None:
    found = sorted(manifest.parent.glob(CONFIGS))
    default = manifest.with_name(CONFIG)
    return default if default in found else found[0] if len(found) == 1 else None


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
