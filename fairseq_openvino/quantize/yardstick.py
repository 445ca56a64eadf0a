"""What texts are compared by: a metric on the validation utterances, and what a difference proves.

The loss of a candidate is known up to its 95 % interval, by a paired bootstrap of utterances, or of
speakers with all their utterances where at least MIN_SPEAKERS are known:

| upper end of the interval | loss itself     | verdict       |
|---------------------------|-----------------|---------------|
| within the limit          |                 | `passed`      |
| beyond it                 | within          | `cannot tell` |
| beyond it                 | beyond          | `refused`     |

A bootstrap knows only what it saw: five equal texts would prove that all are. So one utterance more is
drawn with the others, in which the candidate loses one word of a reference of median length. Where no
text differs, the interval then ends at three lost words - the statisticians' rule of three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_openvino import metrics
from fairseq_openvino.quantize.options import Options
from fairseq_openvino.speech.corpus import Utterance

PASSED, UNCERTAIN, REFUSED = "passed", "cannot tell", "refused"
MIN_SPEAKERS = 20
"""Fewer are too few to draw from: an interval would say more about these people than about the model."""


@dataclass(frozen=True)
class Loss:
    """Points by which a score is worse than the original's, and its 95 % interval; negative: better."""

    points: float
    low: float
    high: float

    def verdict(self, limit: float) -> str:
        """PASSED, UNCERTAIN or REFUSED if at most `limit` points may be lost."""
        if self.high <= limit:
            return PASSED
        return UNCERTAIN if self.points <= limit else REFUSED

    def words_needed(self, limit: float, words: int) -> int | None:
        """About how many words of reference it takes for the interval to end within the limit.

        Its width shrinks with the root of their number; `words` gave this one. None: no number would do.
        """
        room = limit - self.points
        return math.ceil(words * ((self.high - self.points) / room) ** 2) if room > 0 else None


class Yardstick:
    """The references, their metric, and how texts are normalised for it."""

    def __init__(self, utterances: Sequence[Utterance], metric: str, options: Options) -> None:
        self.references = [utterance.reference for utterance in utterances]
        self.metric, self._tokenizer = metric, options.tokenizer
        is_wer = metric in metrics.WORD_METRICS
        self._normalizer = metrics.whisper_normalizer(utterances[0].language) if is_wer else None
        metrics.check(self.references, self._normalizer)
        self._compared = [self._normalizer(r) if self._normalizer else r for r in self.references]
        self.words = sum(len(text.split()) for text in self._compared)
        speakers = [utterance.speaker for utterance in utterances if utterance.speaker]
        known = len(speakers) == len(utterances) and len(set(speakers)) >= MIN_SPEAKERS
        self._speakers = speakers if known else None

    @property
    def drawn(self) -> str:
        """What the bootstrap draws: speakers or utterances."""
        return "utterances" if self._speakers is None else "speakers"

    def score(self, texts: Sequence[str]) -> metrics.Score:
        """Of as many texts as there are references."""
        return metrics.score(self.references, texts, self.metric, self._normalizer, self._tokenizer)

    def loss(self, original: Sequence[str], candidate: Sequence[str]) -> Loss:
        """By how much the candidate's texts are worse than the original's."""
        whole = sorted(self._compared, key=lambda text: len(text.split()))[len(self._compared) // 2]
        shortened = whole.rsplit(maxsplit=1)[0] if len(whole.split()) > 1 else whole[:-1]
        found = metrics.bootstrap_difference(
            [*self.references, whole], [*original, whole], [*candidate, shortened], self.metric,
            normalizer=self._normalizer, tokenizer=self._tokenizer,
            groups=None if self._speakers is None else [*self._speakers, ""],
        )  # fmt: skip
        points = self.score(candidate).value - self.score(original).value
        ends = [found.low, found.high, points]
        if self.metric not in metrics.LOWER_IS_BETTER:
            points, ends = -points, [-end for end in ends]
        return Loss(points, min(ends), max(ends))
