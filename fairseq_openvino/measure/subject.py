"""What the cases of a benchmark are about: a model, the engines that load it, and clips."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino.atomic import staged_directory
from fairseq_openvino.errors import MissingDependencyError, ModelError
from fairseq_openvino.measure.engines import EngineSpec
from fairseq_openvino.measure.material import whisper
from fairseq_openvino.measure.plan import CLIP_SECONDS, MODELS, TRAINED, BenchmarkOptions, Case
from fairseq_openvino.speech import corpus
from fairseq_openvino.speech.audio import read_audio

PACKAGE = Path(__file__).parents[1]
CALIBRATION = "calibration"
CALIBRATION_UTTERANCES = 6
CLIPS = 8
DIGEST_DIGITS = 8


@dataclass(frozen=True)
class Subject:
    """One model and the clips that every engine decodes."""

    engines: list[EngineSpec]
    """With their models and caches."""
    clips: Callable[[], list[corpus.Utterance]]
    """Known once `making` is done."""
    making: dict[str, Any] | None = None
    """Arguments of the request `make` to an engine; None: there is nothing to make."""
    max_tokens: int | None = None
    """Frames of a batch with its padding; None: all clips of a case are one batch."""


def subject_of(case: Case, options: BenchmarkOptions, work_dir: Path) -> Subject:
    """The model and clips of a case; whatever can be made without torch is made here.

    Raises:
        ModelError: a file of a trained model is missing.
        MissingDependencyError: safetensors is not installed.
        StorageError: the work directory cannot be written.
    """
    if options.whisper:
        return _random_whisper(case, options, work_dir)
    return (_trained if case.model == TRAINED else _random)(case, options, work_dir)


def _random(case: Case, options: BenchmarkOptions, work_dir: Path) -> Subject:
    """Random weights at true size, as `fairseq-train` writes them, and random features."""
    directory, subset = work_dir / case.material, f"test{case.utterances}"
    directory.mkdir(parents=True, exist_ok=True)
    model = {
        "checkpoint": str(directory / "checkpoint.pt"), "data": str(directory),
        "calibration": str(directory / f"{CALIBRATION}.tsv"),
    }  # fmt: skip
    assert case.vocabulary is not None and case.utterances is not None  # of random cases
    making = {
        "arch": MODELS[case.model], "vocabulary": case.vocabulary, "frames": options.frames,
        "overrides": options.model_overrides,
        "subsets": {subset: case.utterances, CALIBRATION: CALIBRATION_UTTERANCES},
    }  # fmt: skip
    engines = _with_model(
        case, options, work_dir, directory, **model, batch_sizes=(case.utterances,)
    )
    return Subject(engines, lambda: list(corpus.read(directory / f"{subset}.tsv")), making)


def _trained(case: Case, options: BenchmarkOptions, work_dir: Path) -> Subject:
    """A trained model and its test set, in batches as Fairseq's own recipes make them."""
    assert options.trained is not None  # checked by the options
    directory = options.trained.absolute()
    config, manifest = (_only(directory, pattern) for pattern in ("config*.yaml", "test*.tsv"))
    model = {
        "checkpoint": str(_only(directory, "checkpoint.pt")), "data": str(directory),
        "config_yaml": config.name, "calibration": str(manifest), "judged": True,
    }  # fmt: skip
    made = work_dir / case.material
    made.mkdir(parents=True, exist_ok=True)
    engines = _with_model(case, options, work_dir, made, **model)
    return Subject(engines, lambda: list(corpus.read(manifest, config)), max_tokens=50_000)


def _random_whisper(case: Case, options: BenchmarkOptions, work_dir: Path) -> Subject:
    """Random weights at true size, and clips of speech, or of noise in syllables."""
    made_by = digest([Path(whisper.__file__)])
    directory = work_dir / f"{case.material}-{made_by}"
    checkpoint = whisper_checkpoint(directory / "checkpoint", case.model)
    clips = write_clips(work_dir, options.trained)
    model = {"checkpoint": str(checkpoint), "calibration": str(clips / "clips.tsv")}
    engines = _with_model(case, options, work_dir, directory, **model)
    return Subject(engines, lambda: list(corpus.read(clips / "clips.tsv")))


def whisper_checkpoint(directory: Path, size: str) -> Path:
    """A random checkpoint of a size, made once.

    Raises:
        MissingDependencyError: safetensors is not installed.
    """
    if not directory.exists():
        try:
            with staged_directory(directory) as stage:
                whisper.write_whisper(stage, whisper.SIZES[size])
        except ImportError as error:
            raise MissingDependencyError(
                f"Benchmarking failed: expected the package safetensors, got {error}. "
                "Install fairseq-openvino[whisper-export]."
            ) from error
    return directory


def write_clips(work_dir: Path, trained: Path | None) -> Path:
    """A directory with clips of CLIP_SECONDS and their manifest, made once.

    Clips of the trained model are repeated; without them they are noise.
    """
    import soundfile

    found = sorted((trained / "clips").glob("*.mp3"))[:CLIPS] if trained is not None else []
    speaks = len(found) == CLIPS
    target = work_dir / ("clips-speech" if speaks else "clips-noise")
    if target.exists():
        return target
    clips = whisper.make_clips(CLIPS, CLIP_SECONDS)
    if speaks:
        heard = [read_audio(path, whisper.RATE_HZ)[0] for path in found]
        clips = np.stack([np.resize(samples, clips.shape[1]) for samples in heard])
    with staged_directory(target) as stage:
        rows = ["path\ttext\tlanguage"]
        for number, clip in enumerate(clips):
            soundfile.write(stage / f"{number}.wav", clip, whisper.RATE_HZ, subtype="FLOAT")
            rows.append(f"{number}.wav\tnothing\ten")
        (stage / "clips.tsv").write_text("\n".join(rows) + "\n")
    return target


def digest(paths: Iterable[Path]) -> str:
    """Of the contents of files, for names of directories: nothing outdated is measured."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()[:DIGEST_DIGITS]


def exporter_digest() -> str:
    """Of what decides how a bundle looks."""
    return digest(
        sorted(path for part in ("export", "quantize") for path in (PACKAGE / part).rglob("*.py"))
    )


def _with_model(
    case: Case, options: BenchmarkOptions, work_dir: Path, made: Path, **model: Any
) -> list[EngineSpec]:
    """The chosen engines; what their forms are made into lies in the directory `made`."""
    exporter, beam = exporter_digest(), "" if options.whisper else f"-beam{case.beam}"
    return [
        replace(
            spec,
            threads=options.threads,
            bundle=str(made / f"{spec.form}-{exporter}") if spec.form else None,
            work_dir=str(made),
            cache_dir=str(work_dir / "caches" / f"{case.material}{beam}" / spec.name),
            **model,
        )
        for spec in options.chosen_engines
    ]


def _only(directory: Path, pattern: str) -> Path:
    path = next(iter(sorted(directory.glob(pattern))), None)
    if path is None:
        raise ModelError(
            f"Benchmarking failed in --trained {str(directory)!r}: expected a file {pattern}, got none. "
            "Give a directory as examples/covost/mini."
        )
    return path
