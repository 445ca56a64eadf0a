"""Nothing is invented where nobody speaks: the gate, the no-speech rule, and what results say of both."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from conftest import MINI, generate
from whisper_models import OpenAITokenizer, Pair, openai_model

from fairseq_openvino.cli import main
from fairseq_openvino.errors import OptionError
from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.features import log_mel
from fairseq_openvino.whisper.options import WhisperOptions
from fairseq_openvino.whisper.silence import is_speech

RATE_HZ = 16_000
SPEECH = os.environ.get("FAIRSEQ_OPENVINO_SPEECH", "")


def scaled(waveform: np.ndarray, level_db: float) -> np.ndarray:
    """With this root mean square, relative to full scale."""
    power = np.sqrt(np.mean(np.square(waveform)))
    return np.asarray(waveform / max(power, 1e-12) * 10 ** (level_db / 20), np.float32)


def noise(samples: int, slope: float, seed: int = 0) -> np.ndarray:
    """Power falls with frequency ** slope: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(samples))
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / RATE_HZ), 20.0)
    return np.asarray(np.fft.irfft(spectrum * frequency ** (-slope / 2), samples))


def tones(time: np.ndarray, *pitches_hz: float, harmonics: int = 1) -> np.ndarray:
    parts = [
        np.sin(2 * np.pi * pitch * k * time + k) / k**1.5
        for pitch in pitches_hz
        for k in range(1, harmonics + 1)
    ]
    return np.asarray(sum(parts))


