"""Files to plain records, in whatever process: it can be pickled, and knows no job and no cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import asdict, fields
from functools import lru_cache
from os import PathLike
from typing import Any

from fairseq_openvino import __version__, machine
from fairseq_openvino.errors import ModelError, failure, invalid
from fairseq_openvino.loading import load_model
from fairseq_openvino.model import Ledger, News, Transcript
from fairseq_openvino.recognizer import BATCH_SIZE, Recognizer
from fairseq_openvino.speech.options import SPLIT, AudioOptions, SubtitleOptions
from fairseq_openvino.speech.writers import JSONL, TIMED, document

IMMATERIAL = ("isolate_audio",)
"""Options that change no bytes, unless each channel has a result or an error of its own."""
_loading = threading.Lock()


class Transcribe:
    """Audio files decoded together. The model is loaded at the first call in each process.

    Args:
        model: as in `load_model`.
        formats: of the documents, beside jsonl; those made of segments find timestamps.
        batch_size: windows decoded together, and files of a batch of a job.
        digest: of the bundle that it must be; default: any.
        load: keywords of `load_model`.
        options: fields of `SubtitleOptions`, and keywords of `Recognizer.transcribe`.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        formats: Collection[str] = (JSONL,),
        batch_size: int = BATCH_SIZE,
        digest: str | None = None,
        load: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if batch_size < 1:
            raise invalid("Transcribing", "batch_size", "at least 1", batch_size)
        self.model, self.digest, self.batch_size = str(model), digest, batch_size
        self.formats = tuple(dict.fromkeys((JSONL, *formats)))
        self.load = {"threads": machine.threads()} | {
            name: value for name, value in (load or {}).items() if value is not None
        }
        layout = {field.name for field in fields(SubtitleOptions)}
        self.layout = SubtitleOptions(**{k: v for k, v in options.items() if k in layout})
        self.options = {k: v for k, v in options.items() if k not in layout}

    @property
    def isolates(self) -> bool:
        """Whether this process decodes no audio itself."""
        return bool(self.options.get("isolate_audio"))

    def recognizer(self) -> Recognizer:
        """The model, which all who name it alike share within a process.

        Raises:
            FairseqOpenVINOError: as `load_model`, or it is not the bundle that it must be.
        """
        with _loading:
            found = _loaded(self.model, tuple(sorted(self.load.items())))
        if self.digest not in (None, found.bundle.digest):
            raise failure(
                ModelError, "Loading a model", found.bundle.directory, f"the bundle {self.digest}",
                found.bundle.digest, "Give the one that was begun with",
            )  # fmt: skip
        found.check_supported()
        return found

    def by_bundle(self) -> Transcribe:
        """The same by the path and the digest of its bundle: a process elsewhere exports nothing."""
        bundle, found = self.recognizer().bundle, copy(self)
        found.model, found.digest = str(bundle.directory.absolute()), bundle.digest
        found.load = {k: v for k, v in self.load.items() if k not in ("data", "config_yaml")}
        return found

    def described(self) -> dict[str, Any]:
        """All that changes bytes beside the bundle, by name, with the defaults filled in.

        Raises:
            OptionError: the options contradict each other or the model.
        """
        recognizer = self.recognizer()
        options = completed(recognizer, self.options, self.formats, self.layout)
        reading = {each.name for each in fields(AudioOptions)}
        audio = AudioOptions(**{k: v for k, v in options.items() if k in reading})
        wanted = recognizer.options(**{k: v for k, v in options.items() if k not in reading})
        engine = recognizer.model.engine.options
        found = {
            "formats": self.formats, "batch_size": self.batch_size, "device": engine.device,
            "precision": engine.precision, "threads": engine.threads,
            **asdict(audio), **asdict(self.layout), **asdict(wanted),
            **machine.versions(["openvino"]), "fairseq-openvino": __version__,
        }  # fmt: skip
        left_out = IMMATERIAL if audio.channel != SPLIT else ()
        return {name: value for name, value in found.items() if name not in left_out}

    def __call__(self, files: Sequence[str]) -> list[dict[str, Any]]:
        """The record of each file, in the order given, of the types of JSON.

        | field     | what it is                                                           |
        |-----------|----------------------------------------------------------------------|
        | `path`    | of the file                                                          |
        | `seconds` | of its audio, 0 if it failed                                         |
        | `results` | of each channel asked for, `path` and `documents`: texts by format   |
        | `damage`  | what is missing of the audio, in words, or None                      |
        | `error`   | why there is no result, or not of each channel; or None              |

        Raises:
            OptionError: the options contradict each other or the model.
            FairseqOpenVINOError: the model or the machine is at fault, not a file.
        """
        return self.follow(files)

    def follow(
        self,
        files: Sequence[str],
        heard: Callable[[News], None] = lambda _: None,
        ledger: Ledger | None = None,
    ) -> list[dict[str, Any]]:
        """The same, where `heard` is told all news before they count; `ledger` as in `Recognizer.follow`."""
        found = {path: _begun(path) for path in files}
        recognizer = self.recognizer()
        options = completed(recognizer, self.options, self.formats, self.layout)
        is_split = options.get("channel") == SPLIT
        for news in recognizer.follow(list(found), self.batch_size, ledger=ledger, **options):
            heard(news)
            path = news.path
            if path not in found or (is_split and isinstance(news.result, Transcript)):
                path = path.rpartition("#")[0]
            self._take(found[path], news)
        return [found[path] for path in files]

    def _take(self, record: dict[str, Any], news: News) -> None:
        """What became of a file, or of one of its channels."""
        result = news.result
        if isinstance(result, Transcript):
            texts = {name: document(name, result, self.layout) for name in self.formats}
            record["results"].append({"path": result.path, "documents": texts})
            record["seconds"] = result.seconds
            record["damage"] = record["damage"] or result.damage
        elif result is not None:
            record["error"] = str(result)


def completed(
    recognizer: Recognizer,
    options: Mapping[str, Any],
    formats: Collection[str],
    layout: SubtitleOptions,
) -> dict[str, Any]:
    """Keywords of `Recognizer.transcribe`: these, and what the formats and their layout need.

    Raises:
        OptionError: the layout needs times of words, which this model does not find.
    """
    if not set(TIMED) & set(formats):
        return dict(options)
    words = layout.needs_words
    if words and "word_timestamps" not in recognizer.family.options.__dataclass_fields__:
        expected = "a model that finds when words are said, as Whisper"
        family = repr(recognizer.manifest.family)
        raise invalid("Transcribing", words, expected, family, "Leave it out")
    return recognizer.timed(options, words=words is not None)


def _begun(path: str) -> dict[str, Any]:
    return {"path": path, "seconds": 0.0, "results": [], "damage": None, "error": None}


@lru_cache(maxsize=1)
def _loaded(model: str, load: tuple[tuple[str, Any], ...]) -> Recognizer:
    return load_model(model, **dict(load))
