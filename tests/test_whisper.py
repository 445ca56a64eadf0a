"""The Whisper family against transformers: features, tokens, segments, languages, bad input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whisper_models import TEXT_TOKENS, Layout, waveforms, write_whisper

from fairseq_openvino import load_model
from fairseq_openvino.errors import OptionError, UtteranceTooLongError
from fairseq_openvino.model import Ask, Clip, Head, Hypothesis, Memory, Transcript
from fairseq_openvino.whisper import context as whisper_context
from fairseq_openvino.whisper.family import is_done
from fairseq_openvino.whisper.options import WhisperOptions
from fairseq_openvino.whisper.rules import Rules, TimestampMask
from fairseq_openvino.whisper.windows import Progress

LAYOUTS = {
    "multilingual": Layout(),
    "ending": Layout(mels=128, languages=100, seed=40, ending=4.0),
    "english": Layout(languages=0, seed=7, ending=3.0),
}


class Pair:
    """A transformers model and our bundle of it, with clips."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        import torch

        from fairseq_openvino.compat.transformers import transformers
        from fairseq_openvino.export.whisper import export_whisper

        self.layout, self.directory = layout, write_whisper(directory / "source", layout)
        self.bundle, self.report = export_whisper(self.directory, directory / "bundle")
        self.model: Any = load_model(self.bundle)
        self.vocabulary, self.config = self.model.family.vocabulary, self.model.family.config
        self.original = transformers.WhisperForConditionalGeneration.from_pretrained(
            self.directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.waveforms = waveforms(3, layout.positions / 50, seed=3)
        self.clips: list[Clip] = [self.model.clip(each, 16000) for each in self.waveforms]
        samples = layout.positions * 320
        self.whole = [self.model.clip(np.resize(each, samples), 16000) for each in self.waveforms]
        """Clips as long as the window: transformers goes on in the padding behind shorter ones."""

    def expected(self, clips: Sequence[Clip], **options: Any) -> dict[str, Any]:
        """transformers' `generate` with segments."""
        import torch

        features = torch.from_numpy(np.stack([clip.features for clip in clips])).transpose(1, 2)
        if not self.layout.languages:
            options = {k: v for k, v in options.items() if k not in ("language", "task")}
        with torch.no_grad():
            found: dict[str, Any] = self.original.generate(
                features, return_segments=True, **options
            )
        return found

    def encoded(self, *clips: Clip) -> Memory:
        """Whole windows, as one batch."""
        features = np.stack([clip.features for clip in clips])
        memory: Memory = self.model.model.encode(features, np.full(len(clips), features.shape[1]))
        return memory

    def without_end(self, tokens: Sequence[int]) -> list[int]:
        """Tokens up to <|endoftext|>."""
        kept = [int(token) for token in tokens]
        while kept and kept[-1] == TEXT_TOKENS:
            kept.pop()
        return kept


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Each layout's pair, made when it is first asked for."""
    return cache(lambda name: Pair(tmp_path_factory.mktemp(name), LAYOUTS[name]))


@pytest.fixture(scope="module", params=list(LAYOUTS))
def pair(request: pytest.FixtureRequest, pairs: Callable[[str], Pair]) -> Pair:
    return pairs(request.param)


@pytest.fixture(scope="module")
def multilingual(pairs: Callable[[str], Pair]) -> Pair:
    """For what does not differ between layouts."""
    return pairs("multilingual")


def assert_same(pair: Pair, found: list[Any], expected: dict[str, Any], timestamps: bool) -> None:
    for i, transcript in enumerate(found):
        tokens = transcript.hypotheses[0][1].tokens
        if timestamps:
            spoken, times = heard(expected["segments"][i], transcript.seconds)
            first = pair.config.first_timestamp
            assert pair.without_end(t for t in tokens if t < first) == pair.without_end(
                t for t in spoken if t < first
            )
            ours = [(segment.start, segment.end) for segment in transcript.segments]
            np.testing.assert_allclose(ours, times, atol=1e-6)
        else:
            assert pair.without_end(tokens) == pair.without_end(expected["sequences"][i])


def heard(segments: Sequence[Any], seconds: float) -> tuple[list[int], list[tuple[float, float]]]:
    """Tokens and times of transformers' segments as far as the audio goes, which it does not ask."""
    kept = [each for each in segments if float(each["start"]) < seconds] or segments[:1]
    times = [tuple(min(float(each[end]), seconds) for end in ("start", "end")) for each in kept]
    return [int(token) for each in kept for token in each["tokens"]], times


def test_parity_gate(pair: Pair) -> None:
    assert pair.report.passed and all(row.ir_steps for row in pair.report.rows)
    assert pair.report.reference == "transformers" and len(pair.report.rows) == 4


def test_onnx_stores_the_tied_embedding_once(multilingual: Pair) -> None:
    files = multilingual.bundle.manifest.files
    assert files["decoder.onnx"].bytes < 1.1 * files["decoder.bin"].bytes


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
        silence = torch.softmax(logits, 0)[TEXT_TOKENS + 105]
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


def reference_greedy(
    pair: Pair, clip: Clip, tokens: list[int], frames: int, count: int
) -> list[int]:
    """Greedy continuation of a prompt by the reference, without a cache."""
    import torch

    from fairseq_openvino.export.whisper.graphs import Reference

    original, tokens = pair.original, list(tokens)
    rules = pair.model.family.rules(WhisperOptions())
    with torch.no_grad():
        states = Reference(original).encode(torch.from_numpy(clip.features[None, :frames]))
        for step in range(count):
            logits = original(
                decoder_input_ids=torch.tensor([tokens]), encoder_outputs=(states,)
            ).logits[0, -1]
            tokens.append(int(np.argmax(logits.numpy() + rules.bias(step)[0])))
    return tokens[-count:]


START = [TEXT_TOKENS + 1, TEXT_TOKENS + 2, TEXT_TOKENS + 102, TEXT_TOKENS + 106]
"""<|startoftranscript|><|en|><|transcribe|><|notimestamps|> of the multilingual model."""


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


def test_audio_context_is_a_shorter_encoder(
    multilingual: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window cut to 70 positions equals the reference encoder with its position table cut."""
    monkeypatch.setattr(whisper_context, "MIN_LOG_PROBABILITY", -np.inf)  # the weights are random
    short = multilingual.model.clip(multilingual.waveforms[0][: 16000 * 13 // 10], 16000)
    options = {"beam": 1, "language": "en", "max_tokens": 12}
    found = multilingual.model.transcribe_clips([short], audio_context=70, **options)[0]
    assert found.decoded_again is None
    expected = reference_greedy(multilingual, short, START, 140, 12)
    assert found.hypotheses[0][1].tokens.tolist() == expected
    full = multilingual.model.transcribe_clips([short], **options)[0]
    assert full.score != found.score


def test_a_doubtful_text_is_decoded_again_with_the_whole_window(multilingual: Pair) -> None:
    """Random weights are never sure of anything."""
    short = multilingual.model.clip(multilingual.waveforms[0][: 16000 * 13 // 10], 16000)
    for options in ({"beam": 1}, {"beam": 3}, {"beam": 2, "timestamps": True}):
        found = multilingual.model.transcribe_clips([short], audio_context=70, **options)[0]
        full = multilingual.model.transcribe_clips([short], **options)[0]
        assert found.decoded_again is not None and full.decoded_again is None
        assert found.hypotheses[0][1].tokens.tolist() == full.hypotheses[0][1].tokens.tolist()


def doubted(tokens: Sequence[int], seconds: float, text: str, log_probability: float = -0.1) -> Any:
    scores = np.full(len(tokens), log_probability, np.float32)
    best = Hypothesis(np.array(tokens), log_probability, scores)
    transcript = Transcript("clip", text, log_probability, seconds, ((text, best),))
    return whisper_context.doubt(transcript, TEXT_TOKENS, None)


def test_auto_encodes_at_least_what_keeps_the_decoder_from_looping() -> None:
    def clip(seconds: float) -> Clip:
        return Clip("clip", np.zeros((1, 80), np.float32), seconds)

    assert [whisper_context.auto_positions(clip(s), 1500) for s in (0.1, 9.9)] == [600, 600]
    assert whisper_context.auto_positions(clip(20.0), 1500) == 1100
    assert whisper_context.auto_positions(clip(29.0), 1500) == 1500
    assert whisper_context.auto_positions(clip(2.0), 400) == 400


def test_silence_behind_the_last_segment_is_not_decoded(multilingual: Pair) -> None:
    tone = np.resize(multilingual.waveforms[0], 32_000)
    hushed = np.where(np.arange(32_000) < 3_200, tone, 1e-4 * tone).astype(np.float32)
    for waveform, silent in ((tone, False), (hushed, True)):
        clip = multilingual.model.clip(waveform, 16000)
        progress = Progress(200, "en", 1)
        assert not is_done(clip, progress)  # the first window always is
        progress.seek = 40
        assert is_done(clip, progress) == silent
        progress.seek = 200
        assert is_done(clip, progress)


def test_what_is_doubted() -> None:
    sound = [*range(12), TEXT_TOKENS]
    assert doubted(sound, 4.0, "The black key is very new.") is None
    assert doubted(sound[:-1], 4.0, "The black key is very") == "no end after 12 tokens"
    assert doubted(sound, 4.0, "I am. " * 30).startswith("compression ratio")
    assert doubted(sound, 4.0, "The black key", -1.2) == "average log-probability -1.20"
    assert doubted(sound, 28.0, "The black key is very new.") == "13 tokens in 28.0 s"


def test_what_the_user_writes_is_never_a_special_token(multilingual: Pair) -> None:
    vocabulary = multilingual.vocabulary
    for text in ("<|endoftext|> hello <|startoftranscript|>", "<|0.00|>", "a<|en|>b"):
        tokens = vocabulary.tokens(text)
        assert max(tokens) < vocabulary.eos and vocabulary.text(tokens) == text
    plain = "Mr. Quilter's  36th, ümläut 平凡 👩‍👩‍👧"
    known = vocabulary._tokenizer.encode(f" {plain}", add_special_tokens=False).ids
    assert vocabulary.tokens(plain) == tuple(known)


def test_prefix_begins_the_text(multilingual: Pair) -> None:
    clip, forced = multilingual.clips[0], multilingual.vocabulary.tokens("ab")
    found = multilingual.model.transcribe_clips(
        [clip], beam=1, language="en", prefix="ab", max_tokens=8
    )[0]
    expected = reference_greedy(multilingual, clip, [*START, *forced], len(clip.features), 8)
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
            [clip], temperature=temperature, language="en", max_tokens=1, seed=seed
        )[0]
        count[found.hypotheses[0][1].tokens[0]] += 1
    likely = np.argsort(-share)[:10]
    deviation = np.sqrt(share[likely] * (1 - share[likely]) / draws)
    assert (np.abs(count[likely] / draws - share[likely]) < 4 * deviation + 1e-9).all()
    assert not count[share == 0].any()


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
    "prompt": {"prompt": "long " * 40}, "prefix": {"prefix": "a", "timestamps": True},
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


@pytest.mark.parametrize("context", ["half", 0, -3, 101])
def test_audio_contexts_that_cannot_work(multilingual: Pair, context: Any) -> None:
    with pytest.raises(OptionError, match="in audio_context: "):
        multilingual.model.transcribe_clips(multilingual.clips[:1], audio_context=context)


def test_a_clip_longer_than_the_audio_context_is_its_own_error(multilingual: Pair) -> None:
    with pytest.raises(UtteranceTooLongError, match="expected at most 10 positions"):
        multilingual.model.transcribe_clips(multilingual.clips[:1], audio_context=10)


def test_english_models_refuse_other_languages(pairs: Callable[[str], Pair]) -> None:
    english = pairs("english")
    for options in ({"language": "de"}, {"task": "translate"}):
        with pytest.raises(OptionError, match=f"in {next(iter(options))}: .*English-only"):
            english.model.transcribe_clips(english.clips[:1], **options)
    assert english.model.transcribe_clips(english.clips[:1])[0].language == "en"
    assert english.model.transcribe_clips(english.clips[:1])[0].language_probabilities == {}


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


UNUSABLE = ("zero", "nan", "1hz", "10mhz", "text", "long")


def test_unusual_audio_is_transcribed_and_broken_audio_is_named(
    multilingual: Pair, tmp_path: Path
) -> None:
    from fairseq_openvino.errors import AudioError

    for name, path in audio_files(tmp_path).items():
        if name in UNUSABLE:
            with pytest.raises(AudioError, match=f"{name}.wav.*expected .*got"):
                multilingual.model.transcribe(path, beam=1)
        else:
            found = multilingual.model.transcribe(path, beam=1, max_tokens=5)
            assert found.seconds == pytest.approx(1.0) and found.no_speech_probability < 1
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


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of openai-whisper: `dims`, other names, a tiktoken file; 51,865 tokens."""
    import base64

    import torch

    from fairseq_openvino.compat.transformers import transformers

    directory = tmp_path_factory.mktemp("openai")
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
        max_source_positions=50, max_target_positions=32,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    torch.save(model, directory / "unsafe.pt")
    names = {
        "layers": "blocks", "fc1": "mlp.0", "fc2": "mlp.2", "final_layer_norm": "mlp_ln",
        "encoder_attn_layer_norm": "cross_attn_ln", "self_attn_layer_norm": "attn_ln",
        "encoder_attn": "cross_attn", "self_attn": "attn", "q_proj": "query", "k_proj": "key",
        "v_proj": "value", "out_proj": "out", "embed_tokens": "token_embedding",
        "embed_positions.weight": "positional_embedding", "encoder.layer_norm": "encoder.ln_post",
        "decoder.layer_norm": "decoder.ln",
    }  # fmt: skip
    state = {}
    for original, weights in model.model.state_dict().items():
        name = original
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        state[name] = weights
    dims = {
        "n_mels": 80, "n_vocab": 51865, "n_audio_ctx": 50, "n_audio_state": 32, "n_audio_head": 2,
        "n_audio_layer": 1, "n_text_ctx": 32, "n_text_state": 32, "n_text_head": 2,
        "n_text_layer": 1,
    }  # fmt: skip
    torch.save({"dims": dims, "model_state_dict": state}, directory / "small.pt")
    tokens = [bytes([i]) for i in range(256)]
    tokens += [bytes([i, j]) for i in range(256) for j in range(256)][: 50257 - 256]
    lines = [base64.b64encode(t) + b" " + str(i).encode() for i, t in enumerate(tokens)]
    (directory / "multilingual.tiktoken").write_bytes(b"\n".join(lines))
    return directory


def test_openai_checkpoints(openai: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    import torch

    from fairseq_openvino.errors import CheckpointError, ModelError, UnsafeCheckpointError
    from fairseq_openvino.export.whisper import export_whisper

    bundle, report = export_whisper(openai / "small.pt", tmp_path / "bundle")
    rules = bundle.manifest.whisper
    assert report.passed and rules is not None
    assert (rules.start, rules.no_timestamps, rules.no_speech) == (50258, 50363, 50362)
    assert rules.languages["su"] == 50357 and rules.tasks["transcribe"] == 50359
    assert {50258, 50360, 50361, 50362} <= set(rules.suppressed)
    model = load_model(bundle)
    found = model.transcribe_clips([model.clip(waveforms(1, 1.0)[0], 16000)], beam=2, language="de")
    assert found[0].language == "de" and len(found[0].hypotheses[0][1].tokens) > 0
    assert model.family.vocabulary.tokens("ab")[0] > 255  # a merged pair
    with pytest.raises(UnsafeCheckpointError):
        export_whisper(openai / "unsafe.pt", tmp_path / "x")
    torch.save({"model_state_dict": {}}, tmp_path / "nodims.pt")
    with pytest.raises(CheckpointError, match="dims"):
        export_whisper(tmp_path / "nodims.pt", tmp_path / "x", None, openai)
    content = torch.load(openai / "small.pt")
    content["model_state_dict"].popitem()
    torch.save(content, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="missing"):
        export_whisper(tmp_path / "part.pt", tmp_path / "x", None, openai)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # no openai-whisper
    with pytest.raises(ModelError, match="--tokenizer"):
        torch.save(torch.load(openai / "small.pt"), tmp_path / "alone.pt")
        export_whisper(tmp_path / "alone.pt", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_sources_that_cannot_be_exported(multilingual: Pair, tmp_path: Path) -> None:
    import json
    import shutil

    from fairseq_openvino.errors import CheckpointError, ModelError
    from fairseq_openvino.export.whisper import export_whisper

    def copy(name: str) -> Path:
        return Path(shutil.copytree(multilingual.directory, tmp_path / name))

    cases: list[tuple[Path | str, type[Exception], str]] = [
        (tmp_path / "absent", CheckpointError, "no such file"),
    ]
    for names, kind, reason in (
        (("tokenizer.json", "vocab.json"), ModelError, "--tokenizer"),
        (("model.safetensors",), CheckpointError, "model.safetensors"),
        (("config.json",), CheckpointError, "config.json"),
    ):
        directory = copy(f"without-{names[0]}")
        for name in names:
            (directory / name).unlink()
        cases.append((directory, kind, reason))
    truncated = copy("truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    cases.append((truncated, CheckpointError, "complete weights"))
    other = copy("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    cases.append((other, ModelError, "bert"))
    rules = copy("rules")
    (rules / "generation_config.json").write_text("{}")
    cases.append((rules, CheckpointError, "no_timestamps_token_id"))
    front = copy("front")
    settings = json.loads((front / "preprocessor_config.json").read_text())
    (front / "preprocessor_config.json").write_text(json.dumps(settings | {"hop_length": 200}))
    cases.append((front, ModelError, "hop_length"))
    for source, kind, reason in cases:
        with pytest.raises(kind, match=reason):
            export_whisper(source, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()


def test_fairseq_generate_reads_a_manifest_of_audio_files(
    multilingual: Pair, tmp_path: Path
) -> None:
    from conftest import generate

    from fairseq_openvino.plugin.skipping import damaged

    paths = audio_files(tmp_path)
    rows = ["id\taudio\tn_frames\ttgt_text\tsrc_lang\ttgt_lang"]
    for name, languages in (("noise", "de\ten"), ("stereo", "en\ten"), ("silence", "\t")):
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
