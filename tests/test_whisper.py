"""Whisper's searches against transformers: tokens, segments, scores, languages, prompts, sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from whisper_models import START, TEXT_TOKENS, Pair

from fairseq_openvino.model import Ask, Head
from fairseq_openvino.whisper.options import WhisperOptions


@pytest.fixture(scope="module", params=("multilingual", "ending", "english"))
def pair(request: pytest.FixtureRequest, pairs: Callable[[str], Pair]) -> Pair:
    return pairs(request.param)


def assert_same(pair: Pair, found: list[Any], expected: dict[str, Any], timestamps: bool) -> None:
    for i, transcript in enumerate(found):
        tokens = transcript.hypotheses[0][1].tokens
        if timestamps:
            spoken, times = heard(pair, expected["segments"][i], transcript.seconds)
            first = pair.config.first_timestamp
            assert pair.without_end(t for t in tokens if t < first) == pair.without_end(
                t for t in spoken if t < first
            )
            ours = [(segment.start, segment.end) for segment in transcript.segments]
            np.testing.assert_allclose(ours, times, atol=1e-6)
        else:
            assert pair.without_end(tokens) == pair.without_end(expected["sequences"][i])


def heard(
    pair: Pair, segments: Sequence[Any], seconds: float
) -> tuple[list[int], list[tuple[float, float]]]:
    """Tokens and times of transformers' segments as far as the audio goes, which it does not ask.

    It keeps segments without text or duration, which openai-whisper leaves out.
    """
    has_text = [bool(pair.vocabulary.text(each["tokens"])) for each in segments]
    inside = [float(each["start"]) < seconds for each in segments]
    said = [
        text and each["start"] != each["end"] for text, each in zip(has_text, segments, strict=True)
    ]
    kept = [i for i in range(len(segments)) if said[i] and inside[i]] or np.flatnonzero(said)[:1]
    times = [tuple(min(float(segments[i][end]), seconds) for end in ("start", "end")) for i in kept]
    parts = [
        each["tokens"] for i, each in enumerate(segments)
        if i in kept or (inside[i] and not has_text[i])
    ]  # fmt: skip
    return [int(token) for part in parts for token in part], times


def test_parity_gate(pair: Pair) -> None:
    report = pair.bundle.manifest.parity
    assert report["reference"] == "transformers" and len(report["rows"]) == 4
    assert all(0 < row["ir_steps"] <= report["ir_limit"] for row in report["rows"])


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_tokens_and_segments_equal_transformers(pair: Pair, beam: int, timestamps: bool) -> None:
    clips = pair.whole if timestamps else pair.clips
    for language in ("de", None):
        expected = pair.expected(
            clips, num_beams=beam, return_timestamps=timestamps, language=language,
            task="transcribe",
        )  # fmt: skip
        code = language if pair.layout.languages else None
        found = pair.model.transcribe_clips(clips, beam=beam, timestamps=timestamps, language=code)
        assert_same(pair, found, expected, timestamps)


def test_prompt_task_and_length_equal_transformers(multilingual: Pair) -> None:
    import torch

    previous = (TEXT_TOKENS + 104, *multilingual.vocabulary.tokens("Mr. Quilter"))
    assert multilingual.vocabulary.token(previous[0]) == "<|startofprev|>"
    expected = multilingual.expected(
        multilingual.clips, num_beams=3, language="fr", task="translate", max_new_tokens=20,
        prompt_ids=torch.tensor(previous),
    )  # fmt: skip
    found = multilingual.model.transcribe_clips(
        multilingual.clips, beam=3, language="fr", task="translate", prompt="Mr. Quilter",
        max_tokens=20,
    )  # fmt: skip
    for i, transcript in enumerate(found):
        kept = multilingual.without_end(expected["sequences"][i])
        assert multilingual.without_end(transcript.hypotheses[0][1].tokens) == kept
        assert len(transcript.hypotheses[0][1].tokens) <= 20


def test_an_english_model_has_no_language_to_detect(pairs: Callable[[str], Pair]) -> None:
    english = pairs("english")
    options = {"prompt": "Mr. Quilter", "max_tokens": 20}
    found = english.model.transcribe_clips(english.clips[:2], multilingual=True, **options)
    wanted = english.model.transcribe_clips(english.clips[:2], **options)
    assert [(each.text, each.language) for each in found] == [(each.text, "en") for each in wanted]


def test_prompt_goes_before_every_window(multilingual: Pair) -> None:
    import torch

    previous = (TEXT_TOKENS + 104, *multilingual.vocabulary.tokens("Mr. Quilter"))
    expected = multilingual.expected(
        multilingual.whole, num_beams=1, return_timestamps=True, task="transcribe",
        prompt_ids=torch.tensor(previous), language=None,
    )  # fmt: skip
    found = multilingual.model.transcribe_clips(
        multilingual.whole, beam=1, timestamps=True, prompt="Mr. Quilter"
    )
    assert_same(multilingual, found, expected, True)


def test_all_hypotheses_and_scores_equal_transformers(pair: Pair) -> None:
    """Against the search itself: Whisper's own `generate` returns the best one n times."""
    import torch
    from transformers.generation.utils import GenerationMixin

    config = pair.config
    start = [config.start]
    if config.languages:
        start += [config.languages["en"], config.tasks["transcribe"]]
    start.append(config.no_timestamps)
    features = torch.from_numpy(np.stack([clip.features for clip in pair.clips])).transpose(1, 2)
    with torch.no_grad():
        expected = GenerationMixin.generate(
            pair.original, features, decoder_input_ids=torch.tensor([start] * len(pair.clips)),
            num_beams=4, num_return_sequences=4, length_penalty=0.6, output_scores=True,
            return_dict_in_generate=True, max_length=pair.layout.targets,
        )  # fmt: skip
    found = pair.model.transcribe_clips(
        pair.clips, beam=4, nbest=4, lenpen=0.6, language="en" if config.languages else None
    )
    hypotheses = [hypothesis for each in found for _, hypothesis in each.hypotheses]
    scores = [hypothesis.score for hypothesis in hypotheses]
    assert scores == pytest.approx(expected["sequences_scores"].tolist(), abs=1e-4)
    for hypothesis, sequence in zip(hypotheses, expected["sequences"], strict=True):
        assert pair.without_end(hypothesis.tokens) == pair.without_end(sequence[len(start) :])
        total = hypothesis.positional_scores.sum() / len(hypothesis.tokens) ** 0.6
        assert hypothesis.score == pytest.approx(total, abs=1e-4)


