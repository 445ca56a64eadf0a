"""From audio files to transcripts: what every family offers on top of the contract."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, BinaryIO, ClassVar

import numpy as np

from fairseq_openvino.bundle import Bundle, open_bundle
from fairseq_openvino.errors import (
    AudioError,
    BatchError,
    BundleError,
    FairseqOpenVINOError,
    ModelError,
    OptionError,
    concerns_one_clip,
    named,
)
from fairseq_openvino.model import Clip, Hypothesis, SpeechModel, Transcript
from fairseq_openvino.runtime.engine import Engine, EngineOptions
from fairseq_openvino.speech.audio import as_waveform, damage_collected, read_audio, source_name

logger = logging.getLogger(__name__)


class Transcriber(SpeechModel):
    """A `SpeechModel` that reads audio and writes text."""

    options: ClassVar[tuple[str, ...]]
    """Keywords of `transcribe_clips`."""
    transcribe_clips: Callable[..., list[Transcript]]
    """Clips that were read before, decoded together, in the order given."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        self.bundle, self.manifest = bundle, bundle.manifest
        self.engine = Engine(bundle, options)

    def check_supported(self) -> None:
        """Raise ModelError if features and text of this model can only be made by Fairseq."""
        if self.manifest.unsupported:
            raise ModelError(
                f"Transcribing failed in {str(self.bundle.directory)!r}: expected a model whose features "
                f"and text can be made without Fairseq, got {self.manifest.unsupported}. "
                "Use fairseq-generate --ov-engine."
            )

    def read(self, audio: str | PathLike[str] | BinaryIO) -> Clip:
        """An audio file as features; another sample rate than the training data's is resampled.

        Raises:
            AudioError: the file cannot be used.
        """
        with damage_collected() as damage:
            waveform, rate_hz = read_audio(audio, self.manifest.features.sample_rate_hz)
        return self._clip(waveform, rate_hz, source_name(audio), "; ".join(damage) or None)

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
        wanted_hz = self.manifest.features.sample_rate_hz
        given_hz: Any = wanted_hz if sample_rate_hz is None else sample_rate_hz
        return self._clip(*as_waveform(waveform, given_hz, wanted_hz, path), path)

    def _clip(
        self, waveform: np.ndarray, sample_rate_hz: int, path: str, damage: str | None = None
    ) -> Clip:
        try:
            features = self.features(waveform, sample_rate_hz)
        except AudioError as error:
            raise type(error)(f"{path}: {error}") from error
        return Clip(path, features, len(waveform) / sample_rate_hz, damage)

    def transcribe(
        self, audio: Any, sample_rate_hz: int | None = None, **options: Any
    ) -> Transcript:
        """Audio to text.

        Args:
            audio: a path or open binary file (`audio.AUDIO_FORMATS`), or an array as in `clip`.
            sample_rate_hz: of an array; default: the model's.
            options: as in `transcribe_clips`.

        Raises:
            AudioError: the audio cannot be used.
            OptionError: the options contradict each other or the model.
        """
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
        failed = [result for result in results if not isinstance(result, Transcript)]
        if failed:
            raise BatchError(
                f"Transcribing failed for {len(failed)} of {len(results)} clips; the first: "
                f"{failed[0]} The transcripts of the others are in this error's `results`.",
                tuple(results),
            ) from failed[0]
        return [result for result in results if isinstance(result, Transcript)]

    def transcribe_each(
        self, audios: Sequence[Any], sample_rate_hz: int | None = None, **options: Any
    ) -> list[Transcript | FairseqOpenVINOError]:
        """As `transcribe_batch`, with the error of a clip that failed in the place of its result.

        Raises:
            OptionError: the options contradict each other or the model.
            FairseqOpenVINOError: the model or the machine is at fault, not a clip.
        """
        unknown = sorted(options.keys() - set(self.options))
        if unknown:
            raise OptionError(
                f"Transcribing failed in {', '.join(unknown)}: expected options among "
                f"{', '.join(self.options)}, got others. Leave them out."
            )
        results: list[Any] = [self._attempt(audio, sample_rate_hz) for audio in audios]
        places = [i for i, result in enumerate(results) if isinstance(result, Clip)]
        decoded = self._decode_each([results[i] for i in places], options)
        for i, result in zip(places, decoded, strict=True):
            results[i] = result
        return results

    def _attempt(self, audio: Any, sample_rate_hz: int | None) -> Clip | FairseqOpenVINOError:
        """What was read, or why it could not be."""
        is_file = isinstance(audio, (str, PathLike)) or hasattr(audio, "read")
        if is_file and sample_rate_hz is not None:
            raise OptionError(
                f"Transcribing failed in sample_rate_hz: expected it unset for a file, which states "
                f"its own, got {sample_rate_hz}. Leave it out."
            )
        try:
            return self.read(audio) if is_file else self.clip(audio, sample_rate_hz)
        except Exception as error:
            return _of_one_clip(error, source_name(audio) if is_file else "waveform")

    def _decode_each(
        self, clips: list[Clip], options: dict[str, Any]
    ) -> list[Transcript | FairseqOpenVINOError]:
        """All together; if that fails, in halves, down to the clips at fault."""
        if not clips:
            return []
        try:
            return [*self.transcribe_clips(clips, **options)]
        except Exception as error:
            if len(clips) == 1 or not concerns_one_clip(error):
                return [_of_one_clip(error, clips[0].path)]
            logger.debug("a batch failed; decoding its halves", exc_info=True)
        half = len(clips) // 2
        return self._decode_each(clips[:half], options) + self._decode_each(clips[half:], options)


