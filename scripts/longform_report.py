"""What `longform` found: speed, word errors, memory, and when the first words of clips are said to begin."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from recordings import Recording

from fairseq_openvino import metrics
from fairseq_openvino.tables import markdown_table, write_report

BASELINE = "openai-whisper"
CLOSE_SECONDS = 0.3
MARKERS = "osD^vPX*<>phd"


@dataclass(frozen=True)
class Row:
    """An engine at one beam size."""

    engine: str
    beam: int
    speeds: tuple[float, ...]
    """Seconds of audio by seconds of work, of each round."""
    wer: float
    difference: metrics.Difference | None
    """Points of WER to openai-whisper at the same beam size."""
    peak_mb: float
    summary: str
    joins: dict[str, Any] | None
    """See `_joins`."""

    @property
    def speed(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.speeds)


class Figures:
    """Of the answers to all cases of `longform`."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        summaries: Mapping[str, str],
        heard: Mapping[Any, Any],
    ) -> None:
        from whisper.normalizers import EnglishTextNormalizer

        self.normalize = EnglishTextNormalizer()
        self.recordings, self.summaries, self.heard = recordings, summaries, heard
        self.seconds = sum(each.seconds for each in recordings)
        self.parts = [(each.name, part) for each in recordings for part in each.parts]
        self.references = [self.normalize(part.text) for _, part in self.parts]
        self.words = sum(len(reference.split()) for reference in self.references)
        names = {each.name for each in recordings}
        self.cases = sorted(
            (case for case in heard if not case.words and case.recording in names),
            key=lambda case: (case.beam, case.engine, case.round),
        )
        groups = groupby(self.cases, key=lambda case: (case.beam, case.engine))
        self.hypotheses = {key: self._hypotheses([*cases]) for key, cases in groups}
        self.rows = [self._row(*key) for key, texts in self.hypotheses.items() if texts]

    def _hypotheses(self, cases: Sequence[Any]) -> list[str]:
        """What the first round heard of each clip; empty if a recording is missing."""
        first = {case.recording: self.heard[case] for case in cases if case.round == cases[0].round}
        if len(first) < len(self.recordings):
            return []
        texts: list[str] = []
        for recording in self.recordings:
            segments = first[recording.name]["segments"]
            text = self.normalize("".join(each["text"] for each in segments))
            spoken = [self.normalize(part.text).split() for part in recording.parts]
            texts += divide(spoken, text.split())
        return texts

    def _row(self, beam: int, engine: str) -> Row:
        answers = [
            (case, self.heard[case])
            for case in self.cases
            if (case.beam, case.engine) == (beam, engine)
        ]
        rounds: dict[int, list[float]] = {}
        for case, answer in answers:
            rounds.setdefault(case.round, []).append(answer["seconds"])
        whole = [each for each in rounds.values() if len(each) == len(self.recordings)]
        texts, base = self.hypotheses[beam, engine], self.hypotheses.get((beam, BASELINE))
        difference = None
        if base and engine != BASELINE:
            difference = metrics.bootstrap_difference(
                self.references, base, texts, "wer", groups=[part.clip for _, part in self.parts]
            )
        return Row(
            engine, beam, tuple(self.seconds / sum(each) for each in whole),
            metrics.score(self.references, texts, "wer").value, difference,
            max(answer["peak_mb"] for _, answer in answers), self.summaries.get(engine, ""),
            self._joins(beam, engine),
        )  # fmt: skip

    def _joins(self, beam: int, engine: str) -> dict[str, Any] | None:
        """How far the times of clips' first words are from where speech begins, in seconds.

        With word times, if they were asked for; else of the clips with which a segment begins.
        """
        own = [case for case in self.heard if case.engine == engine]
        with_words = [case for case in own if case.words and beam == case.beam]
        cases = with_words or [case for case in own if case.beam == beam and not case.words]
        chosen = {case.recording: self.heard[case]["segments"] for case in cases}
        found: list[list[float]] = []
        for recording in self.recordings:
            words = timed_words(chosen.get(recording.name, ()))
            begun = first_words([part.text for part in recording.parts], words)
            pairs = zip(recording.parts, begun, strict=True)
            found.append([abs(start - part.onset) for part, start in pairs if start is not None])
        errors = [error for each in found for error in each]
        if not errors:
            return None
        ends = [[each[place] for each in found if each] for place in (0, -1)]
        return {
            "clips": len(errors),
            "median": float(np.median(errors)),
            "p90": float(np.percentile(errors, 90)),
            "first": float(np.median(ends[0])),
            "last": float(np.median(ends[1])),
        }


def divide(references: Sequence[Sequence[str]], words: Sequence[str]) -> list[str]:
    """Words heard, by the clip that they are aligned with: errors add up to those of the whole."""
    owners = [i for i, reference in enumerate(references) for _ in reference]
    found: list[list[str]] = [[] for _ in references]
    for place, position, _ in align([w for reference in references for w in reference], words):
        found[owners[min(place, len(owners) - 1)]].append(words[position])
    return [" ".join(each) for each in found]


