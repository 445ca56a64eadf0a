"""The quality gate: score, compare, relax, and publish nothing that is too much worse.

| mode         | trials, in order, until one passes                                          |
|--------------|-----------------------------------------------------------------------------|
| int8         | both int8; decoder weights-only; then also the worst 10, 25, 50 % of the    |
|              | encoder's quantizers off, their layers in f32; both weights-only            |
| mixed        | the same without the first                                                  |
| int8-weights | both weights-only                                                           |
| int4-weights | both; encoder with 8 bits; both with 8 bits                                 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from fairseq_openvino import machine, metrics
from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import NumericsError, QualityError
from fairseq_openvino.loading import load_model
from fairseq_openvino.quantize.components import DECODER, ENCODER, Component, Components, Form
from fairseq_openvino.quantize.material import Material
from fairseq_openvino.quantize.options import (
    INT4_WEIGHTS,
    INT8,
    INT8_WEIGHTS,
    MAX_DROP,
    MIXED,
    Options,
)
from fairseq_openvino.quantize.progress import bar
from fairseq_openvino.recognizer import Recognizer
from fairseq_openvino.speech.corpus import Utterance

_FULL, _WEIGHTS, _SMALL = Form(INT8), Form(INT8_WEIGHTS), Form(INT4_WEIGHTS)
_RELAXED = [
    (_FULL, _WEIGHTS),
    *((Form(INT8, share), _WEIGHTS) for share in (0.1, 0.25, 0.5)),
    (_WEIGHTS, _WEIGHTS),
]
LADDERS = {
    INT8: [(_FULL, _FULL), *_RELAXED],
    MIXED: _RELAXED,
    INT8_WEIGHTS: [(_WEIGHTS, _WEIGHTS)],
    INT4_WEIGHTS: [(_SMALL, _SMALL), (_WEIGHTS, _SMALL), (_WEIGHTS, _WEIGHTS)],
}
"""(encoder, decoder) by mode."""
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
    precision: dict[str, str]
    """Inference and KV-cache precision, as the compiled decoder tells them."""


@dataclass(frozen=True)
class Trial:
    """One step of a ladder."""

    encoder: Component
    decoder: Component
    score: float
    drop: float
    """Points by which the score is worse than the original's; negative: better."""
    low: float
    """Lower end of the 95 % interval of the drop, by paired bootstrap."""
    high: float
    changed: int
    """Utterances with another text than the original's."""
    passed: bool
    precision: dict[str, str]

    @property
    def kind(self) -> str:
        """int8, or int8+int8-weights if encoder and decoder differ."""
        return "+".join(dict.fromkeys((self.encoder.form.kind, self.decoder.form.kind)))

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "encoder": self.encoder.to_json(),
            "decoder": self.decoder.to_json(),
            "score": self.score,
            "drop": self.drop,
            "drop_interval": [self.low, self.high],
            "changed_texts": self.changed,
            "passed": self.passed,
            "precision": self.precision,
        }


class Gate:
    """Scores bundles on the validation utterances against the original."""

    def __init__(self, original: Bundle, material: Material, options: Options) -> None:
        self.options, self.utterances = options, material.validation
        self.metric = options.metric
        if self.metric == "auto":
            first = self.utterances[0]
            self.metric = metrics.default_metrics(material.kind, first, options.text_column)[0]
        default = MAX_DROP[self.metric]
        self.max_drop = default if options.max_drop is None else options.max_drop
        self._references = [utterance.reference for utterance in self.utterances]
        words = self.metric in metrics.WORD_METRICS
        language = self.utterances[0].language
        self._normalizer = metrics.whisper_normalizer(language) if words else None
        metrics.check(self._references, self._normalizer)
        self.baseline = self._texts(original, options.original_precision)
        self.baseline_score = metrics.score(
            self._references, self.baseline.hypotheses, self.metric, self._normalizer,
            options.tokenizer,
        )  # fmt: skip

    def judge(self, bundle: Bundle, encoder: Component, decoder: Component) -> Trial:
        """Score a quantized bundle."""
        try:
            found = self._texts(bundle, self.options.inference_precision)
        except NumericsError:  # NaN: not a text in sight, which no metric forgives
            found = Texts([""] * len(self.utterances), {})
        compared = (self._references, self.baseline.hypotheses, found.hypotheses, self.metric)
        difference = metrics.bootstrap_difference(
            *compared, normalizer=self._normalizer, tokenizer=self.options.tokenizer
        )
        drop, low, high = difference.difference, difference.low, difference.high
        if self.metric not in metrics.LOWER_IS_BETTER:
            drop, low, high = -drop, -high, -low
        pairs = zip(self.baseline.hypotheses, found.hypotheses, strict=True)
        return Trial(
            encoder, decoder, self.baseline_score.value + difference.difference, drop, low, high,
            sum(a != b for a, b in pairs), drop <= self.max_drop, found.precision,
        )  # fmt: skip

    def _texts(self, bundle: Bundle, precision: str) -> Texts:
        options = self.options
        threads = options.threads or machine.threads()
        recognizer = load_model(bundle, precision=precision, threads=threads)
        texts: list[str] = []
        with bar("decoding", len(self.utterances)) as shown:
            for batch in _batches(self.utterances, options.batch_size):
                clips = [recognizer.read(utterance.path) for utterance in batch]
                search = search_options(recognizer, batch[0], options.beam, options.language)
                found = recognizer.family.decode(recognizer.model, clips, search)
                texts += [transcript.text for transcript in found]
                shown.update(len(batch))
        stated = recognizer.model.properties(STATED)
        return Texts(texts, {STATED[name]: value for name, value in stated.items()})


def search_options(
    recognizer: Recognizer, utterance: Utterance, beam: int, language: str | None
) -> Any:
    """The family's, in the language that was asked for or that the corpus states."""
    options = recognizer.options(beam=beam, language=language)
    return replace(options, language=recognizer.family.language(utterance.language, options))


def climb(
    gate: Gate, components: Components, announce: Callable[[str], None]
) -> tuple[Bundle, list[Trial]]:
    """Relax until a trial passes; its bundle lies in the scratch directory.

    Raises:
        QualityError: none did; it carries the trials.
    """
    trials: list[Trial] = []
    for encoder_form, decoder_form in LADDERS[gate.options.mode]:
        encoder = components.make(ENCODER, encoder_form)
        decoder = components.make(DECODER, decoder_form)
        bundle = components.bundle_with(encoder, decoder)
        trial = gate.judge(bundle, encoder, decoder)
        trials.append(trial)
        verdict = "passed" if trial.passed else f"more than {gate.max_drop:g} points worse"
        announce(f"{describe(encoder)}; {describe(decoder)}: {trial.score:.2f} - {verdict}")
        if trial.passed:
            return bundle, trials
    raise QualityError(
        f"The quality gate failed in {gate.metric} of {len(gate.utterances)} utterances: expected at "
        f"most {gate.max_drop:g} points worse than {gate.baseline_score.value:.2f}, got "
        f"{', '.join(f'{trial.drop:.2f}' for trial in trials)}. Nothing was published; check the "
        "calibration audio, quantize less (--mode int8-weights) or raise --max-drop.",
        tuple(trials),
    )


def describe(component: Component) -> str:
    """For a table: `encoder int8, alpha 0.5, 3 layers f32`."""
    parts = [f"{component.name} {component.form.kind}"]
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
