"""What the cases of a benchmark are about: a model, the engines that load it, and clips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino.atomic import staged_directory
from fairseq_openvino.errors import ModelError, failure
from fairseq_openvino.measure.engines import EngineSpec
from fairseq_openvino.measure.material import whisper
from fairseq_openvino.measure.plan import (
    ACTION,
    ARGUMENTS,
    CLIP_SECONDS,
    MODELS,
    TRAINED,
    BenchmarkOptions,
    Case,
)
from fairseq_openvino.speech import corpus
from fairseq_openvino.speech.audio import read_audio

PACKAGE = Path(__file__).parents[1]
CALIBRATION, CALIBRATION_UTTERANCES = "calibration", 6
CLIPS = 8
DIGEST_DIGITS = 8


@dataclass(frozen=True)
class Subject:
    """One model and the clips that every engine decodes."""

    engines: list[EngineSpec]
    """With their models and caches."""
    manifest: Path
    """Of the clips; it is there once `making` is done."""
    making: dict[str, Any] | None = None
    """Arguments of the request `make` to an engine; None: there is nothing to make."""
    max_tokens: int | None = None
    """Frames of a batch with its padding; None: all clips of a case are one batch."""

    def clips(self) -> list[corpus.Utterance]:
        """All of them."""
        spec = self.engines[0]
        config = Path(spec.data) / spec.config_yaml if spec.judged and spec.data else None
        return list(corpus.read(self.manifest, config))


def subject_of(case: Case, options: BenchmarkOptions, work_dir: Path) -> Subject:
    """The model and clips of a case.

    Raises:
        ModelError: a file of a trained model is missing.
        StorageError: the work directory cannot be written.
    """
    made = work_dir / case.material
    if case.whisper:  # random weights at true size; speech, or noise in syllables
        made = made.with_name(f"{made.name}-{digest([Path(whisper.__file__)])}")
        manifest = write_clips(work_dir, options.trained)
        model: dict[str, Any] = {"checkpoint": made / "checkpoint", "calibration": manifest}
        subject = Subject([], manifest, {"whisper": asdict(whisper.SIZES[case.model])})
    elif case.model == TRAINED:  # and its test set, in batches as in Fairseq's own recipes
        assert options.trained is not None  # checked by the options
        config, manifest, checkpoint = (
            _only(options.trained.absolute(), pattern)
            for pattern in ("config*.yaml", "test*.tsv", "checkpoint.pt")
        )
        model = {"checkpoint": checkpoint, "calibration": manifest, "data": config.parent}
        model |= {"config_yaml": config.name, "judged": True}
        subject = Subject([], manifest, max_tokens=50_000)
    else:  # random weights at true size, as `fairseq-train` writes them, and random features
        subset = f"test{max(options.utterances)}"  # its first ones are a smaller batch
        subsets = {subset: max(options.utterances), CALIBRATION: CALIBRATION_UTTERANCES}
        making = {
            "arch": MODELS[case.model], "vocabulary": case.vocabulary, "subsets": subsets,
            "overrides": ARGUMENTS.get(case.model, {}) | options.model_overrides,
            "frames": options.frames,
        }  # fmt: skip
        model = {"checkpoint": made / "checkpoint.pt", "data": made}
        model |= {"calibration": made / f"{CALIBRATION}.tsv", "batch_sizes": options.utterances}
        subject = Subject([], made / f"{subset}.tsv", {"s2t": making})
    made.mkdir(parents=True, exist_ok=True)
    model = {
        name: str(value) if isinstance(value, Path) else value for name, value in model.items()
    }
    beam = "" if case.whisper else f"-beam{case.beam}"
    caches, exporter = work_dir / "caches" / f"{case.material}{beam}", exporter_digest()
    engines = [
        replace(
            spec, threads=options.threads, work_dir=str(made), cache_dir=str(caches / spec.name),
            bundle=str(made / f"{spec.form}-{exporter}") if spec.form else None, **model,
        )
        for spec in options.chosen_engines
    ]  # fmt: skip
    return replace(subject, engines=engines)


def write_clips(work_dir: Path, trained: Path | None) -> Path:
    """The manifest of CLIPS clips of CLIP_SECONDS, made once.

    Clips of the trained model are repeated; without them they are noise.
    """
    import soundfile

    found = sorted((trained / "clips").glob("*.mp3"))[:CLIPS] if trained is not None else []
    speaks = len(found) == CLIPS
    target = work_dir / ("clips-speech" if speaks else "clips-noise")
    if not target.exists():
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
    return target / "clips.tsv"


def digest(paths: Iterable[Path]) -> str:
    """Of the contents of files, for names of directories: nothing outdated is measured."""
    content = b"".join(path.read_bytes() for path in paths)
    return hashlib.sha256(content).hexdigest()[:DIGEST_DIGITS]


def exporter_digest() -> str:
    """Of what decides how a bundle looks."""
    rooms = (PACKAGE / "export", PACKAGE / "quantize")
    return digest(path for room in rooms for path in sorted(room.rglob("*.py")))


def _only(directory: Path, pattern: str) -> Path:
    path = next(iter(sorted(directory.glob(pattern))), None)
    if path is None:
        advice = "Give a directory as examples/covost/mini"
        raise failure(ModelError, ACTION, directory, f"a file {pattern}", "none", advice)
    return path
