"""From audio to transcripts: a compiled model, its family, and what every family offers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from fairseq_openvino.bundle import Bundle, Manifest
from fairseq_openvino.errors import (
    BatchError,
    BundleError,
    FairseqOpenVINOError,
    ModelError,
    OptionError,
    concerns_one_clip,
    failure,
    invalid,
    named,
)
from fairseq_openvino.families import FAMILIES, Family
from fairseq_openvino.model import Clip, Ledger, News, Segment, Transcript
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.s2t.family import S2T
from fairseq_openvino.speech import stored
from fairseq_openvino.speech.frontend import heard
from fairseq_openvino.speech.options import SPLIT, AudioOptions
from fairseq_openvino.speech.recordings import Recording, recordings
from fairseq_openvino.speech.sources import Source, is_source, source_name
from fairseq_openvino.speech.waveform import as_waveform
from fairseq_openvino.whisper.family import Whisper

logger = logging.getLogger(__name__)
BATCH_SIZE = 8
"""Windows decoded together, unless it is said."""
SENTENCES = 32
"""Sentences translated together."""


class Recognizer:
    """Reads audio, writes text; immutable and shared between threads."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        name = bundle.manifest.family
        if name not in FAMILIES:
            raise failure(
                BundleError, "Opening a bundle", bundle.directory,
                f"a family of {', '.join(FAMILIES)}", repr(name), "Update fairseq-openvino",
            )  # fmt: skip
        self.bundle = bundle
        self.family: Family = FAMILIES[name](bundle)
        self.model = CompiledModel(bundle, options, self.family.splits)
        self._rate_noted = not bundle.manifest.features.sample_rate_assumed

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self.bundle.manifest

    def check_supported(self) -> None:
        """Raise ModelError if this model does not hear, or only Fairseq makes its features and text."""
        if self.manifest.text.source_dictionary is not None:
            raise failure(
                ModelError, "Transcribing", self.bundle.directory, "a model of speech",
                "one that translates text", "Give it text (translate)",
            )  # fmt: skip
        if self.manifest.unsupported:
            raise failure(
                ModelError, "Transcribing", self.bundle.directory,
                "a model whose features and text can be made without Fairseq",
                self.manifest.unsupported, "Run it by fairseq-generate --path BUNDLE",
            )  # fmt: skip

    def options(self, **given: Any) -> Any:
        """Options of the family; those not given have their defaults.

        Raises:
            OptionError: the family has no such option, or a value is out of range.
        """
        known = self.family.options.__dataclass_fields__
        unknown = sorted(given.keys() - known.keys())
        if unknown:
            raise OptionError(
                f"Transcribing failed in {unknown[0]}: expected an option of the model family "
                f"{self.manifest.family!r} ({', '.join(known)}), got another. Leave it out.",
                unknown[0],
            )
        return self.family.options(**given)

    def prepare(self, sizes: Collection[int], **options: Any) -> None:
        """Compile what batches of these sizes need; else it happens at the first of them."""
        wanted = self.options(**options)
        self.model.prepare(sizes, wanted.beam, self.family.head(wanted))

    def read(self, audio: Source, **reading: Any) -> Clip:
        """An audio file as features; another sample rate than the training data's is resampled.

        Args:
            audio: an open binary file, its content as bytes, `-` for standard input, or a path as
                manifests have it: of audio, of stored features (`.npy`), or of either within an
                uncompressed ZIP (`<file>:<offset>:<bytes>`).
            reading: fields of `speech.options.AudioOptions`.

        Raises:
            AudioError: the file cannot be used.
            OptionError: the options are out of range.
        """
        options = AudioOptions(**reading)
        _check_one_result(options)
        (clip,) = self._read(audio, options)
        return clip

    def _read(self, audio: Source, options: AudioOptions) -> list[Clip]:
        """A clip, or with `split` one of each channel."""
        self.check_supported()
        name = source_name(audio)
        found = stored.read(audio, self.family.front_end.rate_hz, options)
        if found is None:
            frames = stored.frames(name, None, self.manifest.features.bins)
            features = heard(self.family.front_end.stored, name, frames.values)
            return [Clip(name, features, frames.seconds)]
        self._note_rate(name, found.stored_hz)
        is_split = options.channel == SPLIT
        return [
            self._clip(waveform, found.rate_hz, f"{name}#{i}" if is_split else name, found.damage)
            for i, waveform in enumerate(found.waveforms)
        ]

    def clip(
        self, waveform: Any, sample_rate_hz: int | None = None, path: str = "waveform"
    ) -> Clip:
        """An array of samples as features, resampled as files are.

        Args:
            waveform: shape (samples,), of any type that `audio.as_waveform` takes.
            sample_rate_hz: its rate; default: the model's.
            path: what to call it.

        Raises:
            AudioError: the array cannot be used.
        """
        self.check_supported()
        wanted_hz = self.family.front_end.rate_hz
        given_hz: Any = wanted_hz if sample_rate_hz is None else sample_rate_hz
        return self._clip(*as_waveform(waveform, given_hz, wanted_hz, path), path)

    def _clip(
        self, waveform: np.ndarray, rate_hz: int, path: str, damage: str | None = None
    ) -> Clip:
        features = heard(self.family.front_end, path, waveform, rate_hz)
        return Clip(path, features, len(waveform) / rate_hz, damage)

    def _note_rate(self, name: str, rate_hz: int) -> None:
        """Say once that files are resampled to a rate that is only assumed."""
        assumed_hz = self.family.front_end.rate_hz
        if not self._rate_noted and rate_hz != assumed_hz:
            self._rate_noted = True
            logger.warning(
                f"{name!r} has {rate_hz} Hz and is resampled to {assumed_hz} Hz, which is "
                "assumed: the bundle does not know the rate of its training audio (export --sample-rate)"
            )

    def transcribe_clips(self, clips: Sequence[Clip], **options: Any) -> list[Transcript]:
        """Clips that were read before, decoded together, in the order given.

        Args:
            clips: results of `read` or `clip`.
            options: fields of the family's options, `s2t.options` or `whisper.options`.

        Raises:
            OptionError: the options contradict each other or the model.
        """
        self.check_supported()
        return self.family.decode(self.model, clips, self.options(**options))

    def transcribe(
        self, audio: Any, sample_rate_hz: int | None = None, **options: Any
    ) -> Transcript:
        """Audio to text.

        Args:
            audio: as in `read`, or an array as in `clip`.
            sample_rate_hz: of an array; default: the model's.
            options: as in `transcribe_clips`, and of files as in `read`.

        Raises:
            AudioError: the audio cannot be used.
            OptionError: the options contradict each other or the model.
        """
        _check_one_result(_divided(options)[0])
        (result,) = self.transcribe_each([audio], sample_rate_hz, **options)
        if isinstance(result, Transcript):
            return result
        raise result

    def transcribe_batch(
        self, audios: Sequence[Any], sample_rate_hz: int | None = None, **options: Any
    ) -> list[Transcript]:
        """Several files or arrays, decoded together, in the order given; else as `transcribe`.

        Raises:
            BatchError: some failed; its `results` has the transcripts of the others.
            OptionError: the options contradict each other or the model.
        """
        results = self.transcribe_each(audios, sample_rate_hz, **options)
        return _all_of(results, "Transcribing", "clips")

    def translate(
        self, texts: Sequence[str], batch_size: int = SENTENCES, **options: Any
    ) -> list[Transcript]:
        """Sentences to sentences, in the order given, by a model of text.

        Args:
            texts: as the model was exported for: plain, or in the symbols of its source dictionary.
                Blank ones stay so.
            batch_size: sentences decoded together.
            options: fields of `s2t.options`.

        Raises:
            BatchError: some failed; its `results` has the translations of the others.
            ModelError: the model reads no text.
            OptionError: the options contradict each other or the model.
        """
        family, wanted = self.family, self.options(**options)
        if not isinstance(family, S2T) or family.sentences is None:
            raise failure(
                ModelError, "Translating", self.bundle.directory, "a model of text", "one of speech",
                "Give it audio (transcribe)",
            )  # fmt: skip
        found = family.translate(self.model, texts, wanted, batch_size)
        return _all_of(found, "Translating", "sentences")

    def transcribe_each(
        self, audios: Sequence[Any], sample_rate_hz: int | None = None, **options: Any
    ) -> list[Transcript | FairseqOpenVINOError]:
        """As `transcribe_batch`, with the error of a clip that failed in the place of its result.

        With `channel="split"` a file has as many results as channels, with the paths `<file>#<channel>`,
        or one error.

        Raises:
            OptionError: the options contradict each other or the model.
            FairseqOpenVINOError: the model or the machine is at fault, not a clip.
        """
        news = self.follow(audios, max(len(audios), BATCH_SIZE), sample_rate_hz, **options)
        return [each.result for each in news if each.result is not None]

    def follow(
        self,
        audios: Iterable[Any],
        batch_size: int = BATCH_SIZE,
        sample_rate_hz: int | None = None,
        ledger: Ledger | None = None,
        **options: Any,
    ) -> Iterator[News]:
        """Audio of any length, several at a time; news of each, its result last, in the order given.

        Args:
            audios: as in `transcribe`; they are opened as they are needed.
            batch_size: windows decoded together.
            sample_rate_hz: as in `transcribe`.
            ledger: of the same call in a process that was stopped: what it knows of the model's answers
                is not computed again, the others are added. The news and results are the same.
            options: as in `transcribe`.

        Raises:
            OptionError: the options contradict each other or the model.
            FairseqOpenVINOError: the model or the machine is at fault, not a recording.
        """
        self.check_supported()
        reading, searching = _divided(options)
        wanted = self.options(**searching)
        if isinstance(audios, Sized) and not getattr(wanted, "chunked", True):
            batch_size = max(min(batch_size, len(audios)), 1)  # windows of one recording take turns
        opened = self._opened(audios, sample_rate_hz, reading)
        yield from self.family.follow(self.model, opened, wanted, batch_size, ledger)

    def _opened(
        self, audios: Iterable[Any], sample_rate_hz: int | None, reading: AudioOptions
    ) -> Iterator[Recording | Clip | News]:
        """What is to be transcribed, or the only news of what cannot be."""
        for audio in audios:
            is_file = is_source(audio)
            if is_file and sample_rate_hz is not None:
                raise OptionError(
                    f"Transcribing failed in sample_rate_hz: expected it unset for a file, which states "
                    f"its own, got {sample_rate_hz}. Leave it out."
                )
            try:
                found: Sequence[Recording | Clip]
                if is_file and stored.holds_features(audio):
                    found = self._read(audio, reading)
                else:
                    rate_hz = self.family.front_end.rate_hz
                    found = recordings(audio, rate_hz, reading, sample_rate_hz)
            except Exception as error:
                name = source_name(audio) if is_file else "waveform"
                yield News(name, 0.0, 0.0, (), _of_one_clip(error, name))
                continue
            for each in found:
                yield each
                if isinstance(each, Recording):  # which has been heard by now
                    self._note_rate(each.name, each.stored_hz)

    def stream(self, audio: Any, **options: Any) -> Iterator[Segment]:
        """The segments of audio of any length, as they are found.

        Args:
            audio: as in `transcribe`.
            options: as in `transcribe`; of a family that has the option, `timestamps` is on.

        Raises:
            AudioError: the audio cannot be used.
            OptionError: the options contradict each other or the model.
        """
        _check_one_result(_divided(options)[0])
        for news in self.follow([audio], **self.timed(options)):
            yield from news.segments
            if isinstance(news.result, Transcript):
                yield from () if news.result.segments else news.result.parts
            elif news.result is not None:
                raise news.result

    def timed(self, options: Mapping[str, Any], words: bool = False) -> dict[str, Any]:
        """These options, and that segments are found if the family can, or words too."""
        known = self.family.options.__dataclass_fields__
        wanted = {"timestamps": "timestamps" in known, "word_timestamps": words}
        return {**{name: True for name, is_wanted in wanted.items() if is_wanted}, **options}

    def detect_language(
        self, audio: Any, sample_rate_hz: int | None = None, windows: int = 1
    ) -> dict[str, float]:
        """The spoken language of audio of any length: probabilities by code, most probable first.

        Args:
            audio: a file or an array, as in `transcribe`.
            sample_rate_hz: of an array; default: the model's.
            windows: the mean is over so many windows with speech, spread evenly over the audio.

        Returns:
            One entry a language of the model; none if nobody speaks.

        Raises:
            AudioError: the audio cannot be used.
            OptionError: the model does not tell languages apart.
        """
        action = "Detecting a language"
        if not isinstance(self.family, Whisper):
            raise invalid(action, "model", "a Whisper model", repr(self.manifest.family))
        if windows < 1:
            raise invalid(action, "windows", "at least 1", windows)
        recording, *_ = recordings(
            audio, self.family.front_end.rate_hz, sample_rate_hz=sample_rate_hz
        )
        return self.family.detect_language(self.model, recording, windows)


