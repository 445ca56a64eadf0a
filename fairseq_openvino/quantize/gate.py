"""The quality gate: score, compare, relax, and publish nothing that is or may be too much worse.

| mode         | trials, in order, until one passes                                          |
|--------------|-----------------------------------------------------------------------------|
| auto         | both int8; decoder weights-only; both weights-only                          |
| int8         | the same, but before the last also the worst 10, 25, 50 % of the encoder's  |
|              | quantizers off, their layers in f32                                         |
| mixed        | as int8, without the first                                                  |
| int8-weights | both weights-only                                                           |
| int4-weights | both; encoder with 8 bits; both with 8 bits                                 |

The order is that of speed: what is multiplied in 8 bits is faster than what is only stored in them. A
trial is refused for its score (`yardstick`) or for texts no score excuses (`faults`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from fairseq_openvino import machine, metrics
from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import NumericsError, QualityError, failure
from fairseq_openvino.families import options_for
from fairseq_openvino.loading import load_model
from fairseq_openvino.model import Transcript
from fairseq_openvino.quantize.components import DECODER, ENCODER, Component, Components, Form
from fairseq_openvino.quantize.faults import Faults
from fairseq_openvino.quantize.material import Material
from fairseq_openvino.quantize.options import (
    ACTION,
    AUTO,
    INT4_WEIGHTS,
    INT8,
    INT8_WEIGHTS,
    MAX_DROP,
    MIXED,
    Options,
)
from fairseq_openvino.quantize.progress import Progress
from fairseq_openvino.quantize.yardstick import PASSED, REFUSED, UNCERTAIN, Loss, Yardstick
from fairseq_openvino.recognizer import Recognizer
from fairseq_openvino.speech.corpus import Utterance

_FULL, _WEIGHTS, _SMALL = Form(INT8), Form(INT8_WEIGHTS), Form(INT4_WEIGHTS)
_RELAXED = [
    (_FULL, _WEIGHTS),
    *((Form(INT8, share), _WEIGHTS) for share in (0.1, 0.25, 0.5)),
    (_WEIGHTS, _WEIGHTS),
]
LADDERS = {
    AUTO: [(_FULL, _FULL), _RELAXED[0], _RELAXED[-1]],
    INT8: [(_FULL, _FULL), *_RELAXED],
    MIXED: _RELAXED,
    INT8_WEIGHTS: [(_WEIGHTS, _WEIGHTS)],
    INT4_WEIGHTS: [(_SMALL, _SMALL), (_WEIGHTS, _SMALL), (_WEIGHTS, _WEIGHTS)],
}
"""(encoder, decoder) by mode; without a decoder, the encoder's alone."""
ANY_DROP = 100
"""With so large a limit nothing is asked of the texts at all."""
TOO_FEW = (
    "Validate on more (--validation, --validation-size), allow more (--max-drop), or publish it unproven "
    "(--accept-uncertain)"
)
STATED = {
    "INFERENCE_PRECISION_HINT": "inference",
    "KV_CACHE_PRECISION": "kv_cache",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "dynamic_quantization_group",
}
"""What is kept of what OpenVINO says the decoder computes and caches in."""


@dataclass(frozen=True)
class Texts:
    """What a bundle made of the validation utterances."""

    hypotheses: list[str]
    faults: Faults
    precision: dict[str, str]
    """Inference and KV-cache precision, as the compiled decoder tells them."""


