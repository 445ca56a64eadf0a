"""Long recordings of real speech with what is said when: clips joined with pauses, and whole ones."""

from __future__ import annotations

import csv
import json
import re
import wave
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fairseq_openvino.speech.audio import read_audio

RATE_HZ = 16_000
PAUSE_SECONDS = (0.3, 1.7)
LEAST_SECONDS = 60.0
"""Of a speaker's clips; who says less is left out."""
ONSET, ONSET_SAMPLES = 0.1, 320
"""Speech begins with the first 20 ms that have this share of the loudest 20 ms' amplitude."""


@dataclass(frozen=True)
class Part:
    """A clip within a recording; seconds."""

    clip: str
    start: float
    """Where it was joined."""
    onset: float
    """Where speech begins in it."""
    end: float
    text: str


@dataclass(frozen=True)
class Recording:
    """A WAV file of 16 bits at RATE_HZ, with a JSON file of the same name beside it."""

    path: str
    seconds: float
    speakers: int
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """Of the file, without suffix."""
        return Path(self.path).stem


Clips = dict[str, list[dict[str, str]]]
"""Rows of a corpus by speaker."""


def read_clips(corpus: Path, least_seconds: float = LEAST_SECONDS) -> Clips:
    """English rows of a TSV with the columns path, seconds, language, transcript and maybe speaker.

    Without the column it is LibriSpeech's `<speaker>-<chapter>-<number>`, or what the name begins with.
    """
    found: Clips = defaultdict(list)
    with open(corpus, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["language"] == "en":
                row["path"] = str(corpus.parent / row["path"])
                found[row.get("speaker") or _speaker(Path(row["path"]).stem)].append(row)
    return {
        speaker: rows
        for speaker, rows in sorted(found.items())
        if sum(float(row["seconds"]) for row in rows) >= least_seconds
    }


def _speaker(stem: str) -> str:
    found = re.match(r"(\d+)-\d+-\d+$", stem)
    return found[1] if found else re.split(r"[-_]", stem)[0]


def join(rows: Sequence[dict[str, str]], path: Path, seed: int, speakers: int = 1) -> Recording:
    """Clips one after the other, with a pause behind each."""
    random, parts, pieces, start = np.random.default_rng(seed), [], [], 0.0
    for row in rows:
        samples, _ = read_audio(row["path"], RATE_HZ)
        end = start + len(samples) / RATE_HZ
        clip = Path(row["path"]).name
        parts.append(Part(clip, start, start + onset(samples), end, row["transcript"]))
        pause = np.zeros(int(random.uniform(*PAUSE_SECONDS) * RATE_HZ), np.float32)
        pieces += [samples, pause]
        start = end + len(pause) / RATE_HZ
    return _write(path, np.concatenate(pieces), speakers, parts)


def join_all(clips: Clips, directory: Path, minutes: float, seed: int) -> list[Recording]:
    """Recordings of all clips, speaker after speaker, in as many orders as it takes."""
    random, made = np.random.default_rng(seed), list[Recording]()
    while sum(each.seconds for each in made) < 60 * minutes:
        rows = [
            rows[i]
            for speaker in random.permutation(sorted(clips))
            for rows in [clips[speaker]]
            for i in random.permutation(len(rows))
        ]
        path = directory / f"joined-{len(made) + 1}.wav"
        made.append(join(rows, path, seed + len(made), len(clips)))
    return made


def whole(audio: Path, directory: Path) -> Recording:
    """A recording with `<name>.segments.json` beside it: a list of start, end and text."""
    samples, _ = read_audio(audio, RATE_HZ)
    parts = []
    for i, each in enumerate(json.loads(audio.with_suffix(".segments.json").read_text("utf-8"))):
        start, end = float(each["start"]), float(each["end"])
        spoken = onset(samples[int(start * RATE_HZ) : int(end * RATE_HZ)])
        parts.append(Part(f"{audio.stem}#{i}", start, start + spoken, end, each["text"]))
    return _write(directory / f"{audio.stem}.wav", samples, 1, parts)


def onset(samples: np.ndarray) -> float:
    """Seconds before speech begins."""
    frames = samples[: len(samples) // ONSET_SAMPLES * ONSET_SAMPLES].reshape(-1, ONSET_SAMPLES)
    loud = np.sqrt((frames**2).mean(axis=1))
    return float(np.argmax(loud >= ONSET * loud.max())) * ONSET_SAMPLES / RATE_HZ


def write_wav(path: Path, samples: np.ndarray) -> None:
    """One channel of 16 bits at RATE_HZ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE_HZ, len(samples), "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())


def _write(path: Path, samples: np.ndarray, speakers: int, parts: Sequence[Part]) -> Recording:
    write_wav(path, samples)
    made = Recording(str(path), len(samples) / RATE_HZ, speakers, tuple(parts))
    path.with_suffix(".json").write_text(json.dumps(asdict(made), indent=1), encoding="utf-8")
    return made
