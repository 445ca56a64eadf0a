"""Audio files for Whisper: features, unusual and broken files, manifests of `fairseq-generate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import tone
from whisper_models import Pair, waveforms

from fairseq_openvino.errors import OptionError, UtteranceTooLongError


def test_features_equal_the_reference(tmp_path: Path) -> None:
    """Within 1e-4 of transformers' extractor, which takes 32-bit transforms where torch is there."""
    from fairseq_openvino.compat.transformers import transformers
    from fairseq_openvino.speech.features import log_mel

    for bins, seconds in ((80, 30), (128, 30), (80, 2)):
        extractor = transformers.WhisperFeatureExtractor(feature_size=bins, chunk_length=seconds)
        kinds = [*waveforms(2, seconds), np.zeros(8000, np.float32), np.ones(7, np.float32)]
        kinds.append(waveforms(1, 10 * seconds)[0][: 16000 * seconds])  # the whole window
        for waveform in kinds:
            expected = extractor(waveform, sampling_rate=16000, return_tensors="np")
            found = log_mel(waveform, bins, 100 * seconds)
            np.testing.assert_allclose(found.T, expected["input_features"][0], atol=1e-4)


def test_audio_longer_than_the_window(multilingual: Pair) -> None:
    with pytest.raises(UtteranceTooLongError, match=r"at most 2 s.*got 2\.50 s.*Split"):
        multilingual.model.clip(np.zeros(40000, np.float32), 16000)
    exact = multilingual.model.clip(np.zeros(32000, np.float32), 16000)
    assert exact.features.shape == (200, 80)


def audio_files(directory: Path) -> dict[str, Path]:
    """Unusual and broken files, by name."""
    import soundfile

    random, tone = np.random.default_rng(0), 0.3 * np.sin(np.arange(16000) / 8)
    made: dict[str, tuple[np.ndarray, int]] = {
        "zero": (np.zeros(0), 16000), "stereo": (np.stack([tone, tone], 1), 16000),
        "eight": (np.stack([tone] * 8, 1), 16000), "8k": (tone[:8000], 8000),
        "192k": (np.repeat(tone, 12), 192000), "silence": (np.zeros(16000), 16000),
        "noise": (random.normal(0, 0.2, 16000), 16000), "clipped": (np.clip(9 * tone, -1, 1), 16000),
        "nan": (np.where(np.arange(16000) == 99, np.nan, tone), 16000), "1hz": (tone[:3], 1),
        "10mhz": (tone, 10_000_000), "long": (np.zeros(16000 * 3), 16000),
    }  # fmt: skip
    paths = {name: directory / f"{name}.wav" for name in made}
    for name, (samples, rate) in made.items():
        soundfile.write(paths[name], samples, rate, subtype="FLOAT")
    paths["text"] = directory / "text.wav"
    paths["text"].write_bytes(b"this is no audio")
    beyond = bytearray(paths["stereo"].read_bytes())
    position = beyond.index(b"data") + 4
    beyond[position : position + 4] = (1 << 30).to_bytes(4, "little")
    paths["beyond"] = directory / "beyond.wav"
    paths["beyond"].write_bytes(bytes(beyond))
    return paths


UNDOUBTED = {"no_speech_threshold": None, "logprob_threshold": None}
"""The weights are random, and nobody speaks."""
UNUSABLE = ("zero", "nan", "1hz", "10mhz", "text")


def test_unusual_audio_is_transcribed_and_broken_audio_is_named(
    multilingual: Pair, tmp_path: Path
) -> None:
    from fairseq_openvino.errors import AudioError

    for name, path in audio_files(tmp_path).items():
        if name in UNUSABLE:
            with pytest.raises(AudioError, match=f"{name}.wav.*expected .*got"):
                multilingual.model.transcribe(path, beam=1)
        else:
            found = multilingual.model.transcribe(path, beam=1, max_tokens=5, **UNDOUBTED)
            assert found.seconds == pytest.approx(3.0 if name == "long" else 1.0)
            assert (found.skipped is not None) == (name in ("silence", "long"))
    one, eight, rate = (
        multilingual.model.read(tmp_path / f"{name}.wav").features
        for name in ("stereo", "eight", "8k")
    )
    np.testing.assert_allclose(one, eight, atol=1e-5)
    assert one.shape == rate.shape


