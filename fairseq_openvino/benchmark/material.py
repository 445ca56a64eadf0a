"""Models and data to measure: random weights at true size, or the shipped trained model.

Runs in a child process. Random models are written as `fairseq-train` writes them, so every engine
starts from a checkpoint and a data directory as a user has them.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino.benchmark.plan import SIZES, TRAINED_DIRECTORY, Case, Options
from fairseq_openvino.export.fairseq.data import DataDirectory

CHECKPOINT, BUNDLE = "checkpoint.pt", "bundle"
ONNX_BUNDLE, QUANTIZED_BUNDLE = "onnx-bundle", "quantized-bundle"
CALIBRATION = "calibration"
CALIBRATION_UTTERANCES = 12
"""Enough for ranges: what random weights say is not judged."""
SHARPNESS = 4.0
"""Untrained output layers are nearly flat, and a flat search would compare rounding errors."""
FEATURE_BINS = 80


@dataclass(frozen=True)
class Source:
    """Where Fairseq finds one configuration."""

    data: Path
    config_yaml: str
    checkpoint: Path
    subset: str
    onnx_bundle: Path
    quantized_bundle: Path


def source(case: Case, work_dir: Path) -> Source:
    """Files of a configuration; `prepare` has made them."""
    directory = work_dir / case.material
    bundles = (directory / ONNX_BUNDLE, directory / QUANTIZED_BUNDLE)
    if case.vocabulary is None:
        config = next(TRAINED_DIRECTORY.glob("config*.yaml"))
        manifest = next(TRAINED_DIRECTORY.glob("test*.tsv"))
        checkpoint = TRAINED_DIRECTORY / CHECKPOINT
        return Source(TRAINED_DIRECTORY, config.name, checkpoint, manifest.stem, *bundles)
    subset = f"test{case.utterances}"
    return Source(directory, "config.yaml", directory / CHECKPOINT, subset, *bundles)


def prepare(case: Case, options: Options, work_dir: Path, onnx: bool, quantized: bool) -> None:
    """Write what a configuration needs and the work directory lacks.

    Args:
        case: the configuration.
        options: of the run.
        work_dir: for models and data.
        onnx: whether an engine needs the ONNX graphs.
        quantized: whether an engine needs a quantized bundle.

    Raises:
        FairseqOpenVINOError: the model cannot be exported.
    """
    found = source(case, work_dir)
    (work_dir / case.material).mkdir(parents=True, exist_ok=True)
    if case.vocabulary is not None:
        assert case.utterances is not None
        if not found.checkpoint.is_file():
            _write_checkpoint(found, SIZES[case.model], case.vocabulary, options.model_overrides)
        _write_data(found, found.subset, case.utterances, options.frames)
    if onnx and not found.onnx_bundle.is_dir():
        from fairseq_openvino.export.fairseq import export_checkpoint
        from fairseq_openvino.export.options import ExportOptions

        data = DataDirectory(found.data, found.config_yaml)
        export_checkpoint(found.checkpoint, data, found.onnx_bundle, ExportOptions(onnx_only=True))
    if quantized and not found.quantized_bundle.is_dir():
        _quantize(found, case, options, work_dir / case.material / BUNDLE)


def _quantize(found: Source, case: Case, options: Options, bundle: Path) -> None:
    """`quantize` at its defaults; random weights are calibrated on random features, unjudged."""
    from fairseq_openvino import machine
    from fairseq_openvino.export.fairseq import export_checkpoint
    from fairseq_openvino.quantize.options import Options as QuantizeOptions
    from fairseq_openvino.quantize.procedure import quantize_bundle

    if not bundle.is_dir():
        export_checkpoint(found.checkpoint, DataDirectory(found.data, found.config_yaml), bundle)
    inference = "bf16" if machine.cpu().has_bf16 else "f32"
    chosen = QuantizeOptions(
        config_yaml=found.data / found.config_yaml, inference_precision=inference,
        threads=options.threads,
    )  # fmt: skip
    manifest = found.data / f"{found.subset}.tsv"
    if case.vocabulary is not None:
        _write_data(found, CALIBRATION, CALIBRATION_UTTERANCES, options.frames)
        manifest = found.data / f"{CALIBRATION}.tsv"
        chosen = replace(
            chosen, calibration_size=8, held_out_size=2, alphas=(0.5,), beam=1, max_drop=1e6
        )
    quantize_bundle(bundle, manifest, found.quantized_bundle, chosen)


def _write_checkpoint(
    found: Source, architecture: str, vocabulary: int, overrides: dict[str, Any]
) -> None:
    """A checkpoint with random weights (seed 0), its dictionary and YAML."""
    import torch
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    torch.manual_seed(0)
    dictionary = Dictionary()
    for i in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(f"t{i}")
    arguments = Namespace(
        arch=architecture, task="speech_to_text", max_source_positions=6000,
        max_target_positions=1024, input_feat_per_channel=FEATURE_BINS, input_channels=1,
        data=str(found.data), config_yaml=found.config_yaml, **overrides,
    )  # fmt: skip
    ARCH_CONFIG_REGISTRY[architecture](arguments)
    task = Namespace(target_dictionary=dictionary)
    model = ARCH_MODEL_REGISTRY[architecture].build_model(arguments, task)
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(SHARPNESS)
    dictionary.save(str(found.data / "dict.txt"))
    (found.data / found.config_yaml).write_text(
        f"vocab_filename: dict.txt\ninput_feat_per_channel: {FEATURE_BINS}\ninput_channels: 1\n"
    )
    history = {"criterion_name": "x", "optimizer_name": "y", "lr_scheduler_state": {}}
    state = {
        "args": arguments,
        "model": model.state_dict(),
        "optimizer_history": [history | {"num_updates": 1}],
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
    }
    torch.save(state, found.checkpoint)


def _write_data(found: Source, subset: str, utterances: int, frames: int) -> None:
    """Random features, one file an utterance, and their manifest."""
    directory = found.data / f"features{frames}"
    directory.mkdir(exist_ok=True)
    rows = ["id\taudio\tn_frames\ttgt_text\tspeaker"]
    for i in range(utterances):
        path = directory / f"{i}.npy"
        if not path.is_file():
            features = np.random.default_rng(i).standard_normal((frames, FEATURE_BINS))
            np.save(path, features.astype(np.float32))
        rows.append(f"{i}\t{path.absolute()}\t{frames}\tt1 t2\tspeaker")
    (found.data / f"{subset}.tsv").write_text("\n".join(rows) + "\n")
