"""What a Whisper model answers to the questions of drivers, for windows of many recordings together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice

import numpy as np

from fairseq_openvino.decoding import drive
from fairseq_openvino.model import (
    Ask,
    Clip,
    Head,
    Hypothesis,
    Memory,
    Model,
    Session,
    Transcript,
)
from fairseq_openvino.speech.features import FRAMES_PER_SECOND
from fairseq_openvino.speech.spectrogram import Spectrogram
from fairseq_openvino.whisper import context
from fairseq_openvino.whisper.alignment import Aligner
from fairseq_openvino.whisper.job import Job, Origin, Voice
from fairseq_openvino.whisper.longform import Longform
from fairseq_openvino.whisper.options import Request, WhisperOptions
from fairseq_openvino.whisper.questions import Alignment, Heard, Timing, Window
from fairseq_openvino.whisper.search import BeamSearch, Greedy, Sampling
from fairseq_openvino.whisper.silence import MIN_FRAMES, is_speech
from fairseq_openvino.whisper.traits import Traits
from fairseq_openvino.whisper.windows import Outcome, joined

UNHEARD_SECONDS = 1.0
"""At the end of a piece there may be nothing more to say."""


class Answers:
    """Of one model to one request.

    Args:
        traits: of the model.
        model: compiled.
        request: options in terms of the model.
        together: windows that are decoded together when there are enough; it decides precisions.
    """

    def __init__(self, traits: Traits, model: Model, request: Request, together: int) -> None:
        self.traits, self.model, self.request, self.together = traits, model, request, together
        self.options, self.config = request.options, traits.config
        self.rules, self.head = traits.rules(request.options), traits.head(request.options)

    @classmethod
    def of(cls, traits: Traits, model: Model, options: WhisperOptions, together: int) -> Answers:
        """To options.

        Raises:
            OptionError: they do not fit the model.
        """
        positions = traits.manifest.limits.max_target_tokens
        request = Request.of(options, traits.config, positions, traits.vocabulary)
        return cls(traits, model, request, together)

    def job(
        self, clip: Clip, frames: int, voice: Voice | None = None, one_window: bool = False,
        origin: Origin | None = None,
    ) -> Job:  # fmt: skip
        """Of a clip of at most one window; `frames` (T) of it are encoded.

        With fewer than the window's, a text that looks wrong is decoded again with all of them.
        Without an origin its features are that.
        """
        full, most, source = self.traits.window, self.request.max_tokens, _Whole(clip.features)
        origin = origin or source.origin

        def gate(window: Window, heard: np.ndarray) -> bool:
            if window.seek:
                return not context.is_silent(clip, window.seek)
            return one_window or not self.options.skip_silence or is_speech(heard)

        if frames == full:
            return Job(
                self, source, self._driver(clip, one_window), full, most, gate, voice, origin
            )

        def judge(job: Job) -> None:
            found = self.transcript(clip, [job])
            reason = context.doubt(found, self.traits.eos, self.options.max_tokens)
            if job.size < full and reason is not None:
                job.decoded_again = reason
                job.restart(self._driver(clip, one_window), full, most)

        limit = min(most, context.token_limit(clip.seconds))
        driver = self._driver(clip, one_window)
        return Job(self, source, driver, frames, limit, gate, voice, origin, judge)

    def recorded(self, source: Spectrogram, voice: Voice, origin: Origin) -> Job:
        """Of a recording longer than a window."""

        def gate(window: Window, heard: np.ndarray) -> bool:
            if not self.options.skip_silence:
                return True
            return is_speech(heard) and (len(heard) >= MIN_FRAMES or voice(window))

        limit = min(self.request.max_tokens, self.traits.manifest.limits.max_target_tokens // 2)
        driver, size = self._new_driver(source.frames), self.traits.window
        return Job(self, source, driver, size, limit, gate, voice, origin)

    def _driver(self, clip: Clip, one_window: bool) -> Longform:
        return self._new_driver(context.frames(clip), one_window)

    def _new_driver(self, frames: int, one_window: bool = False) -> Longform:
        text = self.traits.vocabulary.text
        return Longform(frames, self.traits.window, self.rules, self.request, text, one_window)

    def transcript(self, clip: Clip, jobs: Sequence[Job]) -> Transcript:
        """Of a clip or recording and the jobs of its parts; those that found nothing are silent."""
        eos, text = self.traits.eos, self.traits.vocabulary.text
        heard = [job.driver for job in jobs if not job.driver.skipped]
        outcomes = [outcome for job in jobs for outcome in job.driver.outcomes]
        if len(heard) == 1:
            found = heard[0].hypotheses()
        else:
            found = joined([driver.hypotheses() for driver in heard], eos)
        prefix = self.request.prefix if heard else ()
        texts = [text((*prefix, *hypothesis.tokens)) for hypothesis in found]
        segments = [segment for driver in heard for segment in driver.segments]
        known = next((job for job in jobs if job.language is not None), None)
        return replace(
            Transcript.of(clip, texts, found),
            language=known.language if known else None,
            language_probabilities=known.language_probabilities if known else {},
            no_speech_probability=outcomes[0].no_speech_prob if outcomes else None,
            skipped=None if heard else _reason(outcomes),
            decoded_again=next((job.decoded_again for job in jobs if job.decoded_again), None),
            segments=tuple(segments) if self.options.timed else (),
        )

    def encode(self, windows: np.ndarray) -> Memory:
        """Windows (N, T, F)."""
        lengths = np.full(len(windows), windows.shape[1])
        return self.model.encode(windows, lengths, together=self.together)

    def hear(self, jobs: Sequence[Job]) -> list[Heard | None]:
        """One window of each job; temperatures and numbers of tokens before the text are equal."""
        questions = [job.question for job in jobs if isinstance(job.question, Window)]
        memory = self._memory(jobs)
        if self.options.multilingual and self.config.languages and not questions[0].attempt:
            for job in jobs:
                job.language = None
        temperature = questions[0].temperature
        beam = self.options.best_of if temperature > 0 else self.options.beam
        start = self.config.start
        before = np.array([(*self._previous(each), start) for each in questions])
        behind = self._behind(questions[0], None)
        if before.shape[1] > 1 and any(job.language is None for job in jobs):
            self._detect(jobs, self.watch_alone(memory, np.full((len(jobs), 1), start)))
        with self.model.open(
            memory, beam, Head(last=True) if temperature > 0 else self.head
        ) as session:
            if behind:
                watched = self._watch(session, np.repeat(before, beam, axis=0))[::beam]
                self._detect(jobs, watched)
            else:
                watched = self.watch_alone(memory, before)
            prompt = np.array(
                [
                    (*(() if behind else tokens), *self._behind(question, job.language))
                    for tokens, question, job in zip(before, questions, jobs, strict=True)
                ]
            )
            search = self._search(jobs, questions, prompt, beam)
            search.until = np.array([self._until(job.driver) for job in jobs])
            drive(session, search)
        no_speech = np.exp(watched[:, 0]).tolist()
        found = zip(jobs, questions, search.found(), no_speech, strict=True)
        return [self._heard(*each) for each in found]

    def align(self, jobs: Sequence[Job]) -> list[list[Timing]]:
        """Words of the window that each job heard last."""
        questions = [job.question for job in jobs if isinstance(job.question, Alignment)]
        languages = [job.language for job in jobs]
        memory, task = self._memory(jobs), self.options.task
        return self.aligner.align(self.model, memory, questions, languages, task)

    @cached_property
    def aligner(self) -> Aligner:
        """Of words."""
        return Aligner(self.traits.manifest, self.traits.vocabulary)

    def languages(self, job: Job, windows: int) -> dict[str, float]:
        """Probabilities of the languages by code, most probable first; none if nobody speaks.

        The mean over so many windows with speech, spread evenly; 1: the first.

        Source: openai-whisper `decoding.py:detect_language`, of one window.
        """
        frames, shares = job.driver.frames, []
        starts = range(0, max(frames - FRAMES_PER_SECOND, 1), job.size)  # less says nothing
        questions = [Window(seek, min(job.size, frames - seek)) for seek in starts]
        found = (each for each in questions if job.read(each) is not None)
        speech = list(found if windows > 1 else islice(found, 1))
        count = min(windows, len(speech))
        for i in range(count):
            window = job.read(speech[i * len(speech) // count])
            assert window is not None
            memory = self.encode(window[None])
            watched = self.watch_alone(memory, np.array([[self.config.start]]))
            shares.append(_language_shares(watched[0]))
        return self.traits.ranked(np.mean(shares, axis=0)) if shares else {}

    def watch_alone(self, memory: Memory, tokens: np.ndarray) -> np.ndarray:
        """See `_watch`, in a session of its own; tokens (N, l), result (N, G)."""
        with self.model.open(memory, 1, Head(1, self.traits.watched)) as session:
            return self._watch(session, tokens)

    def _memory(self, jobs: Sequence[Job]) -> Memory:
        """Of the windows that the jobs heard last."""
        first = jobs[0].encoding
        assert first is not None
        if len(jobs) == first.count and all(
            job.encoding is first and job.row == i for i, job in enumerate(jobs)
        ):
            return first.memory
        parts = [job.encoding.memory.take(np.array([job.row])) for job in jobs if job.encoding]
        return Memory.join(parts, self.model.manifest.memory)

    def _previous(self, question: Window) -> tuple[int, ...]:
        return (int(self.config.previous or 0), *question.previous) if question.previous else ()

    def _behind(self, question: Window, language: str | None) -> tuple[int, ...]:
        """Tokens behind <|startoftranscript|>; a prefix begins the recording only."""
        return self.request.after_start(language, self.config, with_prefix=question.seek == 0)

    def _search(
        self, jobs: Sequence[Job], questions: Sequence[Window], prompt: np.ndarray, beam: int
    ) -> Greedy | BeamSearch | Sampling:
        lenpen, temperature = self.options.lenpen, questions[0].temperature
        room = self.traits.manifest.limits.max_target_tokens - prompt.shape[1]
        room -= 1 + len(self._previous(questions[0])) if self._behind(questions[0], None) else 0
        limits = np.minimum([job.limit for job in jobs], room)
        if temperature > 0:
            randoms = [
                np.random.default_rng((self.options.seed, *origin, each.seek, each.attempt, row))
                for origin, each in zip([job.origin() for job in jobs], questions, strict=True)
                for row in range(beam)
            ]
            return Sampling(prompt, self.rules, limits, beam, lenpen, temperature, randoms)
        if beam == 1:
            return Greedy(prompt, self.rules, limits, lenpen)
        return BeamSearch(prompt, self.rules, limits, beam, lenpen)

    def _until(self, driver: Longform) -> int:
        """Timestamp up to which a piece is heard.

        Left to itself a model ends where the last whole sentence does, as it expects another window.
        """
        if not driver.one_window:
            return 0
        seconds = driver.frames / FRAMES_PER_SECOND - UNHEARD_SECONDS
        return int(seconds / self.config.timestamp_seconds)

    def _heard(
        self, job: Job, window: Window, hypotheses: list[Hypothesis], no_speech_prob: float
    ) -> Heard | None:
        text = self.traits.vocabulary.text(hypotheses[0].tokens)
        outcome = Outcome.of(
            hypotheses[0], text, self.traits.eos, window.temperature, no_speech_prob
        )
        options = self.options
        doubts = options.skip_silence and job.voice is not None and not job.voice(window)
        if doubts and outcome.is_doubtful(options.no_speech_threshold, options.logprob_threshold):
            return None
        return Heard(tuple(hypotheses[: options.nbest]), text, outcome)

    def _watch(self, session: Session, tokens: np.ndarray) -> np.ndarray:
        """Feed tokens (R, l) that end with <|startoftranscript|>; log-probabilities (R, G) behind them.

        Source: openai-whisper `decoding.py:detect_language, DecodingTask._main_loop`.
        """
        order = np.arange(len(tokens), dtype=np.int32)
        bounds = self.rules.bounds(tokens[:, :0])
        step = session.step(Ask(tokens, order, self.rules.bias(1), bounds))
        if step.watched is None:  # as in sampling
            return np.asarray(step.scores[:, -1, list(self.traits.watched)])
        return step.watched.copy()

    def _detect(self, jobs: Sequence[Job], watched: np.ndarray) -> None:
        """Fill in languages that are not known."""
        for job, log_probs in zip(jobs, watched, strict=True):
            if job.language is None:
                job.detected(self.traits.ranked(_language_shares(log_probs)))


class _Whole:
    """The frames of a clip, padding included."""

    def __init__(self, features: np.ndarray) -> None:
        self._features = features

    def window(self, seek: int, _: int) -> np.ndarray:
        """See `job.Frames`."""
        return self._features[seek:]

    def origin(self) -> tuple[int, ...]:
        """See `job.Origin`."""
        content = np.ascontiguousarray(self._features).data
        return (int.from_bytes(hashlib.sha256(content).digest()),)


def _reason(outcomes: Sequence[Outcome]) -> str:
    """Why there is no text."""
    if not outcomes:
        return "no speech in the signal"
    last = outcomes[-1]
    return (
        f"no-speech probability {last.no_speech_prob:.2f}, average log-probability "
        f"{last.avg_logprob:.2f}"
    )


def _language_shares(watched: np.ndarray) -> np.ndarray:
    """Probabilities among the languages from log-probabilities (G,) behind <|startoftranscript|>."""
    shares = np.exp(watched[1:] - watched[1:].max())
    return np.asarray(shares / shares.sum())
