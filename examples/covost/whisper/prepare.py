"""Assemble training samples of 1 to 3 sentences with their times, features and vocabulary.

    python examples/covost/whisper/prepare.py --root ROOT --seed 1

reads what speak.py wrote to ROOT and adds `ROOT/features.npy` (float16 log-mel [frames, 80], all
samples in a row), `ROOT/samples.jsonl` (one `Sample` per line) and `ROOT/tokenizer/`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from layout import (
    FRAMES_PER_SECOND,
    MAX_INITIAL_SECONDS,
    POSITION_SECONDS,
    SAMPLE_RATE_HZ,
    WINDOW_SECONDS,
    existing,
    feature_extractor,
    train_tokenizer,
)
from transformers import WhisperFeatureExtractor

from fairseq_openvino.errors import EXIT_OK, FairseqOpenVINOError

MAX_LEAD_SECONDS = MAX_INITIAL_SECONDS - 0.2
"""Longest silence put before a clip, whose own onset is up to 0.12 s after its first sample."""
GAP_SECONDS = (0.1, 1.2)
TAIL_SECONDS = (0.05, 0.6)
MIN_AUDIBLE_SECONDS = 0.2
"""How much of a sentence that the window cuts off is heard at least."""
CUT_SHARE = 0.4
"""How often a sentence that does not fit is started anyway."""
NOISE_SHARE = 0.5
NOISE_DB = (-60.0, -30.0)
"""Root mean square of added white noise relative to full scale."""
HOP_SAMPLES = SAMPLE_RATE_HZ // FRAMES_PER_SECOND
PROGRESS_EVERY = 2000


@dataclass
class Sample:
    """Audio of at most one window and what is said in it."""

    language: str
    """Language code, or "" without speech."""
    segments: list[tuple[float, float, str, str]] = field(default_factory=list)
    """Start and end in seconds, text, English text."""
    cut: float | None = None
    """Start in seconds of a sentence that the window cuts off."""
    start: int = 0
    """First frame in features.npy."""
    frames: int = 0


@dataclass(frozen=True)
class SpokenLine:
    """A row of speech.tsv: samples [T] in [-1, 1], speech from `onset` to `end` (samples)."""

    samples: np.ndarray
    text: str
    english: str
    onset: int
    end: int


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    root, random = Path(options.root), Random(f"samples {options.seed}")
    try:
        spoken = {language: read_speech(root, language, "train") for language in ("en", "de")}
    except FairseqOpenVINOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    texts = [line.text for lines in spoken.values() for line in lines]
    train_tokenizer(texts, options.vocabulary).save_pretrained(root / "tokenizer")
    counts = {"en": options.english, "de": options.german, "": options.silent}
    languages = [language for language, count in counts.items() for _ in range(count)]
    extractor, features, total = feature_extractor(), [], 0
    with open(root / "samples.jsonl", "w", encoding="utf-8") as file:
        for number, language in enumerate(languages, start=1):
            sample, waveform = assemble(random, language, spoken)
            frames = log_mel(extractor, waveform)
            sample.start, sample.frames = total, len(frames)
            total += len(frames)
            features.append(frames.astype(np.float16))
            file.write(json.dumps(asdict(sample), ensure_ascii=False) + "\n")
            if number % PROGRESS_EVERY == 0 or number == len(languages):
                print(f"{number} of {len(languages)} samples, {total / 360_000:.2f} h", flush=True)
    np.save(root / "features.npy", np.concatenate(features))
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", required=True, metavar="ROOT", help="corpus directory")
    parser.add_argument("--english", type=int, default=14000, help="English samples")
    parser.add_argument("--german", type=int, default=7000, help="German samples")
    parser.add_argument("--silent", type=int, default=600, help="samples without speech")
    parser.add_argument("--vocabulary", type=int, default=512, help="byte-level BPE tokens")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def read_speech(root: Path, language: str, split: str) -> list[SpokenLine]:
    """Clips of one language and split."""
    samples = np.load(existing(root / "speech.npy", "speak.py"), mmap_mode="r")
    lines = []
    with open(root / "speech.tsv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE):
            if (row["language"], row["split"]) == (language, split):
                start, length = int(row["start"]), int(row["length"])
                clip = samples[start : start + length].astype(np.float32) / 32768
                place = (int(row["onset"]), int(row["end"]))
                lines.append(SpokenLine(clip, row["text"], row["english"], *place))
    return lines


def assemble(
    random: Random, language: str, spoken: dict[str, list[SpokenLine]]
) -> tuple[Sample, np.ndarray]:
    """One sample and its waveform [T] at 16 kHz, T at most a window."""
    window = WINDOW_SECONDS * SAMPLE_RATE_HZ
    sample = Sample(language)
    if not language:
        waveform = np.zeros(random.randint(SAMPLE_RATE_HZ, window), np.float32)
        return sample, _noisy(random, waveform)
    lead = random.uniform(0, random.choice((0.1, MAX_LEAD_SECONDS)))
    pieces = [_silence(lead)]
    length = len(pieces[0])
    for number in range(random.choices((1, 2, 3), weights=(5, 3, 3))[0]):
        line = random.choice(spoken[language])
        gap = _silence(random.uniform(*GAP_SECONDS) if number else 0)
        begin = length + len(gap)
        if begin + len(line.samples) > window:
            audible = window - begin - line.onset
            if random.random() < CUT_SHARE and audible > MIN_AUDIBLE_SECONDS * SAMPLE_RATE_HZ:
                pieces += [gap, line.samples]
                sample.cut = _seconds(begin + line.onset)
            break
        pieces += [gap, line.samples]
        length = begin + len(line.samples)
        times = (_seconds(begin + line.onset), _seconds(begin + line.end))
        sample.segments.append((*times, line.text, line.english))
    waveform = np.concatenate([*pieces, _silence(random.uniform(*TAIL_SECONDS))])[:window]
    return sample, _noisy(random, waveform)


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)


def _seconds(samples: int) -> float:
    """The timestamp token next to a position in samples."""
    return round(round(samples / SAMPLE_RATE_HZ / POSITION_SECONDS) * POSITION_SECONDS, 2)


def _noisy(random: Random, waveform: np.ndarray) -> np.ndarray:
    """Add white noise to a share of the waveforms [T]."""
    if random.random() >= NOISE_SHARE:
        return waveform
    level = 10 ** (random.uniform(*NOISE_DB) / 20)
    noise = np.random.default_rng(random.getrandbits(32)).standard_normal(len(waveform))
    return np.clip(waveform + level * noise, -1, 1).astype(np.float32)


def log_mel(extractor: WhisperFeatureExtractor, waveform: np.ndarray) -> np.ndarray:
    """Features [frames, 80] of a waveform [T], T padded to an even number of frames."""
    padded = -(-len(waveform) // (2 * HOP_SAMPLES)) * 2 * HOP_SAMPLES
    features = extractor(
        waveform, sampling_rate=SAMPLE_RATE_HZ, max_length=padded, return_tensors="np"
    )
    return features.input_features[0].T


if __name__ == "__main__":
    sys.exit(main())