@dataclass(frozen=True)
class Trial:
    """One step of a ladder."""

    encoder: Component
    decoder: Component | None
    """None of a model that has none."""
    score: float
    loss: Loss
    changed: int
    """Utterances with another text than the original's."""
    faults: Faults
    excess: dict[str, int]
    """Faults beyond the original's."""
    verdict: str
    """`yardstick.PASSED`, UNCERTAIN or REFUSED."""
    precision: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether the loss is within the limit, not only maybe."""
        return self.verdict == PASSED

    @property
    def kind(self) -> str:
        """int8, or int8+int8-weights if encoder and decoder differ; see `Component.kind`."""
        parts = (part for part in (self.encoder, self.decoder) if part is not None)
        return "+".join(dict.fromkeys(part.kind for part in parts))

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "encoder": self.encoder.to_json(),
            "decoder": None if self.decoder is None else self.decoder.to_json(),
            "score": self.score,
            "drop": self.loss.points,
            "drop_interval": [self.loss.low, self.loss.high],
            "changed_texts": self.changed,
            "faults": asdict(self.faults),
            "verdict": self.verdict,
            "passed": self.passed,
            "precision": self.precision,
        }


class Gate:
    """Scores bundles on the validation utterances against the original.

    Raises:
        QualityError: the utterances are so few that even equal texts would prove nothing.
    """

    def __init__(
        self, original: Bundle, material: Material, options: Options, progress: Progress
    ) -> None:
        self.options, self.utterances, self._progress = options, material.validation, progress
        self.original = original
        metric = options.metric
        if metric == "auto":
            first = self.utterances[0]
            metric = metrics.default_metrics(material.kind, first, options.text_column)[0]
        default = MAX_DROP[metric]
        self.max_drop = default if options.max_drop is None else options.max_drop
        self.yardstick = Yardstick(self.utterances, metric, options)
        if not options.accept_uncertain and self.max_drop < ANY_DROP:
            self._check_size()

    @cached_property
    def baseline(self) -> Texts:
        """Of the original."""
        return self._texts(self.original, self.options.original_precision)

    @cached_property
    def baseline_score(self) -> metrics.Score:
        """Of the original."""
        return self.yardstick.score(self.baseline.hypotheses)

    def judge(self, bundle: Bundle, encoder: Component, decoder: Component | None = None) -> Trial:
        """Score a quantized bundle."""
        count = len(self.utterances)
        try:
            found = self._texts(bundle, self.options.inference_precision)
        except NumericsError:  # NaN: not a text in sight, which no metric forgives
            found = Texts([""] * count, Faults(shorter=count), {})
        before = self.baseline.hypotheses
        loss = self.yardstick.loss(before, found.hypotheses)
        excess = found.faults.beyond(self.baseline.faults)
        verdict = REFUSED if excess else loss.verdict(self.max_drop)
        if self.max_drop >= ANY_DROP:
            verdict = PASSED
        return Trial(
            encoder, decoder, self.yardstick.score(found.hypotheses).value, loss,
            sum(a != b for a, b in zip(before, found.hypotheses, strict=True)), found.faults, excess,
            verdict, found.precision,
        )  # fmt: skip

    def accepts(self, trial: Trial) -> bool:
        """Whether it is published."""
        return trial.passed or (trial.verdict == UNCERTAIN and self.options.accept_uncertain)

    def _check_size(self) -> None:
        """Nothing was decoded yet: the references tell what equal texts would prove."""
        measured, words = self.yardstick, self.yardstick.words
        least = measured.loss(measured.references, measured.references).high
        if least > self.max_drop:
            about = math.ceil(words * least / self.max_drop) if self.max_drop else math.inf
            raise failure(
                QualityError, ACTION, f"{len(self.utterances)} utterances to validate",
                f"enough to tell a loss of {self.max_drop:g} points {measured.metric} (about {about:,} "
                f"words or more)", f"{words:,}, on which even equal texts may hide {least:.2f}", TOO_FEW,
            )  # fmt: skip

    def _texts(self, bundle: Bundle, precision: str) -> Texts:
        options = self.options
        threads = options.threads or machine.threads()
        recognizer = load_model(bundle, precision=precision, threads=threads)
        transcripts: list[Transcript] = []
        with self._progress.stage("decoding") as step:
            for batch in _batches(self.utterances, options.batch_size):
                clips = [recognizer.read(utterance.path) for utterance in batch]
                search = search_options(recognizer, batch[0], options.beam, options.language)
                transcripts += recognizer.family.decode(recognizer.model, clips, search)
                step(len(batch))
        stated = recognizer.model.properties(STATED)
        return Texts(
            [transcript.text for transcript in transcripts],
            Faults.of(self.yardstick.references, transcripts, bundle.manifest.tokens.eos),
            {STATED[name]: value for name, value in stated.items()},
        )


def search_options(
    recognizer: Recognizer, utterance: Utterance, beam: int, language: str | None
) -> Any:
    """The family's, in the language that was asked for or that the corpus states."""
    wanted = {"beam": beam, "language": language}
    return options_for(recognizer.family, wanted, utterance.language)


