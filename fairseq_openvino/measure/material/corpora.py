"""Data directories of random models: features, waveforms or tokens, with references of random words."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FEATURE_BINS = 80
SPECIAL_SYMBOLS = 4
"""bos, pad, eos, unk: every dictionary begins with them."""
WORDS, WORDS_FROM, WORDS_TO = 40, 3, 8
"""Words of references; length of a random one."""
RATE_HZ, SAMPLES_PER_FRAME = 16_000, 160
FRAMES_PER_TOKEN = 20
"""Of text: speech has about five tokens a second."""
LABELS = "ltr"
"""Suffix of the references of wav2vec 2.0."""
SOURCE_LANGUAGE, TARGET_LANGUAGE = "en", "de"
"""Of text."""
TONE_SAMPLES, PITCHES_HZ, LOUDNESS = 1600, (80, 4000), 0.3
"""Waveforms are tones: of noise a random model hears the same everywhere."""


def describe(directory: Path, arguments: Any, dictionary: Any, model: Any) -> dict[str, Any]:
    """Write dictionary and configuration beside a checkpoint.

    Args:
        directory: what its arguments name as the data directory.
        arguments: of the model; where the data is, is stated in them.
        dictionary: Fairseq's, of the target.
        model: of text, for the dictionary of its source.

    Returns:
        The configuration of the task, for a checkpoint of dataclasses.
    """
    arguments.data = str(directory)
    if not isinstance(arguments, Namespace):
        dictionary.save(str(directory / f"dict.{LABELS}.txt"))
        autoregressive = arguments.get("autoregressive", False)
        return _fine_tuning() | {
            "data": str(directory), "labels": LABELS, "normalize": arguments.normalize,
            "autoregressive": autoregressive,
        }  # fmt: skip
    if arguments.task == "translation":
        dictionary.save(str(directory / f"dict.{arguments.target_lang}.txt"))
        model.encoder.dictionary.save(str(directory / f"dict.{arguments.source_lang}.txt"))
        return {}
    dictionary.save(str(directory / "dict.txt"))
    raw = "use_audio_input: true\n" if hasattr(arguments, "w2v_args") else ""
    (directory / "config.yaml").write_text(
        f"vocab_filename: dict.txt\ninput_feat_per_channel: {FEATURE_BINS}\ninput_channels: 1\n{raw}"
    )
    arguments.config_yaml = "config.yaml"
    return {}


def _fine_tuning() -> dict[str, Any]:
    """Fairseq's defaults of the task."""
    from fairseq.tasks.audio_finetuning import AudioFinetuningConfig

    values = {
        name: getattr(value, "value", value)
        for name, value in vars(AudioFinetuningConfig()).items()
    }
    plain = {
        name: value
        for name, value in values.items()
        if value is None or (isinstance(value, (str, int, float)) and "${" not in str(value))
    }  # what is looked up elsewhere, or is a group of its own, is not in a checkpoint
    return plain | {"_name": "audio_finetuning"}


