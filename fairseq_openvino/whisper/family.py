"""The Whisper family: log-mel windows, special-token prompts, timestamps, language detection.

Tokens equal transformers' `generate`. What follows the last complete segment of a window is decoded
again, up to the end of the audio, as openai-whisper does it; but not silence. Sources: transformers
`models/whisper/generation_whisper.py`, openai-whisper `transcribe.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import BundleError, UtteranceTooLongError, failure, invalid
from fairseq_openvino.model import Clip, Head, Model, News, Transcript
from fairseq_openvino.speech.features import HOP_SAMPLES
from fairseq_openvino.speech.frontend import LogMel
from fairseq_openvino.speech.languages import language_code
from fairseq_openvino.speech.recordings import Recording
from fairseq_openvino.whisper import context
from fairseq_openvino.whisper.answers import Answers, language_shares
from fairseq_openvino.whisper.batcher import run
from fairseq_openvino.whisper.context import FRAMES_PER_POSITION
from fairseq_openvino.whisper.options import FULL, TRANSLATE, Request, WhisperOptions
from fairseq_openvino.whisper.rules import Rules
from fairseq_openvino.whisper.silence import is_speech
from fairseq_openvino.whisper.tokenizer import WhisperTokenizer
from fairseq_openvino.whisper.transcription import Transcription

logger = logging.getLogger(__name__)


class Whisper:
    """A `recognizer.Family`."""

    options = WhisperOptions
    splits = False

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        if self.manifest.whisper is None:
            raise failure(
                BundleError, "Opening a bundle", bundle.directory,
                "the section 'whisper' in the manifest", "none", "Export the bundle again",
            )  # fmt: skip
        self.config = self.manifest.whisper
        self.eos, self.window = self.manifest.tokens.eos, self.manifest.limits.max_source_frames
        self.vocabulary = WhisperTokenizer(bundle.path(self.manifest.text.tokenizer), self.eos)
        self.front_end = LogMel(self.manifest.features, self.window)
        self.watched = (self.config.no_speech, *self.config.languages.values())
        self._translation_noted = self.config.translates

    def head(self, options: WhisperOptions) -> Head:
        """What a session reports in a search."""
        if options.temperatures[0] > 0:
            return Head()
        count = 1 if options.beam == 1 else 2 * options.beam
        return Head(count, self.watched, self.rules(options).mask, renormalised=True)

    def rules(self, options: WhisperOptions) -> Rules:
        """What may follow."""
        size = self.manifest.dimensions.vocabulary_size
        return Rules(self.config, self.eos, size, options.timed, options.min_tokens)

    def language(self, stated: str | None, options: WhisperOptions) -> str | None:
        """See `recognizer.Family`; of a translation a corpus states the target, which is English."""
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
        answers = self.answers(model, alone, len(clips))
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
    ) -> Iterator[News]:
        """See `recognizer.Family`."""
        return Transcription(self, model, options, width).follow(recordings)

    def answers(self, model: Model, options: WhisperOptions, together: int) -> Answers:
        """Of a model to options.

        Raises:
            OptionError: they do not fit the model.
        """
        self._note_translation(options.task)
        positions = self.manifest.limits.max_target_tokens
        request = Request.of(options, self.config, positions, self.vocabulary)
        return Answers(self, model, request, together)

    def _note_translation(self, task: str) -> None:
        """Say once that the model was not trained for the task."""
        if task == TRANSLATE and not self._translation_noted:
            self._translation_noted = True
            logger.warning(
                "this model was not trained to translate (its decoder was distilled for transcription): "
                "expect text in the spoken language; large-v3, medium or small translate"
            )

    def detect_language(self, model: Model, waveform: np.ndarray, windows: int) -> dict[str, float]:
        """Probabilities of the languages by code, most probable first; empty if nobody speaks.

        Args:
            model: of this family.
            waveform: shape (samples,), at the front end's rate, of any length.
            windows: the mean is over so many windows with speech, spread evenly; 1: the first.

        Raises:
            OptionError: the model knows English only.

        Source: openai-whisper `decoding.py:detect_language`, of one window.
        """
        if not self.config.languages:
            expected, advice = "a multilingual model", "There is nothing to detect"
            raise invalid("Detecting a language", "model", expected, "an English-only one", advice)
        speech = self._speech_windows(waveform)
        heard = [*islice(speech, 1)] if windows == 1 else [*speech]
        count = min(windows, len(heard))
        answers, shares = self.answers(model, WhisperOptions(), 1), []
        for i in range(count):
            memory = answers.encode(heard[i * len(heard) // count][None])
            watched = answers.watch_alone(memory, np.array([[self.config.start]]))
            shares.append(language_shares(watched[0]))
        return self.ranked(np.mean(shares, axis=0)) if shares else {}

    def ranked(self, shares: np.ndarray) -> dict[str, float]:
        """Probabilities of the languages, in their order, by code, most probable first."""
        codes = list(self.config.languages)
        return {codes[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable")}

    def _speech_windows(self, waveform: np.ndarray) -> Iterator[np.ndarray]:
        """Log-mel windows (T, F) in which somebody may speak; a rest of a second says nothing."""
        rate_hz, size = self.front_end.rate_hz, self.window * HOP_SAMPLES
        for start in range(0, max(len(waveform) - rate_hz, 1), size):
            piece = waveform[start : start + size]
            features = self.front_end(piece, rate_hz)
            if is_speech(features[: context.frames(Clip("", features, len(piece) / rate_hz))]):
                yield features

    def encoded_frames(self, clip: Clip, options: WhisperOptions) -> int:
        """T that is encoded of a clip."""
        wanted = options.audio_context
        if wanted == FULL:
            return self.window
        if isinstance(wanted, str):
            window = self.window // FRAMES_PER_POSITION
            return FRAMES_PER_POSITION * context.auto_positions(clip, window)
        frames, needed = FRAMES_PER_POSITION * wanted, context.positions(clip)
        if frames > self.window:
            expected = f"at most {self.window // FRAMES_PER_POSITION} positions"
            raise invalid("Transcribing", "audio_context", expected, wanted, "Use full")
        if frames < FRAMES_PER_POSITION * needed:
            raise failure(
                UtteranceTooLongError, "Transcribing", clip.path,
                f"at most {wanted} positions of 20 ms (audio_context)", needed, "Use full or auto",
            )  # fmt: skip
        return frames
