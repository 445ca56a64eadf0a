"""Charts: speed against accuracy of an evaluation, speed by engine of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairseq_openvino.measure.benchmark_figures import Results as BenchmarkResults
from fairseq_openvino.measure.benchmark_figures import baseline
from fairseq_openvino.measure.evaluation_figures import Results as EvaluationResults
from fairseq_openvino.measure.plan import BASELINES

MARGIN = 1.1
"""Space on the right of the fastest engine."""
MARKERS = "osD^vPX"
"""Shapes tell points apart that lie on one another."""
GROUP = 0.86
"""Width of a group of bars."""


def _pyplot() -> Any:
    """Without a screen; None if matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_accuracy(results: EvaluationResults, path: Path) -> bool:
    """Scatter plot as SVG, the same bytes for the same results; False without matplotlib or points.

    The bars are the 95 % interval of the difference to the first engine.
    """
    pyplot, key = _pyplot(), results.primary.key
    points = [row for row in results.rows if row.relative_time is not None]
    if pyplot is None or not points:
        return False
    with pyplot.rc_context({"svg.hashsalt": "fairseq-openvino", "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(7.0, 4.5))
        for position, row in enumerate(points):
            assert row.relative_time is not None  # filtered above
            speed, value = 1 / row.relative_time, row.scores[key].value
            bars = None
            if key in row.differences:
                difference, low, high = row.differences[key]
                bars = [[max(difference - low, 0.0)], [max(high - difference, 0.0)]]
            axes.errorbar(
                speed, value, yerr=bars, fmt=MARKERS[position % len(MARKERS)], markersize=9,
                capsize=4, color=f"C{position}", alpha=0.8,
                label=f"{row.engine}: {speed:.2f}x, {value:.2f}",
            )  # fmt: skip
        axes.set_xlim(0, MARGIN * axes.get_xlim()[1])
        axes.axvline(1.0, color="black", linewidth=0.6)
        axes.set_xlabel(f"speed, {results.rows[0].engine} = 1 (higher is better)")
        better = "lower" if results.primary.metric == "wer" else "higher"
        axes.set_ylabel(f"{results.primary.title} ({better} is better)")
        axes.set_title(
            f"{results.model}: {results.utterances} utterances, "
            f"{results.provenance.get('cpu', '')}, {results.options['threads']} threads",
            fontsize=9,
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    return True


def draw_speeds(results: BenchmarkResults, path: Path) -> bool:
    """A group of bars a case; False without matplotlib or without a baseline."""
    pyplot = _pyplot()
    groups = [(case, rows) for case, rows in results.by_case() if baseline(rows) is not None]
    if pyplot is None or not groups:
        return False
    figure, axes = pyplot.subplots(figsize=(max(8.0, 1.6 + 2.4 * len(groups)), 5.0))
    width = GROUP / len(results.engines)
    for position, (engine, _, _) in enumerate(results.engines):
        speeds = [
            next((r.speed_against(baseline(rows)) for r in rows if r.engine == engine), None) or 0.0
            for _, rows in groups
        ]
        places = [group - GROUP / 2 + width * (position + 0.5) for group in range(len(groups))]
        bars = axes.bar(places, speeds, 0.95 * width, label=engine, color=f"C{position % 10}")
        axes.bar_label(bars, [f"{speed:.1f}" if speed else "" for speed in speeds], fontsize=6)
    axes.axhline(1.0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(groups)), [case.label for case, _ in groups])
    reference = BASELINES[groups[0][0].whisper]
    axes.set_ylabel(f"speed, {reference} = 1 (higher is better)")
    axes.set_title(f"{results.provenance.get('cpu', '')}, {results.options['threads']} threads")
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True
