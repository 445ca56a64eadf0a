"""Markdown, JSON and the chart of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fairseq_openvino.benchmark.whisper.plan import BASELINE, SECONDS, Workload
from fairseq_openvino.benchmark.whisper.results import (
    Loaded,
    Results,
    Row,
    baseline,
    fastest_of_ours,
    fastest_peer,
)
from fairseq_openvino.benchmark.whisper.rounds import SLOW_SECONDS
from fairseq_openvino.tables import write_report

LEGEND = f"""\
Random weights at true size: speed only. time: from samples at 16 kHz to tokens, log-mel included,
median of the rounds; every engine encodes the window of 30 s; vs ...: median of the ratios within
each round; tokens: generated for each clip, counted in what the engine returned (openvino-genai: by
its own metrics); same text: clips with the text of `{BASELINE}`: below f32 random weights decide
many near-ties differently, and faster-whisper pads features, not audio; rounds: what takes longer
than {SLOW_SECONDS:g} s, or stops after its warm-up, is measured once, by the warm-up; load: to the first
two tokens without imports, cold: with an empty cache of compiled models, warm: in a second process;
peak: resident memory of the process after all workloads."""
MAX_ERROR_CHARACTERS = 200


def write(results: Results, directory: Path) -> list[Path]:
    """Write whisper.md, whisper.json and, if matplotlib is installed, whisper.png.

    Raises:
        StorageError: the directory cannot be written.
    """
    chart = directory / "whisper.png"
    return write_report(chart, markdown(results), results.to_json(), partial(draw, results))


def markdown(results: Results) -> str:
    """Summary, all tables, provenance."""
    options = results.options
    parts = [
        "# Whisper benchmark",
        "",
        f"Clips of {SECONDS} s, {options.tokens} tokens each, {options.rounds} interleaved rounds, "
        f"{options.threads} threads for every engine.",
    ]
    if results.interrupted:
        parts += ["", "**Interrupted: incomplete.**"]
    parts += ["", *_summary(results)]
    for size, workload, rows in results.tables():
        parts += ["", f"## whisper-{size}: {workload.title}", "", *_table(workload, rows)]
    for size in options.sizes:
        loaded = [each for each in results.loaded if each.size == size]
        if loaded:
            parts += ["", f"## whisper-{size}: load and memory", "", *_loads(loaded)]
    provenance = "; ".join(f"{name} {value}" for name, value in results.provenance.items())
    return "\n".join([*parts, "", LEGEND, "", provenance])


def draw(results: Results, path: Path) -> bool:
    """Bar chart of the speed against the baseline; False without matplotlib or baseline."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    tables = [table for table in results.tables() if baseline(table[2]) is not None]
    if not tables:
        return False
    figure, axes = pyplot.subplots(
        1, len(tables), figsize=(4.6 * len(tables), 7.0), squeeze=False, layout="constrained"
    )
    for axis, (size, workload, rows) in zip(axes[0], tables, strict=True):
        measured = [row for row in rows if row.rounds][::-1]
        speeds = [row.speed_against(baseline(rows)) or 0.0 for row in measured]
        colors = ["C1" if row.ours else "C0" for row in measured]
        bars = axis.barh([row.engine.name for row in measured], speeds, color=colors)
        axis.bar_label(bars, [f"{speed:.1f}" for speed in speeds], fontsize=7)
        axis.tick_params(axis="y", labelsize=7)
        axis.set_title(f"whisper-{size}: {workload.title}", fontsize=9)
        axis.set_xlabel(f"speed, {BASELINE} = 1")
    title = f"{results.provenance.get('cpu', '')}, {results.options.threads} threads"
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True


def _summary(results: Results) -> list[str]:
    lines = [
        f"| model | workload | fastest peer | ours | {BASELINE} |",
        "|---|---|---|---|---|",
    ]
    for size, workload, rows in results.tables():
        peer, ours = fastest_peer(rows), fastest_of_ours(rows)
        speed = ours.speed_against(peer) if ours else None
        cells = [
            f"whisper-{size}", workload.title, _timed(peer),
            f"{_timed(ours)}: **{speed:.2f}x**" if speed else _timed(ours), _timed(baseline(rows)),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _table(workload: Workload, rows: list[Row]) -> list[str]:
    peer, reference = fastest_peer(rows), baseline(rows)
    columns = [
        "engine", "time, ms [min-max]", f"vs {peer.engine.name if peer else 'fastest peer'}",
        f"vs {BASELINE}", "tokens", "same text", "rounds",
    ]  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    notes = []
    for row in rows:
        cells = _cells(row, peer, reference)
        if row.workload.clips > 1 and not row.engine.batches and row.rounds:
            cells[0] += " (one by one)"
        if row.rounds and not row.exact:
            notes.append(
                f"`{row.engine.name}` could not be held to {row.tokens} tokens: its time is scaled by "
                f"{row.tokens} / its tokens."
            )
        lines.append("| " + " | ".join([*cells, *[""] * (len(columns) - len(cells))]) + " |")
    if any("one by one" in line for line in lines):
        notes.append("one by one: the engine has no batches; its clips run one after the other.")
    return [*lines, "", *notes] if notes else lines


def _cells(row: Row, peer: Row | None, reference: Row | None) -> list[str]:
    error = "" if row.error is None else _one_line(row.error)
    if not row.rounds:
        return [f"`{row.engine.name}`", f"failed: {error}" if error else "not run"]
    times = [1e3 * seconds for seconds in row.seconds]
    spread = f"{1e3 * row.median:.0f} [{min(times):.0f}-{max(times):.0f}]"
    if error:
        spread += f", then: {error}"
    speeds = [row.speed_against(other) for other in (peer, reference)]
    share = row.same_text(reference)
    return [
        f"`{row.engine.name}`",
        spread,
        *("-" if speed is None else f"{speed:.2f}x" for speed in speeds),
        "-".join(str(count) for count in (row.counts[0], row.counts[-1])[: len(row.counts)]),
        "-" if share is None else f"{share:.0%}",
        str(len(row.rounds)),
    ]


def _loads(loaded: list[Loaded]) -> list[str]:
    lines = ["| engine | precision | load cold / warm, s | peak, MB |", "|---|---|---|---|"]
    for each in loaded:
        name = f"`{each.engine.name}`"
        if each.warm_seconds is None:
            lines.append(f"| {name} | failed: {_one_line(each.error or '')} | | |")
            continue
        load = f"{each.cold_seconds:.1f} / {each.warm_seconds:.1f}"
        lines.append(f"| {name} | {each.precision} | {load} | {each.peak_mb:.0f} |")
    return lines


def _timed(row: Row | None) -> str:
    return "-" if row is None else f"`{row.engine.name}` {1e3 * row.median:.0f} ms"


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:MAX_ERROR_CHARACTERS]
