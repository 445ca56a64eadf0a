"""Audio to transcripts: features, batches, arrays, clips that fail, and equality with the plugin."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import MINI, generate, mini_data

from fairseq_openvino import load_model
from fairseq_openvino.errors import (
    AudioError,
    BatchError,
    CheckpointError,
    ModelError,
    NumericsError,
    OptionError,
    UtteranceTooLongError,
)
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.speech.frontend import FilterBanks

CLIPS = sorted((MINI / "clips").glob("*.mp3"))


def test_features_equal_fairseqs_dataset(recognizer: Any) -> None:
    from fairseq.data.audio.audio_utils import get_features_or_waveform
    from fairseq.data.audio.feature_transforms.utterance_cmvn import UtteranceCMVN

    import fairseq_openvino.tasks.speech_to_text_openvino  # noqa: F401  audio shims

    for clip in CLIPS[:20]:
        expected = UtteranceCMVN()(get_features_or_waveform(str(clip)))
        read = recognizer.read(clip)
        found, seconds = read.features, read.seconds
        assert found.shape == expected.shape and seconds > 0.3
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_hypotheses_equal_the_plugins(recognizer: Any, mini_bundle: Path, tmp_path: Path) -> None:
    flags = ("--batch-size", "1", "--beam", "5", "--nbest", "3")
    run = generate(mini_data(tmp_path, CLIPS[:24]), *flags, path=str(mini_bundle))
    found = recognizer.transcribe_batch(CLIPS[:24], beam=5, nbest=3)
    for i, transcript in enumerate(found):
        lines = run.hypotheses[i]
        assert [text for text, _ in transcript.hypotheses] == [line.text for line in lines]
        for (_, hypothesis), line in zip(transcript.hypotheses, lines, strict=True):
            assert abs(hypothesis.score - line.score) < 1e-3


def test_results_do_not_depend_on_the_batch(recognizer: Any) -> None:
    together = recognizer.transcribe_batch(CLIPS[:12], nbest=5)
    for path, transcript in zip(CLIPS[:12], together, strict=True):
        alone = recognizer.transcribe(path, nbest=5)
        assert [h.tokens.tolist() for _, h in alone.hypotheses] == [
            h.tokens.tolist() for _, h in transcript.hypotheses
        ]
        assert abs(alone.score - transcript.score) < 1e-4


def test_resampled_audio_gives_nearly_the_same_features(recognizer: Any, tmp_path: Path) -> None:
    waveform, rate = soundfile.read(CLIPS[0], dtype="float32")
    import soxr

    up = soxr.resample(waveform, rate, 44_100)
    soundfile.write(tmp_path / "up.wav", np.stack([up, up], 1), 44_100, subtype="FLOAT")
    transcript = recognizer.transcribe(tmp_path / "up.wav")
    assert transcript.text == recognizer.transcribe(CLIPS[0]).text


def test_arrays_and_files_of_the_same_samples_give_the_same_result(
    recognizer: Any, tmp_path: Path
) -> None:
    import soxr

    waveform, rate = soundfile.read(CLIPS[0], dtype="float32")
    for rate_hz in (rate, 44_100, 8_000):
        samples = np.clip(soxr.resample(waveform, rate, rate_hz) * 2**15, -(2**15), 2**15 - 1)
        array = samples.astype(np.int16)
        soundfile.write(tmp_path / "same.wav", array, rate_hz)
        clip, file = recognizer.clip(array, rate_hz), recognizer.read(tmp_path / "same.wav")
        assert np.array_equal(clip.features, file.features) and clip.seconds == file.seconds
        found = recognizer.transcribe(array, rate_hz, beam=2)
        assert found.text == recognizer.transcribe(tmp_path / "same.wav", beam=2).text
    assert np.array_equal(
        recognizer.clip(waveform).features, recognizer.clip(waveform, rate).features
    )
    assert recognizer.transcribe(waveform.tolist()).text == recognizer.transcribe(CLIPS[0]).text
    with open(CLIPS[0], "rb") as file:
        assert recognizer.transcribe(file).text == recognizer.transcribe(CLIPS[0]).text
    with pytest.raises(AudioError, match=r"got \(9, 2\)"):
        recognizer.transcribe(np.zeros((9, 2)))
    with pytest.raises(OptionError, match="sample_rate_hz"):
        recognizer.transcribe(CLIPS[0], 16_000)
    with pytest.raises(OptionError, match="in beams: expected an option of the model family 's2t'"):
        recognizer.transcribe(CLIPS[0], beams=3)


def test_one_clip_that_fails_loses_no_other(
    recognizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At every stage: reading, features, numbers of the model, and anything at all."""
    expected = [each.text for each in recognizer.transcribe_batch(CLIPS[:3], beam=2)]
    paths = [tmp_path / f"{name}.wav" for name in ("nan", "bug", "short")]
    for path, samples in zip(paths, (4000, 4001, 99), strict=True):
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, samples), 16_000)
    front_end, encode = FilterBanks.__call__, CompiledModel.encode

    def broken(self: Any, waveform: np.ndarray, rate_hz: int) -> np.ndarray:
        found = front_end(self, waveform, rate_hz)
        return {4000: found * np.float32(np.nan), 4001: found * 0 + 7}.get(len(waveform), found)

    def fails(self: Any, features: np.ndarray, *rest: Any) -> Any:
        if (features == 7).all():
            raise KeyError("a bug")
        return encode(self, features, *rest)

    monkeypatch.setattr(FilterBanks, "__call__", broken)
    monkeypatch.setattr(CompiledModel, "encode", fails)
    audios = [CLIPS[0], paths[0], CLIPS[1], paths[1], tmp_path / "absent.wav", paths[2], CLIPS[2]]
    with caplog.at_level("DEBUG"), pytest.raises(BatchError, match="4 of 7 clips") as caught:
        recognizer.transcribe_batch(audios, beam=2)
    results = caught.value.results
    assert [results[i].text for i in (0, 2, 6)] == expected
    assert isinstance(results[1], NumericsError) and "nan.wav: Decoding failed" in str(results[1])
    assert "'bug.wav'" not in str(results[3]) and "got KeyError: 'a bug'" in str(results[3])
    assert str(paths[1]) in str(results[3]) and 'raise KeyError("a bug")' in caplog.text
    assert "absent.wav" in str(results[4]) and "short.wav" in str(results[5])
    with pytest.raises(OptionError, match="in nbest: "):  # not a clip's failure
        recognizer.transcribe_batch(audios, beam=2, nbest=3)