def _all_of(
    results: Sequence[Transcript | FairseqOpenVINOError], action: str, what: str
) -> list[Transcript]:
    """The results, if none is an error."""
    failed = [result for result in results if not isinstance(result, Transcript)]
    if failed:
        raise BatchError(
            f"{action} failed for {len(failed)} of {len(results)} {what}; the first: {failed[0]} "
            "The transcripts of the others are in this error's `results`.",
            tuple(results),
        ) from failed[0]
    return [result for result in results if isinstance(result, Transcript)]


def _of_one_clip(error: Exception, path: str) -> FairseqOpenVINOError:
    """The error as the clip's result; one that concerns the whole run is raised."""
    if not concerns_one_clip(error):
        raise error
    logger.debug(f"{path} failed", exc_info=error)
    found = named(error, path)
    found.__cause__ = None if found is error else error
    return found


def _divided(options: Mapping[str, Any]) -> tuple[AudioOptions, dict[str, Any]]:
    """Options of reading files, and those of the family.

    Raises:
        OptionError: a value is out of range.
    """
    names = AudioOptions.__dataclass_fields__.keys()
    reading = AudioOptions(**{name: options[name] for name in names & options.keys()})
    return reading, {name: value for name, value in options.items() if name not in names}


def _check_one_result(options: AudioOptions) -> None:
    if options.channel == SPLIT:
        expected, advice = "mix or a number for one result", "Use transcribe_each"
        raise invalid("Transcribing", "channel", expected, repr(SPLIT), advice)