def non_speech(seconds: float) -> Iterator[tuple[str, np.ndarray]]:
    """40 signals that nobody would take for speech."""
    samples = int(seconds * RATE_HZ)
    time, random = np.arange(samples) / RATE_HZ, np.random.default_rng(0)
    for name, slope in (("white", 0), ("pink", 1), ("brown", 2)):
        for level_db in (-60, -45, -30, -20, -10):
            yield f"{name} {level_db} dB", scaled(noise(samples, slope), level_db)
    for name, wave in {
        "zeros": 0 * time, "offset": 0.1 + 0 * time,
        "dither": random.integers(-1, 2, samples) / 32768,
    }.items():  # fmt: skip
        yield name, wave.astype(np.float32)
    hiss, clicks, rare = random.standard_normal(samples), 0 * time, 0 * time
    clicks[:: RATE_HZ // 2], rare[::RATE_HZ] = 1, 1
    rows, columns = random.choice([697, 770, 852, 941], 99), random.choice([1209, 1336, 1477], 99)
    key = np.minimum((time / 0.2).astype(int), 98)
    notes = 220 * 2 ** (random.integers(0, 13, 199) / 12)[(time / 0.25).astype(int)]
    decay = np.exp(-6 * (time % 0.25))
    for name, wave in {
        "hum 50 Hz": tones(time, 50), "hum with harmonics": tones(time, 50, harmonics=7),
        "hum and hiss": tones(time, 60) + 0.05 * hiss, "150 Hz": tones(time, 150, harmonics=3),
        "440 Hz": tones(time, 440), "1 kHz": tones(time, 1000), "3 kHz": tones(time, 3000),
        "sweep": np.sin(np.pi * 5900 / seconds * time**2 + 600 * time),
        "logarithmic sweep": np.sin(np.exp(np.linspace(0, 5, samples)) * 50 * seconds),
        "siren": np.sin(2 * np.pi * (900 * time - 127 * np.cos(np.pi * time))),
        "two tones": tones(time, 440, 480), "ringing": tones(time, 440, 480) * (time % 6 < 2),
        "busy": tones(time, 425) * (time % 1 < 0.5), "clicks": clicks, "clicks and hiss": rare + 0.002 * hiss,
        "keys": (np.sin(2 * np.pi * rows[key] * time) + np.sin(2 * np.pi * columns[key] * time))
        * (time % 0.2 < 0.1),
        "chord": tones(time, 261.6, 329.6, 392, harmonics=6), "high chord": tones(time, 523, 659, 784),
        "sines": tones(time, 440, 550, 660), "melody": sum(
            np.sin(2 * np.pi * np.cumsum(k * notes) / RATE_HZ) / k for k in range(1, 7)) * decay,
        "struck chord": tones(time, 220, 261.6, 329.6, harmonics=8) * np.exp(-3 * (time % 1.25)),
        "organ": tones(time, 110, 220, 277.2, harmonics=8),
    }.items():  # fmt: skip
        yield name, scaled(wave, -20)


def rhythmic(seconds: float) -> Iterator[tuple[str, np.ndarray]]:
    """Noise that swells as syllables do: the gate leaves it to the model."""
    samples = int(seconds * RATE_HZ)
    time, hiss = np.arange(samples) / RATE_HZ, noise(samples, 0)
    yield "syllables", scaled(hiss * (1 + np.sin(2 * np.pi * 4 * time)), -20)
    yield "surf", scaled(noise(samples, 1) * (1.1 + np.sin(2 * np.pi * 0.2 * time)), -20)
    yield "steps", scaled(hiss * (np.exp(-64 * (time % 0.55)) * (time % 0.55 < 0.1) + 0.01), -30)


def frames(waveform: np.ndarray, bins: int = 80) -> np.ndarray:
    return log_mel(waveform, bins, 3000)[: len(waveform) // 160]


@pytest.mark.parametrize(("seconds", "bins"), [(3.0, 80), (4.0, 128)])
def test_what_cannot_be_speech(seconds: float, bins: int) -> None:
    signals = dict(non_speech(seconds))
    assert len(signals) == 40
    assert not [name for name, wave in signals.items() if is_speech(frames(wave, bins))]


def variants(waveform: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """A recording of speech, and the same as it may arrive."""
    size = len(waveform)
    power_db = 20 * np.log10(np.sqrt(np.mean(np.square(waveform))))
    narrow = soxr.resample(soxr.resample(waveform, RATE_HZ, 8000), 8000, RATE_HZ)[:size]
    hum = tones(np.arange(size) / RATE_HZ, 50, harmonics=7)
    padded = np.zeros(30 * RATE_HZ, np.float32)
    padded[-size:] = waveform
    yield "as it is", waveform
    yield "-40 dB, 16 bits", np.round(0.01 * waveform * 32768) / 32768
    yield "white noise at 10 dB", waveform + scaled(noise(size, 0), power_db - 10)
    yield "pink noise at 5 dB", waveform + scaled(noise(size, 1), power_db - 5)
    yield "8 kHz", narrow
    yield "8 kHz and noise", narrow + scaled(noise(size, 0), power_db - 10)
    yield "hum at 0 dB", waveform + scaled(hum, power_db)
    yield "behind silence", padded
    yield "behind noise", padded + scaled(noise(len(padded), 0), power_db - 10)


def dropped(paths: list[Path]) -> list[tuple[str, str]]:
    found = []
    for path in paths:
        waveform, _ = read_audio(path, RATE_HZ)
        for name, variant in variants(waveform[: 30 * RATE_HZ]):
            if not is_speech(frames(variant.astype(np.float32))):
                found.append((path.name, name))
    return found


def test_speech_is_never_taken_for_silence() -> None:
    assert not dropped(sorted((MINI / "clips").glob("*.mp3"))[::40])
    assert is_speech(frames(noise(RATE_HZ, 0).astype(np.float32)))  # too short to be judged


@pytest.mark.soak
@pytest.mark.skipif(not SPEECH, reason="no speech named")
def test_real_speech_is_never_taken_for_silence() -> None:
    """Every clip of the user's corpus that libsndfile reads."""
    with open(SPEECH, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    paths = [Path(SPEECH).parent / row["path"] for row in rows if not row["path"].endswith(".m4a")]
    assert len(paths) > 100 and not dropped(paths)


class Undecodable:
    """A model that must not be asked."""

    def encode(self, *_: Any) -> None:
        raise AssertionError


def test_silence_has_no_text_and_is_not_decoded(multilingual: Pair) -> None:
    model, signals = multilingual.model, dict(non_speech(2.0))
    clips = [model.clip(signals[name], RATE_HZ) for name in ("zeros", "white -20 dB", "chord")]
    found = model.family.decode(Undecodable(), clips, WhisperOptions(prefix="ab"))
    for each in found:
        ((text, hypothesis),) = each.hypotheses
        assert each.text == text == "" and hypothesis.tokens.tolist() == [model.family.eos]
        assert each.skipped == "no speech in the signal" and each.segments == ()
        assert each.language is None and each.no_speech_probability is None
    spoken, options = multilingual.clips[0], {"beam": 2, "timestamps": True, "language": "en"}
    together = model.transcribe_clips([clips[0], spoken, clips[1]], **options)
    alone = model.transcribe_clips([spoken], **options)[0]
    assert [bool(each.segments) for each in together] == [False, True, False]
    assert together[1].segments == alone.segments and alone.skipped is None
    heard = model.transcribe_clips(clips, skip_silence=False, max_tokens=5)
    assert all(len(each.hypotheses[0][1].tokens) == 5 for each in heard)


@pytest.mark.parametrize(
    "options", [{"beam": 1}, {"beam": 3, "timestamps": True}, {"temperature": 0.5},
                {"beam": 1, "prefix": "ab"}], ids=str,
)  # fmt: skip
def test_no_speech_rule(multilingual: Pair, options: dict[str, Any]) -> None:
    clip, model = multilingual.clips[0], multilingual.model
    (kept,) = model.transcribe_clips([clip], **options)
    probability = kept.no_speech_probability
    for no_speech, logprob, skipped in (
        (0.0, None, True), (0.0, 0.0, True), (0.0, -99.0, False), (None, 0.0, False),
        (min(probability + 1e-4, 1.0), 0.0, False),
    ):  # fmt: skip
        (found,) = model.transcribe_clips(
            [clip], no_speech_threshold=no_speech, logprob_threshold=logprob, **options
        )
        assert found.no_speech_probability == pytest.approx(probability, abs=1e-6)
        assert found.language == kept.language and (found.skipped is not None) == skipped
        if skipped:
            assert found.text == "" and found.segments == ()
            assert "no-speech probability 0.00, average log-probability -" in found.skipped
        else:
            assert found.text == kept.text and found.segments == kept.segments


@pytest.mark.parametrize(
    "options", [{"no_speech_threshold": 1.5}, {"no_speech_threshold": np.nan},
                {"logprob_threshold": np.nan}],
)  # fmt: skip
def test_thresholds_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"in {next(iter(options))}: expected"):
        WhisperOptions(**options)


@pytest.fixture(scope="module")
def openai(multilingual: Pair) -> Any:
    return openai_model(multilingual.original)


@pytest.mark.parametrize("prompt", [None, "Mr. Quilter"])
@pytest.mark.parametrize("timestamps", [False, True])
def test_what_is_said_of_a_window_equals_openai_whisper(
    multilingual: Pair, openai: Any, timestamps: bool, prompt: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import torch
    import whisper

    tokenizer, limit = OpenAITokenizer(multilingual), 20
    monkeypatch.setattr(whisper.decoding, "get_tokenizer", lambda *_, **__: tokenizer)
    options = whisper.DecodingOptions(
        language="en", without_timestamps=not timestamps, fp16=False, sample_len=limit,
        prompt=prompt, suppress_tokens=list(multilingual.config.suppressed),
        max_initial_timestamp=15.0,  # index 50, as it takes the window for 30 s
    )  # fmt: skip
    found = multilingual.model.transcribe_clips(
        multilingual.clips, beam=1, language="en", timestamps=timestamps, prompt=prompt,
        max_tokens=limit,
    )  # fmt: skip
    for clip, ours in zip(multilingual.clips, found, strict=True):
        expected = whisper.decode(openai, torch.from_numpy(clip.features.T.copy()), options)
        assert ours.no_speech_probability == pytest.approx(expected.no_speech_prob, abs=1e-6)
        (_, hypothesis), *_ = ours.hypotheses
        count = len(expected.tokens) if timestamps is False else 0
        if not timestamps:
            assert hypothesis.tokens[:count].tolist() == expected.tokens
        for segment in ours.segments[:1]:
            assert segment.temperature == expected.temperature == 0
            for name in ("avg_logprob", "compression_ratio", "no_speech_prob"):
                assert getattr(segment, name) == pytest.approx(getattr(expected, name), abs=1e-4)


def test_detected_languages_equal_openai_whisper(multilingual: Pair, openai: Any) -> None:
    import torch
    import whisper

    model, tokenizer = multilingual.model, OpenAITokenizer(multilingual)
    expected = []
    for wave, clip in zip(multilingual.waveforms, multilingual.clips, strict=True):
        mel = torch.from_numpy(clip.features.T.copy())
        _, shares = whisper.decoding.detect_language(openai, mel, tokenizer)
        found = model.detect_language(wave)
        assert found == pytest.approx(shares, abs=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        expected.append(shares)
    whole = [np.pad(wave, (0, 2 * RATE_HZ - len(wave))) for wave in multilingual.waveforms]
    silence = np.zeros(4 * RATE_HZ, np.float32)
    long = np.concatenate([silence, *whole, silence])
    assert model.detect_language(long) == pytest.approx(expected[0], abs=1e-3)
    mean = {code: np.mean([shares[code] for shares in expected]) for code in expected[0]}
    for windows in (3, 9):
        assert model.detect_language(long, windows=windows) == pytest.approx(mean, abs=1e-3)
    assert model.detect_language(silence) == {}


def test_detect_language_command(
    multilingual: Pair, mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speech, silence = tmp_path / "speech.wav", tmp_path / "silence.wav"
    soundfile.write(speech, np.tile(multilingual.waveforms[0], 3), RATE_HZ, subtype="FLOAT")
    soundfile.write(silence, np.zeros(RATE_HZ), RATE_HZ)
    files = [str(speech), str(tmp_path / "absent.wav"), str(silence)]
    words = ["detect-language", *files, "--windows", "2"]
    assert main([*words, "--model", str(multilingual.bundle.directory)]) == 1
    printed = capsys.readouterr()
    assert "absent.wav" in printed.err and "1 of 3 files failed" in printed.err
    first, second = printed.out.splitlines()
    path, *columns = first.split("\t")
    expected = multilingual.model.detect_language(speech, windows=2)
    assert path == files[0] and second == files[2] and len(columns) == 10
    assert columns[0] == next(iter(expected)) and columns[::2] == list(expected)[:5]
    assert float(columns[1]) == pytest.approx(expected[columns[0]], abs=1e-4)
    options = ["--model", str(multilingual.bundle.directory), "--format", "jsonl"]
    assert main(["detect-language", files[0], files[2], *options, "--windows", "2"]) == 0
    spoken, silent = map(json.loads, capsys.readouterr().out.splitlines())
    assert spoken["language_probabilities"] == expected and spoken["language"] == columns[0]
    assert silent["language"] is None
    assert main([*words[:-1], "0", *options]) == 2
    assert "in --windows: expected at least 1" in capsys.readouterr().err
    assert main(["detect-language", files[0], "--model", str(mini_bundle)]) == 2


def test_empty_results_are_lines(
    multilingual: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, bundle = tmp_path / "silence.wav", str(multilingual.bundle.directory)
    soundfile.write(path, np.zeros(RATE_HZ), RATE_HZ)
    words = ["transcribe", str(path), "--model", bundle, "--timestamps"]
    assert main(words) == 0 and capsys.readouterr().out == f"{path}\t\n"
    assert main([*words, "--format", "jsonl"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["text"] == "" and line["segments"] == [] and "no speech" in line["skipped"]
    assert "language" not in line and "no_speech_probability" not in line
    options = ["--no-skip-silence", "--no-speech-threshold", "none", "--logprob-threshold", "none"]
    assert main([*words, *options, "--format", "jsonl"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert "skipped" not in line
    assert {"temperature", "avg_logprob", "compression_ratio", "no_speech_prob"} < set(
        line["segments"][0]
    )
    (tmp_path / "test.tsv").write_text(f"id\taudio\ttgt_text\na\t{path}\tthe dog\n")
    run = generate(
        tmp_path, "--task", "speech_to_text_openvino", "--ov-engine", "--beam", "2", "--nbest", "2",
        "--scoring", "wer", path=bundle,
    )  # fmt: skip
    ((hypothesis,),) = run.hypotheses.values()
    assert hypothesis.text == "" and hypothesis.score == 0 and "100" in str(run.metric)
