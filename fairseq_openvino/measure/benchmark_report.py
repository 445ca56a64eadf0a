"""Markdown and JSON of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

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
eager's text."""
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


Cells = Callable[[Row, Row | None, Row | None], list[str]]
"""Of a measured row after its time; its table's baseline, and its fastest row that is not ours."""
COLUMNS = (
    "vs eager", "encoder, ms", "step, ms", "tokens/s", "RTF", "load cold / warm, s", "peak, MB",
    "same 1-best",
)  # fmt: skip


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
    provenance = "; ".join(f"{name} {value}" for name, value in results.provenance.items())
    return "\n".join([*parts, "", provenance])


def _fairseq_body(results: Results) -> list[str]:
    parts: list[str] = []
    for case, rows in results.by_case():
        scored = [] if case.utterances is not None else ["BLEU"]
        header = ("engine", "time, s [min-max]", *COLUMNS, *scored)
        cells = [_cells(row, rows, _seconds, _fairseq_cells) for row in rows]
        parts += ["", f"## {case.title}", "", *markdown_table(header, cells)]
        for row in rows:
            parts += _profile(row)
    meanings = [f"- `{name}`: {meaning}" for name, meaning, _ in results.engines]
    return [*parts, "", LEGEND, "", *meanings, "", *_precisions(results)]


def _whisper_body(results: Results) -> list[str]:
    tables, summary, details = results.by_case(), [], []
    for case, rows in tables:
        peer, ours = fastest(rows, ours=False), fastest(rows, ours=True)
        speed = ours.speed_against(peer) if ours is not None else None
        own = f"{_timed(ours)}: **{speed:.2f}x**" if speed else _timed(ours)
        model = f"whisper-{case.model}"
        summary.append((model, case.short, _timed(peer), own, _timed(baseline(rows))))
        details += ["", f"## {case.title}", "", *_whisper_table(case, rows)]
    for model in dict.fromkeys(case.model for case, _ in tables):
        own_rows = [row for row in results.rows if row.case.model == model]
        details += ["", f"## whisper-{model}: load and memory", "", *_loads(own_rows)]
    header = ("model", "workload", "fastest peer", "ours", TRANSFORMERS)
    return ["", *markdown_table(header, summary), *details, "", WHISPER_LEGEND]


def _cells(row: Row, rows: list[Row], timed: Callable[[Row], str], others: Cells) -> list[str]:
    """Engine, time and the other columns; a row without rounds ends with the reason."""
    error = "" if row.error is None else one_line(row.error, MAX_ERROR_CHARACTERS)
    if not row.rounds:
        return [f"`{row.engine}`", f"failed: {error}" if error else "not run"]
    time = timed(row) + (f", then: {error}" if error else "")
    return [f"`{row.engine}`", time, *others(row, baseline(rows), fastest(rows, ours=False))]


def _fairseq_cells(row: Row, eager: Row | None, _: Row | None) -> list[str]:
    return [
        _speed(row, eager),
        number(row.encode_ms, ".1f"),
        number(row.step_ms, ".2f"),
        f"{row.tokens_per_second:.0f}",
        f"{row.median / row.audio_seconds:.4f}",
        _load(row),
        f"{row.peak_mb:.0f}",
        number(row.same_as(eager), ".0%"),
        *([number(row.bleu, ".2f")] if row.case.utterances is None else []),
    ]


def _whisper_cells(row: Row, reference: Row | None, peer: Row | None) -> list[str]:
    counts = sorted(set(row.counts))
    return [
        _speed(row, peer),
        _speed(row, reference),
        "-".join(str(count) for count in (counts[0], counts[-1])[: len(counts)]),
        number(row.same_as(reference), ".0%"),
        str(len(row.rounds)),
    ]


def _whisper_table(case: Case, rows: list[Row]) -> list[str]:
    peer = fastest(rows, ours=False)
    cells, notes = [], []
    for row in rows:
        cells.append(_cells(row, rows, _milliseconds, _whisper_cells))
        if case.utterances != 1 and not row.batches and row.rounds:
            cells[-1][0] += " (one by one)"
        if row.rounds and set(row.counts) != {case.tokens}:
            notes.append(
                f"`{row.engine}` could not be held to {case.tokens} tokens: its time is scaled by "
                f"{case.tokens} / its tokens."
            )
    if any("one by one" in row[0] for row in cells):
        notes.append("one by one: the engine has no batches; its clips run one after the other.")
    against = "fastest peer" if peer is None else peer.engine
    header = ("engine", "time, ms [min-max]", f"vs {against}", f"vs {TRANSFORMERS}", "tokens",
              "same text", "rounds")  # fmt: skip
    table = markdown_table(header, cells)
    return [*table, "", *notes] if notes else table


def _loads(rows: list[Row]) -> list[str]:
    """One line an engine, over all its cases."""
    cells: list[tuple[str, ...]] = []
    for name in dict.fromkeys(row.engine for row in rows):
        own = [row for row in rows if row.engine == name]
        if own[0].load_seconds is None:
            reason = one_line(own[0].error or "", MAX_ERROR_CHARACTERS)
            cells.append((f"`{name}`", f"failed: {reason}"))
        else:
            peak = max(row.peak_mb for row in own)
            cells.append((f"`{name}`", own[0].summary, _load(own[0]), f"{peak:.0f}"))
    return markdown_table(("engine", "precision", "load cold / warm, s", "peak, MB"), cells)


def _seconds(row: Row) -> str:
    spread = f"{row.median:.3f} [{min(row.rounds):.3f}-{max(row.rounds):.3f}]"
    return spread if row.error is None else f"{spread} after {len(row.rounds)} rounds"


def _milliseconds(row: Row) -> str:
    times = [1e3 * seconds for seconds in row.rounds]
    return f"{1e3 * row.median:.0f} [{min(times):.0f}-{max(times):.0f}]"


def _timed(row: Row | None) -> str:
    return "-" if row is None else f"`{row.engine}` {1e3 * row.median:.0f} ms"


def _speed(row: Row, other: Row | None) -> str:
    speed = row.speed_against(other)
    return "-" if speed is None else f"{speed:.2f}x"


def _load(row: Row) -> str:
    return f"{number(row.cold_seconds, '.1f')} / {number(row.load_seconds, '.1f')}"


def _profile(row: Row) -> list[str]:
    notes = [f"`{row.engine}`: {one_line(note)}" for note in row.notes]
    found = row.profile
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
        if row.is_ours and row.precision:
            found.setdefault(row.engine, row.precision)
    return [
        f"Precision in use, `{engine}`: "
        + ", ".join(f"{name} {value}" for name, value in properties.items())
        + "  "
        for engine, properties in found.items()
    ]
