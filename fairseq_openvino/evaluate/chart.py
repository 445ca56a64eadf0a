"""Speed against accuracy, one point an engine."""

from __future__ import annotations

from pathlib import Path

from fairseq_openvino.evaluate.results import Results

WIDTH_INCHES, HEIGHT_INCHES = 7.0, 4.5
MARGIN = 1.1
"""Space on the right of the fastest engine."""
MARKERS = "osD^vPX"
"""Shapes tell points apart that lie on one another."""


def draw(results: Results, path: Path) -> bool:
    """Scatter plot as SVG, the same bytes for the same results; False without matplotlib or points.

    The bars are the 95 % interval of the difference to the first engine.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    key = results.primary.key
    points = [row for row in results.rows if row.relative_time is not None]
    if not points:
        return False
    with mpl.rc_context({"svg.hashsalt": "fairseq-openvino", "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
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
