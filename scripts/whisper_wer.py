"""Word error rate and time of Whisper checkpoints: the original libraries beside ours, as a table.

`fairseq-openvino evaluate` with the peers of `scripts/peers`, clip by clip, greedily, once with the whole
audio context and once, ours only, with `auto`. What is done is not done again, and the table comes
from the records alone. faster-whisper runs in `.venv-peers` (`make peers`).

    python scripts/whisper_wer.py tiny.en=DIR base=DIR --corpus clips.tsv --output WORK
"""

from __future__ import annotations

import csv
import statistics
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import soundfile

from fairseq_openvino import machine, metrics
from fairseq_openvino.measure.engines import Search
from fairseq_openvino.measure.evaluation import evaluate
from fairseq_openvino.measure.journal import read
from fairseq_openvino.measure.options import EvaluationOptions
from fairseq_openvino.tables import markdown_table

PEERS = Path(__file__).parent / "peers"
FASTER = f"{PEERS.parents[1]}/.venv-peers/bin/python {PEERS}/fasterwhisper.py"
PROGRAMS = (
    f"openai-whisper={sys.executable} {PEERS}/openai_whisper.py",
    f"faster-whisper-f32={FASTER} f32",
    f"faster-whisper-int8={FASTER} int8",
)
OURS = ("openvino", "openvino-bf16", "openvino-int8", "openvino-fast")
ENGINES = ("openai-whisper", "pytorch", "faster-whisper-f32", "faster-whisper-int8", *OURS)
BASELINE = (ENGINES[0], "full")
SHORT_SECONDS, LONGEST_SECONDS = 10.0, 30.0
TOKEN_LIMIT = 440
"""An output of so many tokens did not end by itself; of 448 positions some are the prompt's."""


def main() -> int:
    """Run what has not been run yet, then print the table of every model."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR", help="Hugging Face directories")
    parser.add_argument(
        "--corpus", type=Path, required=True, help="TSV: path, transcript, language"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="WORK")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    corpus = _corpus(options)
    for model in options.models:
        name, _, directory = model.partition("=")
        bundle = options.output / "bundles" / name
        if not bundle.exists():
            from fairseq_openvino.export.whisper import export_whisper

            export_whisper(Path(directory), bundle)
        for context, engines in (("full", ENGINES), ("auto", OURS)):
            output = options.output / f"{name}-{context}"
            if output.exists() and not read([output]).missing:
                continue
            chosen = EvaluationOptions(
                corpus, output, engines, PROGRAMS if context == "full" else (), bundle=bundle,
                checkpoint=Path(directory), repeats=1, threads=options.threads,
                cache_dir=options.output / "converted" / name,
                search=Search(beam=1, language="en", audio_context=context),
            )  # fmt: skip
            evaluate(chosen, lambda line: print(line, file=sys.stderr), resume=True)
        print(_table(name, options), flush=True)
    return 0


def _corpus(options: Namespace) -> Path:
    """English clips of up to one window that libsndfile reads, as `evaluate` takes them."""
    path, rows = options.output / "clips.tsv", []
    with open(options.corpus, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            audio = (options.corpus.parent / row["path"]).absolute()
            try:
                seconds = soundfile.info(str(audio)).duration
            except soundfile.LibsndfileError:
                continue
            if seconds <= LONGEST_SECONDS and row.get("language", "en") == "en":
                rows.append(f"{audio}\t{row['transcript']}\ten")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["path\ttext\tlanguage", *rows]) + "\n", encoding="utf-8")
    return path


def _table(model: str, options: Namespace) -> str:
    """WER of every engine, and the difference of each to its own `full` or to the baseline."""
    normalizer = metrics.whisper_normalizer("en")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for context in ("full", "auto"):
        records = read([options.output / f"{model}-{context}"]).utterances
        for engine in records[0]["engines"]:
            entries = [
                {**record, "audio": record["seconds"], **record["engines"][engine]}
                for record in records
            ]
            found[engine, context] = sorted(entries, key=lambda entry: entry["id"])
    clips = found[BASELINE]
    references = [clip["reference"] for clip in clips]
    rows = []
    for (engine, context), entries in found.items():
        texts = [entry["text"] for entry in entries]
        value = metrics.score(references, texts, "wer", normalizer).value
        base, cell = BASELINE if context == "full" else (engine, "full"), ""
        if base != (engine, context):
            before = [entry["text"] for entry in found[base]]
            change = metrics.bootstrap_difference(
                references, before, texts, "wer", normalizer=normalizer
            )
            cell = f"{change.difference:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
        seconds, limited = _seconds(entries), sum(e["tokens"] >= TOKEN_LIMIT for e in entries)
        gain = f" ({_seconds(found[base]) / seconds:.2f}x)" if context == "auto" else ""
        rows.append((engine, context, f"{value:.2f}", cell, str(limited), f"{seconds:.1f}{gain}"))
    words = sum(len(normalizer(reference).split()) for reference in references)
    header = ("engine", "context", "WER, %", "difference, 95 % interval", "at the token limit",
              f"clips < {SHORT_SECONDS:.0f} s, s")  # fmt: skip
    title = f"{model}: {len(clips)} clips, {words} words, greedy, {normalizer.name}"
    origin = "; ".join(f"{name} {value}" for name, value in machine.provenance().items())
    lines = [title, "", *markdown_table(header, rows), "", f"{origin}; {options.threads} threads"]
    return "\n".join(lines) + "\n"


def _seconds(entries: list[dict[str, Any]]) -> float:
    """Time of all short clips together; `seconds` is by pass, `audio` the clip's."""
    short = [entry for entry in entries if entry["audio"] < SHORT_SECONDS]
    return float(sum(statistics.median(entry["seconds"]) for entry in short))


if __name__ == "__main__":
    sys.exit(main())
