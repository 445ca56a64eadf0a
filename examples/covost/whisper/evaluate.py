"""Measure a packed model with transformers on the clips it was packed with.

    python examples/covost/whisper/evaluate.py mini --beams 1 5

prints word error rates in percent (as written, and in lower case without punctuation), the accuracy
of language detection, the mean absolute error of segment times, the recall of sentences in a clip
longer than the window, and the probability of `<|nospeech|>` with and without speech.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jiwer
import layout  # before transformers: it says what to do about an unusable torchaudio
import numpy as np
import torch
from transformers import AutoProcessor, WhisperForConditionalGeneration

from fairseq_openvino.errors import EXIT_OK, FairseqOpenVINOError
from fairseq_openvino.speech.audio import read_audio

BATCH = 25
TASKS = (("en", "transcribe"), ("de", "transcribe"), ("de", "translate"))
NORMALISED = jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.Strip()])


@dataclass(frozen=True)
class TestClip:
    """A row of test.tsv with its samples [T] at 16 kHz."""

    kind: str
    language: str
    text: str
    english: str
    segments: list[tuple[float, float, str]]
    samples: np.ndarray


@dataclass(frozen=True)
class Result:
    """Hypotheses of one run; `times` are the segments' starts and ends in seconds."""

    texts: list[str]
    times: list[list[tuple[float, float]]]
    seconds: float


class Recognizer:
    """transformers with a model directory, in float32."""

    def __init__(self, directory: Path) -> None:
        self.model = WhisperForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
        self.processor = AutoProcessor.from_pretrained(directory)
        self.model.eval()

    def features(self, clips: list[TestClip]) -> torch.Tensor:
        """Log-mel of a window each, [B, 80, F]."""
        return self.processor.feature_extractor(
            [clip.samples for clip in clips],
            sampling_rate=layout.SAMPLE_RATE_HZ,
            return_tensors="pt",
        ).input_features

    def run(self, clips: list[TestClip], task: str, beams: int, timestamps: bool) -> Result:
        """Generate for clips of one language."""
        texts, times, began = [], [], time.perf_counter()
        for first in range(0, len(clips), BATCH):
            tokens = self.model.generate(
                self.features(clips[first : first + BATCH]),
                language=clips[0].language,
                task=task,
                num_beams=beams,
                return_timestamps=timestamps,
            )
            for row in tokens:
                decoded = self.processor.tokenizer.decode(
                    row, skip_special_tokens=True, output_offsets=True
                )
                texts.append(decoded["text"].strip())
                times.append([offset["timestamp"] for offset in decoded["offsets"]])
        return Result(texts, times, time.perf_counter() - began)

    def languages(self, clips: list[TestClip]) -> list[str]:
        """Detected language codes."""
        ids = self.model.detect_language(self.features(clips)).tolist()
        tokens = self.processor.tokenizer.convert_ids_to_tokens(ids)
        return [token.strip("<|>") for token in tokens]

    def long(self, clip: TestClip) -> str:
        """Text of a clip of any length, window after window by its timestamps."""
        features = self.processor(
            clip.samples,
            sampling_rate=layout.SAMPLE_RATE_HZ,
            truncation=False,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        tokens = self.model.generate(
            **features, language=clip.language, task="transcribe", return_timestamps=True
        )
        return self.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()

    def no_speech(self, clips: list[TestClip]) -> list[float]:
        """Probability of `<|nospeech|>` after `<|startoftranscript|>`."""
        start, token = self.processor.tokenizer.convert_tokens_to_ids(
            ["<|startoftranscript|>", "<|nospeech|>"]
        )
        with torch.no_grad():
            logits = self.model(
                self.features(clips), decoder_input_ids=torch.full((len(clips), 1), start)
            ).logits
        return logits[:, 0].softmax(-1)[:, token].tolist()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    directory = Path(options.directory)
    try:
        clips = read_clips(directory)
    except FairseqOpenVINOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    recognizer = Recognizer(directory)
    print("| clips | task | beams | timestamps | WER | WER normalised | exact | time error | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in ("single", "joined"):
        for language, task in TASKS:
            chosen = [c for c in clips if (c.kind, c.language) == (kind, language)]
            for beams in options.beams if chosen else ():
                for timestamps in (False, True):
                    result = recognizer.run(chosen, task, beams, timestamps)
                    label = f"| {len(chosen)} {kind} {language} | {task} | {beams} "
                    print(label + _row(chosen, task, timestamps, result), flush=True)
    _print_rest(recognizer, clips)
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("directory", help="model directory with test.tsv")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5], help="beam widths")
    return parser


def read_clips(directory: Path) -> list[TestClip]:
    """The clips of `test.tsv`, whose paths are relative to it."""
    with open(
        layout.existing(directory / "test.tsv", "pack.py"), encoding="utf-8", newline=""
    ) as file:
        rows = list(csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE))
    return [
        TestClip(
            *(row[column] for column in ("kind", "language", "text", "english")),
            segments=[tuple(segment) for segment in json.loads(row["segments"])],
            samples=read_audio(directory / row["path"], layout.SAMPLE_RATE_HZ)[0],
        )
        for row in rows
    ]


def _row(clips: list[TestClip], task: str, timestamps: bool, result: Result) -> str:
    texts = [clip.english if task == "translate" else clip.text for clip in clips]
    exact = sum(text == guess for text, guess in zip(texts, result.texts, strict=True))
    cells = [
        "yes" if timestamps else "no",
        f"{100 * jiwer.wer(texts, result.texts):.2f}",
        f"{_normalised_wer(texts, result.texts):.2f}",
        f"{exact} of {len(clips)}",
        _time_error(clips, result.times) if timestamps else "",
        f"{result.seconds:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _normalised_wer(texts: list[str], guesses: list[str]) -> float:
    return 100 * jiwer.wer(NORMALISED(texts), NORMALISED(guesses))


def _time_error(clips: list[TestClip], times: list[list[tuple[float, float]]]) -> str:
    """Mean over starts and ends of the clips whose number of segments is right."""
    errors = [
        abs(found - segment[side])
        for clip, guesses in zip(clips, times, strict=True)
        if len(guesses) == len(clip.segments)
        for guess, segment in zip(guesses, clip.segments, strict=True)
        for side, found in enumerate(guess)
    ]
    right = sum(len(g) == len(c.segments) for c, g in zip(clips, times, strict=True))
    return f"{1000 * np.mean(errors):.0f} ms, {right} clips with all segments"


def _print_rest(recognizer: Recognizer, clips: list[TestClip]) -> None:
    single = [clip for clip in clips if clip.kind == "single"]
    found = recognizer.languages(single)
    right = sum(clip.language == code for clip, code in zip(single, found, strict=True))
    print(f"\nlanguage detected: {right} of {len(single)}")
    for clip in (clip for clip in clips if clip.kind == "long"):
        text = recognizer.long(clip)
        seconds = len(clip.samples) / layout.SAMPLE_RATE_HZ
        error = _normalised_wer([clip.text], [text])
        print(f"clip of {seconds:.1f} s, normalised WER: {error:.2f}")
    silent = [clip for clip in clips if clip.kind == "silent"]
    print(
        "no-speech probability without speech:", *(f"{p:.4f}" for p in recognizer.no_speech(silent))
    )
    print(f"highest no-speech probability with speech: {max(recognizer.no_speech(single)):.2e}")


if __name__ == "__main__":
    sys.exit(main())