def align(reference: Sequence[str], words: Sequence[str]) -> list[tuple[int, int, bool]]:
    """Of each word its place in the reference, its own number, and whether it stands for that place.

    Inserted words have the place they stand before.
    """
    if not words:
        return []
    (chunks,) = jiwer.process_words(" ".join(reference), " ".join(words)).alignments
    return [
        (each.ref_start_idx + (0 if each.type == "insert" else i), each.hyp_start_idx + i,
         each.type != "insert")
        for each in chunks
        if each.type != "delete"
        for i in range(each.hyp_end_idx - each.hyp_start_idx)
    ]  # fmt: skip


def timed_words(segments: Sequence[Mapping[str, Any]]) -> list[tuple[float | None, str]]:
    """Words and when they begin; without word times that is known of the first of each segment."""
    found: list[tuple[float | None, str]] = []
    for each in segments:
        words = each["words"] or zip(
            [each["start"], *[None] * len(each["text"])], each["text"].split(), strict=False
        )
        found += [(start, plain) for start, word in words if (plain := _plain(word))]
    return found


def first_words(
    references: Sequence[str], words: Sequence[tuple[float | None, str]]
) -> list[float | None]:
    """When the first word of each reference begins; None where it is not heard or not timed."""
    spoken = [[plain for word in text.split() if (plain := _plain(word))] for text in references]
    firsts = np.cumsum([0, *map(len, spoken)])[:-1].tolist()
    heard = align([word for each in spoken for word in each], [word for _, word in words])
    starts = {place: words[position][0] for place, position, stands in heard if stands}
    return [starts.get(first) for first in firsts]


def _plain(word: str) -> str:
    return re.sub(r"[^\w']", "", word).lower()


def write(chart: Path, model: str, figures: Figures, provenance: Mapping[str, str]) -> list[Path]:
    """Markdown, JSON and a picture."""
    header = ("engine", "beam", "x real time", "WER, %", "to openai-whisper, 95 % interval",
              "peak MB", "first words: median, p90, s", "first / last clip, s", "computes")  # fmt: skip
    clips = {part.clip for _, part in figures.parts}
    lines = [
        f"{model}: {len(figures.recordings)} recordings, {figures.seconds / 60:.1f} minutes, "
        f"{max(each.speakers for each in figures.recordings)} speakers, {figures.words} words; "
        f"{len(clips)} clips{' in several orders' * (len(clips) < len(figures.parts))}; WER with "
        "openai-whisper's English normalizer, intervals by resampling clips",
        "", *markdown_table(header, map(_cells, figures.rows)), "",
        "First words: distance to where speech begins in the clip, by word times where an engine was asked "
        "for them, else of those clips with which a segment begins. faster-whisper's batched mode and "
        "openvino-genai have neither fallback nor conditioning, whisper.cpp falls back by entropy.",
        "", "; ".join(f"{name} {value}" for name, value in provenance.items()),
    ]  # fmt: skip
    content = {
        "model": model,
        "provenance": dict(provenance),
        "recordings": [asdict(each) for each in figures.recordings],
        "rows": [asdict(row) for row in figures.rows],
    }
    return write_report(chart, "\n".join(lines), content, lambda path: _draw(model, figures, path))


def _cells(row: Row) -> list[str]:
    joins, change = row.joins, row.difference
    return [
        row.engine, str(row.beam), f"{row.speed:.1f}", f"{row.wer:.2f}",
        f"{change[0]:+.2f} [{change[1]:+.2f}, {change[2]:+.2f}]" if change else "",
        f"{row.peak_mb:.0f}",
        f"{joins['median']:.2f}, {joins['p90']:.2f} ({joins['clips']} clips)" if joins else "",
        f"{joins['first']:.2f} / {joins['last']:.2f}" if joins else "",
        row.summary,
    ]  # fmt: skip


def _draw(model: str, figures: Figures, path: Path) -> bool:
    """Speed against WER; greedy search hollow. False without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.engine for row in figures.rows))
    with pyplot.rc_context({"svg.hashsalt": "fairseq-openvino", "svg.fonttype": "none"}):
        drawing, axes = pyplot.subplots(figsize=(8.0, 5.0))
        for row in figures.rows:
            place = names.index(row.engine)
            axes.plot(
                row.speed, row.wer, MARKERS[place % len(MARKERS)], markersize=9, color=f"C{place % 10}",
                fillstyle="none" if row.beam == 1 else "full",
                label=f"{row.engine}, beam {row.beam}: {row.speed:.0f}x, {row.wer:.2f}",
            )  # fmt: skip
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds of audio by second of work (higher is better)")
        axes.set_ylabel("WER, % (lower is better)")
        axes.set_title(f"{model}: {figures.seconds / 60:.0f} minutes of speech", fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
        drawing.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(drawing)
    return True
