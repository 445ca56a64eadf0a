"""Times of words against openai-whisper's own functions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from whisper_models import TEXT_TOKENS, OpenAITokenizer, Pair, openai_model

from fairseq_openvino.bundle import open_bundle
from fairseq_openvino.model import Ask, Head, Memory
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.whisper.alignment import Aligner, alignment_heads, best_path, median_filter
from fairseq_openvino.whisper.questions import Alignment, Timing
from fairseq_openvino.whisper.tokenizer import WhisperTokenizer

FORMAT_1 = Path(__file__).parent / "fixtures" / "format1" / "whisper"
LANGUAGES = ("en", "zh", "ja", "th", "lo", "my", "yue", "de")
SHIPPED = {"gpt2": 51864, "multilingual": 51866}
TEXTS = (
    "It costs $43,000 (EM3985771) -- isn't that 50% off?", "平凡 な日本語、テスト。", "สวัสดีครับ",
    "für Ælfred ♪♪ 🙂🙃\n\n  e\u0301", "...", " ", "มัน 3 ปี",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _interpreted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """openai-whisper's functions as they are written: compiling them takes longer than these tests."""
    if "soak" not in request.keywords:
        import whisper.timing

        for name in ("backtrace", "dtw_cpu"):
            compiled = getattr(whisper.timing, name)
            monkeypatch.setattr(whisper.timing, name, compiled.py_func)


def assert_same_path(costs: np.ndarray) -> None:
    import whisper.timing

    expected = whisper.timing.dtw_cpu(costs.astype(np.float64))
    np.testing.assert_array_equal(best_path(costs), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (7, 20), (20, 7)])
def test_paths_equal_openai_whisper_s_among_equals_too(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for _ in range(8):
        assert_same_path(random.standard_normal(shape).astype(np.float32))
        assert_same_path(random.integers(-1, 2, shape).astype(np.float32))
    assert_same_path(np.zeros(shape, np.float32))


@pytest.mark.soak
def test_paths_of_windows_equal_openai_whisper_s() -> None:
    random = np.random.default_rng(0)
    for shape in ((100, 1500), (224, 1500), (5, 1500), (224, 3)):
        for _ in range(20):
            assert_same_path(random.standard_normal(shape).astype(np.float32))
            assert_same_path(random.integers(-2, 3, shape).astype(np.float32) / 4)


def test_a_path_through_what_is_no_number_ends() -> None:
    rows, columns = best_path(np.full((5, 9), np.nan, np.float32))
    assert sorted(set(rows.tolist())) == [0, 1, 2, 3, 4] and columns.max() == 8


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 9, 60])
def test_the_median_filter_is_openai_whisper_s(frames: int) -> None:
    import torch
    import whisper.timing

    random = np.random.default_rng(0)
    for values in (random.standard_normal((3, 5, frames)), random.integers(0, 3, (3, 5, frames))):
        floats = values.astype(np.float32)
        expected = whisper.timing.median_filter(torch.from_numpy(floats), 7).numpy()
        np.testing.assert_array_equal(median_filter(floats), expected)


@pytest.mark.parametrize("name", SHIPPED)
def test_words_equal_openai_whisper_s(name: str, tmp_path: Path) -> None:
    from whisper.tokenizer import get_tokenizer

    from fairseq_openvino.export.whisper import vocabulary

    theirs = get_tokenizer(name == "multilingual", num_languages=100, language="en")
    vocabulary.find(ROOT, SHIPPED[name], "x").save(str(tmp_path / "tokenizer.json"))
    ours, random = (
        WhisperTokenizer(tmp_path / "tokenizer.json", theirs.eot),
        np.random.default_rng(0),
    )
    samples = [theirs.encode(text) for text in TEXTS]
    samples += [random.integers(0, theirs.eot, count).tolist() for count in range(60)]
    samples += [random.integers(0, 256, count).tolist() for count in range(30)]  # bytes
    for tokens in samples:
        for language in LANGUAGES if name == "multilingual" else (None,):
            expected = replace(theirs, language=language).split_to_word_tokens(
                [*tokens, theirs.eot]
            )
            words, word_tokens = ours.split_to_words(tokens, language)
            assert [token for part in word_tokens for token in part] == tokens
            if expected[1][-1] == [theirs.eot]:  # else theirs hides a piece of a character in it
                assert (words, word_tokens) == (expected[0][:-1], expected[1][:-1])
    for text, tokens in zip(TEXTS, samples, strict=False):
        for language in LANGUAGES:
            words, _ = ours.split_to_words(tokens, language)
            assert "".join(words) == text and "\ufffd" not in "".join(words)


class WordTokenizer(OpenAITokenizer):
    """With openai-whisper's own way to words."""

    def __init__(self, pair: Pair) -> None:
        from whisper.tokenizer import Tokenizer

        super().__init__(pair)
        self._decode = pair.vocabulary._decode
        for name in ("split_to_word_tokens", "split_tokens_on_unicode", "split_tokens_on_spaces"):
            setattr(self, name, getattr(Tokenizer, name).__get__(self))

    def decode_with_timestamps(self, tokens: Sequence[int]) -> str:
        """As the real one writes <|endoftext|>, the only one it is given."""
        return str(self._decode(list(tokens)))


@pytest.fixture(scope="module")
def openai(multilingual: Pair) -> Any:
    return openai_model(multilingual.original)


def aligned(
    pair: Pair, memory: Memory, questions: Sequence[Alignment], language: str = "en"
) -> list[list[Timing]]:
    aligner = Aligner(pair.bundle.manifest, pair.vocabulary)
    languages = [language] * len(questions)
    return aligner.align(pair.model.model, memory, questions, languages, "transcribe")