def test_a_damaged_file_says_so_in_its_transcript(recognizer: Any, tmp_path: Path) -> None:
    waveform, rate = soundfile.read(CLIPS[0], dtype="float32")
    soundfile.write(tmp_path / "whole.wav", waveform, rate)
    content = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[:-8000])
    whole, cut = recognizer.transcribe_batch([tmp_path / "whole.wav", tmp_path / "cut.wav"])
    assert whole.damage is None and cut.damage.startswith("0.25 s of ")


def test_too_short_too_long_and_empty_audio(recognizer: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(100, np.float32), 16_000)
    with pytest.raises(AudioError, match=r"short.wav.*25 ms"):
        recognizer.transcribe(tmp_path / "short.wav")
    soundfile.write(tmp_path / "long.flac", np.zeros(16_000 * 61, np.int16), 16_000)
    with pytest.raises(UtteranceTooLongError, match=r"long.flac.*6000 frames"):
        recognizer.read(tmp_path / "long.flac")
    assert recognizer.transcribe(tmp_path / "long.flac").skipped == "no speech in the signal"
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(AudioError, match=r"empty.wav"):
        recognizer.transcribe(tmp_path / "empty.wav")
    frame = np.random.default_rng(0).standard_normal(16 * 26).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "frame.wav", frame, 16_000)
    assert recognizer.transcribe(tmp_path / "frame.wav").score < 0  # one frame is enough to decode


def test_bad_options_and_features(recognizer: Any) -> None:
    with pytest.raises(OptionError, match="in nbest: "):
        recognizer.transcribe(CLIPS[0], beam=2, nbest=3)
    with pytest.raises(OptionError, match="in language: "):
        recognizer.transcribe(CLIPS[0], language="fr")
    with pytest.raises(OptionError, match="in beam: "):
        recognizer.transcribe(CLIPS[0], beam=0)
    with pytest.raises(ModelError, match="features"):
        recognizer.model.encode(np.zeros((1, 50, 40), np.float32), np.array([50]))
    with pytest.raises(OptionError, match="in precision: "):
        load_model(recognizer.bundle, precision="f8")
    with pytest.raises(CheckpointError, match="manifest.json of a bundle"):
        load_model(MINI)


def test_options_of_reading_are_keywords_too(recognizer: Any) -> None:
    first, second = (soundfile.read(clip, dtype="float32") for clip in CLIPS[:2])
    samples = np.zeros((max(len(first[0]), len(second[0])), 3), np.float32)  # the last is silent
    samples[: len(first[0]), 0], samples[: len(second[0]), 1] = first[0], second[0]
    file = io.BytesIO()
    soundfile.write(file, samples, first[1], "FLOAT", format="WAV")
    content = file.getvalue()
    array = (samples[:, 1].copy(), first[1])
    expected = recognizer.transcribe(*array)
    assert recognizer.transcribe(content, channel=1).text == expected.text
    assert recognizer.read(content, channel=1).seconds == expected.seconds
    results = recognizer.transcribe_each([content, file], channel="split", beam=2)
    assert [result.path.rpartition("#")[2] for result in results] == ["0", "1", "2"] * 2
    assert results[0].path == f"{len(content)} bytes#0" and results[1].text == results[4].text
    for use in (recognizer.transcribe, recognizer.read):
        with pytest.raises(OptionError, match="expected mix or a number for one result"):
            use(content, channel="split")
    with pytest.raises(AudioError, match="expected undamaged audio"):
        recognizer.transcribe(content[:-9000], strict_audio=True)
    assert recognizer.transcribe(content[:-9000]).damage
