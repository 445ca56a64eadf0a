"""Pack a trained model in half precision with the held-out clips it is tested on.

    python examples/covost/whisper/pack.py --root ROOT --model RUN/model --output mini

writes a model directory as transformers saves it, the vocabulary also in the older files
(`vocab.json`, `merges.txt`, `added_tokens.json`), `clips/` and `test.tsv`. The English clips are
those of `examples/covost/mini`, which are referred to, not copied.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from covost_corpus import write_rows
from layout import SAMPLE_RATE_HZ, WINDOW_SECONDS, existing, feature_extractor
from prepare import read_speech
from speak import AUDIBLE, decode_mp3, encode_mp3
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from fairseq_openvino.errors import EXIT_OK, FairseqOpenVINOError, ModelError
from fairseq_openvino.speech.audio import read_audio

COVOST_MINI = Path(__file__).resolve().parents[1] / "mini"
COLUMNS = ("path", "kind", "language", "text", "english", "segments")
"""`segments` is a JSON list of [start in s, end in s, text]."""
JOINED_CLIPS = 12
LONG_SECONDS = 30
LEAD_SECONDS = (0.1, 0.7)
GAP_SECONDS = (0.3, 1.0)
TAIL_SECONDS = 0.3
HISS_DB = -45.0
"""Root mean square of the noise in the clip without speech that is not digital silence."""
SIZE_LIMIT_BYTES = 15_000_000


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    output = Path(options.output)
    (output / "clips").mkdir(parents=True, exist_ok=True)
    try:
        write_model(Path(options.model), output)
        rows = [*english_rows(output), *german_rows(Path(options.root), output)]
        rows += [*joined_rows(rows, output, options.seed), *silent_rows(output)]
    except FairseqOpenVINOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    write_rows(output / "test.tsv", COLUMNS, rows)
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", required=True, metavar="ROOT", help="what speak.py wrote")
    parser.add_argument("--model", required=True, metavar="MODEL", help="what train.py wrote")
    parser.add_argument("--output", required=True, metavar="DIRECTORY")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def write_model(source: Path, output: Path) -> None:
    """Weights in float16, configuration, vocabulary in both formats."""
    model = WhisperForConditionalGeneration.from_pretrained(
        existing(source, "train.py"), dtype=torch.float16
    )
    model.save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)
    size = (output / "model.safetensors").stat().st_size
    if size > SIZE_LIMIT_BYTES:
        raise ModelError(
            f"Packing the model failed in {source}: expected at most {SIZE_LIMIT_BYTES} bytes, "
            f"got {size}. Train a narrower one."
        )
    feature_extractor().save_pretrained(output)
    tokenizer = WhisperTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(output)
    bpe = json.loads((output / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    contents = {
        "vocab.json": json.dumps(bpe["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        "added_tokens.json": json.dumps(tokenizer.get_added_vocab(), indent=0, ensure_ascii=False),
    }
    for name, content in contents.items():
        (output / name).write_text(content, encoding="utf-8")


def english_rows(output: Path) -> list[tuple]:
    """The test clips of `examples/covost/mini`, one sentence each."""
    rows = []
    with open(COVOST_MINI / "test_st_en_de.tsv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE):
            clip = COVOST_MINI / row["audio"]
            waveform, _ = read_audio(clip, SAMPLE_RATE_HZ)
            text = row["src_text"]
            path = Path(os.path.relpath(clip, output.resolve())).as_posix()
            rows.append((path, "single", "en", text, text, _segments(_spans([waveform]), [text])))
    return rows


def german_rows(root: Path, output: Path) -> list[tuple]:
    """Held-out German clips, one sentence each."""
    rows = []
    for number, line in enumerate(read_speech(root, "de", "test"), start=1):
        path = f"clips/german_{number:02d}.mp3"
        content = encode_mp3(line.samples)
        (output / path).write_bytes(content)
        segments = _segments(_spans([decode_mp3(content)]), [line.text])
        rows.append((path, "single", "de", line.text, line.english, segments))
    return rows


def joined_rows(rows: list[tuple], output: Path, seed: int) -> list[tuple]:
    """English test clips in a row with silence between: within a window, and one longer."""
    random = Random(f"joined {seed}")
    singles = [(row[3], read_audio(output / row[0])[0]) for row in rows if row[2] == "en"]
    random.shuffle(singles)
    window, joined = WINDOW_SECONDS * SAMPLE_RATE_HZ, []
    for number in range(JOINED_CLIPS + 1):
        long = number == JOINED_CLIPS
        path = "clips/long_01.flac" if long else f"clips/joined_{number + 1:02d}.flac"
        limit = LONG_SECONDS * SAMPLE_RATE_HZ if long else window
        pieces, spoken = _join(random, singles, limit)
        _write_flac(output / path, np.concatenate(pieces))
        text = " ".join(spoken)
        kind = "long" if long else "joined"
        joined.append((path, kind, "en", text, text, _segments(_spans(pieces), spoken)))
    return joined


def _join(
    random: Random, singles: list[tuple[str, np.ndarray]], limit: int
) -> tuple[list[np.ndarray], list[str]]:
    """Clips and silences of at most `limit` samples, taken off `singles`; the texts."""
    tail = _silence(TAIL_SECONDS)
    pieces, texts = [_silence(random.uniform(*LEAD_SECONDS))], []
    while singles:
        text, clip = singles[-1]
        gap = _silence(random.uniform(*GAP_SECONDS) if texts else 0)
        if sum(map(len, pieces)) + len(gap) + len(clip) + len(tail) > limit:
            break
        singles.pop()
        pieces += [gap, clip]
        texts.append(text)
    return [*pieces, tail], texts


def silent_rows(output: Path) -> list[tuple]:
    """Digital silence and noise."""
    noise = np.random.default_rng(1).standard_normal(3 * SAMPLE_RATE_HZ).astype(np.float32)
    rows = []
    for name, level in (("silence", 0.0), ("noise", 10 ** (HISS_DB / 20))):
        _write_flac(output / f"clips/{name}.flac", level * noise)
        rows.append((f"clips/{name}.flac", "silent", "", "", "", "[]"))
    return rows


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)


def _write_flac(path: Path, waveform: np.ndarray) -> None:
    soundfile.write(path, waveform, SAMPLE_RATE_HZ, subtype="PCM_16")


def _spans(pieces: list[np.ndarray]) -> list[tuple[float, float]]:
    """Start and end of speech in seconds, for each piece with speech in a row of pieces."""
    spans, offset = [], 0
    for piece in pieces:
        audible = np.flatnonzero(np.abs(piece) > AUDIBLE)
        if len(audible):
            times = (offset + audible[0], offset + audible[-1] + 1)
            spans.append((times[0] / SAMPLE_RATE_HZ, times[1] / SAMPLE_RATE_HZ))
        offset += len(piece)
    return spans


def _segments(spans: list[tuple[float, float]], texts: list[str]) -> str:
    rounded = [
        [round(start, 3), round(end, 3), text]
        for (start, end), text in zip(spans, texts, strict=True)
    ]
    return json.dumps(rounded, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
