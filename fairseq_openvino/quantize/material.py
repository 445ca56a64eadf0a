"""Which utterances calibrate, choose alpha and validate: disjoint sets, if from one corpus."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from fairseq_openvino.errors import invalid
from fairseq_openvino.quantize.options import ACTION, Options
from fairseq_openvino.speech import corpus
from fairseq_openvino.speech.corpus import Utterance


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
    order = generator.sample(range(len(utterances)), len(utterances))
    calibration = sorted(order[: min(wanted, options.calibration_size)])
    held_out = sorted(order[options.calibration_size : wanted])
    if options.validation is not None:
        pool = list(corpus.read(options.validation, options.config_yaml, options.text_column))
        generator = random.Random(options.seed)
        rest = generator.sample(range(len(pool)), len(pool))
    else:
        pool, rest = utterances, order[wanted:]
    return Material(
        tuple(utterances[i] for i in calibration),
        tuple(utterances[i] for i in held_out),
        tuple(pool[i] for i in sorted(rest[: options.validation_size])),
        corpus.kind_of(options.validation or manifest),
    )
