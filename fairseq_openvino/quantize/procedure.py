"""From bundle to bundle: record, quantize, judge, publish."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from fairseq_openvino.atomic import sha256, staged_directory, workspace, writable_directory
from fairseq_openvino.bundle import (
    MANIFEST,
    Bundle,
    Manifest,
    RuntimePrecision,
    open_bundle,
    write_manifest,
)
from fairseq_openvino.errors import ModelError, QualityError, failure, invalid
from fairseq_openvino.loading import find_bundle, load_model
from fairseq_openvino.quantize import compress, recording, report
from fairseq_openvino.quantize.components import Components
from fairseq_openvino.quantize.gate import Gate, Trial, climb, ladder, search_options
from fairseq_openvino.quantize.material import Material, draw
from fairseq_openvino.quantize.options import ACTION, Options
from fairseq_openvino.quantize.progress import Progress
from fairseq_openvino.runtime.engine import compile_properties
from fairseq_openvino.speech.corpus import Utterance

SCRATCH = "scratch"
DEVICE = "CPU"
"""Where the gate runs."""


@dataclass(frozen=True)
class Result:
    """What was published."""

    bundle: Bundle
    trials: tuple[Trial, ...]
    table: str
    """Of the trials, Markdown."""


def quantize_bundle(
    source: Path,
    calibration: Path,
    output: Path,
    options: Options | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Result:
    """Quantize a bundle and publish it if its texts hold up.

    Args:
        source: the bundle, in floating point; or a Whisper model, as `loading.load_model` takes it.
        calibration: a corpus, see `speech.corpus`.
        output: the bundle to create.
        options: what to quantize and how much worse it may be.
        announce: receives a line about each decision.

    Raises:
        QualityError: every trial was worse than allowed, or it cannot be told; nothing is published.
        OptionError: the output exists, or the corpus is too small.
        ModelError, AudioError: the bundle, a corpus or a clip cannot be used.
        MissingDependencyError: NNCF or the package of the metric is missing.
        StorageError: a file could not be written; nothing is left under the output's name.
    """
    options = options or Options()
    compress.load_nncf()
    bundle = find_bundle(source)
    if bundle.manifest.quantization:
        got = f"one quantized as {bundle.manifest.quantization.get('mode')!r}"
        advice = "Give the bundle it came from"
        raise failure(ModelError, ACTION, source, "a bundle in floating point", got, advice)
    if output.resolve() == source.resolve():
        expected, got = "another directory than the bundle", repr(str(output))
        raise invalid(ACTION, "output", expected, got, "Give a new name")
    material = draw(calibration, options)
    announce(report.parting(material))
    progress = Progress(*_plan(bundle, material, options), announce)
    work = options.work_dir or output.absolute().with_name(f".{output.name}.work")
    with closing(progress), staged_directory(output, options.overwrite) as stage:
        gate = Gate(bundle, material, options, progress)
        spoken = (*material.calibration, *material.held_out)
        paths = _record(bundle, spoken, work, options, progress)
        with workspace(writable_directory(work) / SCRATCH) as scratch:
            announce(f"original: {gate.yardstick.metric} {gate.baseline_score.value:.2f}")
            size = len(material.calibration)
            components = Components(
                bundle, paths[:size], paths[size:], options, scratch, announce, progress
            )
            found, trials = _climb(gate, components, material, announce)
            for name in found.manifest.files:
                if (found.directory / name).is_file():  # the ONNX graphs are left behind
                    shutil.copyfile(found.directory / name, stage / name)
        write_manifest(stage, _manifest(bundle, gate, trials, material))
    if options.work_dir is None:
        shutil.rmtree(work, ignore_errors=True)
    return Result(open_bundle(output), tuple(trials), report.table(gate, trials, material))


def _plan(bundle: Bundle, material: Material, options: Options) -> tuple[int, str]:
    """Most steps, and what they are."""
    spoken, count = len(material.calibration) + len(material.held_out), len(material.validation)
    each = [
        len(material.calibration) * compress.passes(alpha) + len(material.held_out)
        for alpha in options.alphas * (1 + bundle.manifest.has_decoder)
    ]
    trials, steps, said = len(ladder(options.mode, bundle)), 0, ""
    if options.calibrated:
        steps, said = spoken + sum(each), f"{spoken} recordings, {len(each)} quantizations, "
    said += f"{count} texts of the original and of each of at most {trials} trials"
    return steps + count * (1 + trials), said


def _climb(
    gate: Gate,
    components: Components,
    material: Material,
    announce: Callable[[str], None],
) -> tuple[Bundle, list[Trial]]:
    try:
        return climb(gate, components, announce)
    except QualityError as error:
        table = report.table(gate, error.trials, material)
        raise QualityError(f"{error}\n{table}", error.trials) from None


def _record(
    bundle: Bundle,
    utterances: Sequence[Utterance],
    work: Path,
    options: Options,
    progress: Progress,
) -> list[Path]:
    """Recordings of the utterances, made at f32 by greedy decoding."""
    if not utterances:
        return []
    recognizer = load_model(bundle, threads=options.threads, precision="f32")
    model = recording.RecordingModel(recognizer.model)

    def decode(utterance: Utterance) -> list[recording.EncoderCall]:
        search = search_options(recognizer, utterance, 1, options.language)
        recognizer.family.decode(model, [recognizer.read(utterance.path)], search)
        return model.take()

    def shown(items: Iterable[Utterance]) -> Iterator[Utterance]:
        with progress.stage("recording") as step:
            for item in items:
                yield item
                step()

    directory = work / recording.directory_name(bundle, options.language)
    paths = recording.collect(utterances, directory, decode, shown)
    calls = (call for path in paths for call in recording.read(path))
    if bundle.manifest.has_decoder and not any(call.sequences for call in calls):
        raise ModelError(
            f"Recording failed in {str(bundle.directory)!r}: expected decoder steps of "
            f"{len(utterances)} utterances, got none. Use clips of one window each."
        )
    return paths


def _manifest(bundle: Bundle, gate: Gate, trials: list[Trial], material: Material) -> Manifest:
    inference = gate.options.inference_precision
    properties = compile_properties(inference, DEVICE)
    return replace(
        bundle.manifest,
        precision=trials[-1].kind,
        runtime=RuntimePrecision(inference, properties["KV_CACHE_PRECISION"]),
        quantization=report.to_json(gate, trials, material),
        source=bundle.manifest.source | {"bundle": sha256(bundle.directory / MANIFEST)},
        versions=bundle.manifest.versions | {"nncf": version("nncf")},
    )
