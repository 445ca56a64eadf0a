"""Markdown, JSON and the chart of a run."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

from fairseq_openvino.benchmark.plan import Case, describe
from fairseq_openvino.benchmark.results import (
    Results,
    Row,
    baseline,
    identical_share,
    speedups,
)
from fairseq_openvino.tables import write_report

COLUMNS = (
    "engine",
    "time, s [min-max]",
    "vs eager",
    "encoder, ms",
    "step, ms",
    "tokens/s",
    "RTF",
    "load cold / warm, s",
    "peak, MB",
    "same 1-best",
)
LEGEND = """\
time: Fairseq's generation timer (encoder, search, decoder), median of the rounds; vs eager: median
of the ratios within each round; step: one decoder step with its search; RTF: time by duration of
the audio; load: from the checkpoint, or for `onnxruntime` and `openvino-stateless` from ONNX files
exported before, to the first two tokens, without imports; cold: the first process, nothing cached
(ours includes the export); warm: a later process; same 1-best: utterances whose best hypothesis has
eager's tokens."""
MAX_ERROR_CHARACTERS = 160


def write(results: Results, directory: Path) -> list[Path]:
    """Write benchmark.md, benchmark.json and, if matplotlib is installed, benchmark.png.

    Raises:
        StorageError: the directory cannot be written.
    """
    chart = directory / "benchmark.png"
    return write_report(chart, markdown(results), results.to_json(), partial(draw, results))


def markdown(results: Results) -> str:
    """All tables, profiles and the provenance."""
    options = results.options
    parts = [
        "# Benchmark",
        "",
        f"{options.rounds} interleaved rounds, {options.threads} threads for every engine; random "
        f"models: {options.frames} frames and {options.tokens} tokens an utterance.",
    ]
    if results.interrupted:
        parts += ["", "**Interrupted: incomplete.**"]
    for case, rows in results.by_case():
        parts += ["", f"## {case.title}", "", *_table(case, rows)]
        for row in rows:
            parts += _profile(row)
    parts += ["", LEGEND, "", *describe(results.engines), "", *_precisions(results), ""]
    parts.append("; ".join(f"{name} {value}" for name, value in results.provenance.items()))
    return "\n".join(parts)


def draw(results: Results, path: Path) -> bool:
    """Bar chart of the ratios to eager; False without matplotlib or without ratios."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    groups = [(case, rows, baseline(rows)) for case, rows in results.by_case()]
    groups = [group for group in groups if group[2] is not None]
    if not groups:
        return False
    engines = results.engines
    figure, axes = pyplot.subplots(figsize=(max(8.0, 1.6 + 2.4 * len(groups)), 5.0))
    width = 0.86 / len(engines)
    for position, engine in enumerate(engines):
        heights = [_height(engine, rows, eager) for _, rows, eager in groups]
        places = [group - 0.43 + width * (position + 0.5) for group in range(len(groups))]
        bars = axes.bar(places, heights, 0.95 * width, label=engine, color=f"C{position % 10}")
        labels = [f"{height:.1f}" if height else "" for height in heights]
        axes.bar_label(bars, labels, fontsize=6)
    axes.axhline(1.0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(groups)), [case.short for case, _, _ in groups])
    axes.set_ylabel("speed, eager f32 = 1 (higher is better)")
    axes.set_title(f"{results.provenance.get('cpu', '')}, {results.options.threads} threads")
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True


def _height(engine: str, rows: list[Row], eager: Row | None) -> float:
    ratios = [ratio for row in rows if row.engine == engine for ratio in speedups(row, eager)]
    return statistics.median(ratios) if ratios else 0.0


def _table(case: Case, rows: list[Row]) -> list[str]:
    trained = case.vocabulary is None
    columns = (*COLUMNS, "BLEU") if trained else COLUMNS
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    eager = baseline(rows)
    for row in rows:
        cells = _cells(row, eager, trained)
        lines.append("| " + " | ".join([*cells, *[""] * (len(columns) - len(cells))]) + " |")
    return lines


def _cells(row: Row, eager: Row | None, trained: bool) -> list[str]:
    error = "" if row.error is None else _one_line(row.error)
    if not row.rounds:
        return [f"`{row.engine}`", f"failed: {error}" if error else "not run"]
    ratios, share = speedups(row, eager), identical_share(row, eager)
    spread = f"{row.median:.3f} [{min(row.seconds):.3f}-{max(row.seconds):.3f}]"
    if error:
        spread += f" after {len(row.rounds)} rounds, then: {error}"
    cells = [
        f"`{row.engine}`",
        spread,
        f"{statistics.median(ratios):.2f}x" if ratios else "-",
        _number(row.encode_ms, ".1f"),
        _number(row.step_ms, ".2f"),
        f"{row.tokens_per_second:.0f}",
        f"{row.real_time_factor:.4f}",
        f"{_number(row.load_cold_seconds, '.1f')} / {_number(row.load_seconds, '.1f')}",
        f"{row.peak_mb:.0f}",
        _number(share, ".0%"),
    ]
    return [*cells, _number(row.rounds[0]["bleu"], ".2f")] if trained else cells


def _profile(row: Row) -> list[str]:
    notes = [f"`{row.engine}`: {_one_line(note)}" for note in row.notes]
    found: dict[str, Any] | None = row.profile
    if found is None:
        return ["", *notes] if notes else []
    ratio, share = found["ratio_to_limit"], found["fully_connected_share"]
    lines = [
        "",
        f"Decoder step of `{row.engine}` at {found['past_tokens']} past tokens: "
        f"{found['step_us']:.0f} us, {_number(ratio, '.2f')} times the limit, its FullyConnected "
        f"nodes alone ({found['fully_connected_us']:.0f} us, {_number(share, '.0%')} of all nodes).",
        "",
        "| node type | us a step | share |",
        "|---|---|---|",
    ]
    total = found["nodes_total_us"]
    lines += [
        f"| {name} | {used:.1f} | {used / total:.1%} |" for name, used in found["nodes_us"].items()
    ]
    return [*lines, *notes]


def _precisions(results: Results) -> list[str]:
    """Once for each of our engines, as read back from its compiled decoder."""
    found: dict[str, dict[str, str]] = {}
    for row in results.rows:
        if row.precision:
            found.setdefault(row.engine, row.precision)
    return [
        f"Precision in use, `{engine}`: "
        + ", ".join(f"{name} {value}" for name, value in properties.items())
        + "  "
        for engine, properties in found.items()
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:MAX_ERROR_CHARACTERS]
