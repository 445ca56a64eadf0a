"""Ideas that were tried for the decoder, each measured against what is in use, as a Markdown table.

Random `s2t_transformer_s` (550 frames, 60 tokens) for time, the shipped trained model for what a
greedy decode may rely on. Ratios are medians of interleaved rounds in one process; above 1 the idea
is faster.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

warnings.filterwarnings("ignore")

FRAMES, TOKENS, BEAM, ROUNDS = 550, 60, 5, 5
DRAFT = 4
"""Tokens drafted at a time."""
EOS, FIRST_WORD = 2, 4
"""Fairseq's dictionaries begin with bos, pad, eos, unk."""
MINI = Path(__file__).resolve().parent.parent / "examples" / "covost" / "mini"


def main() -> int:
    """Print one row for each idea."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True, help="for exported models")
    work_dir = parser.parse_args().work_dir
    small, trained = _bundle("s", work_dir), _bundle("mini", work_dir)
    print("| idea | compared with | measured |")
    print("|---|---|---|")
    for name, trial in TRIALS.items():
        against, result = trial(small, trained)
        print(f"| {name} | {against} | {result} |", flush=True)
    return 0


def _bundle(model: str, work_dir: Path) -> Path:
    from fairseq_openvino.benchmark.material import prepare, source
    from fairseq_openvino.benchmark.plan import Case, Options
    from fairseq_openvino.commands.benchmark import TRAINED
    from fairseq_openvino.export.fairseq import export_checkpoint
    from fairseq_openvino.export.fairseq.data import DataDirectory

    trained = model == TRAINED
    case = Case(model, None if trained else 250, None if trained else 1, BEAM)
    found = source(case, work_dir)
    bundle = work_dir / f"{model}-bundle"
    if not bundle.is_dir():
        prepare(case, Options(), work_dir, onnx=False, quantized=False)
        data = DataDirectory(found.data, found.config_yaml)
        export_checkpoint(found.checkpoint, data, bundle)
    return bundle


def _load(bundle: Path, precision: str = "f32", streams: int | None = None) -> Any:
    from fairseq_openvino import load_model

    return load_model(bundle, precision=precision, streams=streams)


@contextmanager
def _compiled_with(**changed: str) -> Any:
    """Models compiled inside get these properties too."""
    from fairseq_openvino.runtime import engine

    original = engine.compile_properties
    engine.compile_properties = lambda *a, **k: original(*a, **k) | changed
    try:
        yield
    finally:
        engine.compile_properties = original


def _decode(model: Any, utterances: int) -> Callable[[], Any]:
    """A batch of random features, TOKENS tokens for every hypothesis."""
    from fairseq_openvino.s2t.search import SearchOptions, decode_batch

    features = np.random.default_rng(0).standard_normal((utterances, FRAMES, 80), np.float32)
    lengths = np.full(utterances, FRAMES)
    options = SearchOptions(BEAM, max_len_b=TOKENS, min_len=TOKENS)
    return lambda: decode_batch(model, features, lengths, options, model.token_ids())


def _times(*runs: Callable[[], Any]) -> list[float]:
    """Median seconds of each, interleaved, after one round that is not counted."""
    seconds: list[list[float]] = [[] for _ in runs]
    for round_ in range(ROUNDS + 1):
        for run, kept in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run()
            if round_:
                kept.append(time.perf_counter() - started)
    return [statistics.median(kept) for kept in seconds]


def _gain(usual: Callable[[], Any], tried: Callable[[], Any]) -> str:
    before, after = _times(usual, tried)
    return f"{before / after:.2f}x ({1000 * before:.0f} -> {1000 * after:.0f} ms)"


def two_streams(small: Path, _: Path) -> tuple[str, str]:
    """The batch in two halves, each on its own thread."""
    one, two = _decode(_load(small, streams=1), 16), _decode(_load(small, streams=2), 16)
    return "one request, 16 utterances, f32", _gain(one, two)


def interleaved_batches(small: Path, _: Path) -> tuple[str, str]:
    """Two --max-tokens batches of 8 at once, each on its own thread, against one after the other."""
    from concurrent.futures import ThreadPoolExecutor

    model, pair = _load(small, streams=1), _load(small, streams=2)
    run, part = _decode(model, 8), _decode(pair, 8)
    pair.streams = lambda utterances: 1
    encode = pair.encode
    pair.encode = lambda features, lengths, streams=1: encode(features, lengths, 2)

    def both() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: part(), range(2)))

    def one_by_one() -> None:
        run()
        run()

    return "one after the other, 2 batches of 8, f32", _gain(one_by_one, both)


def cache_in_8_bits(small: Path, trained: Path) -> tuple[str, str]:
    """OpenVINO's own default for keys and values."""
    usual, model = _load(small, "bf16"), _load(small, "bf16")
    with _compiled_with(KV_CACHE_PRECISION="u8"):
        gain = _gain(_decode(usual, 8), _decode(model, 8))
        narrow = _load(trained)
        clips = sorted(str(path) for path in MINI.glob("clips/*"))
        texts = [each.text for each in narrow.transcribe_batch(clips[:50])]
    expected = [each.text for each in _load(trained).transcribe_batch(clips[:50])]
    same = sum(a == b for a, b in zip(texts, expected, strict=True))
    return "bf16 cache, 8 utterances", f"{gain}; trained model at f32 otherwise: {same} of 50 texts"


