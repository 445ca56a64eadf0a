"""Recordings of any length for Fairseq S2T models: whole where they fit, else cut where nobody speaks.

These models are trained on utterances, have no timestamps and know no silence: what is longer is cut at
pauses, and what is no speech is not decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from fairseq_openvino.decoding import attempt_each
from fairseq_openvino.errors import (
    FairseqOpenVINOError,
    UtteranceTooLongError,
    concerns_one_clip,
    failure,
    named,
)
from fairseq_openvino.model import Clip, Hypothesis, Ledger, News, Segment, Transcript
from fairseq_openvino.replay import Replay
from fairseq_openvino.speech.activity import RATE_HZ, ActivityOptions, Span, Voice
from fairseq_openvino.speech.features import HOP_SAMPLES
from fairseq_openvino.speech.frontend import FilterBanks, Waveform, heard
from fairseq_openvino.speech.pieces import speech
from fairseq_openvino.speech.recordings import Recording
from fairseq_openvino.whisper.windows import nothing

MAX_PIECE_SECONDS = 20.0
"""Few utterances of the corpora that these models are trained on are longer."""
PAUSES = ActivityOptions(min_speech_ms=250, min_silence_ms=500, pad_ms=64)
"""Utterances end at pauses of half a second. Little of these is kept: mean and variance of an utterance
are part of its features, and silence shifts them."""

Decode = Callable[[list[Clip]], Sequence[Transcript | FairseqOpenVINOError]]
"""Clips decoded together: the transcript of each, or its error."""


def each_alone(
    work: Callable[[Sequence[Clip]], list[Transcript]], ledger: Ledger | None = None
) -> Decode:
    """Clips decoded together by `work`; where that fails, in parts, down to the clips at fault."""
    replay = Replay(ledger)

    def kept(clips: Sequence[Clip]) -> list[Transcript]:
        return replay(list[Transcript], lambda: work(clips))

    def decode(clips: list[Clip]) -> Sequence[Transcript | FairseqOpenVINOError]:
        return [
            named(each, clip.path) if isinstance(each, Exception) else each
            for clip, each in zip(clips, attempt_each(clips, kept), strict=True)
        ]

    return decode


def follow(
    items: Iterable[Recording | Clip | News],
    front_end: FilterBanks | Waveform,
    eos: int,
    voice: Voice,
    decode: Decode,
    batch_size: int,
) -> Iterator[News]:
    """Recordings to transcripts; those that are cut have a segment for each piece, and one hypothesis.

    Args:
        items: recordings; clips, which are decoded as they are; news, which are passed on.
        front_end: of the model.
        eos: its token.
        voice: finds speech in what is longer than the model hears.
        decode: decodes the clips of a batch.
        batch_size: pieces decoded together, of several recordings too.

    Yields:
        News of the pieces as they are decoded - the duration is what was heard of the recording so far -
        and, in the order of the items, the result of each.

    Raises:
        FairseqOpenVINOError: the model or the machine is at fault, not a recording.
    """
    stories: deque[_Story] = deque()
    batch: list[tuple[_Story, Span | None, Clip]] = []

    def told() -> Iterator[News]:
        """What comes of the batch."""
        answers = decode([clip for *_, clip in batch]) if batch else ()
        for (story, span, _), answer in zip(batch, answers, strict=True):
            yield from story.take(span, answer)
        batch.clear()
        while stories and stories[0].is_done:
            yield stories.popleft().end(eos)

    for item in items:
        story = _Story(item)
        stories.append(story)
        for span, clip in story.parts(front_end, voice):
            batch.append((story, span, clip))
            if len(batch) == batch_size:
                yield from told()
        if not batch:
            yield from told()
    yield from told()


class _Story:
    """What has become of an item so far."""

    def __init__(self, item: Recording | Clip | News) -> None:
        self._item = item
        self._name = item.name if isinstance(item, Recording) else item.path
        self._samples = 0
        """That were heard of a recording."""
        self._is_heard = False
        self._decoding = 0
        self._whole: Transcript | None = None
        self._segments: list[Segment] = []
        self._found: list[Hypothesis] = []
        self._error: FairseqOpenVINOError | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be heard or decoded of it."""
        return self._is_heard and not self._decoding

    def parts(
        self, front_end: FilterBanks | Waveform, voice: Voice
    ) -> Iterator[tuple[Span | None, Clip]]:
        """What is to be decoded of it: all (None), or the pieces where somebody speaks."""
        try:
            for span, clip in self._clips(front_end, voice):
                if self._error is not None:
                    break
                self._decoding += 1
                yield span, clip
        except Exception as error:
            if not concerns_one_clip(error):
                raise
            self._error = named(error, self._name)
        self._is_heard = True

    def take(self, span: Span | None, answer: Transcript | FairseqOpenVINOError) -> Iterator[News]:
        """What a part of it became."""
        self._decoding -= 1
        if not isinstance(answer, Transcript):
            self._error = answer
        elif span is None:
            self._whole = answer
        else:
            _, best = answer.hypotheses[0]
            segment = Segment(
                span.start / RATE_HZ, span.end / RATE_HZ, answer.text,
                avg_logprob=best.average_log_probability, seek=span.start // HOP_SAMPLES,
                tokens=tuple(best.tokens.tolist()),
            )  # fmt: skip
            if answer.segments:
                segment = _timed(segment, answer.segments[0])
            self._found.append(best)
            self._segments.append(segment)
            yield News(self._name, segment.end, self._seconds, (segment,))

    def end(self, eos: int) -> News:
        """Its result."""
        if isinstance(self._item, News):
            return self._item
        result = self._error or self._whole or self._joined(eos)
        seconds = result.seconds if isinstance(result, Transcript) else self._seconds
        segments = () if self._whole is None else self._whole.segments
        return News(self._name, seconds, seconds, segments, result)

    @property
    def _seconds(self) -> float:
        return self._samples / RATE_HZ

    def _clips(
        self, front_end: FilterBanks | Waveform, voice: Voice
    ) -> Iterator[tuple[Span | None, Clip]]:
        if isinstance(self._item, Clip):
            yield None, self._item
        if not isinstance(self._item, Recording):
            return
        rate_hz, beginning = self._item.rate_hz, []
        blocks = self._counted(self._item.blocks())
        for block in blocks:
            beginning.append(block)
            if self._samples > front_end.max_samples:
                break
        else:
            features = heard(front_end, self._name, np.concatenate(beginning), rate_hz)
            yield None, Clip(self._name, features, self._samples / rate_hz, self._item.damage)
            return
        if rate_hz != RATE_HZ:
            raise failure(
                UtteranceTooLongError, "Cutting audio at pauses", repr(self._name),
                f"a model of {RATE_HZ} Hz", f"one of {rate_hz} Hz", "Split the audio",
            )  # fmt: skip
        longest = min(front_end.max_samples, round(MAX_PIECE_SECONDS * RATE_HZ))
        for span, samples in speech(chain(beginning, blocks), voice, PAUSES, longest):
            features = heard(front_end, self._name, samples, rate_hz)
            yield span, Clip(self._name, features, len(samples) / rate_hz)

    def _counted(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self._samples += len(block)
            yield block

    def _joined(self, eos: int) -> Transcript:
        """Of all pieces."""
        assert isinstance(self._item, Recording)
        *before, last = self._found or [nothing(eos)]
        tokens = [*(each.tokens[:-1] for each in before), last.tokens]
        scores = [*(each.positional_scores[:-1] for each in before), last.positional_scores]
        positional = np.concatenate(scores)
        joined = Hypothesis(np.concatenate(tokens), float(positional.mean()), positional)
        text = " ".join(segment.text for segment in self._segments if segment.text)
        return Transcript(
            self._name, text, joined.score, self._seconds, ((text, joined),),
            segments=tuple(self._segments), damage=self._item.damage,
            skipped=None if self._found else "no speech in the signal",
        )  # fmt: skip


def _timed(piece: Segment, heard: Segment) -> Segment:
    """A piece of a recording with the times that a family found within it."""
    words = tuple(
        replace(word, start=piece.start + word.start, end=piece.start + word.end)
        for word in heard.words or ()
    )
    times = piece.start + heard.start, piece.start + heard.end
    return replace(
        piece, start=times[0], end=times[1], words=None if heard.words is None else words
    )
