"""Recordings of real speech, sequentially: tokens of transformers, segments and words of openai-whisper.

Real weights and speech are those of `test_whisper_real`; recordings in `long/` beside the TSV count too.
Where transformers' rules differ from openai-whisper's, which are ours, the reference is changed:

| what                                        | here                                         |
|---------------------------------------------|----------------------------------------------|
| thresholds and fallback, off by default     | off in ours                                  |
| reflected samples at the end of the audio   | it is given openai-whisper's log-mel values  |
| a second timestamp that ends a window       | dropped, as it does itself in prompts        |
| segments without text or duration are kept  | dropped; none come up in prompts here        |
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from test_whisper_mini import MINI
from test_whisper_mini import rows as mini_rows
from test_whisper_real import SOURCES, SPEECH
from whisper_models import openai_model

from fairseq_openvino import load_model
from fairseq_openvino.speech.audio import read_audio

sys.path.insert(0, str(ROOT / "scripts"))
from recordings import Recording, join, read_clips, whole  # noqa: E402

RATE_HZ, HOP = 16_000, 160
JOINED_SECONDS = 95.0
PLAIN: dict[str, Any] = {
    "language": "en", "timestamps": True, "temperature": 0.0, "skip_silence": False,
}  # fmt: skip
"""The search alone, as both references have it."""
NO_RULES: dict[str, Any] = dict.fromkeys(
    ("no_speech_threshold", "logprob_threshold", "compression_ratio_threshold")
)
CLOSE_CALL = 1e-3
"""Log-probability between the first and the second choice of a reference that may go either way."""
WORD_SECONDS, WORD_SHARE = 0.02, 0.99

real = pytest.mark.skipif(not SOURCES or not SPEECH, reason="no weights or no speech named")


def segments_of(text: Any, found: Sequence[tuple[float, float, Sequence[int]]]) -> list[Any]:
    """Those that are reported: with text and duration."""
    return [each for each in found if each[0] != each[1] and text(each[2]).strip()]


class Margins:
    """A logits processor that notes by how much each greedy choice is the best one."""

    def __init__(self) -> None:
        self.windows: list[dict[int, float]] = []
        self._before: list[int] | None = None

    def __call__(self, tokens: Any, scores: Any) -> Any:
        now = tokens[0].tolist()
        if now[:-1] != self._before:
            self.windows.append({})
        self._before = now
        first, second = scores[0].topk(2).values.tolist()
        self.windows[-1][len(now)] = first - second
        return scores


class Reference:
    """A transformers model, with what its `generate` makes of whole recordings."""

    def __init__(self, source: Path) -> None:
        import torch

        from fairseq_openvino.compat.transformers import transformers

        self.original: Any = transformers.WhisperForConditionalGeneration.from_pretrained(
            source, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.first_timestamp = self.original.generation_config.no_timestamps_token_id + 1

    def segments(
        self, path: str, beam: int, conditioned: bool
    ) -> tuple[list[tuple[float, float, list[int]]], list[list[float]]]:
        """Start, end and tokens of each, and the margins of the tokens."""
        import torch
        import whisper

        config, generation = self.original.config, self.original.generation_config
        waveform, _ = read_audio(path, RATE_HZ)
        padding = 2 * config.max_source_positions * HOP
        features = whisper.log_mel_spectrogram(waveform, config.num_mel_bins, padding)
        margins, windows = Margins(), dict[int, int]()
        named = {"language": "en", "task": "transcribe"} if generation.is_multilingual else {}
        with torch.inference_mode():
            found = self.original.generate(
                features[None, :, : len(waveform) // HOP], num_beams=beam, do_sample=False,
                temperature=0.0, return_timestamps=True, return_segments=True,
                condition_on_prev_tokens=conditioned,
                logits_processor=[margins] if beam == 1 else None, **named,
            )["segments"][0]  # fmt: skip
        segments, close = [], []
        for each in found:
            tokens, (begin, _) = each["tokens"].tolist(), each["idxs"]
            if len(tokens) > 2 and tokens[-2] >= self.first_timestamp:
                tokens = tokens[:-1]
            noted = windows.setdefault(id(each["result"]), len(windows))
            steps = margins.windows[noted] if beam == 1 else {}
            segments.append((float(each["start"]), float(each["end"]), tokens))
            close.append([steps.get(begin + i, np.inf) for i in range(len(tokens))])
        return segments, close


def assert_tokens_equal_transformers(
    model: Any, reference: Reference, path: str, beam: int, conditioned: bool
) -> None:
    expected, margins = reference.segments(path, beam, conditioned)
    found = model.transcribe(
        path, beam=beam, condition_on_previous_text=conditioned, **PLAIN, **NO_RULES
    )
    ours = [token for each in found.segments for token in each.tokens]
    shown = segments_of(model.family.vocabulary.text, expected)
    theirs = [token for each in shown for token in each[2]]
    close = [
        margin
        for each, noted in zip(expected, margins, strict=True)
        if each in shown
        for margin in noted
    ]
    different = [i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]]
    first = different[0] if different else min(len(ours), len(theirs))
    if ours != theirs:
        where = f"{path}: token {first} of {len(theirs)}, {ours[first - 3 : first + 3]} instead of "
        close_call = first < len(close) and close[first] < CLOSE_CALL
        print(f"{where}{theirs[first - 3 : first + 3]}, close: {close[first : first + 1]}")
        assert close_call, where
        return
    times = np.array([(each.start, each.end) for each in found.segments])
    assert np.abs(times - np.array([each[:2] for each in shown])).max() < 0.011


@pytest.fixture(scope="module")
def mini(
    micro_whisper: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Reference, Recording]:
    """The shipped micro-Whisper, whose window is 8 s, and shipped clips joined."""
    rows = [
        {"path": str(MINI / row["path"]), "transcript": row["text"]} for row in mini_rows("en")[:24]
    ]
    joined = join(rows, tmp_path_factory.mktemp("joined") / "joined.wav", seed=1)
    return load_model(micro_whisper), Reference(MINI), joined


@pytest.mark.parametrize("beam", [1, pytest.param(5, marks=pytest.mark.soak)])
@pytest.mark.parametrize("conditioned", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_the_shipped_model_on_joined_clips(
    mini: tuple[Any, Reference, Recording], beam: int, conditioned: bool
) -> None:
    model, reference, joined = mini
    assert joined.seconds > 60
    assert_tokens_equal_transformers(model, reference, joined.path, beam, conditioned)


class Weights:
    """Real weights in ours and both references, and recordings of people."""

    def __init__(self, source: Path, directory: Path) -> None:
        from fairseq_openvino.export.whisper import export_whisper

        export_whisper(source, directory / "bundle")
        self.model: Any = load_model(directory / "bundle")
        self.reference = Reference(source)
        self.openai: Any = openai_model(self.reference.original)
        self.joined = [
            join(_of_length(rows), directory / f"{speaker}.wav", seed)
            for seed, (speaker, rows) in enumerate([*read_clips(Path(SPEECH)).items()][:3])
        ]
        long = sorted((Path(SPEECH).parent / "long").glob("*.mp3"))
        self.long = [whole(path, directory) for path in long]
        self.paths = [each.path for each in (*self.joined, *self.long)]


def _of_length(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Clips, some of them twice, of about JOINED_SECONDS with the pauses."""
    rows = [*rows, *rows]
    sums = np.cumsum([float(row["seconds"]) + 1.0 for row in rows])
    return rows[: int(np.searchsorted(sums, JOINED_SECONDS)) + 1]