def static_batch(small: Path, _: Path) -> tuple[str, str]:
    """All shapes but S and L fixed for 8 utterances; the batch never shrinks here."""
    from dataclasses import replace

    from fairseq_openvino.runtime import rewrite
    from fairseq_openvino.runtime.engine import Engine

    usual, fixed = _load(small), _load(small)
    original = Engine.model

    def static(self: Any, variant: Any) -> Any:
        model = original(self, replace(variant, beam=0))
        if variant.graph == "decoder":
            rewrite.fix_batch(model, 8, BEAM)
        return model

    run = _decode(fixed, 8)
    fixed.engine.model = static.__get__(fixed.engine)
    return "dynamic batch, 8 utterances, f32", _gain(_decode(usual, 8), run)


def cross_attention_as_state(small: Path, _: Path) -> tuple[str, str]:
    """At f32, where nothing has to be converted."""
    from fairseq_openvino.runtime import rewrite
    from fairseq_openvino.runtime.engine import Engine

    usual, kept = _load(small), _load(small)
    original = Engine.model

    def with_state(self: Any, variant: Any) -> Any:
        model = original(self, variant)
        if variant.graph == "decoder":
            rewrite.keep_cross_attention(model)
        return model

    kept.engine.model = with_state.__get__(kept.engine)
    return "inputs, 8 utterances, f32", _gain(_decode(usual, 8), _decode(kept, 8))


def draft_and_verify(small: Path, trained: Path) -> tuple[str, str]:
    """int8 drafts DRAFT greedy tokens, f32 checks them in one call; exact for beam 1."""
    exact, draft = _load(small), _load(small, "int8")
    step, steps, light = (
        _step_seconds(exact, 1), _step_seconds(exact, DRAFT), _step_seconds(draft, 1)
    )  # fmt: skip
    accepted = _greedy_agreement(_load(trained), _load(trained, "int8"))
    expected = sum(accepted**i for i in range(1, DRAFT + 1)) + 1  # tokens a round
    gain = expected * step / (DRAFT * light + steps)
    return (
        "f32 greedy, 1 utterance",
        f"steps f32 {1000 * step:.2f} ms, {DRAFT} tokens {1000 * steps:.2f} ms, int8 "
        f"{1000 * light:.2f} ms; {100 * accepted:.1f}% of drafted tokens right on the trained model:"
        f" at most {gain:.2f}x, before undoing states",
    )