def test_language_probabilities(multilingual: Pair) -> None:
    import torch

    features = torch.from_numpy(multilingual.clips[0].features.T[None])
    start = torch.tensor([[TEXT_TOKENS + 1]])
    with torch.no_grad():
        logits = multilingual.original(features, decoder_input_ids=start).logits[0, 0]
    languages = multilingual.original.generation_config.lang_to_id
    share = torch.softmax(logits[list(languages.values())], 0)
    for options in ({"beam": 1}, {"beam": 3, "prompt": "hello"}, {"temperature": 0.5}):
        found = multilingual.model.transcribe_clips(multilingual.clips[:2], max_tokens=3, **options)
        probabilities = found[0].language_probabilities
        assert (
            found[0].language
            == next(iter(probabilities))
            == max(probabilities, key=lambda code: probabilities[code])
        )
        for name, expected in zip(languages, share.tolist(), strict=True):
            assert probabilities[name.strip("<|>")] == pytest.approx(expected, abs=1e-5)
        before = multilingual.vocabulary.tokens("hello") if "prompt" in options else ()
        previous = (TEXT_TOKENS + 104, *before) if before else ()
        with torch.no_grad():  # no speech, unlike the language, follows the prompt
            behind = multilingual.original(
                features, decoder_input_ids=torch.tensor([[*previous, TEXT_TOKENS + 1]])
            ).logits[0, -1]
        silence = torch.softmax(behind, 0)[TEXT_TOKENS + 105]
        assert found[0].no_speech_probability == pytest.approx(float(silence), abs=1e-6)


def test_results_do_not_depend_on_the_batch(pair: Pair) -> None:
    for options in (
        {"beam": 1}, {"beam": 3, "nbest": 3}, {"beam": 2, "timestamps": True},
        {"beam": 2, "audio_context": "auto"}, {"temperature": 0.7, "seed": 5},
    ):  # fmt: skip
        together = pair.model.transcribe_clips(pair.clips, **options)
        for clip, batched in zip(pair.clips, together, strict=True):
            alone = pair.model.transcribe_clips([clip], **options)[0]
            assert [h.tokens.tolist() for _, h in alone.hypotheses] == [
                h.tokens.tolist() for _, h in batched.hypotheses
            ]
            assert alone.score == pytest.approx(batched.score, abs=1e-4)
            assert alone.segments == batched.segments and alone.language == batched.language