@pytest.fixture(scope="module", params=SOURCES, ids=lambda path: path.parent.name)
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Weights(request.param.parent, tmp_path_factory.mktemp("long"))


@real
@pytest.mark.soak
@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("conditioned", [True, False])
def test_tokens_equal_transformers(weights: Weights, beam: int, conditioned: bool) -> None:
    for path in weights.paths:
        assert_tokens_equal_transformers(weights.model, weights.reference, path, beam, conditioned)


def openai_segments(weights: Weights, path: str, **options: Any) -> list[dict[str, Any]]:
    """Those of `whisper.transcribe` that have text and duration."""
    waveform, _ = read_audio(path, RATE_HZ)
    found = weights.openai.transcribe(
        waveform, language="en", temperature=0.0, fp16=False, **options
    )["segments"]
    return [each for each in found if each["text"].strip() and each["start"] != each["end"]]


@real
@pytest.mark.soak
@pytest.mark.parametrize("conditioned", [True, False])
def test_segments_equal_openai_whisper(weights: Weights, conditioned: bool) -> None:
    for path in weights.paths:
        expected = openai_segments(weights, path, condition_on_previous_text=conditioned)
        found = weights.model.transcribe(
            path, beam=1, condition_on_previous_text=conditioned, **PLAIN
        ).segments
        assert [each.text for each in found] == [each["text"].strip() for each in expected], path
        for ours, theirs in zip(found, expected, strict=True):
            assert [*ours.tokens] == theirs["tokens"] and ours.seek == theirs["seek"]
            assert (ours.start, ours.end) == pytest.approx(
                (theirs["start"], theirs["end"]), abs=0.011
            )
            for name in ("avg_logprob", "compression_ratio", "no_speech_prob", "temperature"):
                assert getattr(ours, name) == pytest.approx(theirs[name], abs=1e-3), path