def margin_test(_: Path, trained: Path) -> tuple[str, str]:
    """bf16 greedy, accepted where its smallest margin exceeds 4 times the largest deviation seen."""
    exact, low = _load(trained), _load(trained, "bf16")
    margins, same, deviation = [], [], 0.0
    for clip in _clips(exact):
        tokens, margin, _ = _greedy(low, clip)
        reference, _, scores = _greedy(exact, clip)
        _, _, low_scores = _greedy(low, clip, forced=reference)
        deviation = max(deviation, float(np.abs(scores - low_scores).max()))
        margins.append(margin)
        same.append(tokens == reference)
    accepted = np.array(margins) > 4 * deviation
    wrong = int((accepted & ~np.array(same)).sum())
    return (
        "f32 greedy, trained model, 50 clips",
        f"{100 * accepted.mean():.0f}% accepted, {wrong} of them wrong, {sum(same)} of {len(same)} "
        f"equal without the test; margin needed {4 * deviation:.3f}",
    )


def _step_seconds(model: Any, tokens: int) -> float:
    """Median time of a decoder call with `tokens` new tokens of one row behind 30 others."""
    features = np.random.default_rng(0).standard_normal((1, FRAMES, 80)).astype(np.float32)
    encoded = model.encode(features, np.array([FRAMES]))
    bias = np.zeros((1, model.manifest.dimensions.vocabulary_size), np.float32)
    seconds = []
    for _ in range(ROUNDS * 4):
        with model.open(encoded, 1, 2) as session:
            session.candidates(np.full((1, 30), 7), np.arange(1), bias)
            started = time.perf_counter()
            session.candidates(np.full((1, tokens), 7), np.arange(1), bias)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[ROUNDS:])


def _clips(model: Any) -> list[np.ndarray]:
    return [model.read(path).features for path in sorted(MINI.glob("clips/*"))[:50]]


def _greedy(
    model: Any, features: np.ndarray, forced: list[int] | None = None
) -> tuple[list[int], float, np.ndarray]:
    """Tokens, smallest margin between the two best, and the best scores of each step."""
    encoded = model.encode(features[None], np.array([len(features)]))
    bias = np.zeros((1, model.manifest.dimensions.vocabulary_size), np.float32)
    bias[0, [0, 1, 3]] = -np.inf
    tokens, margin, scores = [EOS], np.inf, []
    with model.open(encoded, 1) as session:
        for step in range(len(forced) if forced is not None else 100):
            log_probs = session.step(np.array([tokens[-1:]]), np.arange(1))[0, -1] + bias[0]
            second, best = np.sort(log_probs)[-2:]
            margin = min(margin, float(best - second))
            scores.append(log_probs[FIRST_WORD:].copy())
            tokens.append(int(np.argmax(log_probs)) if forced is None else forced[step])
            if tokens[-1] == EOS:
                break
    return tokens[1:], margin, np.array(scores)


def _greedy_agreement(exact: Any, draft: Any) -> float:
    """Share of steps at which the draft, on the exact prefix, proposes the exact token."""
    right = total = 0
    for clip in _clips(exact):
        reference, _, _ = _greedy(exact, clip)
        _, _, scores = _greedy(draft, clip, forced=reference)
        proposed = scores.argmax(axis=1) + FIRST_WORD
        known = [token for token in reference if token >= FIRST_WORD]
        right += int((proposed[: len(known)] == known).sum())
        total += len(known)
    return right / total


TRIALS: dict[str, Callable[[Path, Path], tuple[str, str]]] = {
    "two requests on one thread each": two_streams,
    "two batches at a time": interleaved_batches,
    "self-attention cache in 8 bits": cache_in_8_bits,
    "static shapes for a batch": static_batch,
    "cross-attention as state at f32": cross_attention_as_state,
    "draft and verify": draft_and_verify,
    "low precision with a margin test": margin_test,
}

if __name__ == "__main__":
    sys.exit(main())