@pytest.mark.parametrize(
    "options", [{"beam": 1}, {"beam": 3, "nbest": 3}, {"temperature": 0.7}], ids=str
)
def test_log_probabilities_are_given_before_and_after_the_rules(
    multilingual: Pair, options: dict[str, Any]
) -> None:
    import torch

    clip, rules = multilingual.clips[0], multilingual.model.family.rules(WhisperOptions())
    features = torch.from_numpy(clip.features.T[None])
    (found,) = multilingual.model.transcribe_clips([clip], language="en", **options)
    for _, hypothesis in found.hypotheses:
        forced = torch.tensor([[*START, *hypothesis.tokens[:-1]]])
        with torch.no_grad():
            logits = multilingual.original(features, decoder_input_ids=forced).logits[0]
        logits = logits[len(START) - 1 :]
        bias = np.concatenate([rules.bias(i) for i in range(len(logits))])
        place = torch.from_numpy(hypothesis.tokens)[:, None]
        before, after = (
            torch.log_softmax(scores, 1).gather(1, place)[:, 0].numpy()
            for scores in (logits, logits + torch.from_numpy(bias))
        )
        np.testing.assert_allclose(hypothesis.positional_scores, before, atol=1e-4)
        np.testing.assert_allclose(hypothesis.after_rules, after, atol=1e-4)
        assert hypothesis.average_log_probability == pytest.approx(after.mean(), abs=1e-4)
        assert (after - before).max() > 1e-3


def test_what_the_user_writes_is_never_a_special_token(multilingual: Pair) -> None:
    vocabulary = multilingual.vocabulary
    for text in ("<|endoftext|> hello <|startoftranscript|>", "<|0.00|>", "a<|en|>b"):
        tokens = vocabulary.tokens(text)
        assert max(tokens) < vocabulary.eos and vocabulary.text(tokens) == text
    plain = "Mr. Quilter's  36th, ümläut 平凡 👩‍👩‍👧"
    known = vocabulary._tokenizer.encode(f" {plain}", add_special_tokens=False).ids
    assert vocabulary.tokens(plain) == tuple(known)


def test_a_head_of_the_last_token_alone(multilingual: Pair) -> None:
    asked = Ask(np.array([START] * 3), np.arange(3))
    memory = multilingual.encoded(multilingual.clips[0])
    with multilingual.model.model.open(memory, 3, Head()) as session:
        every = session.step(asked).scores.copy()
    with multilingual.model.model.open(memory, 3, Head(last=True)) as session:
        last = session.step(asked).scores.copy()
    assert last.shape == (3, 1, every.shape[2])
    np.testing.assert_allclose(last, every[:, -1:], atol=1e-5)


def test_prefix_begins_the_text(multilingual: Pair) -> None:
    clip, forced = multilingual.clips[0], multilingual.vocabulary.tokens("ab")
    found = multilingual.model.transcribe_clips(
        [clip], beam=1, language="en", prefix="ab", max_tokens=8
    )[0]
    expected = multilingual.greedy(clip, [*START, *forced], len(clip.features), 8)
    assert found.hypotheses[0][1].tokens.tolist() == expected
    assert found.text.startswith("ab")


def test_sampling_follows_the_distribution(multilingual: Pair) -> None:
    clip = multilingual.clips[0]
    cold = multilingual.model.transcribe_clips([clip], temperature=1e-4, language="en")[0]
    best = multilingual.model.transcribe_clips([clip], beam=1, language="en")[0]
    assert cold.hypotheses[0][1].tokens.tolist() == best.hypotheses[0][1].tokens.tolist()
    temperature, draws = 0.3, 300
    with multilingual.model.model.open(multilingual.encoded(clip), 1, Head()) as session:
        log_probs = session.step(Ask(np.array([START]), np.arange(1))).scores[0, -1].copy()
    rules = multilingual.model.family.rules(WhisperOptions())
    scaled = (log_probs + rules.bias(0)[0]) / temperature
    share = np.exp(scaled - scaled.max())
    share /= share.sum()
    count = np.zeros(len(share))
    for seed in range(draws):
        found = multilingual.model.transcribe_clips(
            [clip], temperature=temperature, language="en", max_tokens=1, seed=seed, best_of=1
        )[0]
        count[found.hypotheses[0][1].tokens[0]] += 1
    likely = np.argsort(-share)[:10]
    deviation = np.sqrt(share[likely] * (1 - share[likely]) / draws)
    assert (np.abs(count[likely] / draws - share[likely]) < 4 * deviation + 1e-9).all()
    assert not count[share == 0].any()
