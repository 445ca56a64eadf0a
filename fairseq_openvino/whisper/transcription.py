"""Recordings of any length: whole, window after window, or as pieces that are decoded together.

A recording of one window is padded with silence before its features are computed, as transformers does it;
the last window of a longer one with zeros behind its features, as openai-whisper and transformers do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np

from fairseq_openvino.errors import concerns_one_clip, named
from fairseq_openvino.model import Clip, Ledger, Model, News, Segment, Word
from fairseq_openvino.replay import Replay
from fairseq_openvino.runtime.voice import load_voice
from fairseq_openvino.speech.activity import (
    FRAME_SAMPLES,
    RATE_HZ,
    ActivityOptions,
    is_speech,
    spans,
    uncovered,
)
from fairseq_openvino.speech.ahead import ahead
from fairseq_openvino.speech.features import FRAMES_PER_SECOND, HOP_SAMPLES
from fairseq_openvino.speech.pieces import Piece, pieces
from fairseq_openvino.speech.recordings import Recording
from fairseq_openvino.speech.spectrogram import Spectrogram
from fairseq_openvino.whisper.answers import Answers
from fairseq_openvino.whisper.batcher import run
from fairseq_openvino.whisper.job import Job, Voice
from fairseq_openvino.whisper.options import WhisperOptions
from fairseq_openvino.whisper.questions import Window
from fairseq_openvino.whisper.traits import Traits

NO_FEATURES = np.empty((0, 0), np.float32)
"""Of a recording whose frames are not held."""


class Track:
    """What is known of one recording."""

    def __init__(self, recording: Recording, answers: Answers) -> None:
        self.recording, self.answers = recording, answers
        self.samples = 0
        """Read so far."""
        self.jobs: list[tuple[Job, Piece | None]] = []
        """Of its parts, in the order of time."""
        self.is_read = False
        """No job follows."""
        self.is_long = False
        """It has several windows, which are told as they are decoded; else a part is told as a whole."""
        self.error: Exception | None = None
        self.voice = np.empty(0, np.float32)
        """Probability of speech in each frame of the voice detector, where it was heard as a whole."""
        self.segments: list[Segment] = []
        """Told so far."""
        self._part = self._taken = 0

    @property
    def duration(self) -> float:
        """Seconds read so far."""
        return self.samples / self.recording.rate_hz

    def news(self) -> Iterator[News]:
        """What was found since the last time, in the order of time."""
        while self._part < len(self.jobs):
            job, piece = self.jobs[self._part]
            if self.is_long or job.question is None:
                yield self._told(job, piece)
            if job.question is not None:
                return
            self.error = self.error or job.error
            self.jobs[self._part] = job, None  # its samples are not needed any more
            self._part, self._taken = self._part + 1, 0

    @property
    def is_done(self) -> bool:
        """Whether all parts were told."""
        return self.is_read and self._part == len(self.jobs)

    def _told(self, job: Job, piece: Piece | None) -> News:
        found = job.driver.segments[self._taken :]
        self._taken += len(found)
        if not (self.is_long or piece or self.answers.options.timed):
            found = []  # there is one, the whole
        seconds = min(job.driver.seek / FRAMES_PER_SECOND, self.duration)
        if piece is not None:
            seconds, found = piece.end, [_restored(each, piece) for each in found]
        self.segments += found
        return News(self.recording.name, seconds, self.duration, tuple(found))


class Transcription:
    """Of several recordings by one model.

    Args:
        traits: of the model.
        model: compiled.
        options: checked.
        width: windows decoded together.
        ledger: of what the model answers.
    """

    def __init__(
        self,
        traits: Traits,
        model: Model,
        options: WhisperOptions,
        width: int,
        ledger: Ledger | None = None,
    ) -> None:
        self.traits, self.options, self.width = traits, options, width
        self.short = Answers.of(traits, model, options, width)
        """Of recordings up to one window."""
        self.long = Answers.of(traits, model, replace(options, timestamps=True), width)
        """Windows of longer ones follow each other by timestamps."""
        self._tracks: deque[Track | News] = deque()
        self._replay = Replay(ledger)

    def follow(self, recordings: Iterable[Recording | Clip | News]) -> Iterator[News]:
        """News of each recording, its result last, in the order given.

        Args:
            recordings: opened as they are needed; in place of one that cannot be, its only news.
        """
        jobs = ahead(self._jobs(recordings), self.width if self.options.chunked else 1)
        with closing(jobs):
            for _ in run(self._in_known_language(jobs), self.width, self._replay):
                yield from self._told()
        yield from self._told()

    def languages(self, recording: Recording, windows: int) -> dict[str, float]:
        """Probabilities of the languages of a recording, see `Answers.languages`."""
        ((job, _),) = self._parts(Track(recording, self.short))
        return self.short.languages(job, windows)

    def _told(self) -> Iterator[News]:
        """News of the first recording that is not done; once it is, of the next."""
        while self._tracks:
            track = self._tracks[0]
            if isinstance(track, News):
                yield track
            else:
                yield from track.news()
                if not track.is_done:
                    return
                yield self._result(track)
            self._tracks.popleft()

    def _jobs(self, recordings: Iterable[Recording | Clip | News]) -> Iterator[Job]:
        """Read on as there is room for more."""
        for recording in recordings:
            if isinstance(recording, News):
                self._tracks.append(recording)
                continue
            assert isinstance(recording, Recording)  # log-mel features are never stored
            track = Track(recording, self.short)
            self._tracks.append(track)
            try:
                for job, piece in self._parts(track):
                    track.jobs.append((job, piece))
                    yield job
            except Exception as error:
                track.error = error
            track.is_read = True

    def _parts(self, track: Track) -> Iterator[tuple[Job, Piece | None]]:
        """The jobs of a recording."""
        recording, front_end = track.recording, self.traits.front_end
        if self.options.chunked:
            size = self.traits.window * HOP_SAMPLES
            for piece in pieces(_counted(track), load_voice(), ActivityOptions(), size):
                features = front_end(piece.waveform, RATE_HZ)
                clip = Clip(recording.name, features, piece.seconds)
                origin = partial(_origin, recording, piece.spans[0].start)
                yield self.short.job(clip, self._encoded(clip), None, True, origin), piece
            return
        listener = load_voice().listen()
        waveform = _at_most(recording, self.traits.window * HOP_SAMPLES)
        if waveform is not None:
            track.samples = len(waveform)
            features = front_end(waveform, recording.rate_hz)
            clip = Clip(recording.name, features, track.duration)
            voice = _voice([listener.hear(waveform), listener.end()])
            origin = partial(_origin, recording)
            yield self.short.job(clip, self._encoded(clip), voice, origin=origin), None
            return
        heard: list[np.ndarray] = []
        source = Spectrogram(
            recording.blocks, self.traits.manifest.features.bins,
            lambda block: heard.append(listener.hear(block)),
        )  # fmt: skip
        track.samples, track.answers, track.is_long = source.samples, self.long, True
        track.voice = np.concatenate([*heard, listener.end()])
        job = self.long.recorded(source, _voice([track.voice]), partial(_origin, recording))
        yield job, None

    def _in_known_language(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Jobs whose language is detected in several windows, if that is wanted, before all else."""
        count = self.options.language_windows
        for job in jobs:
            if job.answers is self.long and job.language is None and count > 1:
                try:
                    found = self._replay(dict[str, float], partial(self.long.languages, job, count))
                    job.detected(found)
                except Exception as error:
                    job.fail(error)
            yield job

    def _encoded(self, clip: Clip) -> int:
        return self.traits.encoded_frames(clip, self.options)

    def _result(self, track: Track) -> News:
        """The last news of a recording."""
        name = track.recording.name
        if track.error is not None:
            if not concerns_one_clip(track.error):
                raise track.error
            error = named(track.error, name)
            error.__cause__ = None if error is track.error else track.error
            return News(name, track.duration, track.duration, (), error)
        answers, jobs = track.answers, [job for job, _ in track.jobs]
        clip = Clip(name, NO_FEATURES, track.duration, track.recording.damage)
        found = replace(answers.transcript(clip, jobs), segments=tuple(track.segments))
        if len(track.voice) and not self.options.clip_timestamps:
            speech = uncovered(spans(track.voice, track.samples), track.segments)
            found = replace(found, uncovered=tuple(speech))
        return News(name, track.duration, track.duration, (), found)