def write_data(
    directory: Path, utterances: int, frames: tuple[int, int], subset: str = "test", seed: int = 0
) -> Path:
    """A subset of random sources of the kind the directory is for, with random references.

    Args:
        directory: a data directory as `describe` makes it.
        utterances: rows of the subset.
        frames: least and most frames (T) of an utterance, 10 ms each; a text has a token for
            FRAMES_PER_TOKEN.
        subset: its name.
        seed: of sources, lengths and references.

    Returns:
        The manifest's path; of text the index of its target side.
    """
    random = np.random.default_rng(seed)
    lengths, references, sources = [], [], []
    is_text = (directory / f"dict.{SOURCE_LANGUAGE}.txt").exists()
    for _ in range(utterances):
        length = int(random.integers(frames[0], frames[1] + 1))
        shape = (1,) if is_text else (length, FEATURE_BINS)
        lengths.append(length)
        sources.append(random.standard_normal(shape).astype(np.float32))
        words = random.integers(0, WORDS, random.integers(WORDS_FROM, WORDS_TO + 1))
        references.append(" ".join(f"t{word}" for word in words))
    if is_text:
        return _write_text(directory, subset, lengths, references, random)
    (directory / "features").mkdir(exist_ok=True)
    labelled = (directory / f"dict.{LABELS}.txt").exists()
    if not labelled and "use_audio_input" not in (directory / "config.yaml").read_text():
        paths = [directory / "features" / f"{subset}-{i}.npy" for i in range(utterances)]
        for path, source in zip(paths, sources, strict=True):
            np.save(path, source)
    else:
        lengths = [length * SAMPLES_PER_FRAME for length in lengths]
        paths = _write_waveforms(directory / "features", subset, lengths, random)
    if labelled:
        return _write_labelled(directory, subset, paths, lengths, references)
    rows = ["id\taudio\tn_frames\ttgt_text\tspeaker"]
    for i, row in enumerate(zip(paths, lengths, references, strict=True)):
        rows.append("{}{}\t{}\t{}\t{}\tspeaker".format(subset, i, *row))
    manifest = directory / f"{subset}.tsv"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


def _write_waveforms(
    directory: Path, subset: str, lengths: list[int], random: np.random.Generator
) -> list[Path]:
    """Tones in a row as WAV files of 16 bits."""
    import soundfile

    paths = [directory / f"{subset}-{i}.wav" for i in range(len(lengths))]
    for path, length in zip(paths, lengths, strict=True):
        count = length // TONE_SAMPLES + 1
        pitches = random.uniform(*PITCHES_HZ, count).repeat(TONE_SAMPLES)[:length]
        levels = random.uniform(0, LOUDNESS, count).repeat(TONE_SAMPLES)[:length]
        soundfile.write(path, levels * np.sin(2 * np.pi * pitches.cumsum() / RATE_HZ), RATE_HZ)
    return paths


def _write_labelled(
    directory: Path, subset: str, paths: list[Path], lengths: list[int], references: list[str]
) -> Path:
    """A manifest of Fairseq's task `audio_finetuning`, and its labels."""
    rows = [f"{path.name}\t{length}" for path, length in zip(paths, lengths, strict=True)]
    manifest = directory / f"{subset}.tsv"
    manifest.write_text("\n".join([str(directory / "features"), *rows]) + "\n")
    (directory / f"{subset}.{LABELS}").write_text("\n".join(references) + "\n")
    return manifest


def _write_text(
    directory: Path,
    subset: str,
    frames: list[int],
    references: list[str],
    random: np.random.Generator,
) -> Path:
    """Both sides of a subset."""
    lengths = [max(1, count // FRAMES_PER_TOKEN) for count in frames]
    return binarize(directory, random_sentences(random, lengths, directory), references, subset)


def random_sentences(
    random: np.random.Generator, lengths: Sequence[int], directory: Path
) -> list[str]:
    """Sentences of so many symbols each of the source dictionary of a text model."""
    lines = (directory / f"dict.{SOURCE_LANGUAGE}.txt").read_text().splitlines()
    symbols = [line.split()[0] for line in lines]
    return [" ".join(random.choice(symbols, length)) for length in lengths]


def binarize(
    directory: Path, source: Sequence[str], target: Sequence[str], subset: str = "test"
) -> Path:
    """Both sides of a subset as `fairseq-preprocess` writes them, beside their dictionaries."""
    from fairseq.data import Dictionary, indexed_dataset

    for language, lines in ((SOURCE_LANGUAGE, source), (TARGET_LANGUAGE, target)):
        dictionary = Dictionary.load(str(directory / f"dict.{language}.txt"))
        prefix = directory / f"{subset}.{SOURCE_LANGUAGE}-{TARGET_LANGUAGE}.{language}"
        builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", len(dictionary))
        for line in lines:
            builder.add_item(dictionary.encode_line(line, add_if_not_exist=False))
        builder.finalize(f"{prefix}.idx")
    return Path(f"{prefix}.idx")
