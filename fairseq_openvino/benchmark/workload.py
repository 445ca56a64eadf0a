"""What a child measures: `task.inference_step` over Fairseq's own batches, timed as Fairseq does.

The time of a round is the sum over batches of `fairseq-generate`'s generation timer: encoder,
search and decoder, without reading data and without turning tokens into text.
"""

from __future__ import annotations

import copy
import hashlib
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.benchmark.material import Source
from fairseq_openvino.benchmark.plan import Case, Options

MAX_TOKENS = 50000
"""--max-tokens of the trained model's batches, as in Fairseq's own recipes."""
FRAME_SECONDS = 0.01
DIGEST_DIGITS = 12
FIRST_TOKENS = 2
"""Length of the hypothesis that ends the time to load."""


class Stopwatch:
    """Adds up the time during which a function runs, in however many threads."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0
        self._running, self._started, self._lock = 0, 0.0, threading.Lock()

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                if not self._running:
                    self._started = time.perf_counter()
                self._running += 1
            try:
                return function(*arguments, **named)
            finally:
                with self._lock:
                    self._running -= 1
                    self.calls += 1
                    if not self._running:
                        self.seconds += time.perf_counter() - self._started

        return timed


@dataclass
class Loaded:
    """A model of any engine, ready for `round`."""

    task: Any
    models: list[Any]
    batches: list[Any]
    generator: Any
    encoding: Stopwatch = field(default_factory=Stopwatch)
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered around every batch: autocast."""
    bpe: Any = None
    first_seconds: float = 0.0

    @property
    def audio_seconds(self) -> float:
        """Duration of the audio of all batches."""
        frames = sum(int(batch["net_input"]["src_lengths"].sum()) for batch in self.batches)
        return frames * FRAME_SECONDS


def configuration(source: Source, case: Case, options: Options, flags: list[str]) -> Any:
    """Fairseq's configuration for the flags a user would give."""
    from fairseq import options as fairseq_options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    import fairseq_openvino.tasks.speech_to_text_openvino  # noqa: F401  --user-dir does this

    package = Path(__file__).parent.parent
    words = [
        str(source.data), "--config-yaml", source.config_yaml, "--gen-subset", source.subset,
        "--task", "speech_to_text", "--path", str(source.checkpoint), "--beam", str(case.beam),
        "--user-dir", str(package), "--num-workers", "0", "--required-batch-size-multiple", "1",
        *flags,
    ]  # fmt: skip
    if case.vocabulary is None:
        words += ["--max-tokens", str(MAX_TOKENS)]
    else:
        length = str(options.tokens)
        words += ["--batch-size", str(case.utterances), "--min-len", length, "--max-len-b", length]
    sys.argv = ["fairseq-generate", *words]  # Fairseq looks for --user-dir there
    parser = fairseq_options.get_generation_parser()
    parser.add_argument("--arch", default="wav2vec2")  # as fairseq_cli.generate.cli_main does
    return convert_namespace_to_omegaconf(
        fairseq_options.parse_args_and_arch(parser, input_args=words)
    )


def load_batches(task: Any, config: Any, models: list[Any]) -> list[Any]:
    """All batches of the subset, as `fairseq_cli.generate` makes them."""
    from fairseq import utils

    iterator = task.get_batch_iterator(
        dataset=task.dataset(config.dataset.gen_subset),
        max_tokens=config.dataset.max_tokens,
        max_sentences=config.dataset.batch_size,
        max_positions=utils.resolve_max_positions(
            task.max_positions(), *[model.max_positions() for model in models]
        ),
        required_batch_size_multiple=config.dataset.required_batch_size_multiple,
        seed=config.common.seed,
    )
    return list(iterator.next_epoch_itr(shuffle=False))


def first_tokens(loaded: Loaded, config: Any) -> None:
    """Decode two tokens of the first utterance: everything lazy is compiled after it."""
    short = copy.deepcopy(config.generation)
    short.min_len, short.max_len_a, short.max_len_b = 1, 0, FIRST_TOKENS
    generator = loaded.task.build_generator(loaded.models, short)
    batch = loaded.batches[0]
    sample = {
        "id": batch["id"][:1],
        "net_input": {key: value[:1] for key, value in batch["net_input"].items()},
    }
    with loaded.context():
        loaded.task.inference_step(generator, loaded.models, sample)


def measure_round(loaded: Loaded, source: Source) -> dict[str, Any]:
    """One pass over all batches: times in seconds, tokens, hypotheses."""
    watch = loaded.encoding
    watch.seconds, watch.calls = 0.0, 0
    seconds, steps, best = 0.0, 0, {}
    for batch in loaded.batches:
        with loaded.context():
            started = time.perf_counter()
            found = loaded.task.inference_step(loaded.generator, loaded.models, batch)
            seconds += time.perf_counter() - started
        steps += max(len(hypothesis["tokens"]) for each in found for hypothesis in each)
        for number, each in zip(batch["id"].tolist(), found, strict=True):
            best[number] = [int(token) for token in each[0]["tokens"]]
    ordered = [best[number] for number in sorted(best)]
    return {
        "seconds": seconds,
        "encode_seconds": watch.seconds if watch.calls else None,
        "steps": steps,
        "tokens": sum(map(len, ordered)),
        "digests": [_digest(tokens) for tokens in ordered],
        "bleu": _bleu(loaded, source, best) if loaded.bpe is not None else None,
        "peak_mb": machine.peak_megabytes(),
    }


def _digest(tokens: list[int]) -> str:
    return hashlib.sha256(" ".join(map(str, tokens)).encode()).hexdigest()[:DIGEST_DIGITS]


def _bleu(loaded: Loaded, source: Source, best: dict[int, list[int]]) -> float:
    """Of the 1-best texts against the manifest's targets."""
    import sacrebleu

    dataset = loaded.task.dataset(source.subset)
    dictionary, numbers = loaded.task.target_dictionary, sorted(best)
    texts = [loaded.bpe.decode(dictionary.string(best[number])) for number in numbers]
    references = [dataset.tgt_texts[number] for number in numbers]
    return float(sacrebleu.corpus_bleu(texts, [references]).score)
