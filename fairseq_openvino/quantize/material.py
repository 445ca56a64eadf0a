"""Which utterances calibrate, choose alpha and validate.

What judges has not been seen: of one corpus, some speakers calibrate and others validate; of two, the
second loses the speakers of the first. Where speakers are not known, or too few to part, the
utterances differ, and the report says so.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq_openvino.errors import invalid
from fairseq_openvino.quantize.options import ACTION, Options
from fairseq_openvino.speech import corpus
from fairseq_openvino.speech.corpus import Utterance

SPEAKER, UTTERANCE = "speaker", "utterance"
CALIBRATING_SHARE = 1 / 3
"""Of the speakers, where one corpus is parted; more if these have too few utterances."""


@dataclass(frozen=True)
class Material:
    """Utterances of one quantization, each list in the order of its corpus."""

    calibration: tuple[Utterance, ...]
    held_out: tuple[Utterance, ...]
    """For alpha."""
    validation: tuple[Utterance, ...]
    """For the gate."""
    kind: str
    """Layout of the validation corpus."""
    disjoint_by: str
    """SPEAKER or UTTERANCE: what the validation set shares none of with the other two."""


def draw(manifest: Path, options: Options) -> Material:
    """Draw utterances with `options.seed`; the same corpus and options give the same ones.

    Raises:
        ModelError: a corpus cannot be read.
        OptionError: the corpus is too small to calibrate, hold out and validate.
    """
    utterances = list(corpus.read(manifest, options.config_yaml, options.text_column))
    wanted = options.calibration_size + options.held_out_size if options.calibrated else 0
    spare = 1 if options.validation is None else 0
    if len(utterances) < wanted + spare:
        expected = (
            f"at least {wanted + spare} utterances in {str(manifest)!r} ({options.calibration_size} "
            f"to calibrate, {options.held_out_size} to choose alpha, the rest to validate)"
        )
        advice = "Lower calibration_size or give a corpus for validation"
        raise invalid(ACTION, "calibration", expected, len(utterances), advice)
    generator = random.Random(options.seed)
    seen = utterances
    if options.validation is None and wanted:
        seen = _some_speakers(utterances, wanted, generator) or utterances
    drawn = generator.sample(range(len(seen)), wanted)
    calibration, held_out = (
        tuple(seen[i] for i in sorted(part))
        for part in (drawn[: options.calibration_size], drawn[options.calibration_size :])
    )
    pool = utterances
    if options.validation is not None:
        pool = list(corpus.read(options.validation, options.config_yaml, options.text_column))
    pool, disjoint_by = _unseen(pool, (*calibration, *held_out))
    if not pool:
        expected = f"utterances in {str(options.validation)!r} that do not calibrate"
        raise invalid(ACTION, "validation", expected, "none", "Give another corpus")
    size = min(options.validation_size or len(pool), len(pool))
    chosen = sorted(random.Random(options.seed).sample(range(len(pool)), size))
    return Material(
        calibration, held_out, tuple(pool[i] for i in chosen),
        corpus.kind_of(options.validation or manifest, options.text_column), disjoint_by,
    )  # fmt: skip


def _some_speakers(
    utterances: Sequence[Utterance], wanted: int, generator: random.Random
) -> list[Utterance] | None:
    """All utterances of speakers who have as many as are wanted; None if nobody else is left."""
    said = Counter(utterance.speaker for utterance in utterances)
    if None in said:
        return None
    speakers = sorted(said, key=str)
    generator.shuffle(speakers)
    chosen, count = set(), 0
    for speaker in speakers[:-1]:
        chosen.add(speaker)
        count += said[speaker]
        if count >= wanted and len(chosen) >= CALIBRATING_SHARE * len(speakers):
            return [utterance for utterance in utterances if utterance.speaker in chosen]
    return None


def _unseen(pool: Sequence[Utterance], seen: Sequence[Utterance]) -> tuple[list[Utterance], str]:
    """Those of other speakers than were seen; else other utterances; and which of the two."""
    speakers, paths = {u.speaker for u in seen}, {u.path for u in seen}
    if None not in speakers and all(u.speaker for u in pool):
        others = [u for u in pool if u.speaker not in speakers]
        if others:
            return others, SPEAKER
    return [u for u in pool if u.path not in paths], UTTERANCE
