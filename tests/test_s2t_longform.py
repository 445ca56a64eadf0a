"""Long recordings for Fairseq S2T models: cut at pauses, decoded in batches, told in order."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MINI

from fairseq_openvino.errors import AudioError, FairseqOpenVINOError, NumericsError
from fairseq_openvino.model import Clip, News, Transcript
from fairseq_openvino.runtime.voice import load_voice
from fairseq_openvino.s2t.longform import follow
from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.recordings import recordings

RATE_HZ = 16_000
CLIPS = [read_audio(path, RATE_HZ)[0] for path in sorted((MINI / "clips").glob("*.mp3"))[:40]]


def talk(clips: list[np.ndarray], pause: tuple[float, float]) -> tuple[np.ndarray, list[float]]:
    """Clips in a quiet room with pauses of so many seconds between them; where each begins."""
    rng = np.random.default_rng(1)
    parts, begins, samples = [], [], 0
    for clip in clips:
        begins.append(samples / RATE_HZ)
        silence = np.zeros(int(rng.uniform(*pause) * RATE_HZ), np.float32)
        parts += [clip, silence]
        samples += len(clip) + len(silence)
    noise = 3e-4 * rng.standard_normal(samples).astype(np.float32)
    return np.concatenate(parts) + noise, begins


@pytest.fixture(scope="module")
def family(recognizer: Any) -> Any:
    """The shipped model's, as if it took 15 s at once, where it takes a minute."""
    found = copy.copy(recognizer.family)
    found.front_end = replace(found.front_end, max_frames=1500)
    return found


def told(
    recognizer: Any, family: Any, items: list[Any], batch_size: int = 8, **options: Any
) -> list[News]:
    def decode(clips: list[Clip]) -> list[Transcript]:
        return list(recognizer.transcribe_clips(clips, **options))

    return list(
        follow(
            items, family.front_end, family.manifest.tokens.eos, load_voice(), decode, batch_size
        )
    )


def transcript(news: News) -> Transcript:
    assert isinstance(news.result, Transcript), news.result
    return news.result


def test_clips_of_a_long_recording_are_found_where_they_are(recognizer: Any, family: Any) -> None:
    clips = CLIPS[:20]
    waveform, begins = talk(clips, (0.6, 1.5))
    *news, last = told(recognizer, family, recordings(waveform, RATE_HZ), beam=1)
    found = transcript(last)
    assert found.seconds == len(waveform) / RATE_HZ > 30
    assert [len(each.segments) for each in news] == [1] * len(clips)
    assert tuple(each.segments[0] for each in news) == found.segments
    assert [each.seconds for each in news] == sorted(each.seconds for each in news)
    pieces = []
    for segment, begin, clip in zip(found.segments, begins, clips, strict=True):
        assert abs(segment.start - begin) < 0.2
        assert abs(segment.end - begin - len(clip) / RATE_HZ) < 0.2
        pieces.append(waveform[round(segment.start * RATE_HZ) : round(segment.end * RATE_HZ)])
    for segment, alone in zip(
        found.segments, recognizer.transcribe_batch(pieces, beam=1), strict=True
    ):
        assert (segment.text, segment.tokens) == (alone.text, tuple(alone.hypotheses[0][1].tokens))
    assert found.text == " ".join(segment.text for segment in found.segments)
    tokens = found.hypotheses[0][1].tokens
    assert (tokens == recognizer.manifest.tokens.eos).sum() == 1


def test_what_fits_the_model_is_decoded_whole(recognizer: Any, family: Any) -> None:
    limit = family.front_end.max_samples
    whole = np.resize(np.concatenate(CLIPS), limit)
    (news,) = told(recognizer, family, recordings(whole, RATE_HZ), beam=1, max_len_b=20)
    assert transcript(news).text == recognizer.transcribe(whole, beam=1, max_len_b=20).text
    assert not transcript(news).segments
    with pytest.raises(AudioError, match="at most 1500 frames"):
        family.front_end(np.append(whole, whole[:1]), RATE_HZ)
    *_, last = told(
        recognizer, family, recordings(np.append(whole, whole[:1]), RATE_HZ), beam=1, max_len_b=20
    )
    assert transcript(last).segments


def test_speech_without_pauses_is_cut_all_the_same(recognizer: Any, family: Any) -> None:
    waveform = np.concatenate(CLIPS)[: 40 * RATE_HZ]
    *_, last = told(recognizer, family, recordings(waveform, RATE_HZ), beam=1, max_len_b=20)
    segments = transcript(last).segments
    assert max(segment.end - segment.start for segment in segments) <= 15.0
    assert sum(segment.end - segment.start for segment in segments) > 35


def test_silence_is_not_decoded(recognizer: Any, family: Any) -> None:
    noise = 1e-3 * np.random.default_rng(0).standard_normal(20 * RATE_HZ).astype(np.float32)
    for waveform in (noise, np.zeros_like(noise)):
        (recording,) = recordings(waveform, RATE_HZ)
        (news,) = follow(
            [recording], family.front_end, family.manifest.tokens.eos, load_voice(), _never, 8
        )
        found = transcript(news)
        assert (found.text, found.segments) == ("", ())
        assert (found.skipped, found.seconds) == ("no speech in the signal", 20.0)
        assert found.hypotheses[0][1].tokens.tolist() == [recognizer.manifest.tokens.eos]


def _never(clips: list[Clip]) -> list[Transcript]:
    raise AssertionError(clips)


def test_results_come_in_order_whatever_the_batch(
    recognizer: Any, family: Any, tmp_path: Path
) -> None:
    waveform, _ = talk(CLIPS[:8], (0.6, 1.5))
    path = tmp_path / "talk.wav"
    path.write_bytes(b"RIFF")

    def items() -> Iterator[Any]:
        yield News("absent.wav", 0.0, 0.0, (), AudioError("absent.wav: no such file"))
        yield recognizer.clip(CLIPS[0], path="clip")
        yield from recordings(waveform, RATE_HZ)
        yield from recordings(path, RATE_HZ)
        yield from recordings(CLIPS[1], RATE_HZ)

    results = []
    for size in (1, 7):
        news = told(recognizer, family, list(items()), size, beam=1)
        results.append([each.result for each in news if each.result is not None])
        names = [each.path for each in news if each.result is not None]
        assert names == ["absent.wav", "clip", "waveform", str(path), "waveform"]
        assert isinstance(results[-1][0], AudioError) and "no such file" in str(results[-1][0])
        assert isinstance(results[-1][3], AudioError) and str(path) in str(results[-1][3])
    texts = [[_content(result) for result in each] for each in results]
    assert texts[0] == texts[1]


def _content(result: Transcript | FairseqOpenVINOError | None) -> tuple[str, list[Any]]:
    if isinstance(result, Transcript):
        return result.text, [(each.start, each.end, each.tokens) for each in result.segments]
    return str(result), []


def test_a_piece_that_fails_fails_its_recording_alone(recognizer: Any, family: Any) -> None:
    waveform, _ = talk(CLIPS[:8], (0.6, 1.5))

    def decode(clips: list[Clip]) -> list[Transcript | FairseqOpenVINOError]:
        found = recognizer.transcribe_clips(clips, beam=1)
        error = NumericsError("not numbers")
        return [error if each.path == "waveform" else each for each in found]

    items = [*recordings(waveform, RATE_HZ), recognizer.clip(CLIPS[0], path="clip")]
    first, second = follow(
        items, family.front_end, family.manifest.tokens.eos, load_voice(), decode, 4
    )
    assert isinstance(first.result, NumericsError)
    assert transcript(second).text == recognizer.transcribe(CLIPS[0], beam=1).text
