"""What was tried and what came of it: as a table, and for the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fairseq_openvino.quantize.gate import Gate, Trial, describe, reason
from fairseq_openvino.quantize.material import Material
from fairseq_openvino.speech.corpus import Utterance
from fairseq_openvino.tables import markdown_table


def table(gate: Gate, trials: Sequence[Trial], material: Material) -> str:
    """Markdown table of all trials, what they were judged by, and what is said of each."""
    count, name = len(gate.utterances), gate.yardstick.metric.upper()
    original = f"{gate.baseline_score.value:.2f}"
    rows = [["original", "original", original, "-", "-", "-", "-", "-"]]
    for trial in trials:
        parts = (trial.encoder, trial.decoder)
        interval = f"{_points(trial.loss.low)} to {_points(trial.loss.high)}"
        eight, every = trial.encoder.products
        figures = [
            f"{eight / every:.0%}", f"{trial.score:.2f}", _points(trial.loss.points), interval,
            f"{trial.changed} of {count}", reason(trial),
        ]  # fmt: skip
        said = ("-" if part is None else describe(part).partition(" ")[2] for part in parts)
        rows.append([*said, *figures])
    header = (
        "encoder", "decoder", "encoder in 8 bits", name, "worse by", "95 %", "other texts", "verdict",
    )  # fmt: skip
    return "\n".join([*markdown_table(header, rows), _conditions(gate), parting(material)])


def parting(material: Material) -> str:
    """Who calibrated and who validated."""
    fit, validation = (*material.calibration, *material.held_out), material.validation
    if not fit:
        return f"validated on {_people(validation)}; nothing to calibrate"
    return (
        f"calibrated on {_people(fit)}, validated on {_people(validation)}; "
        f"no {material.disjoint_by} in both"
    )


def _people(utterances: Sequence[Utterance]) -> str:
    speakers = {utterance.speaker for utterance in utterances}
    known = f" of {len(speakers)} speakers" if None not in speakers else ""
    return f"{len(utterances)} utterances{known}"


def _conditions(gate: Gate) -> str:
    """Limits, search, precisions and signature of the metric."""
    options, precision = gate.options, gate.baseline.precision
    search = f"beam {options.beam}" if gate.original.manifest.has_decoder else "best path"
    stated = f"inference {precision.get('inference', '?')}, cache {precision.get('kv_cache', '?')}"
    if options.inference_precision != options.original_precision:
        stated += f", quantized at {options.inference_precision} (activations as they come)"
    return (
        f"{len(gate.utterances)} utterances, {gate.yardstick.words} words, {search}, at most "
        f"{gate.max_drop:g} points worse with 95 % certainty ({gate.yardstick.drawn} drawn); {stated}; "
        f"{gate.baseline_score.signature}"
    )


def to_json(gate: Gate, trials: Sequence[Trial], material: Material) -> dict[str, Any]:
    """`manifest.quantization` of the bundle whose trial is the last one."""
    options = gate.options
    return {
        "mode": options.mode,
        **{part: trials[-1].to_json()[part] for part in ("encoder", "decoder")},
        "seed": options.seed,
        "calibration": [utterance.id for utterance in material.calibration],
        "held_out": [utterance.id for utterance in material.held_out],
        "gate": {
            "metric": gate.yardstick.metric,
            "signature": gate.baseline_score.signature,
            "utterances": len(gate.utterances),
            "words": gate.yardstick.words,
            "drawn": gate.yardstick.drawn,
            "disjoint_by": material.disjoint_by,
            "verdict": trials[-1].verdict,
            "beam": options.beam,
            "max_drop": gate.max_drop,
            "original": {
                "score": gate.baseline_score.value,
                "faults": asdict(gate.baseline.faults),
                "precision": gate.baseline.precision,
            },
            "trials": [trial.to_json() for trial in trials],
        },
    }


def _points(value: float) -> str:
    """With its sign, without one if it rounds to zero."""
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"  # noqa: PLR2004