def _of_one_clip(error: Exception, path: str) -> FairseqOpenVINOError:
    """The error as the clip's result; one that concerns the whole run is raised."""
    if not concerns_one_clip(error):
        raise error
    logger.debug(f"{path} failed", exc_info=error)
    found = named(error, path)
    found.__cause__ = None if found is error else error
    return found


def check_nbest(nbest: int, beam: int) -> None:
    """Raise OptionError unless 1 <= nbest <= beam."""
    if not 1 <= nbest <= beam:
        raise OptionError(
            f"Transcribing failed in --nbest: expected 1 to --beam {beam}, got {nbest}. "
            "Raise --beam or lower --nbest."
        )


def transcript(clip: Clip, texts: Sequence[str], found: Sequence[Hypothesis]) -> Transcript:
    """Of the n best hypotheses of a clip."""
    pairs = tuple(zip(texts, found, strict=True))
    return Transcript(clip.path, texts[0], found[0].score, clip.seconds, pairs, damage=clip.damage)


def load_model(
    bundle: str | PathLike[str] | Bundle,
    *,
    device: str = "CPU",
    precision: str | None = None,
    threads: int | None = None,
    streams: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
) -> Transcriber:
    """Verify a bundle and prepare it for inference; graphs are compiled at their first use.

    Args:
        bundle: a bundle directory, or one already opened.
        device: OpenVINO device.
        precision: inference and key/value cache precision; default: the bundle's own, which is f32
            unless it was quantized for another.
        threads: CPU threads; default: all cores.
        streams: requests that may run at the same time.
        cache_dir: directory for compiled models.

    Raises:
        BundleError: the bundle is damaged or of an unknown family.
        OptionError: an option is out of range.
    """
    from fairseq_openvino.s2t.model import S2TModel
    from fairseq_openvino.whisper.model import WhisperModel

    families: dict[str, Callable[[Bundle, EngineOptions], Transcriber]] = {
        "s2t": S2TModel,
        "whisper": WhisperModel,
    }
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    family = opened.manifest.family
    if family not in families:
        raise BundleError(
            f"Opening a bundle failed in {str(opened.directory)!r}: expected a family of "
            f"{', '.join(families)}, got {family!r}. Update fairseq-openvino."
        )
    precision = precision or opened.manifest.runtime.inference
    options = EngineOptions(device, precision, threads, streams, cache_dir)
    return families[family](opened, options)
