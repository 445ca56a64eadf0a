"""Speak the sentences of the miniature corpus in English and in German.

    python examples/covost/whisper/speak.py --output ROOT --seed 1

writes `ROOT/speech.npy` (int16 samples at 16 kHz, all clips in a row) and `ROOT/speech.tsv`. The
first 4,200 sentence pairs are those of `synthesize.py --train 4000 --dev 100 --test 100` with the
same seed, in the same splits; training pairs follow. A sentence is in one split only, in both
languages.
"""

from __future__ import annotations

import argparse
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import soundfile

sys.path.append(str(Path(__file__).resolve().parents[1]))

import grammar
from covost_corpus import write_rows
from synthesize import PROGRESS_EVERY, SPEAKERS, WORKERS, Speaker, espeak, write_mp3

from fairseq_openvino.errors import EXIT_OK, FairseqOpenVINOError

COVOST_COUNTS = {"train": 4000, "dev": 100, "test": 100}
"""Sentence pairs of the corpus `mini/` was made from."""
GERMAN_SPEAKERS = (
    Speaker("de+m3", 180, 50),
    Speaker("de+f2", 175, 55),
    Speaker("de+m1", 185, 45),
    Speaker("de+f4", 180, 40),
)
SPEED_VARIATION = 0.12
PITCH_VARIATION = 8
AUDIBLE = 0.01
"""Smallest absolute sample value that counts as speech; full scale is 1."""
COLUMNS = ("language", "split", "text", "english", "start", "length", "onset", "end")
"""`start` and `length` in samples of speech.npy, `onset` and `end` of speech in samples of clip."""


@dataclass(frozen=True)
class Line:
    """One sentence to be spoken; `english` is its translation, or itself."""

    language: str
    split: str
    text: str
    english: str
    speaker: Speaker


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    root = Path(options.output)
    root.mkdir(parents=True, exist_ok=True)
    try:
        lines = plan(options.extra, options.german, options.german_held_out, options.seed)
        write_speech(root, lines)
    except FairseqOpenVINOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", required=True, metavar="ROOT", help="corpus directory")
    parser.add_argument(
        "--extra", type=int, default=3000, help="English training clips beyond the 4,000"
    )
    parser.add_argument("--german", type=int, default=3500, help="German training clips")
    parser.add_argument(
        "--german-held-out", type=int, default=30, help="German clips in dev, and in test"
    )
    parser.add_argument("--seed", type=int, default=1)
    return parser


def plan(extra: int, german: int, german_held_out: int, seed: int) -> list[Line]:
    """Decide every clip. Only training voices vary in speed and pitch."""
    splits = [split for split, count in COVOST_COUNTS.items() for _ in range(count)]
    splits += ["train"] * extra
    pairs = list(zip(grammar.sentences(len(splits), seed), splits, strict=True))
    random = Random(f"whisper {seed}")
    lines = [
        Line("en", split, pair.english, pair.english, _speaker(random, SPEAKERS, split))
        for pair, split in pairs
    ]
    taken: set[str] = set()
    for wanted, count in (("test", german_held_out), ("dev", german_held_out), ("train", german)):
        candidates = [pair for pair, split in pairs if split == wanted]
        random.shuffle(candidates)
        chosen = {pair.german: pair for pair in candidates if pair.german not in taken}
        taken |= set(list(chosen)[:count])
        for pair in list(chosen.values())[:count]:
            speaker = _speaker(random, GERMAN_SPEAKERS, wanted)
            lines.append(Line("de", wanted, pair.german, pair.english, speaker))
    return lines


def _speaker(random: Random, speakers: tuple[Speaker, ...], split: str) -> Speaker:
    speaker = random.choice(speakers)
    if split != "train":
        return speaker
    speed = random.uniform(1 - SPEED_VARIATION, 1 + SPEED_VARIATION)
    pitch = speaker.pitch + random.randint(-PITCH_VARIATION, PITCH_VARIATION)
    return Speaker(speaker.voice, round(speed * speaker.words_per_minute), pitch)


def write_speech(root: Path, lines: list[Line]) -> None:
    """Speak all lines and write the samples, then the table that describes them."""
    rows, clips, start = [], [], 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for number, clip in enumerate(pool.map(speak, lines), start=1):
            line = lines[number - 1]
            audible = np.flatnonzero(np.abs(clip) > AUDIBLE)
            place = (start, len(clip), audible[0], audible[-1] + 1)
            rows.append((line.language, line.split, line.text, line.english, *place))
            clips.append(np.round(clip * 32767).astype(np.int16))
            start += len(clip)
            if number % PROGRESS_EVERY == 0 or number == len(lines):
                print(f"{number} of {len(lines)} clips", flush=True)
    np.save(root / "speech.npy", np.concatenate(clips))
    write_rows(root / "speech.tsv", COLUMNS, rows)


def speak(line: Line) -> np.ndarray:
    """Samples in [-1, 1], [T], at 16 kHz, after MP3 compression like that of the shipped clips."""
    return decode_mp3(encode_mp3(espeak(line.speaker, line.text)))


def encode_mp3(waveform: np.ndarray) -> bytes:
    """MP3 file of samples [T] at 16 kHz."""
    file = io.BytesIO()
    write_mp3(file, waveform)
    return file.getvalue()


def decode_mp3(content: bytes) -> np.ndarray:
    """Samples in [-1, 1], [T], at 16 kHz."""
    waveform, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    return np.clip(waveform, -1, 1)


if __name__ == "__main__":
    sys.exit(main())