@real
@pytest.mark.soak
def test_words_equal_openai_whisper(weights: Weights) -> None:
    distances, count = list[float](), 0
    for path in weights.paths:
        expected = openai_segments(weights, path, word_timestamps=True)
        found = weights.model.transcribe(path, beam=1, word_timestamps=True, **PLAIN)
        ours = [word for each in found.segments for word in each.words]
        theirs = [word for each in expected for word in each["words"]]
        assert [each.word for each in ours] == [each["word"] for each in theirs], path
        for a, b in zip(ours, theirs, strict=True):
            distance = max(abs(a.start - b["start"]), abs(a.end - b["end"]))
            assert abs(a.probability - b["probability"]) < 0.01
            distances.append(distance)
            if distance > WORD_SECONDS + 1e-6:
                count += 1
                print(f"{Path(path).name}: {a} instead of {b['start']:.2f} to {b['end']:.2f}")
        assert np.all(np.diff([each.start for each in ours]) >= 0)
        assert all(0 <= each.start <= each.end <= found.seconds for each in ours)
    print(f"{count} of {len(distances)} words are more than {WORD_SECONDS} s away")
    assert count <= (1 - WORD_SHARE) * len(distances)


@real
@pytest.mark.soak
def test_first_words_follow_the_joins(weights: Weights) -> None:
    """In recordings whose joins are known exactly; those of the last clips are as good as the first."""
    from longform_report import first_words, timed_words

    errors: list[list[float]] = []
    if not weights.long:
        pytest.skip("no long/ beside the speech")
    for recording in weights.long:
        found = weights.model.transcribe(recording.path, beam=1, word_timestamps=True, **PLAIN)
        words = [[(word.start, word.word) for word in each.words] for each in found.segments]
        begun = first_words(
            [part.text for part in recording.parts],
            timed_words([{"words": each} for each in words]),
        )
        pairs = zip(recording.parts, begun, strict=True)
        errors.append([abs(start - part.onset) for part, start in pairs if start is not None])
    distances = [error for each in errors for error in each]
    halves = [
        np.median([error for each in errors for error in half(each)])
        for half in (lambda each: each[: len(each) // 2], lambda each: each[len(each) // 2 :])
    ]
    print(f"{len(distances)} joins: median {np.median(distances):.2f} s, 90 % within "
          f"{np.percentile(distances, 90):.2f} s, halves {halves[0]:.2f} and {halves[1]:.2f}")  # fmt: skip
    assert np.median(distances) <= 0.3 and halves[1] <= halves[0] + 0.1


@real
@pytest.mark.soak
def test_chunks_hear_the_same(weights: Weights) -> None:
    """WER of pieces near that of the sequence; the text does not depend on how many go together."""
    from fairseq_openvino.metrics import score, whisper_normalizer

    normalizer, texts = whisper_normalizer("en"), dict[str, list[str]]()
    for recording in weights.joined:
        sequential, alone = (
            weights.model.transcribe(recording.path, beam=1, language="en", chunked=chunked)
            for chunked in (False, True)
        )
        (*_, together) = weights.model.follow(
            [recording.path], batch_size=8, beam=1, language="en", chunked=True
        )
        assert together.result.text == alone.text
        for name, each in (("sequential", sequential), ("chunked", alone)):
            texts.setdefault(name, []).append(each.text)
    references = [" ".join(part.text for part in each.parts) for each in weights.joined]
    rates = {name: score(references, each, "wer", normalizer).value for name, each in texts.items()}
    print(rates)
    assert rates["chunked"] <= rates["sequential"] + 1.5
