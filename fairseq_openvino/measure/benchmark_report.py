"""Markdown and JSON of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fairseq_openvino.measure.benchmark import SLOW_SECONDS
from fairseq_openvino.measure.benchmark_figures import Results, Row, baseline, fastest
from fairseq_openvino.measure.chart import draw_speeds
from fairseq_openvino.measure.plan import BASELINES, CLIP_SECONDS, Case
from fairseq_openvino.tables import markdown_table, number, one_line, write_report

EAGER, TRANSFORMERS = BASELINES
LEGEND = """\
time: Fairseq's generation timer (encoder, search, decoder), median of the rounds; vs eager: median
of the ratios within each round; step: one decoder step with its search; RTF: time by duration of
the audio; load: from the checkpoint, or for `onnxruntime` and `openvino-stateless` from ONNX files
exported before, to the first two tokens, without imports; cold: the first process, nothing cached
(ours includes the export); warm: a later process; same 1-best: utterances whose best hypothesis has
eager's tokens."""
WHISPER_LEGEND = f"""\
Random weights at true size: speed only. time: from samples at 16 kHz to tokens, log-mel included,
median of the rounds; every engine encodes the window of 30 s; vs ...: median of the ratios within
each round; tokens: generated for each clip, counted in what the engine returned (openvino-genai: by
its own metrics); same text: clips with the text of `{TRANSFORMERS}`: below f32 random weights decide
many near-ties differently, and faster-whisper pads features, not audio; rounds: what takes longer
than {SLOW_SECONDS:g} s, or stops after its warm-up, is measured once, by the warm-up; load: to the first
two tokens without imports, cold: with an empty cache of compiled models, warm: in a second process;
peak: resident memory of the process after all workloads."""
MAX_ERROR_CHARACTERS = 200
"""Of an error in a table."""


@dataclass(frozen=True)
class Compared:
    """What the rows of a table refer to."""

    reference: Row | None
    peer: Row | None
    """The fastest that is not ours."""


Cell = Callable[[Row, Compared], str]


def _vs(row: Row, other: Row | None) -> str:
    speed = row.speed_against(other)
    return "-" if speed is None else f"{speed:.2f}x"


def _tokens(row: Row) -> str:
    counts = row.counts
    return "-".join(str(count) for count in (counts[0], counts[-1])[: len(counts)])


COLUMNS: dict[str, Cell] = {
    "vs eager": lambda row, to: _vs(row, to.reference),
    "encoder, ms": lambda row, _: number(row.encode_ms, ".1f"),
    "step, ms": lambda row, _: number(row.step_ms, ".2f"),
    "tokens/s": lambda row, _: f"{row.tokens_per_second:.0f}",
    "RTF": lambda row, _: f"{row.real_time_factor:.4f}",
    "load cold / warm, s": lambda row, _: _load(row),
    "peak, MB": lambda row, _: f"{row.peak_mb:.0f}",
    "same 1-best": lambda row, to: number(row.same_as(to.reference), ".0%"),
}
"""After engine and time, for Fairseq's checkpoints."""
WHISPER_COLUMNS: dict[str, Cell] = {
    "vs {peer}": lambda row, to: _vs(row, to.peer),
    f"vs {TRANSFORMERS}": lambda row, to: _vs(row, to.reference),
    "tokens": lambda row, _: _tokens(row),
    "same text": lambda row, to: number(row.same_as(to.reference), ".0%"),
    "rounds": lambda row, _: str(len(row.rounds)),
}


def write(results: Results, chart: Path) -> list[Path]:
    """Write Markdown and JSON beside the chart and, if matplotlib is installed, the chart.

    Raises:
        StorageError: the directory cannot be written.
    """
    return write_report(chart, markdown(results), results.to_json(), partial(draw_speeds, results))


def markdown(results: Results) -> str:
    """All tables, profiles and the provenance."""
    options, is_whisper = results.options, bool(results.options.get("whisper"))
    rounds = f"{options['rounds']} interleaved rounds"
    threads = f"{options['threads']} threads for every engine"
    if is_whisper:
        text = f"Clips of {CLIP_SECONDS} s, {options['tokens']} tokens each, {rounds}, {threads}."
    else:
        text = (
            f"{rounds}, {threads}; random models: {options['frames']} frames and "
            f"{options['tokens']} tokens an utterance."
        )
    parts = ["# Whisper benchmark" if is_whisper else "# Benchmark", "", text]
    if results.interrupted:
        parts += ["", "**Interrupted: incomplete.**"]
    parts += _whisper_body(results) if is_whisper else _fairseq_body(results)
    return "\n".join(
        [*parts, "; ".join(f"{name} {value}" for name, value in results.provenance.items())]
    )


def _fairseq_body(results: Results) -> list[str]:
    parts: list[str] = []
    for case, rows in results.by_case():
        columns = dict(COLUMNS)
        if case.utterances is None:
            columns["BLEU"] = lambda row, _: number(row.rounds[0]["bleu"], ".2f")
        to = Compared(baseline(rows), None)
        cells = [_cells(row, columns, to, _seconds) for row in rows]
        header = ("engine", "time, s [min-max]", *columns)
        parts += ["", f"## {case.title}", "", *markdown_table(header, cells)]
        for row in rows:
            parts += _profile(row)
    meanings = [f"- `{name}`: {meaning}" for name, meaning, _ in results.engines]
    return [*parts, "", LEGEND, "", *meanings, "", *_precisions(results), ""]


