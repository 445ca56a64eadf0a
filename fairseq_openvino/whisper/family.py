"""The Whisper family: log-mel windows, special-token prompts, timestamps, language detection.

Tokens equal transformers' `generate`. What follows the last complete segment of a window is decoded
again, up to the end of the audio, as openai-whisper does it; but not silence. Sources: transformers
`models/whisper/generation_whisper.py`, openai-whisper `transcribe.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import invalid
from fairseq_openvino.model import Clip, Ledger, Model, News, Transcript
from fairseq_openvino.speech.languages import language_code
from fairseq_openvino.speech.recordings import Recording
from fairseq_openvino.whisper.answers import Answers
from fairseq_openvino.whisper.batcher import run
from fairseq_openvino.whisper.options import TRANSLATE, WhisperOptions
from fairseq_openvino.whisper.traits import Traits
from fairseq_openvino.whisper.transcription import Transcription

logger = logging.getLogger(__name__)


class Whisper(Traits):
    """A `families.Family`."""

    options = WhisperOptions
    splits = False

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self._translation_noted = self.config.translates

    def language(self, stated: str | None, options: WhisperOptions) -> str | None:
        """See `families.Family`; of a translation a corpus states the target, which is English."""
        if options.language or not self.config.languages:
            return options.language
        return None if options.task == TRANSLATE or not stated else language_code(stated)

    def decode(
        self, model: Model, clips: Sequence[Clip], options: WhisperOptions
    ) -> list[Transcript]:
        """Clips of at most a window decoded together, in the order given: the search alone.

        At the first temperature, without second tries, earlier text and words.

        Raises:
            OptionError: the options do not fit the model.
        """
        alone = replace(
            options, temperature=options.temperatures[0], condition_on_previous_text=False,
            clip_timestamps=(), word_timestamps=False, hallucination_silence_threshold=None,
        )  # fmt: skip
        self._note_translation(options.task)
        answers = Answers.of(self, model, alone, len(clips))
        jobs = [answers.job(clip, self.encoded_frames(clip, options)) for clip in clips]
        for _ in run(jobs, len(jobs)):
            pass
        for job in jobs:
            if job.error is not None:
                raise job.error
        return [answers.transcript(clip, [job]) for clip, job in zip(clips, jobs, strict=True)]

    def follow(
        self,
        model: Model,
        recordings: Iterable[Recording | Clip | News],
        options: WhisperOptions,
        width: int,
        ledger: Ledger | None = None,
    ) -> Iterator[News]:
        """See `families.Family`."""
        self._note_translation(options.task)
        return Transcription(self, model, options, width, ledger).follow(recordings)

    def _note_translation(self, task: str) -> None:
        """Say once that the model was not trained for the task."""
        if task == TRANSLATE and not self._translation_noted:
            self._translation_noted = True
            logger.warning(
                "this model was not trained to translate (its decoder was distilled for transcription): "
                "expect text in the spoken language; large-v3, medium or small translate"
            )

    def detect_language(self, model: Model, recording: Recording, windows: int) -> dict[str, float]:
        """Probabilities of the languages by code, most probable first; empty if nobody speaks.

        Args:
            model: of this family.
            recording: of any length.
            windows: the mean is over so many windows with speech, spread evenly; 1: the first.

        Raises:
            OptionError: the model knows English only.
        """
        if not self.config.languages:
            expected, advice = "a multilingual model", "There is nothing to detect"
            raise invalid("Detecting a language", "model", expected, "an English-only one", advice)
        return Transcription(self, model, WhisperOptions(), 1).languages(recording, windows)
