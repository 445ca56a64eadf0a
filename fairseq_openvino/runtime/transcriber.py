"""From audio files to transcripts: what every family offers on top of the contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, ClassVar

import numpy as np

from fairseq_openvino.audio import read_audio
from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import AudioError, ModelError, OptionError
from fairseq_openvino.model import Clip, Hypothesis, SpeechModel, Transcript
from fairseq_openvino.runtime.engine import Engine, EngineOptions


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

    def read(self, path: str | PathLike[str]) -> Clip:
        """An audio file as features; another sample rate than the training data's is resampled.

        Raises:
            AudioError: the file cannot be used.
        """
        waveform, rate_hz = read_audio(path, self.manifest.features.sample_rate_hz)
        return self.clip(waveform, rate_hz, str(path))

    def clip(self, waveform: np.ndarray, sample_rate_hz: int, path: str = "waveform") -> Clip:
        """A waveform (samples,) in [-1, 1] as features."""
        try:
            features = self.features(waveform, sample_rate_hz)
        except AudioError as error:
            raise type(error)(f"{path}: {error}") from error
        return Clip(path, features, len(waveform) / sample_rate_hz)

    def transcribe(self, audio: str | PathLike[str], **options: Any) -> Transcript:
        """One audio file (WAV, FLAC, OGG or MP3) to text; options as in `transcribe_clips`.

        Raises:
            AudioError: the file cannot be used.
            OptionError: the options contradict each other or the model.
        """
        return self.transcribe_batch([audio], **options)[0]

    def transcribe_batch(
        self, paths: Sequence[str | PathLike[str]], **options: Any
    ) -> list[Transcript]:
        """Several files, decoded together, in the order given; else as `transcribe`."""
        return self.transcribe_clips([self.read(path) for path in paths], **options)


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
    return Transcript(clip.path, texts[0], found[0].score, clip.seconds, pairs)
