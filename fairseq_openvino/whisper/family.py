"""The Whisper family: log-mel windows, special-token prompts, timestamps, language detection.

Tokens equal transformers' `generate`. What follows the last complete segment of a window is decoded
again, up to the end of the audio, as openai-whisper does it; but not silence. Sources: transformers
`models/whisper/generation_whisper.py`, openai-whisper `transcribe.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.decoding import drive
from fairseq_openvino.errors import BundleError, UtteranceTooLongError, failure, invalid
from fairseq_openvino.model import Ask, Clip, Head, Memory, Model, Segment, Session, Transcript
from fairseq_openvino.speech.frontend import LogMel
from fairseq_openvino.speech.languages import language_code
from fairseq_openvino.whisper import context
from fairseq_openvino.whisper.context import FRAMES_PER_POSITION
from fairseq_openvino.whisper.options import (
    FULL,
    TRANSLATE,
    Request,
    WhisperOptions,
)
from fairseq_openvino.whisper.rules import Rules
from fairseq_openvino.whisper.search import BeamSearch, Greedy, Sampling
from fairseq_openvino.whisper.tokenizer import WhisperTokenizer
from fairseq_openvino.whisper.windows import Progress

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
        if options.temperature > 0:
            return Head()
        count = 1 if options.beam == 1 else 2 * options.beam
        return Head(count, self.watched, self.rules(options).mask, renormalised=True)

    def rules(self, options: WhisperOptions) -> Rules:
        """What may follow."""
        size = self.manifest.dimensions.vocabulary_size
        return Rules(self.config, self.eos, size, options.timestamps, options.min_tokens)

    def language(self, stated: str | None, options: WhisperOptions) -> str | None:
        """See `recognizer.Family`; of a translation a corpus states the target, which is English."""
        if options.language or not self.config.languages:
            return options.language
        return None if options.task == TRANSLATE or not stated else language_code(stated)

    def decode(
        self, model: Model, clips: Sequence[Clip], options: WhisperOptions
    ) -> list[Transcript]:
        """Clips decoded together, in the order given; one that looks wrong is decoded again alone.

        Raises:
            OptionError: the options do not fit the model.
        """
        self._note_translation(options.task)
        positions = self.manifest.limits.max_target_tokens
        job = _Job(self, model, Request.of(options, self.config, positions, self.vocabulary))
        frames = [self._encoded_frames(clip, options) for clip in clips]
        found = job.transcribe(clips, frames)
        for i, each in enumerate(found):
            if frames[i] < self.window and (
                reason := context.doubt(each, self.eos, options.max_tokens)
            ):
                (again,) = job.transcribe([clips[i]], [self.window])
                found[i] = replace(again, decoded_again=reason)
        return found

    def _note_translation(self, task: str) -> None:
        """Say once that the model was not trained for the task."""
        if task == TRANSLATE and not self._translation_noted:
            self._translation_noted = True
            logger.warning(
                "this model was not trained to translate (its decoder was distilled for transcription): "
                "expect text in the spoken language; large-v3, medium or small translate"
            )

    def _encoded_frames(self, clip: Clip, options: WhisperOptions) -> int:
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


class _Job:
    """One request under way."""

    def __init__(self, family: Whisper, model: Model, request: Request) -> None:
        self.family, self.model, self.request = family, model, request
        self.options, self.config = request.options, family.config
        self.rules, self.head = family.rules(request.options), family.head(request.options)

    def transcribe(self, clips: Sequence[Clip], frames: Sequence[int]) -> list[Transcript]:
        """Clips of which `frames` (T) each are encoded, decoded to their ends."""
        most, request = self.request.max_tokens, self.request
        progress = [
            Progress(context.frames(clip), request.language, self.options.seed) for clip in clips
        ]
        limits = np.array(
            [
                most if encoded == self.family.window
                else min(most, context.token_limit(clip.seconds))
                for clip, encoded in zip(clips, frames, strict=True)
            ]
        )  # fmt: skip
        while active := [i for i, each in enumerate(progress) if not is_done(clips[i], each)]:
            active.sort(key=lambda i: frames[i])  # windows of one length are encoded together
            windows = [_window(clips[i].features[: frames[i]], progress[i].seek) for i in active]
            self._decode(windows, [progress[i] for i in active], limits[active])
        return [self._transcript(clip, each) for clip, each in zip(clips, progress, strict=True)]

    def _decode(
        self, windows: list[np.ndarray], progress: list[Progress], limits: np.ndarray
    ) -> None:
        """One window (T, F) of each clip, ordered by length, decoded as one batch."""
        memory = self._encode(windows)
        request, options = self.request, self.options
        sampling = options.temperature > 0
        beam = 1 if sampling else options.beam
        apart = bool(sampling or request.previous or not request.after_start(None, self.config))
        first = any(each.no_speech_probability is None for each in progress)
        if apart and first:  # detection sees <|startoftranscript|> alone
            with self.model.open(memory, 1, Head(1, self.family.watched)) as session:
                self._detect(session, progress, 1)
        with self.model.open(memory, beam, self.head) as session:
            if not apart:
                self._detect(session, progress, beam)
            before = (*request.previous, self.config.start) if apart else ()
            prompt = np.array(
                [(*before, *request.after_start(each.language, self.config)) for each in progress]
            )
            search: Greedy | BeamSearch
            if sampling:
                randoms = [each.random for each in progress]
                search = Sampling(
                    prompt, self.rules, limits, options.lenpen, options.temperature, randoms
                )
            elif beam == 1:
                search = Greedy(prompt, self.rules, limits, options.lenpen)
            else:
                search = BeamSearch(prompt, self.rules, limits, beam, options.lenpen)
            drive(session, search)
        for each, hypotheses in zip(progress, search.found(), strict=True):
            each.add(hypotheses[: options.nbest], self.rules)

    def _encode(self, windows: list[np.ndarray]) -> Memory:
        """Windows of one length are encoded together, so no result depends on other lengths."""
        parts = []
        for _, group in groupby(windows, key=len):
            batch = np.stack(list(group))
            parts.append(self.model.encode(batch, np.full(len(batch), batch.shape[1])))
        return Memory.join(parts, self.model.manifest.memory)

    def _detect(self, session: Session, progress: list[Progress], beam: int) -> None:
        """Feed <|startoftranscript|> to K rows each; fill in language and no-speech probability.

        Source: openai-whisper `decoding.py:detect_language`.
        """
        tokens = np.full((len(progress) * beam, 1), self.config.start)
        order = np.arange(len(tokens), dtype=np.int32)
        bounds = self.rules.bounds(tokens[:, :0])
        watched = session.step(Ask(tokens, order, self.rules.bias(1), bounds)).watched
        assert watched is not None
        for each, log_probs in zip(progress, watched[::beam], strict=True):
            each.detected(float(np.exp(log_probs[0])), log_probs[1:], list(self.config.languages))

    def _transcript(self, clip: Clip, progress: Progress) -> Transcript:
        found, text = progress.hypotheses(self.family.eos), self.family.vocabulary.text
        texts = [text((*self.request.prefix, *hypothesis.tokens)) for hypothesis in found]
        return replace(
            Transcript.of(clip, texts, found),
            language=progress.language,
            language_probabilities=progress.language_probabilities,
            no_speech_probability=progress.no_speech_probability,
            segments=tuple(
                Segment(each.start, each.end, text(each.tokens)) for each in progress.segments
            ),
        )


def is_done(clip: Clip, progress: Progress) -> bool:
    """Whether what follows the windows decoded so far, if there are any, is not worth another."""
    return progress.done or (progress.seek > 0 and context.is_silent(clip, progress.seek))


def _window(features: np.ndarray, seek: int) -> np.ndarray:
    """Frames (T, F) from `seek` on, moved to the front and zero-padded."""
    window = np.zeros_like(features)
    window[: len(features) - seek] = features[seek:]
    return window
