"""Synthesise a miniature corpus in the layout of CoVoST 2 / Common Voice: English, German, Catalan.

    python examples/covost/synthesize.py --output ROOT --train 4000 --dev 100 --test 100 --seed 1

writes `ROOT/en/clips/*.mp3` (mono, 16 kHz), `ROOT/en/validated.tsv`,
`ROOT/en/covost_v2.en_de.tsv` and `ROOT/en/covost_v2.en_ca.tsv`. Speech is
espeak-ng's, text a seeded grammar's.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grammar
import numpy as np
import soundfile
from covost_corpus import write_rows

from fairseq_openvino.errors import (
    EXIT_OK,
    FairseqOpenVINOError,
    MissingDependencyError,
    OptionError,
)
from fairseq_openvino.speech.audio import read_audio

SAMPLE_RATE_HZ = 16_000
MP3_COMPRESSION = 0.9
"""libsndfile's 0 (best) to 1 (smallest); with a constant bit rate this is 24 kbit/s."""
WORKERS = 2
PROGRESS_EVERY = 500
VALIDATED_COLUMNS = ("client_id", "path", "sentence", "up_votes", "down_votes") + (
    "age",
    "gender",
    "accent",
)
COVOST_COLUMNS = ("path", "translation", "split")
TARGETS = ("de", "ca")


@dataclass(frozen=True)
class Speaker:
    """One espeak-ng voice: `-v voice -s speed (words per minute) -p pitch (0 to 99)`."""

    voice: str
    words_per_minute: int
    pitch: int

    @property
    def client_id(self) -> str:
        """128 hexadecimal digits, like Common Voice's."""
        name = f"{self.voice} {self.words_per_minute} {self.pitch}"
        return hashlib.sha512(name.encode()).hexdigest()

    @property
    def gender(self) -> str:
        """Common Voice's word for it."""
        return "female" if "+f" in self.voice else "male"

    @property
    def accent(self) -> str:
        """Common Voice's word for it."""
        return "us" if self.voice.startswith("en-us") else "england"


SPEAKERS = (
    Speaker("en-us+m3", 180, 50),
    Speaker("en-us+f2", 175, 55),
    Speaker("en-gb+m1", 185, 45),
    Speaker("en-gb+f4", 180, 40),
)


@dataclass(frozen=True)
class Clip:
    """One utterance to be spoken."""

    path: str
    sentence: str
    translations: dict[str, str]
    split: str
    speaker: Speaker


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        clips = plan(options.train, options.dev, options.test, options.seed)
        write_corpus(Path(options.output), clips)
    except FairseqOpenVINOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", required=True, metavar="ROOT", help="corpus directory")
    parser.add_argument("--train", type=int, default=4000, help="training clips")
    parser.add_argument("--dev", type=int, default=100, help="development clips")
    parser.add_argument("--test", type=int, default=100, help="test clips")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def plan(train: int, dev: int, test: int, seed: int) -> list[Clip]:
    """Decide every clip: sentences are unique, so none of dev or test occurs in train."""
    counts = {"train": train, "dev": dev, "test": test}
    for split, count in counts.items():
        if count < 1:
            raise OptionError(
                f"Reading options failed in --{split}: expected at least 1, got {count}. "
                "Ask for more clips."
            )
    sentences = grammar.sentences(sum(counts.values()), seed)
    random = Random(f"speakers {seed}")
    splits = [split for split, count in counts.items() for _ in range(count)]
    return [
        Clip(
            path=f"common_voice_en_{number:08d}.mp3",
            sentence=sentence.english,
            translations={"de": sentence.german, "ca": sentence.catalan},
            split=split,
            speaker=random.choice(SPEAKERS),
        )
        for number, (sentence, split) in enumerate(zip(sentences, splits, strict=True), start=1)
    ]


def write_corpus(root: Path, clips: list[Clip]) -> None:
    """Speak the clips that are not there yet and write the TSV files."""
    directory = root / "en"
    (directory / "clips").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(WORKERS) as pool:
        spoken = pool.map(lambda clip: _speak(clip, directory / "clips"), clips)
        for number, _ in enumerate(spoken, start=1):
            if number % PROGRESS_EVERY == 0 or number == len(clips):
                print(f"{number} of {len(clips)} clips", flush=True)
    write_rows(directory / "validated.tsv", VALIDATED_COLUMNS, map(_validated, clips))
    for language in TARGETS:
        rows = ((clip.path, clip.translations[language], clip.split) for clip in clips)
        write_rows(directory / f"covost_v2.en_{language}.tsv", COVOST_COLUMNS, rows)


def _validated(clip: Clip) -> tuple[str, ...]:
    speaker = clip.speaker
    votes = ("2", "0")
    return (speaker.client_id, clip.path, clip.sentence, *votes, "", speaker.gender, speaker.accent)


def espeak(speaker: Speaker, sentence: str) -> np.ndarray:
    """Samples in [-1, 1], [T], at 16 kHz, from one espeak-ng process.

    Raises:
        MissingDependencyError: espeak-ng is missing or failed.
    """
    voice = ["-v", speaker.voice, "-s", str(speaker.words_per_minute), "-p", str(speaker.pitch)]
    with tempfile.TemporaryDirectory() as scratch:
        wave = os.path.join(scratch, "speech.wav")
        command = ["espeak-ng", *voice, "-z", "-w", wave, sentence]
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise MissingDependencyError(
                f"Synthesising speech failed in {sentence!r}: expected exit code 0 from espeak-ng, "
                f"got {error}. Run `apt-get install espeak-ng` and check `espeak-ng --voices`."
            ) from error
        return read_audio(wave, SAMPLE_RATE_HZ)[0]


def write_mp3(file: Path | io.BytesIO, waveform: np.ndarray) -> None:
    """Samples [T] at 16 kHz as MP3 with a constant bit rate of 24 kbit/s."""
    soundfile.write(
        file,
        waveform,
        SAMPLE_RATE_HZ,
        format="MP3",
        bitrate_mode="CONSTANT",
        compression_level=MP3_COMPRESSION,
    )


def _speak(clip: Clip, directory: Path) -> None:
    """Speak and encode one clip, unless it is there already; atomic."""
    target = directory / clip.path
    if target.exists():
        return
    partial = target.with_suffix(".partial")
    write_mp3(partial, espeak(clip.speaker, clip.sentence))
    os.replace(partial, target)


if __name__ == "__main__":
    sys.exit(main())
