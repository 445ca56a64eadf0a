"""Whisper's rules in numpy and in the graph, and options that cannot work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from whisper_models import TEXT_TOKENS, Pair

from fairseq_openvino.errors import OptionError
from fairseq_openvino.model import Ask, Head
from fairseq_openvino.whisper.rules import Rules, TimestampMask


def test_timestamp_rules_equal_transformers() -> None:
    """On random histories, in numpy; the graph is compared with numpy below."""
    import torch
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    from fairseq_openvino.bundle import WhisperConfig
    from fairseq_openvino.compat.transformers import transformers

    random = np.random.default_rng(0)
    size, first, end = 60, 40, 30
    config = WhisperConfig(31, None, 38, first - 1, {}, {}, (), (), 5, 99)
    options = transformers.GenerationConfig(
        no_timestamps_token_id=first - 1, eos_token_id=end, max_initial_timestamp_index=5
    )
    processor = WhisperTimeStampLogitsProcessor(options, begin_index=2)
    rules = Rules(config, end, size, timestamps=True)
    assert rules.mask is not None
    for length in list(range(6)) * 20:
        history = random.integers(0, end, (4, length))
        marks = np.sort(random.integers(first, size, (4, length)), axis=1)
        history = np.where(random.random((4, length)) < 0.5, marks, history)
        scores = random.normal(0, 3, (4, size)).astype(np.float32)
        scores[:, first - 1] = -np.inf
        prompt = np.full((4, 2), 31)
        expected = processor(
            torch.from_numpy(np.concatenate([prompt, history], 1)), torch.from_numpy(scores)
        ).numpy()
        found = rules.mask.apply(scores, rules.bounds(history))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rows", [1, 6])
def test_the_graph_applies_the_rules_as_numpy_does(multilingual: Pair, rows: int) -> None:
    model, random = multilingual.model.model, np.random.default_rng(rows)
    memory = multilingual.encoded(*multilingual.clips[:rows])
    beam = rows // memory.utterances
    mask = TimestampMask(multilingual.config.first_timestamp)
    size, watched = model.manifest.dimensions.vocabulary_size, (TEXT_TOKENS, mask.first)
    for _ in range(5):
        tokens = random.integers(0, size, (rows, 3))
        bias = random.normal(0, 3, (1, size)).astype(np.float32)
        bounds = np.stack(
            [
                random.choice([0, TEXT_TOKENS, mask.first], rows),
                random.integers(mask.first, mask.first + 900, rows),
                random.integers(mask.first + 950, size, rows),
            ],
            axis=1,
        ).astype(np.int32)
        order = np.arange(rows, dtype=np.int32)
        with model.open(memory, beam, Head()) as session:
            log_probs = session.step(Ask(tokens, order)).scores[:, -1].copy()
        with model.open(memory, beam, Head(7, watched, mask, renormalised=True)) as session:
            found = session.step(Ask(tokens, order, bias, bounds))
            scores, best = found.scores.copy(), found.tokens.copy()
            reported, left = found.watched.copy(), found.left.copy()
        expected = mask.apply(log_probs + bias, bounds)
        ranked = np.argsort(-expected, axis=1, kind="stable")[:, :7]
        np.testing.assert_array_equal(best, ranked)
        np.testing.assert_allclose(scores, np.take_along_axis(expected, ranked, 1), atol=2e-5)
        np.testing.assert_allclose(reported, log_probs[:, watched], atol=2e-5)
        total = np.log(np.exp(expected.astype(np.float64)).sum(1, keepdims=True))
        np.testing.assert_allclose(left, total, atol=2e-5)


BAD_OPTIONS: dict[str, dict[str, Any]] = {
    "language": {"language": "xx"}, "task": {"task": "sing"}, "beam": {"beam": 0},
    "nbest": {"beam": 2, "nbest": 3}, "temperature": {"temperature": -1.0},
    "max_tokens": {"max_tokens": 500}, "min_tokens": {"max_tokens": 3, "min_tokens": 4},
    "prompt": {"prompt": "long " * 40}, "hotwords": {"hotwords": "long " * 20, "prompt": "long " * 20},
    "prefix": {"prefix": "a", "timestamps": True},
    "audio_context": {"audio_context": 500},
}  # fmt: skip


@pytest.mark.parametrize("field", list(BAD_OPTIONS))
def test_options_that_cannot_work(multilingual: Pair, field: str) -> None:
    with pytest.raises(OptionError, match=f"failed in {field}: expected .*got") as error:
        multilingual.model.transcribe_clips(multilingual.clips[:1], **BAD_OPTIONS[field])
    assert error.value.exit_code == 2 and error.value.field == field


@pytest.mark.parametrize(
    "options", [{"temperature": np.nan}, {"temperature": np.inf}, {"lenpen": np.nan},
                {"lenpen": -np.inf}, {"seed": -1}],
)  # fmt: skip
def test_numbers_that_cannot_work(multilingual: Pair, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"in {next(iter(options))}: expected"):
        multilingual.model.transcribe_clips(multilingual.clips[:1], **options)


def test_hotwords_stand_in_front_of_the_prompt(multilingual: Pair) -> None:
    def found(**options: Any) -> tuple[list[int], float]:
        (best,) = multilingual.model.transcribe_clips(multilingual.clips[:1], beam=1, **options)
        return best.hypotheses[0][1].tokens.tolist(), best.score

    assert found(hotwords="hello", prompt="you") == found(prompt="hello you") != found(prompt="you")


@pytest.mark.parametrize("context", ["half", 0, -3, 101])
def test_audio_contexts_that_cannot_work(multilingual: Pair, context: Any) -> None:
    with pytest.raises(OptionError, match="in audio_context: "):
        multilingual.model.transcribe_clips(multilingual.clips[:1], audio_context=context)


def test_english_models_refuse_other_languages(pairs: Callable[[str], Pair]) -> None:
    english = pairs("english")
    for options in ({"language": "de"}, {"task": "translate"}):
        with pytest.raises(OptionError, match=f"in {next(iter(options))}: .*English-only"):
            english.model.transcribe_clips(english.clips[:1], **options)
    with pytest.raises(OptionError, match="expected a multilingual model"):
        english.model.detect_language(english.waveforms[0])
    assert english.model.transcribe_clips(english.clips[:1])[0].language == "en"
    assert english.model.transcribe_clips(english.clips[:1])[0].language_probabilities == {}
