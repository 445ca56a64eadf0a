"""Where transcripts go: to standard output as they are found, or to files once they are whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fairseq_openvino.atomic import unwritable, write_file
from fairseq_openvino.errors import StorageError, invalid
from fairseq_openvino.model import News, Transcript
from fairseq_openvino.speech.options import SubtitleOptions
from fairseq_openvino.speech.sources import STANDARD_INPUT
from fairseq_openvino.speech.writers import FORMATS, Writer, document


class Output(Protocol):
    """One format at one place.

    Its methods raise StorageError if it cannot be written.
    """

    def take(self, news: News) -> None:
        """Write what has become final."""
        ...

    def stop(self, transcript: Transcript) -> None:
        """Write what there is of a recording that stays unfinished."""
        ...


class Printed:
    """Standard output."""

    def __init__(self, name: str, layout: SubtitleOptions) -> None:
        self._format, self._layout = FORMATS[name], layout
        self._open: dict[str, Writer] = {}
        """By the path of each recording that is not finished."""

    def take(self, news: News) -> None:
        """Print segments as they are found, the rest with the result."""
        writer = self._open.setdefault(news.path, self._format(news.path, self._layout))
        text = "".join(map(writer.add, news.segments))
        if news.result is not None:
            del self._open[news.path]
            if isinstance(news.result, Transcript):
                text += writer.end(news.result)
        _print(text)

    def stop(self, transcript: Transcript) -> None:
        """Print the rest."""
        _print(self._open.pop(transcript.path).end(transcript))


class Files:
    """Files of a directory, `<stem>.<extension>`; unfinished ones are `<stem>.partial.<extension>`.

    What cannot be written is printed instead, so that it is not lost.
    """

    def __init__(
        self, name: str, layout: SubtitleOptions, directory: Path, stems: Mapping[str, str]
    ) -> None:
        self._name, self._layout, self._directory, self._stems = name, layout, directory, stems
        self._extension = FORMATS[name].extension

    def take(self, news: News) -> None:
        """Write the file of a result."""
        if isinstance(news.result, Transcript):
            self._write(news.result, self._extension)

    def stop(self, transcript: Transcript) -> None:
        """Write it under the other name."""
        self._write(transcript, f"partial.{self._extension}")

    def check(self, audio: str) -> None:
        """Raise StorageError if the name of its file is none, as one that is too long."""
        path = self.path(audio)
        try:
            path.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise unwritable("Writing", path, error) from error

    def _write(self, transcript: Transcript, extension: str) -> None:
        content = document(self._name, transcript, self._layout)
        path = self.path(transcript.path, extension)
        try:
            write_file(path, content.encode("utf-8", "surrogateescape"))
        except StorageError:
            _print(content)
            raise

    def path(self, recording: str, extension: str | None = None) -> Path:
        """Of the file of a recording."""
        stem = self._stems.get(recording)
        if stem is None:
            audio, _, channel = recording.rpartition("#")
            stem = f"{self._stems[audio]}#{channel}"
        return self._directory / f"{stem}.{extension or self._extension}"


class Documents:
    """Files of a directory as in `Files`, out of records of `jobs.transcribe`; they last once `sync`ed.

    Until then a loss of power may spoil them, and the next `write` of the record repairs them.
    """

    def __init__(self, names: Sequence[str], directory: Path, stems: Mapping[str, str]) -> None:
        self._files = {name: Files(name, SubtitleOptions(), directory, stems) for name in names}

    def write(self, record: Mapping[str, Any]) -> None:
        """Those of a file that are not there as they should be."""
        for result in record["results"]:
            for name, files in self._files.items():
                path = files.path(result["path"])
                content = result["documents"][name].encode("utf-8", "surrogateescape")
                try:
                    is_there = path.read_bytes() == content
                except OSError:
                    is_there = False
                if not is_there:
                    write_file(path, content, lasting=False)

    def sync(self) -> None:
        """Wait until all are on the disk."""
        if hasattr(os, "sync"):  # Windows has none
            os.sync()

    def missing(self, audio: str) -> bool:
        """Whether one of the files of an input is not there.

        Raises:
            StorageError: there can be none of its name.
        """
        for files in self._files.values():
            files.check(audio)
        return not all(files.path(audio).exists() for files in self._files.values())


def stems(named: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """What the files of each input are called, without an extension: as its id, or else as itself.

    Raises:
        OptionError: the files of two inputs would have the same name.
    """
    found: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for audio, identity in named:
        stem = "stdin" if audio == STANDARD_INPUT else Path(audio).stem
        if identity is not None:
            stem = identity.replace("/", "_")
        if stem in inputs:
            expected = "inputs whose files have different names"
            got = f"{inputs[stem]!r} and {audio!r}, both {stem!r}"
            raise invalid("Transcribing", "output_dir", expected, got, "Rename one")
        found[audio], inputs[stem] = stem, audio
    return found


def _print(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_stdout()
        raise unwritable("Writing", "standard output", error) from error


def abandon_stdout() -> None:
    """Let the flush at exit succeed after one has failed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
