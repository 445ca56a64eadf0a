"""CTC: heads of S2T models, the best path, times, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, tone, write_checkpoint, write_data

from fairseq_openvino import cli, load_model
from fairseq_openvino.ctc.path import Path
from fairseq_openvino.errors import ArchitectureError, OptionError
from fairseq_openvino.export.fairseq import export_checkpoint
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.export.options import ExportOptions
from fairseq_openvino.s2t.vocabulary import Vocabulary

BLANK, EOS = 0, 2
FRAME_SECONDS = 0.04


def head_checkpoint(
    directory: FilePath, arch: str = "s2t_transformer_s", vocabulary: int = 60, **arguments: Any
) -> FilePath:
    """A random model with a CTC head that is neither flat nor without blanks, and its data."""
    path = write_checkpoint(directory, arch, vocabulary=vocabulary, ctc_weight=0.3, **arguments)
    state = torch.load(path, weights_only=False)
    state["model"]["encoder.ctc_proj.weight"] *= 4
    state["model"]["encoder.ctc_proj.bias"][BLANK] += 2
    torch.save(state, path)
    return path


def export_head(path: FilePath, output: FilePath, **options: Any) -> Any:
    wanted = ExportOptions(ctc=True, **options)
    return export_checkpoint(path, DataDirectory(path.parent), output, wanted)


def eager_tokens(model: Any, features: list[np.ndarray]) -> list[list[int]]:
    """As Fairseq validates: `criterions/ctc.py`, each clip alone."""
    found = []
    for each in features:
        with torch.no_grad():
            encoded = model.encoder(torch.from_numpy(each)[None], torch.tensor([len(each)]))
            log_probs, lengths = model.get_ctc_output((None, {"encoder_out": encoded}), None)
        tokens = log_probs[: lengths[0], 0].argmax(dim=-1).unique_consecutive()
        found.append(tokens[tokens != BLANK].tolist())
    return found


def fairseq_model(path: FilePath) -> Any:
    from fairseq_openvino.export.fairseq import ARCHITECTURES
    from fairseq_openvino.export.fairseq.checkpoint import load

    return load(path, DataDirectory(path.parent), {}, ARCHITECTURES).model


@pytest.fixture(scope="module")
def recognizer(ctc_head: FilePath) -> Any:
    return load_model(ctc_head / "bundle")


def test_a_head_says_what_fairseq_reads_in_it_and_when(ctc_head: FilePath, recognizer: Any) -> None:
    assert not recognizer.manifest.has_decoder and recognizer.manifest.family == "ctc"
    files = sorted((ctc_head / "features").iterdir())
    together = recognizer.transcribe_batch([str(file) for file in files], word_timestamps=True)
    expected = eager_tokens(
        fairseq_model(ctc_head / "checkpoint.pt"), [np.load(file) for file in files]
    )
    for file, found, tokens in zip(files, together, expected, strict=True):
        best = found.hypotheses[0][1]
        assert best.tokens.tolist() == [*tokens, *([] if tokens[-1:] == [EOS] else [EOS])]
        assert found.text == recognizer.family.vocabulary.text(tokens)
        assert found.score == pytest.approx(best.positional_scores.mean())
        (segment,) = found.segments
        words = segment.words
        assert words is not None and "".join(word.word for word in words).strip() == found.text
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times) and times[-1] <= found.seconds + FRAME_SECONDS
        assert (segment.start, segment.end) == (times[0], times[-1])
        alone = recognizer.transcribe(str(file))
        assert (alone.text, alone.score, alone.segments) == (found.text, found.score, ())


def test_flags_of_a_beam_search_are_refused_by_name(
    ctc_head: FilePath, recognizer: Any, tmp_path: FilePath, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["transcribe", str(tone(tmp_path / "a.wav")), "--model", str(ctc_head / "bundle")]
    assert cli.main([*command, "--beam", "5"]) == 2
    message = "failed in --beam: expected an option of the model family 'ctc'"
    assert message in capsys.readouterr().err
    for option in ({"nbest": 2}, {"lenpen": 1.0}, {"language": "de"}):
        with pytest.raises(OptionError, match=f"in {[*option][0]}: expected an option of"):
            recognizer.transcribe(np.zeros(16000), **option)


def test_subtitles_and_words_come_from_the_command(ctc_head: FilePath, tmp_path: FilePath) -> None:
    file = tone(tmp_path / "a.wav", 2.0)
    command = ["transcribe", str(file), "--model", str(ctc_head / "bundle")]
    flags = ["--format", "json,vtt", "--max-words-per-line", "1", "--output-dir", str(tmp_path)]
    assert cli.main([*command, *flags]) == 0
    (segment,) = json.loads((tmp_path / "a.json").read_text())["segments"]
    assert segment["words"][0]["start"] == segment["start"]
    assert (tmp_path / "a.vtt").read_text().count("-->") == len(segment["words"])


def test_without_a_head_there_is_nothing_to_export(tiny: FilePath, tmp_path: FilePath) -> None:
    with pytest.raises(ArchitectureError, match=r"with a CTC head \(ctc_weight above 0\)"):
        export_head(tiny / "checkpoint.pt", tmp_path / "bundle")


@pytest.mark.soak
def test_only_fairseq_checkpoints_have_heads(
    tmp_path: FilePath, whisper: FilePath, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--source", str(whisper), "--output", str(tmp_path / "b"), "--ctc"]
    assert cli.main(command) == 2
    assert "in --ctc: expected a Fairseq checkpoint with a CTC head" in capsys.readouterr().err


def path_of(frames: list[int], probability: float = 0.9, vocabulary: int = 8) -> Path:
    """Through log-probabilities whose best token at each frame is this one."""
    rest = (1 - probability) / (vocabulary - 1)
    probs = np.full((len(frames), vocabulary), rest)
    probs[np.arange(len(frames)), frames] = probability
    return Path.of(np.log(probs).astype(np.float32), BLANK)


def test_a_path_is_collapsed_and_its_probability_shared_out() -> None:
    path = path_of([0, 4, 4, 0, 4, 5, 0, 0])
    assert path.tokens.tolist() == [4, 4, 5]
    assert list(zip(path.starts, path.ends, strict=True)) == [(1, 3), (4, 5), (5, 6)]
    found = path.hypothesis(EOS)
    assert found.tokens.tolist() == [4, 4, 5, EOS]
    assert found.positional_scores == pytest.approx(np.log(0.9) * np.array([3, 2, 1, 2]))
    assert found.score == pytest.approx(2 * np.log(0.9))
    ended = path_of([4, 0, EOS, 0]).hypothesis(EOS)
    assert ended.tokens.tolist() == [4, EOS]
    assert ended.positional_scores == pytest.approx(np.log(0.9) * np.array([1, 3]))
    silent = path_of([0, 0]).hypothesis(EOS)
    assert (silent.tokens.tolist(), silent.score) == ([EOS], pytest.approx(2 * np.log(0.9)))


@pytest.mark.parametrize(
    ("bpe", "symbols", "frames", "words"),
    [
        ("letter", "|ab", [5, 5, 6, 4, 4, 0, 6, 0, 6], [(" ab", 0, 3), (" bb", 6, 9)]),
        ("letter", "|ab", [4, 5, 4, 0, 4, 0], [(" a", 1, 2)]),
        ("sentencepiece", ["▁a", "b", "▁"], [4, 0, 5, 6, 0, 5], [(" ab", 0, 3), (" b", 5, 6)]),
        ("sentencepiece", ["▁a", "▁b▁c"], [0, 4, 5, 5], [(" a", 1, 2), (" b", 2, 4), (" c", 2, 4)]),
        ("subword_nmt", ["a@@", "b"], [4, 5, 5, 0, 5], [(" ab", 0, 3), (" b", 4, 5)]),
        (None, ["ab", "c"], [0, 4, 0, 5], [(" ab", 1, 2), (" c", 3, 4)]),
        ("letter", "|ab", [0, 4, 0], []),
    ],
)  # fmt: skip
def test_words_last_from_their_first_token_to_their_last(
    bpe: str | None, symbols: list[str], frames: list[int], words: list[tuple[str, int, int]]
) -> None:
    vocabulary = Vocabulary(("<s>", "<pad>", "</s>", "<unk>", *symbols), bpe)
    found = list(path_of(frames).words(vocabulary.text, 0.5, 100.0))
    assert [(word.word, word.start * 2, word.end * 2) for word in found] == words
    assert [word.probability for word in found] == pytest.approx([0.9] * len(words))


def test_options_are_named_as_whispers() -> None:
    """They have no flags of their own."""
    from fairseq_openvino.ctc.options import CTCOptions
    from fairseq_openvino.whisper.options import WhisperOptions

    assert CTCOptions.__dataclass_fields__.keys() <= WhisperOptions.__dataclass_fields__.keys()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("arch", "arguments"),
    [
        ("s2t_transformer_s", {}),
        ("s2t_transformer_xs", {"encoder_normalize_before": False, "conv_kernel_sizes": "3,7"}),
        ("s2t_transformer_xs", {"conv_version": "convtransformer", "conv_out_channels": 16}),
        ("s2t_transformer_m", {"vocabulary": 8000}),
    ],
)
def test_heads_of_true_size_say_what_fairseq_reads_in_them(
    arch: str, arguments: dict[str, Any], tmp_path: FilePath
) -> None:
    path = head_checkpoint(tmp_path, arch, **arguments)
    write_data(tmp_path, utterances=12, frames=(20, 900))
    _, report = export_head(path, tmp_path / "bundle")
    assert report.passed
    files = sorted((tmp_path / "features").iterdir())
    expected = eager_tokens(fairseq_model(path), [np.load(file) for file in files])
    recognizer = load_model(tmp_path / "bundle")
    for size in (1, 3, 8, 32):
        news = recognizer.follow([str(file) for file in files], batch_size=size)
        found = [each.result for each in news if each.result is not None]
        tokens = [each.hypotheses[0][1].tokens.tolist() for each in found]
        assert tokens == [each if each[-1:] == [EOS] else [*each, EOS] for each in expected]


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["auto", "int8-weights"])
def test_a_head_can_be_quantized_and_measured(mode: str, tmp_path: FilePath) -> None:
    from fairseq_openvino.quantize.options import Options
    from fairseq_openvino.quantize.procedure import quantize_bundle

    path = head_checkpoint(tmp_path, **TINY)
    corpus = write_data(tmp_path, utterances=40, frames=(60, 260))
    export_head(path, tmp_path / "bundle")
    options = Options(mode, calibration_size=8, held_out_size=3, max_drop=100, metric="wer")
    result = quantize_bundle(tmp_path / "bundle", corpus, tmp_path / "int8", options)
    quantization = result.bundle.manifest.quantization
    assert quantization["decoder"] is None and "best path" in result.table
    if mode == "auto":
        eight, every = quantization["encoder"]["products_in_8_bits"]
        assert eight == every - 2  # what reads the features, and the output layer
        assert min(quantization["encoder"]["divergence_by_alpha"].values()) < 0.01
    command = ["evaluate", str(corpus), "--engines", "openvino,openvino-int8", "--metrics", "wer",
               "--bundle", str(tmp_path / "bundle"), "--int8-bundle", str(tmp_path / "int8"),
               "--limit", "5", "--output", str(tmp_path / "evaluation")]  # fmt: skip
    assert cli.main(command) == 0
    figures = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert "openvino-int8" in json.dumps(figures)


@pytest.mark.soak
def test_words_of_a_long_recording_are_told_where_they_are(recognizer: Any) -> None:
    """It is cut at pauses, and the words of a piece are those of the piece alone, later."""
    from test_s2t_longform import CLIPS, RATE_HZ, talk

    from fairseq_openvino.ctc.options import CTCOptions
    from fairseq_openvino.speech.recordings import recordings

    family = copy.copy(recognizer.family)
    family.front_end = replace(family.front_end, max_frames=1000)
    waveform, begins = talk(CLIPS[:8], (0.8, 1.2))
    options = CTCOptions(word_timestamps=True)
    *news, last = family.follow(recognizer.model, recordings(waveform, RATE_HZ), options, 3)
    segments = last.result.segments
    assert [segment for each in news for segment in each.segments] == list(segments)
    assert last.result.text == " ".join(segment.text for segment in segments)
    assert len(segments) == len(CLIPS[:8])
    for begin, clip, segment in zip(begins, CLIPS, segments, strict=False):
        assert "".join(word.word for word in segment.words).strip() == segment.text
        times = [time for word in segment.words for time in (word.start, word.end)]
        assert times == sorted(times) and (times[0], times[-1]) == (segment.start, segment.end)
        assert begin - 0.3 < times[0] < times[-1] < begin + len(clip) / RATE_HZ + 0.3
