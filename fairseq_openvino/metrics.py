"""Scores of hypotheses against references, and whether two systems differ.

| metric     | what it is                                                    | better |
|------------|---------------------------------------------------------------|--------|
| `bleu`     | corpus BLEU by sacrebleu, 0 to 100                            | higher |
| `chrf`     | corpus chrF2 by sacrebleu, 0 to 100                           | higher |
| `wer`      | word errors by reference words of the corpus (jiwer), percent | lower  |
| `accuracy` | mean over utterances of 100 * (1 - WER), as Intel's article   | higher |

Every metric is a function of sums over utterances; the bootstrap resamples what is summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from fairseq_openvino.errors import MissingDependencyError, ModelError, invalid
from fairseq_openvino.speech.corpus import FAIRSEQ, Utterance
from fairseq_openvino.speech.languages import language_code

METRICS = ("bleu", "chrf", "wer", "accuracy")
TRANSLATION_METRICS = ("bleu", "chrf")
WORD_METRICS = ("wer", "accuracy")
"""Of transcripts; texts may be normalised first."""
LOWER_IS_BETTER = ("wer",)
BLEU_TOKENIZER = "13a"
CONFIDENCE = 0.95
BOOTSTRAP_SAMPLES = 1000
BOOTSTRAP_SEED = 12345
ENGLISH = ("en", "eng", "english")
UNSPACED = ("zh", "ja", "th", "lo", "my", "yue", "bo", "km")
"""Languages written without spaces: their "words" are characters, as in OpenAI's evaluation."""
MAX_TEXT_IN_MESSAGE = 60


@dataclass(frozen=True)
class Normalizer:
    """A function applied to references and hypotheses before words are compared."""

    name: str
    """For the report."""
    function: Callable[[str], str]

    def __call__(self, text: str) -> str:
        """The normalised text."""
        return self.function(text)


@dataclass(frozen=True)
class Score:
    """One figure and how it came about."""

    metric: str
    value: float
    signature: str
    """sacrebleu's signature, or the jiwer version and the normaliser."""


class Difference(NamedTuple):
    """Score of b minus score of a, with its confidence interval."""

    difference: float
    low: float
    high: float


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    metric: str,
    normalizer: Normalizer | None = None,
    tokenizer: str = BLEU_TOKENIZER,
) -> Score:
    """Score a system.

    Args:
        references: one text an utterance, none of them empty.
        hypotheses: as many texts; an empty one counts as such.
        metric: one of METRICS.
        normalizer: for WORD_METRICS; see `whisper_normalizer`.
        tokenizer: sacrebleu's, for `bleu`.

    Raises:
        ModelError: the counts differ, there are no utterances, or a reference is empty.
        OptionError: an unknown metric or tokenizer.
        MissingDependencyError: sacrebleu or jiwer is not installed.
    """
    found = _statistics(references, hypotheses, metric, normalizer, tokenizer)
    return Score(metric, found.value(found.sums.sum(axis=0)), found.signature)


def bootstrap_difference(
    references: Sequence[str],
    a: Sequence[str],
    b: Sequence[str],
    metric: str,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = BOOTSTRAP_SEED,
    normalizer: Normalizer | None = None,
    tokenizer: str = BLEU_TOKENIZER,
    groups: Sequence[str] | None = None,
) -> Difference:
    """Paired bootstrap (Koehn 2004): score of b minus score of a, with its 95 % interval.

    Both systems are scored on the same resampled utterances, so that the difficulty of a sample
    cancels out. Positive is better for b, except for `wer`.

    Args:
        references: one text an utterance.
        a: hypotheses of the system compared with.
        b: hypotheses of the other system.
        metric: one of METRICS.
        samples: corpora drawn.
        seed: of the draws; the same for every comparison, so that results repeat.
        normalizer: as for `score`.
        tokenizer: as for `score`.
        groups: of each utterance, as its speaker: what is drawn together (default: each alone).

    Raises:
        ModelError, OptionError, MissingDependencyError: as `score`.
    """
    first = _statistics(references, a, metric, normalizer, tokenizer)
    second = _statistics(references, b, metric, normalizer, tokenizer)
    sums = [_by_group(found.sums, groups) for found in (first, second)]
    random = np.random.default_rng(seed)
    drawn = np.empty(samples)
    for i in range(samples):
        chosen = random.integers(0, len(sums[0]), len(sums[0]))
        before, after = (each[chosen].sum(axis=0) for each in sums)
        drawn[i] = second.value(after) - first.value(before)
    tail = 50 * (1 - CONFIDENCE)  # percent on either side
    low, high = np.percentile(drawn, [tail, 100 - tail])
    difference = second.value(second.sums.sum(axis=0)) - first.value(first.sums.sum(axis=0))
    return Difference(difference, float(low), float(high))


