"""Training batches: which task each sample is trained on, its tokens, its padded features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from layout import (
    FRAMES_PER_SECOND,
    MAX_TARGET_POSITIONS,
    POSITION_SECONDS,
    WINDOW_SECONDS,
    existing,
)
from prepare import Sample
from transformers import WhisperTokenizer

IGNORED = -100
"""Label that takes no part in the loss."""
TRANSLATE_SHARE = 0.4
"""Of the German samples."""
TIMESTAMP_SHARE = 0.5
PROMPT_SHARE = 0.2
"""Of the batches."""
WINDOW_FRAMES = WINDOW_SECONDS * FRAMES_PER_SECOND
FLOOR_BELOW_MAX, FLOOR = 2.0, -1.5
"""Features are (max(x, max(x) - 8) + 4) / 4 for a log10 x of at least -10: what silence becomes."""


@dataclass(frozen=True)
class Batch:
    """B samples with F frames, U target tokens and at most S text tokens."""

    features: torch.Tensor
    """Log-mel, [B, 80, F] float32."""
    inputs: torch.Tensor
    """Decoder input tokens, [B, U] int64."""
    labels: torch.Tensor
    """Next tokens, or IGNORED, [B, U] int64."""
    texts: torch.Tensor
    """Tokens of the spoken text, padded with 0, [B, S] int64."""
    text_lengths: torch.Tensor
    """Number of tokens in `texts`, [B] int64; 0 where the text is not heard entirely."""


class Batches:
    """Samples of prepare.py, drawn without end in batches of similar length."""

    def __init__(self, root: Path, tokenizer: WhisperTokenizer, seed: int) -> None:
        with open(existing(root / "samples.jsonl", "prepare.py"), encoding="utf-8") as file:
            self.samples = [Sample(**json.loads(line)) for line in file]
        self.features = np.load(root / "features.npy", mmap_mode="r")
        self.random = Random(f"batches {seed}")
        ids = tokenizer.convert_tokens_to_ids
        names = ("endoftext", "startoftranscript", "startofprev", "nospeech", "notimestamps")
        self.end, self.start, self.previous, self.no_speech, self.no_times = (
            ids(f"<|{name}|>") for name in names
        )
        self.first_time = ids("<|0.00|>")
        self.control = {
            name: ids(f"<|{name}|>") for name in ("en", "de", "transcribe", "translate")
        }
        texts = {text for s in self.samples for segment in s.segments for text in segment[2:]}
        ordered = sorted(texts)
        tokens = tokenizer([f" {text}" for text in ordered], add_special_tokens=False).input_ids
        self.tokens = dict(zip(ordered, tokens, strict=True))
        self.prompts = {
            language: sorted(
                {seg[2] for s in self.samples if s.language == language for seg in s.segments}
            )
            for language in ("en", "de")
        }

    def epoch(self, batch_frames: int, single: bool) -> Iterator[list[Sample]]:
        """All samples (or those of one sentence) in batches of at most `batch_frames` frames."""
        chosen = [s for s in self.samples if not single or (len(s.segments) <= 1 and s.cut is None)]
        chosen.sort(key=lambda sample: sample.frames + self.random.uniform(0, 60))
        batches: list[list[Sample]] = [[]]
        longest = 0
        for sample in chosen:
            longest = max(longest, sample.frames)
            if longest * (len(batches[-1]) + 1) > batch_frames:
                batches.append([])
                longest = sample.frames
            batches[-1].append(sample)
        self.random.shuffle(batches)
        yield from batches

    def collate(self, samples: list[Sample], full_window: bool) -> Batch:
        """Draw a task for each sample; pad features to the longest, or to the whole window."""
        frames = WINDOW_FRAMES if full_window else max(sample.frames for sample in samples)
        features = torch.empty(len(samples), 80, frames)
        prompted = self._happens(PROMPT_SHARE)
        targets, texts = [], []
        for row, sample in enumerate(samples):
            values = np.array(
                self.features[sample.start : sample.start + sample.frames], np.float32
            )
            features[row] = max(FLOOR, float(values.max()) - FLOOR_BELOW_MAX)
            features[row, :, : sample.frames] = torch.from_numpy(values.T)
            targets.append(self.target(sample, prompted))
            heard = sample.segments if sample.cut is None else []
            texts.append([token for segment in heard for token in self.tokens[segment[2]]])
        inputs, labels = (
            _padded([target[part] for target in targets], fill)
            for part, fill in ((0, self.end), (1, IGNORED))
        )
        lengths = torch.tensor([len(text) for text in texts])
        return Batch(features, inputs, labels, _padded(texts, 0), lengths)

    def target(self, sample: Sample, prompted: bool) -> tuple[list[int], list[int]]:
        """Decoder inputs and labels of one sample for a task drawn at random."""
        if not sample.language:
            tokens = [self.start, self.no_speech, self.end]
            return tokens[:-1], tokens[1:]
        translate = sample.language == "de" and self._happens(TRANSLATE_SHARE)
        language = self.control[sample.language]
        tokens = [self.start, language, self.control["translate" if translate else "transcribe"]]
        timed = sample.cut is not None or self._happens(TIMESTAMP_SHARE)
        if not timed:
            tokens.append(self.no_times)
        for begin, end, text, english in sample.segments:
            words = self.tokens[english if translate else text]
            tokens += [self._time(begin), *words, self._time(end)] if timed else words
        if sample.cut is not None:
            tokens.append(self._time(sample.cut))
        tokens.append(self.end)
        prompt: list[int] = []
        if prompted:
            sentences = self.prompts["en" if translate else sample.language]
            drawn = self.random.choices(sentences, k=self.random.choice((1, 1, 2)))
            prompt = [self.previous, *(token for text in drawn for token in self.tokens[text])]
        if len(prompt) + len(tokens) > MAX_TARGET_POSITIONS:
            prompt = []
        ignored = [IGNORED] * len(prompt)
        return prompt + tokens[:-1], ignored + tokens[1:]

    def _time(self, seconds: float) -> int:
        return self.first_time + round(seconds / POSITION_SECONDS)

    def _happens(self, probability: float) -> bool:
        return self.random.random() < probability


def _padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """Rows of unequal length as [B, longest] int64."""
    longest = max(1, *map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])
