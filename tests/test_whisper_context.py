"""Audio contexts shorter than the window: what is encoded, and what is decoded again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from whisper_models import START, TEXT_TOKENS, Pair

from fairseq_openvino.errors import UtteranceTooLongError
from fairseq_openvino.model import Clip, Hypothesis, Transcript
from fairseq_openvino.whisper import context as whisper_context
from fairseq_openvino.whisper.answers import Answers
from fairseq_openvino.whisper.options import WhisperOptions
from fairseq_openvino.whisper.questions import Window


def test_audio_context_is_a_shorter_encoder(
    multilingual: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window cut to 70 positions equals the reference encoder with its position table cut."""
    monkeypatch.setattr(whisper_context, "MIN_LOG_PROBABILITY", -np.inf)  # the weights are random
    short = multilingual.model.clip(multilingual.waveforms[0][: 16000 * 13 // 10], 16000)
    options = {"beam": 1, "language": "en", "max_tokens": 12}
    found = multilingual.model.transcribe_clips([short], audio_context=70, **options)[0]
    assert found.decoded_again is None
    expected = multilingual.greedy(short, START, 140, 12)
    assert found.hypotheses[0][1].tokens.tolist() == expected
    full = multilingual.model.transcribe_clips([short], **options)[0]
    assert full.score != found.score


def test_a_doubtful_text_is_decoded_again_with_the_whole_window(multilingual: Pair) -> None:
    """Random weights are never sure of anything."""
    short = multilingual.model.clip(multilingual.waveforms[0][: 16000 * 13 // 10], 16000)
    for options in ({"beam": 1}, {"beam": 3}, {"beam": 2, "timestamps": True}):
        found = multilingual.model.transcribe_clips([short], audio_context=70, **options)[0]
        full = multilingual.model.transcribe_clips([short], **options)[0]
        assert found.decoded_again is not None and full.decoded_again is None
        assert found.hypotheses[0][1].tokens.tolist() == full.hypotheses[0][1].tokens.tolist()


def doubted(tokens: Sequence[int], seconds: float, text: str, log_probability: float = -0.1) -> Any:
    scores = np.full(len(tokens), log_probability, np.float32)
    best = Hypothesis(np.array(tokens), log_probability, scores)
    transcript = Transcript("clip", text, log_probability, seconds, ((text, best),))
    return whisper_context.doubt(transcript, TEXT_TOKENS, None)


def test_auto_encodes_at_least_what_keeps_the_decoder_from_looping() -> None:
    def clip(seconds: float) -> Clip:
        return Clip("clip", np.zeros((1, 80), np.float32), seconds)

    assert [whisper_context.auto_positions(clip(s), 1500) for s in (0.1, 9.9)] == [600, 600]
    assert whisper_context.auto_positions(clip(20.0), 1500) == 1100
    assert whisper_context.auto_positions(clip(29.0), 1500) == 1500
    assert whisper_context.auto_positions(clip(2.0), 400) == 400


def test_silence_behind_the_last_segment_is_not_decoded(multilingual: Pair) -> None:
    tone = np.resize(multilingual.waveforms[0], 32_000)
    hushed = np.where(np.arange(32_000) < 3_200, tone, 1e-4 * tone).astype(np.float32)
    options = WhisperOptions(timestamps=True, skip_silence=False)
    answers = Answers.of(multilingual.model.family, multilingual.model.model, options, 1)
    for waveform, silent in ((tone, False), (hushed, True)):
        clip = multilingual.model.clip(waveform, 16000)
        job = answers.job(clip, len(clip.features))
        assert job.read(Window(0, 200)) is not None
        assert (job.read(Window(40, 160)) is None) == silent


def test_what_is_doubted() -> None:
    sound = [*range(12), TEXT_TOKENS]
    assert doubted(sound, 4.0, "The black key is very new.") is None
    assert doubted(sound[:-1], 4.0, "The black key is very") == "no end after 12 tokens"
    assert doubted(sound, 4.0, "I am. " * 30).startswith("compression ratio")
    assert doubted(sound, 4.0, "The black key", -1.2) == "average log-probability -1.20"
    assert doubted(sound, 28.0, "The black key is very new.") == "13 tokens in 28.0 s"


def test_a_clip_longer_than_the_audio_context_is_its_own_error(multilingual: Pair) -> None:
    with pytest.raises(UtteranceTooLongError, match="expected at most 10 positions"):
        multilingual.model.transcribe_clips(multilingual.clips[:1], audio_context=10)