def _origin(recording: Recording, start: int = 0) -> tuple[int, ...]:
    """See `job.Origin`; of a piece that starts with this sample."""
    return recording.digest, start


def _voice(probabilities: list[np.ndarray]) -> Voice:
    """Of the voice detector's probabilities in the frames of a recording."""
    every = np.concatenate(probabilities)

    def hears(window: Window) -> bool:
        first, last = (
            each * HOP_SAMPLES / FRAME_SAMPLES
            for each in (window.seek, window.seek + window.frames)
        )
        return is_speech(every[math.floor(first) : math.ceil(last)])

    return hears


def _counted(track: Track) -> Iterator[np.ndarray]:
    """The blocks of its recording."""
    for block in track.recording.blocks():
        track.samples += len(block)
        yield block


def _at_most(recording: Recording, samples: int) -> np.ndarray | None:
    """The recording, if it is no longer."""
    blocks, count = [], 0
    for block in recording.blocks():
        blocks.append(block)
        count += len(block)
        if count > samples:
            return None
    return np.concatenate(blocks)


def _restored(segment: Segment, piece: Piece) -> Segment:
    """With times of the recording."""
    words = segment.words and tuple(
        Word(*piece.restore_word(each.start, each.end), each.word, each.probability)
        for each in segment.words
    )
    start, end = piece.restore(segment.start), piece.restore(segment.end, is_end=True)
    seek = round(piece.restore(segment.seek / FRAMES_PER_SECOND) * FRAMES_PER_SECOND)
    return replace(segment, start=start, end=end, seek=seek, words=words)