def _whisper_body(results: Results) -> list[str]:
    tables = results.by_case()
    parts = ["", *_summary(tables)]
    for case, rows in tables:
        parts += ["", f"## {case.title}", "", *_whisper_table(case, rows)]
    for model in dict.fromkeys(case.model for case, _ in tables):
        own = [row for row in results.rows if row.case.model == model]
        parts += ["", f"## whisper-{model}: load and memory", "", *_loads(own)]
    return [*parts, "", WHISPER_LEGEND, ""]


def _cells(
    row: Row, columns: dict[str, Cell], to: Compared, timed: Callable[[Row], str]
) -> list[str]:
    """Engine, time and the other columns; a row without rounds ends with the reason."""
    error = "" if row.error is None else one_line(row.error, MAX_ERROR_CHARACTERS)
    if not row.rounds:
        return [f"`{row.engine}`", f"failed: {error}" if error else "not run"]
    cells = [column(row, to) for column in columns.values()]
    return [f"`{row.engine}`", timed(row) + (f", then: {error}" if error else ""), *cells]


def _seconds(row: Row) -> str:
    spread = f"{row.median:.3f} [{min(row.seconds):.3f}-{max(row.seconds):.3f}]"
    return spread if row.error is None else f"{spread} after {len(row.rounds)} rounds"


def _milliseconds(row: Row) -> str:
    times = [1e3 * seconds for seconds in row.seconds]
    return f"{1e3 * row.median:.0f} [{min(times):.0f}-{max(times):.0f}]"


def _summary(tables: list[tuple[Case, list[Row]]]) -> list[str]:
    """The fastest peer beside the fastest of ours."""
    rows = []
    for case, found in tables:
        peer, ours = fastest(found, ours=False), fastest(found, ours=True)
        speed = ours.speed_against(peer) if ours is not None else None
        own = f"{_timed(ours)}: **{speed:.2f}x**" if speed else _timed(ours)
        name = f"whisper-{case.model}"
        rows.append((name, case.short, _timed(peer), own, _timed(baseline(found))))
    return markdown_table(("model", "workload", "fastest peer", "ours", TRANSFORMERS), rows)


def _whisper_table(case: Case, rows: list[Row]) -> list[str]:
    peer = fastest(rows, ours=False)
    name = "fastest peer" if peer is None else peer.engine
    columns = {title.format(peer=name): cell for title, cell in WHISPER_COLUMNS.items()}
    cells, notes = [], []
    for row in rows:
        cells.append(_cells(row, columns, Compared(baseline(rows), peer), _milliseconds))
        if case.utterances != 1 and not row.batches and row.rounds:
            cells[-1][0] += " (one by one)"
        if row.rounds and row.counts != [case.tokens]:
            notes.append(
                f"`{row.engine}` could not be held to {case.tokens} tokens: its time is scaled by "
                f"{case.tokens} / its tokens."
            )
    if any("one by one" in row[0] for row in cells):
        notes.append("one by one: the engine has no batches; its clips run one after the other.")
    table = markdown_table(("engine", "time, ms [min-max]", *columns), cells)
    return [*table, "", *notes] if notes else table


def _loads(rows: list[Row]) -> list[str]:
    """One line an engine, over all its cases."""
    cells: list[tuple[str, ...]] = []
    for name in dict.fromkeys(row.engine for row in rows):
        own = [row for row in rows if row.engine == name]
        if own[0].load_seconds is None:
            reason = one_line(own[0].error or "", MAX_ERROR_CHARACTERS)
            cells.append((f"`{name}`", f"failed: {reason}"))
            continue
        peak = max(row.peak_mb for row in own)
        cells.append((f"`{name}`", own[0].summary, _load(own[0]), f"{peak:.0f}"))
    return markdown_table(("engine", "precision", "load cold / warm, s", "peak, MB"), cells)


def _load(row: Row) -> str:
    return f"{number(row.load_cold_seconds, '.1f')} / {number(row.load_seconds, '.1f')}"


def _timed(row: Row | None) -> str:
    return "-" if row is None else f"`{row.engine}` {1e3 * row.median:.0f} ms"


def _profile(row: Row) -> list[str]:
    notes = [f"`{row.engine}`: {one_line(note)}" for note in row.notes]
    found: dict[str, Any] | None = row.profile
    if found is None:
        return ["", *notes] if notes else []
    ratio, share = found["ratio_to_limit"], found["fully_connected_share"]
    total = found["nodes_total_us"]
    nodes = [
        (name, f"{used:.1f}", f"{used / total:.1%}") for name, used in found["nodes_us"].items()
    ]
    return [
        "",
        f"Decoder step of `{row.engine}` at {found['past_tokens']} past tokens: "
        f"{found['step_us']:.0f} us, {number(ratio, '.2f')} times the limit, its FullyConnected "
        f"nodes alone ({found['fully_connected_us']:.0f} us, {number(share, '.0%')} of all nodes).",
        "",
        *markdown_table(("node type", "us a step", "share"), nodes),
        *notes,
    ]


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
