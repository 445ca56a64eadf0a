"""What was tried and what came of it: as a table, and for the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairseq_openvino.quantize.gate import Gate, Trial, describe
from fairseq_openvino.quantize.material import Material
from fairseq_openvino.tables import markdown_table


def table(gate: Gate, trials: Sequence[Trial]) -> str:
    """Markdown table of all trials and the verdict."""
    count, name = len(gate.utterances), gate.metric.upper()
    original = f"{gate.baseline_score.value:.2f}"
    rows = [["original", "original", original, "-", "-", "-", "-"]]
    for trial in trials:
        parts = (trial.encoder, trial.decoder)
        interval = f"{_points(trial.low)} to {_points(trial.high)}"
        changed, passed = f"{trial.changed} of {count}", "yes" if trial.passed else "no"
        figures = [f"{trial.score:.2f}", _points(trial.drop), interval, changed, passed]
        rows.append([*(describe(part).partition(" ")[2] for part in parts), *figures])
    header = ("encoder", "decoder", name, "worse by", "95 %", "other texts", "passed")
    options, precision = gate.options, gate.baseline.precision
    stated = f"inference {precision.get('inference', '?')}, cache {precision.get('kv_cache', '?')}"
    if options.inference_precision != options.original_precision:
        stated += f", quantized at {options.inference_precision} (activations as they come)"
    return "\n".join(
        [
            *markdown_table(header, rows),
            f"{count} utterances, beam {options.beam}, at most {gate.max_drop:g} points worse; "
            f"{stated}; {gate.baseline_score.signature}",
        ]
    )


def to_json(gate: Gate, trials: Sequence[Trial], material: Material) -> dict[str, Any]:
    """`manifest.quantization` of the bundle whose trial is the last one."""
    options = gate.options
    return {
        "mode": options.mode,
        "encoder": trials[-1].encoder.to_json(),
        "decoder": trials[-1].decoder.to_json(),
        "seed": options.seed,
        "calibration": [utterance.id for utterance in material.calibration],
        "held_out": [utterance.id for utterance in material.held_out],
        "gate": {
            "metric": gate.metric,
            "signature": gate.baseline_score.signature,
            "utterances": len(gate.utterances),
            "beam": options.beam,
            "max_drop": gate.max_drop,
            "original": {
                "score": gate.baseline_score.value,
                "precision": gate.baseline.precision,
            },
            "trials": [trial.to_json() for trial in trials],
        },
    }


def _points(value: float) -> str:
    """With its sign, without one if it rounds to zero."""
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"  # noqa: PLR2004