def _by_group(sums: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    """Figures (utterances, figures) summed by group."""
    if groups is None:
        return sums
    names, index = np.unique(np.array(groups), return_inverse=True)
    found = np.zeros((len(names), sums.shape[1]))
    np.add.at(found, index, sums)
    return found


def default_metrics(kind: str, first: Utterance, text_column: str | None = None) -> tuple[str, ...]:
    """Translations are scored by BLEU and chrF, transcripts by word errors.

    Args:
        kind: layout of the corpus.
        first: its first utterance.
        text_column: column of the references, if it is not the layout's own: a transcript.
    """
    translated = kind == FAIRSEQ
    if first.language is not None and first.source_language is not None:
        translated = first.language != first.source_language
    return TRANSLATION_METRICS if translated and text_column is None else WORD_METRICS


def whisper_normalizer(
    language: str | None, spellings: Mapping[str, str] | None = None
) -> Normalizer:
    """OpenAI's normaliser for a language: the English one, else the basic one.

    Args:
        language: code of the references; None takes the basic normaliser.
        spellings: British to American spellings, `normalizer.json` of a Whisper checkpoint.

    Raises:
        MissingDependencyError: transformers, which holds the normalisers, is not installed.
    """
    try:
        from fairseq_openvino.compat.transformers import transformers

        openai: Any = import_module(f"{transformers.__name__}.models.whisper.english_normalizer")
    except ImportError as error:
        raise MissingDependencyError(
            f"Normalising text failed: expected transformers, got {error}. "
            "Install fairseq-openvino[whisper], or leave normalisation out (--normalizer none)."
        ) from error
    code = language_code(language or "")
    if code in ENGLISH:
        stated = f"{len(spellings)} spellings" if spellings else "no spelling table"
        return Normalizer(
            f"Whisper English ({stated})", openai.EnglishTextNormalizer(spellings or {})
        )
    split = code in UNSPACED
    name = f"Whisper basic{' (characters)' if split else ''}"
    return Normalizer(name, openai.BasicTextNormalizer(split_letters=split))


def check(
    references: Sequence[str],
    normalizer: Normalizer | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Refuse references that nothing can be scored against.

    Args:
        references: one text an utterance.
        normalizer: the one that will be applied.
        names: what to call them in a message; default: their numbers.

    Raises:
        ModelError: there are none, or one is empty, if need be after normalisation.
    """
    if not references:
        raise ModelError(
            "Scoring failed in the references: expected at least one utterance, got none. "
            "Check the corpus and --limit."
        )
    for number, reference in enumerate(references):
        name = f"reference {number + 1}" if names is None else repr(names[number])
        if not reference.strip():
            raise _empty(name, repr(reference))
        if normalizer is not None and not normalizer(reference).strip():
            text = reference[:MAX_TEXT_IN_MESSAGE]
            raise _empty(name, f"{text!r}, which {normalizer.name} normalises to nothing")


@dataclass(frozen=True)
class _Statistics:
    """What a metric sums, by utterance, and how it becomes a score."""

    sums: np.ndarray
    """Shape (utterances, figures of the metric)."""
    value: Callable[[np.ndarray], float]
    """Summed figures, shape (figures,), to the score."""
    signature: str


def _statistics(
    references: Sequence[str],
    hypotheses: Sequence[str],
    metric: str,
    normalizer: Normalizer | None,
    tokenizer: str,
) -> _Statistics:
    if metric not in METRICS:
        raise invalid("Scoring", "metrics", f"some of {', '.join(METRICS)}", repr(metric))
    if len(references) != len(hypotheses):
        raise ModelError(
            f"Scoring failed in the hypotheses: expected one for each of {len(references)} "
            f"references, got {len(hypotheses)}. Score the same utterances."
        )
    check(references, normalizer if metric in WORD_METRICS else None)
    if metric in WORD_METRICS:
        return _word_statistics(references, hypotheses, metric, normalizer)
    return _sacrebleu_statistics(references, hypotheses, metric, tokenizer)


def _sacrebleu_statistics(
    references: Sequence[str], hypotheses: Sequence[str], metric: str, tokenizer: str
) -> _Statistics:
    """The figures that sacrebleu's own significance tests sum."""
    try:
        from sacrebleu.metrics.bleu import _TOKENIZERS, BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise _missing("sacrebleu", error) from error
    if tokenizer not in _TOKENIZERS:
        known = f"one of {', '.join(_TOKENIZERS)}"
        raise invalid("Scoring", "tokenizer", known, repr(tokenizer))
    # force: texts that end in " ." are scored, not warned about, one line a text
    scorer: Any = BLEU(tokenize=tokenizer, force=True) if metric == "bleu" else CHRF()
    sums = np.array(scorer._extract_corpus_statistics(list(hypotheses), [list(references)]))
    signature = f"{scorer.get_signature()}"
    return _Statistics(sums, lambda s: float(scorer._compute_score_from_stats(s).score), signature)


def _word_statistics(
    references: Sequence[str],
    hypotheses: Sequence[str],
    metric: str,
    normalizer: Normalizer | None,
) -> _Statistics:
    try:
        from jiwer import process_words
    except ImportError as error:
        raise _missing("jiwer", error) from error
    change = normalizer or Normalizer("none", str)
    rows = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        found = process_words(change(reference), change(hypothesis))
        errors = found.substitutions + found.deletions + found.insertions
        words = found.hits + found.substitutions + found.deletions
        rows.append((errors, words) if metric == "wer" else (100 * (1 - errors / words), 1))
    signature = f"jiwer:{version('jiwer')}|norm:{change.name}"
    factor = 100.0 if metric == "wer" else 1.0
    return _Statistics(np.array(rows, float), lambda s: float(factor * s[0] / s[1]), signature)


def _empty(name: str, got: str) -> ModelError:
    return ModelError(
        f"Scoring failed in {name}: expected a reference with words, got {got}. Drop the "
        "utterance from the corpus."
    )


def _missing(package: str, error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"Scoring failed: expected {package}, got {error}. Install fairseq-openvino[eval]."
    )
