"""Markdown and JSON of an evaluation; with the records alone they come out the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fairseq_openvino.measure.chart import draw_accuracy
from fairseq_openvino.measure.evaluation_figures import Results, Row
from fairseq_openvino.measure.options import known_engines
from fairseq_openvino.metrics import Difference
from fairseq_openvino.tables import markdown_table, number, one_line, write_report

CHART = "evaluation.svg"
MAX_FAILURES = 20
"""Failed and damaged utterances listed in the Markdown file; the records hold all."""
LEGEND = """\
time: sum over utterances of the duration of generate(), features computed before, median of the
passes, [sums of the fastest and slowest pass]; relative: time by the first engine's; RTF: time by
duration of the audio; latency: generate() of one batch; tokens: of the best hypotheses, without
eos; load: from the files to the end of the first batch, without importing packages; same text:
utterances with the first engine's text; difference: to the first engine, with the 95 % interval of
a paired bootstrap."""
FROM_SAMPLES = ("features computed before", "log-mel features included")
"""What becomes of the legend beside peers, which have no features of their own."""
MEANINGS = {
    "accuracy": "accuracy: mean over utterances of 100 * (1 - WER), as in Intel's article",
    "wer": "WER: word errors by reference words of the corpus",
}


def write(results: Results, directory: Path) -> list[Path]:
    """Write evaluation.md, evaluation.json and, if matplotlib is installed, evaluation.svg.

    Raises:
        StorageError: the directory cannot be written.
    """
    chart = directory / CHART
    return write_report(
        chart, markdown(results), results.to_json(), partial(draw_accuracy, results)
    )


def markdown(results: Results) -> str:
    """All tables, what failed, and the provenance."""
    options, search = results.options, results.options["search"]
    batch = options["batch_size"]
    parts = [
        f"# Evaluation of {results.model}",
        "",
        f"{options['corpus']}: {results.utterances} utterances, {results.audio_seconds:.1f} s of "
        f"audio; beam {search['beam']}, {batch} utterance{'s' if batch != 1 else ''} at a time, "
        f"{options['threads']} threads, {options['repeats']} passes, engines in turn.",
        *_incomplete(results),
        "",
        *_summary(results),
        "",
        *_accuracy(results),
        "",
        *_performance(results),
        "",
        LEGEND.replace(*FROM_SAMPLES) if options.get("peers") else LEGEND,
        "",
    ]
    metrics = dict.fromkeys(figure.metric for figure in results.figures)
    parts += [f"- {MEANINGS[metric]}" for metric in metrics if metric in MEANINGS]
    parts += _signatures(results)
    known = known_engines()
    for row in results.rows:
        meaning = known[row.engine].meaning if row.engine in known else "--peer"
        parts.append(f"- `{row.engine}`: {meaning}")
    parts += _precisions(results)
    provenance = "; ".join(f"{name} {value}" for name, value in results.provenance.items())
    return "\n".join([*parts, *_failures(results), "", provenance])


def _incomplete(results: Results) -> list[str]:
    lines = []
    if results.missing:
        total = results.utterances + len(results.failures) + results.missing
        lines += ["", f"**Interrupted: {results.missing} of {total} utterances are missing.**"]
    if results.failures:
        lines += [
            "",
            f"**{len(results.failures)} utterances failed and count for no engine, see below.**",
        ]
    if results.damaged:
        lines += [
            "",
            f"**{len(results.damaged)} utterances are damaged and scored as far as they go, see below.**",
        ]
    if results.runs > 1:
        lines += ["", f"Measured in {results.runs} runs."]
    return lines


def _summary(results: Results) -> list[str]:
    """The article's table: model by engine, relative time and accuracy."""
    primary = results.primary
    first = results.rows[0].engine
    header = ("model", "engine", f"relative time ({first} = 1.0)", "speed", primary.title,
              "difference [95 %]")  # fmt: skip
    rows = []
    for row in results.rows:
        if row.times is None:
            rows.append((results.model, f"`{row.engine}`", _failed(row), "", "", ""))
            continue
        relative = row.relative_time
        rows.append(
            (
                results.model,
                f"`{row.engine}`",
                number(relative, ".3f"),
                "-" if relative is None else f"{1 / relative:.2f}x",
                f"{row.scores[primary.key].value:.2f}",
                _interval(row.differences.get(primary.key)),
            )
        )
    return markdown_table(header, rows)


def _accuracy(results: Results) -> list[str]:
    header = ["engine"]
    for figure in results.figures:
        header += [figure.title, "difference [95 %]"]
    rows = []
    for row in results.rows:
        if row.times is None:
            continue
        cells = [f"`{row.engine}`"]
        for figure in results.figures:
            cells.append(f"{row.scores[figure.key].value:.2f}")
            cells.append(_interval(row.differences.get(figure.key)))
        rows.append((*cells, _same(row, results)))
    return markdown_table((*header, "same text"), rows)


def _performance(results: Results) -> list[str]:
    header = ("engine", "time, s [min-max]", "RTF", "latency p50 / p95, ms", "tokens/s", "load, s",
              "peak, MB")  # fmt: skip
    rows = []
    for row in results.rows:
        times = row.times
        if times is None:
            continue
        rows.append(
            (
                f"`{row.engine}`",
                f"{times.seconds:.3f} [{min(times.passes):.3f}-{max(times.passes):.3f}]",
                f"{times.real_time_factor:.4f}",
                " / ".join(f"{value:.1f}" for value in times.percentiles_ms),
                f"{times.tokens_per_second:.0f}",
                f"{row.load_seconds:.2f}",
                f"{row.peak_mb:.0f}",
            )
        )
    return markdown_table(header, rows)


def _same(row: Row, results: Results) -> str:
    return "-" if row.identical is None else f"{row.identical} of {results.utterances}"


def _signatures(results: Results) -> list[str]:
    """How each figure was computed; the same for every engine."""
    scored = next((row for row in results.rows if row.scores), None)
    if scored is None:
        return []
    lines = []
    for figure in results.figures:
        signature = scored.scores[figure.key].signature
        lines.append(f"- {figure.title.replace(', %', '')}: `{signature}`")
    return lines


def _precisions(results: Results) -> list[str]:
    return [
        f"- precision of `{row.engine}`: "
        + ", ".join(f"{name} {value}" for name, value in row.precision.items())
        for row in results.rows
        if row.precision
    ]


def _failures(results: Results) -> list[str]:
    failed = [
        f"{record['id']} in `{engine}`: {one_line(problem)}"
        for record in results.failures
        for engine, problem in record["problems"].items()
    ]
    damaged = [f"{record['id']}: {one_line(record['damage'])}" for record in results.damaged]
    return [*_listed("Failed utterances", failed), *_listed("Damaged utterances", damaged)]


def _listed(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    lines = ["", f"{title}:", "", *(f"- {entry}" for entry in entries[:MAX_FAILURES])]
    if len(entries) > MAX_FAILURES:
        lines.append(f"- and {len(entries) - MAX_FAILURES} more, in utterances.jsonl")
    return lines


def _failed(row: Row) -> str:
    return f"failed: {one_line(row.error or '')}"


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    # adding 0.0 turns the -0.0 of rounding into 0.0
    shown = [round(value, 2) + 0.0 for value in difference]
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*shown)