def ladder(mode: str, bundle: Bundle) -> list[tuple[Form, ...]]:
    """Forms of the graphs of a bundle, in the order in which they are tried."""
    graphs = 2 if bundle.manifest.has_decoder else 1
    return list(dict.fromkeys(forms[:graphs] for forms in LADDERS[mode]))


def climb(
    gate: Gate, components: Components, announce: Callable[[str], None]
) -> tuple[Bundle, list[Trial]]:
    """Relax until a trial is accepted; its bundle lies in the scratch directory.

    Raises:
        QualityError: none was; it carries the trials.
    """
    trials: list[Trial] = []
    for forms in ladder(gate.options.mode, gate.original):
        parts = [components.make(*each) for each in zip((ENCODER, DECODER), forms, strict=False)]
        bundle = components.bundle_with(*parts)
        trial = gate.judge(bundle, *parts)
        trials.append(trial)
        announce(f"{'; '.join(map(describe, parts))}: {trial.score:.2f} - {reason(trial)}")
        if gate.accepts(trial):
            return bundle, trials
    raise _none_accepted(gate, trials)


def reason(trial: Trial) -> str:
    """The verdict, and what more of the texts are than of the original's."""
    more = ", ".join(f"{count} more {name}" for name, count in trial.excess.items())
    return f"{trial.verdict} ({more})" if more else trial.verdict


def _none_accepted(gate: Gate, trials: Sequence[Trial]) -> QualityError:
    """Each is refused, or it cannot be told of some."""
    limit, words = gate.max_drop, gate.yardstick.words
    where = f"{gate.yardstick.metric} of {len(gate.utterances)} utterances ({words} words)"
    expected = f"at most {limit:g} points worse than {gate.baseline_score.value:.2f}"
    losses = ", ".join(
        f"{trial.loss.points:+.2f} ({trial.loss.low:+.2f} to {trial.loss.high:+.2f}; {reason(trial)})"
        for trial in trials
    )
    open_ones = [trial.loss for trial in trials if trial.verdict == UNCERTAIN]
    advice = (
        "Nothing was published; check the calibration audio, quantize less (--mode int8-weights) or "
        "raise --max-drop"
    )
    if open_ones:
        needed = [loss.words_needed(limit, words) for loss in open_ones]
        about = min((count for count in needed if count is not None), default=None)
        told = ""
        if about is not None:
            clips = math.ceil(about * len(gate.utterances) / words)
            told = f"; about {about:,} words ({clips:,} utterances) would tell of the likeliest"
        advice = f"Nothing was published{told}. {TOO_FEW}"
    error = failure(QualityError, "The quality gate", where, expected, losses, advice)
    error.trials = tuple(trials)
    return error


def describe(component: Component) -> str:
    """For a table: `encoder int8, alpha 0.5, 3 layers f32`."""
    parts = [f"{component.name} {component.kind}"]
    if component.alpha is not None:
        parts.append(f"alpha {component.alpha:g}" if component.alpha >= 0 else "no smoothing")
    if component.excluded:
        parts.append(f"{len(component.excluded)} layers f32")
    return ", ".join(parts)


def _batches(utterances: Sequence[Utterance], size: int) -> Iterator[list[Utterance]]:
    """Of one language each."""
    for _, group in groupby(utterances, lambda utterance: utterance.language):
        same = list(group)
        yield from (same[i : i + size] for i in range(0, len(same), size))
