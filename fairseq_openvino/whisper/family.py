"""The Whisper family: log-mel windows, special-token prompts, timestamps, language detection.

Tokens equal transformers' `generate`. What follows the last complete segment of a window is decoded
again, up to the end of the audio, as openai-whisper does it; but not silence. Sources: transformers
`models/whisper/generation_whisper.py`, openai-whisper `transcribe.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice

import numpy as np

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.decoding import drive
from fairseq_openvino.errors import BundleError, UtteranceTooLongError, failure, invalid
from fairseq_openvino.model import (
    Ask,
    Clip,
    Head,
    Hypothesis,
    Memory,
    Model,
    Segment,
    Session,
    Transcript,
)
from fairseq_openvino.speech.features import HOP_SAMPLES
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
from fairseq_openvino.whisper.silence import is_speech
from fairseq_openvino.whisper.tokenizer import WhisperTokenizer
from fairseq_openvino.whisper.windows import Outcome, Progress, nothing

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
        """Clips decoded together, in the order given; one that looks wrong is decoded again alone.

        Raises:
            OptionError: the options do not fit the model.
        """
        self._note_translation(options.task)
        job = self._job(model, options)
        frames = [self._encoded_frames(clip, options) for clip in clips]
        found = [self._silence(clip) for clip in clips]
        speech = [i for i, clip in enumerate(clips) if not options.skip_silence or _is_speech(clip)]
        decoded = job.transcribe([clips[i] for i in speech], [frames[i] for i in speech])
        for i, each in zip(speech, decoded, strict=True):
            found[i] = each
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
        job, shares = self._job(model, WhisperOptions()), []
        for i in range(count):
            memory = job.encode([heard[i * len(heard) // count]])
            shares.append(_shares(job.watch_alone(memory, (self.config.start,))[0]))
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
            if _is_speech(Clip("", features, len(piece) / rate_hz)):
                yield features

    def _job(self, model: Model, options: WhisperOptions) -> _Job:
        positions = self.manifest.limits.max_target_tokens
        return _Job(self, model, Request.of(options, self.config, positions, self.vocabulary))

    def _silence(self, clip: Clip) -> Transcript:
        """Of a clip in which nobody speaks."""
        found = Transcript.of(clip, [""], [nothing(self.eos)])
        return replace(found, skipped="no speech in the signal")

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
        memory = self.encode(windows)
        request, options = self.request, self.options
        temperature = options.temperatures[0]
        sampling = temperature > 0
        beam = 1 if sampling else options.beam
        before = (*request.previous, self.config.start)
        behind = request.after_start(None, self.config)
        if request.previous and any(each.language is None for each in progress):
            self._detect(progress, self.watch_alone(memory, (self.config.start,)))
        with self.model.open(memory, beam, self.head) as session:
            if behind:
                watched = self._watch(session, before, len(progress) * beam)[::beam]
                self._detect(progress, watched)
            else:
                watched = self.watch_alone(memory, before)
            start = () if behind else before
            prompt = np.array(
                [(*start, *request.after_start(each.language, self.config)) for each in progress]
            )
            search: Greedy | BeamSearch
            if sampling:
                randoms = [each.random for each in progress]
                search = Sampling(prompt, self.rules, limits, options.lenpen, temperature, randoms)
            elif beam == 1:
                search = Greedy(prompt, self.rules, limits, options.lenpen)
            else:
                search = BeamSearch(prompt, self.rules, limits, beam, options.lenpen)
            drive(session, search)
        no_speech = np.exp(watched[:, 0]).tolist()
        for each, hypotheses, probability in zip(progress, search.found(), no_speech, strict=True):
            self._take(each, hypotheses, probability)

    def _take(
        self, progress: Progress, hypotheses: list[Hypothesis], no_speech_prob: float
    ) -> None:
        """Add what was found in a window, or leave the window out."""
        options, eos, best = self.options, self.family.eos, hypotheses[0]
        text = self.family.vocabulary.text(best.tokens)
        outcome = Outcome.of(best, text, eos, options.temperatures[0], no_speech_prob)
        if outcome.is_silence(options.no_speech_threshold, options.logprob_threshold):
            progress.skip(outcome)
        else:
            progress.add(hypotheses[: options.nbest], self.rules, outcome)

    def encode(self, windows: Sequence[np.ndarray]) -> Memory:
        """Windows of one length are encoded together, so no result depends on other lengths."""
        parts = []
        for _, group in groupby(windows, key=len):
            batch = np.stack(list(group))
            parts.append(self.model.encode(batch, np.full(len(batch), batch.shape[1])))
        return Memory.join(parts, self.model.manifest.memory)

    def watch_alone(self, memory: Memory, tokens: Sequence[int]) -> np.ndarray:
        """See `_watch`, in a session of its own; (N, G)."""
        with self.model.open(memory, 1, Head(1, self.family.watched)) as session:
            return self._watch(session, tokens, memory.utterances)

    def _watch(self, session: Session, tokens: Sequence[int], rows: int) -> np.ndarray:
        """Feed tokens that end with <|startoftranscript|>; log-probabilities (R, G) behind them.

        Source: openai-whisper `decoding.py:detect_language, DecodingTask._main_loop`.
        """
        fed, order = np.tile(tokens, (rows, 1)), np.arange(rows, dtype=np.int32)
        bounds = self.rules.bounds(fed[:, :0])
        step = session.step(Ask(fed, order, self.rules.bias(1), bounds))
        if step.watched is None:  # as in sampling
            return np.asarray(step.scores[:, -1, list(self.family.watched)])
        return step.watched.copy()

    def _detect(self, progress: list[Progress], watched: np.ndarray) -> None:
        """Fill in languages that are not known."""
        for each, log_probs in zip(progress, watched, strict=True):
            if each.language is None:
                each.detected(self.family.ranked(_shares(log_probs)))

    def _transcript(self, clip: Clip, progress: Progress) -> Transcript:
        found, text = progress.hypotheses(self.family.eos), self.family.vocabulary.text
        prefix = () if progress.skipped else self.request.prefix
        texts = [text((*prefix, *hypothesis.tokens)) for hypothesis in found]
        first, last = progress.outcomes[0], progress.outcomes[-1]
        return replace(
            Transcript.of(clip, texts, found),
            language=progress.language,
            language_probabilities=progress.language_probabilities,
            no_speech_probability=first.no_speech_prob,
            skipped=_reason(last) if progress.skipped else None,
            segments=tuple(
                Segment(each.start, each.end, text(each.tokens), **vars(outcome))
                for each, outcome in progress.segments
            ),
        )


def _shares(watched: np.ndarray) -> np.ndarray:
    """Probabilities among the languages from log-probabilities (G,) behind <|startoftranscript|>."""
    shares = np.exp(watched[1:] - watched[1:].max())
    return np.asarray(shares / shares.sum())


def _reason(outcome: Outcome) -> str:
    """Why a window was left out."""
    return (
        f"no-speech probability {outcome.no_speech_prob:.2f}, average log-probability "
        f"{outcome.avg_logprob:.2f}"
    )


def _is_speech(clip: Clip) -> bool:
    return is_speech(clip.features[: context.frames(clip)])


def is_done(clip: Clip, progress: Progress) -> bool:
    """Whether what follows the windows decoded so far, if there are any, is not worth another."""
    return progress.done or (progress.seek > 0 and context.is_silent(clip, progress.seek))


def _window(features: np.ndarray, seek: int) -> np.ndarray:
    """Frames (T, F) from `seek` on, moved to the front and zero-padded."""
    window = np.zeros_like(features)
    window[: len(features) - seek] = features[seek:]
    return window
