"""Text translation against CTranslate2 and eager Fairseq: time with the same tokens and beam, and BLEU.

    python scripts/translation.py --output OUT
    python scripts/translation.py --output OUT --data DIR --source test.en --reference test.de

The first measures a random `transformer_wmt_en_de` of V = 32,000 on one sentence and on 32, with as many
tokens as `--tokens` says; the second a trained model with its SentencePiece model on text. Every engine has a
process and the same number of threads; they take turns, and the median of all rounds counts.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

import numpy as np
import sentencepiece
from peers.translation import Spec

from fairseq_openvino import machine
from fairseq_openvino.measure.material.corpora import (
    SOURCE_LANGUAGE,
    TARGET_LANGUAGE,
    random_sentences,
)
from fairseq_openvino.measure.material.s2t import write_checkpoint
from fairseq_openvino.measure.process import Conversation, EngineFailed
from fairseq_openvino.metrics import score
from fairseq_openvino.s2t.decoders import sentencepiece as sentencepiece_text
from fairseq_openvino.tables import markdown_table

BASELINE = "ctranslate2-int8"
ENGINES = (
    "fairseq-f32", "ctranslate2-f32", BASELINE, "ours-f32", "ours-bf16", "ours-int8", "ours-fast",
)  # fmt: skip
VOCABULARY = 32_000
BATCHES = (1, 32)
TIMEOUT_SECONDS = 600.0


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, required=True, help="for translation.md and models")
    parser.add_argument("--data", type=Path, help="trained: checkpoint.pt and dictionaries")
    parser.add_argument("--languages", default=f"{SOURCE_LANGUAGE}-{TARGET_LANGUAGE}")
    parser.add_argument("--source", type=Path, help="its test set, plain text")
    parser.add_argument("--reference", type=Path, help="and what it should become")
    parser.add_argument("--arch", default="transformer_wmt_en_de", help="of the random model")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="of the random model")
    parser.add_argument(
        "--tokens", type=int, default=25, help="of each random sentence, both sides"
    )
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=machine.threads())
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    lines, references, tokens = _material(options)
    engines = _start(options)
    sections = []
    for size in map(int, options.batches.split(",")):
        batches = [lines[i : i + size] for i in range(0, len(lines), size)]
        batches = batches if options.reference else batches[:1]
        found = _measure(engines, batches, options, tokens)
        title = f"## {size} sentence{'s' if size > 1 else ''} at a time, beam {options.beam}"
        sections += [title, "", *_table(found, references), ""]
        print("\n".join(sections[-len(found) - 5 :]), flush=True)
    (options.output / "translation.md").write_text("\n".join(sections))
    for engine in engines.values():
        engine.stop()
    return 0


def _material(options: Namespace) -> tuple[list[str], list[str], int | None]:
    """Lines, references (none of a random model), and tokens which every hypothesis is to have."""
    if options.reference:
        (model,) = options.data.glob("*.model")
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        lines = options.source.read_text("utf-8").splitlines()
        pieces = [" ".join(each) for each in processor.encode(lines, out_type=str)]
        return pieces, options.reference.read_text("utf-8").splitlines(), None
    options.data = options.output / "model"
    if not options.data.is_dir():
        options.data.mkdir()
        size = {"vocabulary": options.vocabulary, "share_all_embeddings": True}
        write_checkpoint(options.data, options.arch, **size)
    lengths = [options.tokens - 1] * max(BATCHES)  # and eos
    lines = random_sentences(np.random.default_rng(0), lengths, options.data)
    return lines, [], options.tokens


def _start(options: Namespace) -> dict[str, Conversation]:
    """Engines that are loaded, by name; those that cannot be are left out with a line."""
    engines: dict[str, Conversation] = {}
    source, target = options.languages.split("-")
    work = str(options.output.absolute())
    for name in options.engines.split(","):
        kind, precision = name.split("-")
        spec = Spec(kind, precision, str(options.data), work, source, target, options.threads)
        program = Path(__file__).parent / "peers" / "translation.py"
        threads = {"OMP_NUM_THREADS": str(options.threads)}
        child = Conversation(
            [sys.executable, str(program), json.dumps(asdict(spec))], os.environ | threads,
            options.output / f"{name}.log", TIMEOUT_SECONDS,
        )  # fmt: skip
        try:
            child.ask("prepare")
            child.ask("load")
            engines[name] = child
        except EngineFailed as error:
            print(f"{name} left out: {error}", file=sys.stderr)
    return engines


def _measure(
    engines: dict[str, Conversation],
    batches: list[list[str]],
    options: Namespace,
    tokens: int | None,
) -> dict[str, tuple[list[float], list[str]]]:
    """Seconds of each round for all batches, after one that does not count, and the lines."""
    found: dict[str, tuple[list[float], list[str]]] = {name: ([], []) for name in engines}
    for number in range(options.rounds + 1):
        for name, engine in engines.items():
            asked = {"beam": options.beam, "tokens": tokens}
            answers = [engine.ask("translate", lines=batch, **asked) for batch in batches]
            seconds, lines = found[name]
            lines[:] = [line for answer in answers for line in answer["lines"]]
            if number:
                seconds.append(sum(answer["seconds"] for answer in answers))
    return found


def _table(found: dict[str, tuple[list[float], list[str]]], references: list[str]) -> list[str]:
    base = found.get(BASELINE) or next(iter(found.values()))
    reference = statistics.median(base[0])
    first, (_, expected) = next(iter(found.items()))
    rows = []
    for name, (seconds, lines) in found.items():
        middle = statistics.median(seconds)
        tokens = sum(len(line.split()) for line in lines)
        same = sum(a == b for a, b in zip(lines, expected, strict=True))
        texts = [sentencepiece_text(line) for line in lines]
        bleu = f"{score(references, texts, 'bleu').value:.2f}" if references else "-"
        rows.append([
            name, f"{middle:.3f}", f"{min(seconds):.3f}-{max(seconds):.3f}", f"{tokens / middle:.0f}",
            f"{reference / middle:.2f}", f"{same}/{len(lines)}", bleu,
        ])  # fmt: skip
    header = ("engine", "s (median)", "range", "tokens/s", f"x {BASELINE}", f"= {first}", "BLEU")
    return markdown_table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