def texts(count: int) -> list[tuple[int, ...]]:
    random = np.random.default_rng(1)
    return [tuple(random.integers(0, TEXT_TOKENS, 3 + 2 * i).tolist()) for i in range(count)]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_words_of_windows_equal_openai_whisper_s(
    multilingual: Pair, openai: Any, language: str
) -> None:
    """Times and probabilities of a random model; a window's do not depend on the others."""
    import torch
    import whisper.timing

    clips, tokenizer = multilingual.whole, WordTokenizer(multilingual)
    tokenizer.language, token = language, multilingual.config.languages[language]
    tokenizer.sot_sequence = (tokenizer.sot, token, tokenizer.transcribe)
    questions = [
        Alignment(0, 2 * multilingual.layout.positions - 37 * i, tokens)
        for i, tokens in enumerate(texts(len(clips)))
    ]
    memory = multilingual.encoded(*clips)
    found = aligned(multilingual, memory, questions, language)
    for i, (clip, question, words) in enumerate(zip(clips, questions, found, strict=True)):
        mel = torch.from_numpy(clip.features.T.copy())
        expected = whisper.timing.find_alignment(
            openai, tokenizer, list(question.tokens), mel, question.frames
        )
        got = [[each.word, list(each.tokens), each.start, each.end] for each in words]
        assert got == [[e.word, e.tokens, e.start, e.end] for e in expected[: len(got)]]
        assert [each.probability for each in words] == pytest.approx(
            [each.probability for each in expected[: len(got)]], rel=1e-3
        )
        assert "".join(each.word for each in expected[len(got) :]) in ("", "<|endoftext|>")
        alone = memory.take(np.array([i]))
        assert aligned(multilingual, alone, [question], language) == [words]


def test_whatever_is_asked_there_are_words_or_none(multilingual: Pair) -> None:
    """One token, punctuation, no text, more than the decoder has positions for, windows of a frame."""
    vocabulary, positions = multilingual.vocabulary, multilingual.layout.positions
    most = multilingual.bundle.manifest.limits.max_target_tokens
    many = tuple(np.random.default_rng(0).integers(0, TEXT_TOKENS, most + 9).tolist())
    asked = [(), many[:1], vocabulary.tokens("..."), vocabulary.tokens("?"), many, many[: most - 5]]
    memory = multilingual.encoded(*multilingual.whole)
    silence = Memory(memory.lengths, {k: np.zeros_like(v) for k, v in memory.tensors.items()})
    for frames in (1, 2, 3, 7, 20, 2 * positions, 4 * positions):
        for tokens in asked:
            question = Alignment(0, frames, tuple(tokens))
            for window in (memory, silence):
                (words,) = aligned(multilingual, window.take(slice(1)), [question])
                assert [t for each in words for t in each.tokens] == list(tokens)
                times = [time for each in words for time in (each.start, each.end)]
                assert times == sorted(times) and np.isfinite(times).all()
                assert all(0 <= time <= min(frames / 100, positions / 50) for time in times)
                assert all(0 <= each.probability <= 1 for each in words)


def test_heads_of_a_bundle_and_of_one_that_names_none(caplog: pytest.LogCaptureFixture) -> None:
    """Made by the first version; a distilled model has those of its teacher."""
    manifest = open_bundle(FORMAT_1).manifest
    assert manifest.whisper is not None and not manifest.whisper.alignment_heads
    upper = tuple((1, head) for head in range(4))
    for named, expected in (
        ((), upper),
        (((1, 2), (0, 3)), ((1, 2), (0, 3))),
        (((1, 2), (2, 0)), upper),
        (((1, 4),), upper),
    ):
        caplog.clear()
        config = replace(manifest.whisper, alignment_heads=named)
        with caplog.at_level(logging.WARNING):
            assert alignment_heads(replace(manifest, whisper=config)) == expected
        assert len(caplog.records) == (expected == upper)


def test_a_bundle_of_the_first_version_times_words() -> None:
    bundle = open_bundle(FORMAT_1)
    model = CompiledModel(bundle, EngineOptions(precision="int8"))
    assert bundle.manifest.text.tokenizer is not None
    tokenizer = WhisperTokenizer(bundle.path("tokenizer.json"), bundle.manifest.tokens.eos)
    memory = model.encode(np.ones((1, 100, 80), np.float32), np.array([100]))
    aligner, tokens = Aligner(bundle.manifest, tokenizer), tuple(range(100, 110))
    (words,) = aligner.align(model, memory, [Alignment(0, 90, tokens)], ["en"], "transcribe")
    assert words and words[-1].end <= 0.9
    used = {each.precision for each in model.engine.compiled if each.head == aligner.head}
    assert used == {"f32"}, "fewer bits move words"


def test_probabilities_among_the_first_tokens(multilingual: Pair) -> None:
    """Of what follows within a call, as the log-probabilities of all tokens have them."""
    model, memory = multilingual.model.model, multilingual.encoded(*multilingual.clips[:2])
    tokens, order = np.random.default_rng(0).integers(0, 300, (2, 7)), np.arange(2)
    with model.open(memory, 1, Head()) as session:
        among = session.step(Ask(tokens, order)).scores[:, :-1, :300].astype(np.float64)
    expected = np.take_along_axis(among, tokens[:, 1:, None], 2)[..., 0]
    expected -= np.logaddexp.reduce(among, axis=2)
    with model.open(memory, 1, Head(following=300)) as session:
        found = session.step(Ask(tokens, order)).scores
    np.testing.assert_allclose(found, expected, atol=1e-5)
