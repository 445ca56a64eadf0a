"""Who speaks when: the detector against onnxruntime, spans against upstream's, pieces and their times."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import MINI, PACKAGE
from test_whisper_silence import noise, non_speech, rhythmic, scaled, tones, variants

from fairseq_openvino.errors import ModelError, OptionError
from fairseq_openvino.machine import resident_megabytes
from fairseq_openvino.model import Segment
from fairseq_openvino.runtime import voice
from fairseq_openvino.runtime.voice import SileroVoice, load_voice
from fairseq_openvino.speech.activity import (
    FRAME_SAMPLES,
    RATE_HZ,
    Activity,
    ActivityOptions,
    Span,
    is_speech,
    spans,
    uncovered,
)
from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.pieces import Piece, pieces

try:
    from silero_vad.utils_vad import get_speech_timestamps_from_probs
except ImportError:
    from silero_reference import get_speech_timestamps_from_probs


@cache
def recording() -> np.ndarray:
    """A minute of real speech: clips, with pauses of 0 to 8 s between them."""
    parts = [np.zeros(RATE_HZ, np.float32)]
    for i, path in enumerate(sorted((MINI / "clips").glob("*.mp3"))[:12]):
        parts += [read_audio(path, RATE_HZ)[0], np.zeros(i % 5 * 2 * RATE_HZ, np.float32)]
    return np.concatenate(parts)


def cut(waveform: np.ndarray, seed: int, largest: int) -> Iterator[np.ndarray]:
    """Into blocks of random sizes, empty ones among them."""
    random, start = np.random.default_rng(seed), 0
    while start < len(waveform):
        size = int(random.integers(0, largest))
        yield waveform[start : start + size]
        start += size


def heard(waveform: np.ndarray, seed: int = 0, largest: int = 1 << 18) -> np.ndarray:
    listener = load_voice().listen()
    found = [listener.hear(block) for block in cut(waveform, seed, largest)]
    return np.concatenate([*found, listener.end()])


def test_probabilities_equal_those_of_onnxruntime() -> None:
    import onnxruntime

    waveform = 4 * recording()[: -FRAME_SAMPLES // 3]  # so that nothing is amplified
    padded = np.pad(waveform, (64, -len(waveform) % FRAME_SAMPLES))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 64 + FRAME_SAMPLES)[::FRAME_SAMPLES]
    session = onnxruntime.InferenceSession(voice.MODEL, providers=["CPUExecutionProvider"])
    zeros = np.zeros(voice.STATE_SHAPE, np.float32)
    expected, *_ = session.run(None, {"input": frames, "h": zeros, "c": zeros})
    found = heard(waveform)
    assert found.shape == expected.shape == (-(-len(waveform) // FRAME_SAMPLES),)
    assert np.abs(found - expected).max() < 2e-5 and found.max() > 0.99 and found.min() < 0.01


def test_soft_recordings_are_heard_too() -> None:
    waveform = recording()
    expected = spans(heard(waveform), len(waveform))
    for gain in (1e-2, 1e-3):
        soft = heard(np.float32(gain) * waveform)
        found = spans(soft, len(waveform))
        assert np.abs(np.subtract(found, expected)).max() <= 4 * FRAME_SAMPLES
    hum = scaled(tones(np.arange(32 * FRAME_SAMPLES) / RATE_HZ, 50), -60)
    behind = heard(np.concatenate([hum, waveform]))
    assert np.abs(behind[-300:] - heard(waveform)[-300:]).max() < 1e-3


def test_who_speaks_is_told_from_what_does_not() -> None:
    signals = dict([*non_speech(4.0), *rhythmic(4.0)])
    assert len(signals) == 43
    assert not [name for name, signal in signals.items() if is_speech(heard(signal))]
    missed = []
    for path in sorted((MINI / "clips").glob("*.mp3"))[::60]:
        waveform, _ = read_audio(path, RATE_HZ)
        power_db = 20 * np.log10(np.sqrt(np.mean(np.square(waveform))))
        loud = scaled(noise(len(waveform), 0), power_db)
        for name, variant in [*variants(waveform), ("0 dB", waveform + loud)]:
            if not is_speech(heard(variant.astype(np.float32))):
                missed.append((path.name, name))
    assert not missed
    assert not is_speech(np.empty(0)) and is_speech(np.full(7, 0.3))


def test_blocks_and_threads_make_no_difference() -> None:
    waveform = recording()
    expected = heard(waveform)
    assert np.array_equal(heard(waveform, 1, 999), expected)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(heard(waveform))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(each, expected) for each in found)
    assert load_voice() is load_voice() and heard(waveform[:0]).shape == (0,)


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(voice.MODEL.read_bytes()[:-1])
    for name, got in (("model.onnx", r"\w{12}\.\.\."), ("absent.onnx", "no file")):
        with pytest.raises(ModelError, match=f"{name}': expected SHA-256 9ccd.*, got {got}"):
            SileroVoice(tmp_path / name)
    source = (voice.MODEL.parent / "SOURCE").read_text()
    assert voice.SHA256 in source and voice.MODEL.name in source
    assert (voice.MODEL.parent / "LICENSE").read_text().startswith("MIT License")
    assert '"runtime/silero/*"' in (PACKAGE.parent / "setup.py").read_text()


def random_case(seed: int) -> tuple[np.ndarray, int, ActivityOptions, int | None]:
    """Probabilities that stay, jump and flicker; samples; options; the longest span."""
    random = np.random.default_rng(seed)
    count, steady = int(random.integers(1, 500)), int(random.integers(1, 40))
    levels = np.repeat(random.random(count // steady + 1), steady)[:count]
    flicker = random.normal(0, random.choice([0.0, 0.1, 0.3]), count)
    probabilities = np.clip(levels + flicker, 0, 1).astype(np.float32)
    options = ActivityOptions(
        float(random.choice([0.3, 0.5, 0.7])), int(random.choice([0, 100, 250])),
        int(random.choice([0, 50, 100, 160, 500, 2000])), int(random.choice([0, 1, 17, 30, 100, 400])),
    )  # fmt: skip
    limit = [None, 2, 3, 8, 30][int(random.integers(5))]
    samples = FRAME_SAMPLES * count - int(random.integers(FRAME_SAMPLES))
    return probabilities, samples, options, None if limit is None else limit * RATE_HZ


def upstream(
    probabilities: np.ndarray, samples: int, options: ActivityOptions, limit: int | None
) -> list[tuple[int, int]]:
    found = get_speech_timestamps_from_probs(
        probabilities.tolist(), threshold=options.threshold,
        min_speech_duration_ms=options.min_speech_ms,
        min_silence_duration_ms=options.min_silence_ms, speech_pad_ms=options.pad_ms,
        max_speech_duration_s=float("inf") if limit is None else limit / RATE_HZ,
        audio_length_samples=samples,
    )  # fmt: skip
    return [(each["start"], each["end"]) for each in found]


def test_spans_equal_those_of_upstream() -> None:
    for seed in range(1000):
        case = random_case(seed)
        assert spans(*case) == upstream(*case), seed
    waveform = recording()
    for silence in (100, 160, 2000):
        for limit in (None, 3 * RATE_HZ, 30 * RATE_HZ):
            options = ActivityOptions(min_silence_ms=silence)
            case = heard(waveform), len(waveform), options, limit
            assert spans(*case) == upstream(*case) and spans(*case)


def test_spans_come_as_soon_as_they_are_decided() -> None:
    for seed in range(300):
        probabilities, samples, options, limit = random_case(seed)
        activity, found = Activity(options, limit), []
        for block in cut(probabilities, seed, 50):
            earliest = activity.earliest
            found += (new := activity.hear(block))
            assert all(span.start >= earliest for span in new)
        earliest = activity.earliest
        found += (new := activity.end(samples))
        assert all(span.start >= earliest for span in new)
        assert found == spans(probabilities, samples, options, limit)
        assert limit is None or all(span.samples <= limit for span in found)
        assert all(span.end <= other.start for span, other in pairwise(found))
    activity = Activity(ActivityOptions())
    assert activity.hear(np.array([1.0] * 50 + [0.0] * 25)) == []
    assert activity.hear(np.zeros(2)) == [Span(0, 50 * FRAME_SAMPLES + 6400)]
    activity.hear(np.zeros(1000))
    assert activity.earliest == 1077 * FRAME_SAMPLES - 6400


def found_pieces(waveform: np.ndarray, limit: int, seed: int = 0) -> list[Piece]:
    blocks = cut(waveform, seed, 50_000)
    return list(pieces(blocks, load_voice(), ActivityOptions(), limit))


@pytest.mark.parametrize("seconds", [2, 8, 30])
def test_pieces_hold_each_sample_of_speech_once(seconds: int) -> None:
    waveform, limit = recording(), seconds * RATE_HZ
    found = found_pieces(waveform, limit)
    expected = spans(heard(waveform), len(waveform), ActivityOptions(), limit)
    assert [span for piece in found for span in piece.spans] == expected and expected
    for piece in found:
        parts = [waveform[start:end] for start, end in piece.spans]
        assert np.array_equal(piece.waveform, np.concatenate(parts))
        assert len(piece.waveform) <= limit
        assert (piece.start, piece.end) == (
            piece.spans[0].start / RATE_HZ,
            piece.spans[-1].end / RATE_HZ,
        )
    for piece, other in pairwise(found):
        is_full = len(piece.waveform) + other.spans[0].samples > limit
        assert is_full or other.start - piece.end > 2
        assert all(b.start - a.end <= 2 * RATE_HZ for a, b in pairwise(piece.spans))
    for seed in (1, 2):
        again = found_pieces(waveform, limit, seed)
        assert [piece.spans for piece in again] == [piece.spans for piece in found]
        assert all(
            np.array_equal(a.waveform, b.waveform) for a, b in zip(again, found, strict=True)
        )


def test_one_long_span_is_split_and_silence_gives_nothing() -> None:
    speech = np.concatenate([recording()[s:e] for s, e in spans(
        heard(recording()), len(recording()), ActivityOptions(pad_ms=0))])  # fmt: skip
    found = found_pieces(speech, 4 * RATE_HZ)
    assert sum(len(piece.waveform) for piece in found) > 0.97 * len(speech) and len(found) > 4
    for silence in (
        np.empty(0, np.float32),
        np.zeros(1, np.float32),
        np.zeros(60 * RATE_HZ, np.float32),
    ):
        assert found_pieces(silence, 8 * RATE_HZ) == []
    with pytest.raises(
        OptionError, match="in max_samples: expected at least 13824 samples, got 13823"
    ):
        found_pieces(speech, 13_823)


@pytest.mark.soak
def test_hours_take_no_more_memory_than_minutes() -> None:
    """Hours of speech, then silence."""
    minute, silence = recording(), np.zeros(1 << 18, np.float32)

    def blocks(count: int) -> Iterator[np.ndarray]:
        for i in range(count):
            yield minute if i < 6 * count // 7 else silence

    def largest(count: int) -> float:
        found = pieces(blocks(count), load_voice(), ActivityOptions(), 30 * RATE_HZ)
        return max(resident_megabytes() or 0.0 for _ in found)

    assert largest(240) - largest(8) < 10


def test_times_of_a_piece_become_those_of_the_recording() -> None:
    piece = Piece(np.zeros(4 * RATE_HZ, np.float32), (Span(16_000, 48_000), Span(80_000, 112_000)))
    assert (piece.start, piece.end, piece.seconds) == (1.0, 7.0, 4.0)
    assert [piece.restore(each) for each in (-1, 0, 1.5, 2, 3, 4, 9)] == [1, 1, 2.5, 5, 6, 7, 7]
    ends = [piece.restore(each, is_end=True) for each in (0, 1.5, 2, 3, 4, 9)]
    assert ends == [1, 2.5, 3, 6, 7, 7]
    assert piece.restore_word(1.5, 2.3) == (2.5, 3.0) and piece.restore_word(1.9, 2.3) == (5.0, 5.3)
    for piece in found_pieces(recording(), 30 * RATE_HZ):
        times = np.linspace(0, piece.seconds, 2000)
        for is_end in (False, True):
            restored = [piece.restore(time, is_end) for time in times]
            assert restored == sorted(restored)
            samples = [round(RATE_HZ * time) for time in restored]
            assert all(any(s <= at <= e for s, e in piece.spans) for at in samples)


def test_speech_that_no_segment_covers() -> None:
    speech = [
        Span(16_000, 80_000),
        Span(80_000, 160_000),
        Span(320_000, 352_000),
        Span(400_000, 416_000),
    ]

    def text(start: float, end: float, text: str = "a") -> Segment:
        return Segment(start, end, text, 0.0, -0.1, 1.0, 0.0)

    assert uncovered(speech, []) == [(1, 10), (20, 22)] and uncovered([], [text(0, 9)]) == []
    assert uncovered(speech, [text(0, 30)]) == uncovered(speech, [text(8, 30), text(0, 9)]) == []
    assert uncovered(speech, [text(3, 4), text(5.9, 30)]) == [(1, 3)]
    assert uncovered(speech, [text(3, 4), text(5.9, 30)], 1.5) == [(1, 3), (4, 5.9)]
    assert uncovered(speech, [text(0, 30, " ")], 1.0) == [(1, 10), (20, 22), (25, 26)]