def test_a_bad_file_does_not_lose_the_others(
    multilingual: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from fairseq_openvino.cli import main

    paths = audio_files(tmp_path)
    files = [str(paths[name]) for name in ("noise", "nan", "stereo", "text")]
    words = ["transcribe", *files, "--model", str(multilingual.bundle.directory), "--beam", "2"]
    words += ["--no-speech-threshold", "none", "--logprob-threshold", "none"]
    assert main([*words, "--format", "jsonl", "--timestamps", "--language", "en"]) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["path"] for line in lines] == [files[0], files[2]]
    assert all({"segments", "language", "no_speech_probability"} <= set(line) for line in lines)
    for hypothesis in (line["hypotheses"][0] for line in lines):
        mean = np.mean(hypothesis["positional_scores"])
        assert mean < hypothesis["average_log_probability"] < 0  # after the rules
    assert "nan.wav" in captured.err and "text.wav" in captured.err and "2 of 4" in captured.err
    assert main([*words, "--max-len-a", "1"]) == 2 and "--max-len-a" in capsys.readouterr().err
    assert main([*words, "--language", "xx"]) == 2


def test_fairseq_generate_reads_a_manifest_of_audio_files(
    multilingual: Pair, tmp_path: Path
) -> None:
    from conftest import generate

    from fairseq_openvino.plugin.skipping import damaged

    paths = audio_files(tmp_path)
    rows = ["id\taudio\tn_frames\ttgt_text\tsrc_lang\ttgt_lang"]
    for name, languages in (("noise", "German\ten"), ("stereo", "en\ten"), ("silence", "\t")):
        rows.append(f"{name}\t{paths[name]}\t100\tthe dog\t{languages}")
    (tmp_path / "test.tsv").write_text("\n".join(rows) + "\n")
    run = generate(
        tmp_path, "--task", "speech_to_text_openvino", "--ov-engine", "--beam", "3", "--nbest", "2",
        "--scoring", "wer", "--required-batch-size-multiple", "1", "--max-len-b", "20",
        path=str(multilingual.bundle.directory),
    )  # fmt: skip
    model = multilingual.model
    for i, (name, options) in enumerate(
        (("noise", {"language": "de", "task": "translate"}), ("stereo", {"language": "en"}),
         ("silence", {}))
    ):  # fmt: skip
        clip = model.read(paths[name])
        expected = model.transcribe_clips([clip], beam=3, nbest=2, max_tokens=20, **options)[0]
        found = run.hypotheses[i]
        assert [line.text for line in found] == [text for text, _ in expected.hypotheses]
        for line, (_, hypothesis) in zip(found, expected.hypotheses, strict=True):
            assert line.score == pytest.approx(hypothesis.score, abs=1e-3)
    names = ["id\taudio", *(f"{name}\t{paths[name]}" for name in ("noise", "stereo"))]
    cut = tmp_path / "cut.wav"
    cut.write_bytes(Path(paths["noise"]).read_bytes()[:-9000])
    (tmp_path / "test.tsv").write_text("\n".join([*names, f"cut\t{cut}"]) + "\n")
    before = damaged.value
    bare = generate(
        tmp_path, "--task", "speech_to_text_openvino", "--ov-engine", "--beam", "3",
        "--max-len-b", "20", path=str(multilingual.bundle.directory),
    )  # fmt: skip
    assert damaged.value == before + 1
    assert len(bare.hypotheses) == 3 and not bare.references and not bare.metric
    with pytest.raises(OptionError, match="--sampling"):
        generate(
            tmp_path, "--task", "speech_to_text_openvino", "--sampling",
            path=str(multilingual.bundle.directory),
        )  # fmt: skip


@pytest.mark.soak
def test_fairseqs_default_does_not_cut_the_text(
    pairs: Callable[[str], Pair], tmp_path: Path
) -> None:
    from conftest import generate

    rows = [f"{i}\t{tone(tmp_path / f'{i}.wav')}" for i in range(2)]
    (tmp_path / "test.tsv").write_text("\n".join(["id\taudio", *rows]) + "\n")
    flags = ["--task", "speech_to_text_openvino", "--beam", "1", "--batch-size", "1"]
    flags += ["--required-batch-size-multiple", "1", "--num-shards", "2"]
    lengths = []
    for shard, limit in enumerate([(), ("--max-len-b", "200")]):
        run = generate(
            tmp_path, *flags, "--shard-id", str(shard), *limit,
            path=str(pairs("long").bundle.directory),
        )  # fmt: skip
        ((line,),) = run.hypotheses.values()
        lengths.append(len(line.tokens.split()))
    assert lengths == [206, 200]
