"""Fairseq checkpoints: `ARCHITECTURES` is the table of those that have an exporter.

A module of a user's --user-dir adds a row for an architecture of its own (`examples/user_dir`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fairseq_openvino.atomic import sha256
from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import CheckpointError, ModelError, failure
from fairseq_openvino.export.cache import cached
from fairseq_openvino.export.fairseq import (
    berard,
    convtransformer,
    ctc,
    decoder_alone,
    dual_input,
    s2t_conformer,
    s2t_transformer,
    transformer,
    wav2vec2,
    wav2vec_ctc,
    wav2vec_seq2seq,
    xm_transformer,
)
from fairseq_openvino.export.fairseq.architecture import Architecture
from fairseq_openvino.export.fairseq.checkpoint import load
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.export.fairseq.preprocessing import fail
from fairseq_openvino.export.fairseq.task import (
    AUDIO_FINETUNING,
    SPEECH_TEXT_JOINT,
    TRANSLATION,
    Data,
)
from fairseq_openvino.export.fairseq.text import TextDirectory
from fairseq_openvino.export.first_use import announced, remembered_sha256, tool_versions
from fairseq_openvino.export.options import ExportOptions
from fairseq_openvino.export.parity import Report
from fairseq_openvino.export.procedure import Original, export

__all__ = [
    "ARCHITECTURES", "Architecture", "cached_bundle", "cached_decoder", "export_checkpoint",
]  # fmt: skip

logger = logging.getLogger(__name__)

ARCHITECTURES: dict[str, Architecture] = {
    s2t_transformer.ARCHITECTURE: Architecture(s2t_transformer.build),
    s2t_conformer.ARCHITECTURE: Architecture(s2t_conformer.build),
    convtransformer.ARCHITECTURE: Architecture(convtransformer.build),
    xm_transformer.ARCHITECTURE: Architecture(
        xm_transformer.build,
        wav2vec2.Reference,
        cases=wav2vec2.CASES,
        complete=xm_transformer.complete,
    ),
    berard.ARCHITECTURE: Architecture(berard.build, berard.Reference),
    transformer.ARCHITECTURE: Architecture(
        transformer.build, task=TRANSLATION, cases=transformer.CASES
    ),
    wav2vec_ctc.ARCHITECTURE: Architecture(
        wav2vec_ctc.build,
        wav2vec_ctc.Reference,
        AUDIO_FINETUNING,
        wav2vec2.CASES,
        wav2vec_ctc.complete,
    ),
    dual_input.ARCHITECTURE: Architecture(
        dual_input.build, dual_input.reference, SPEECH_TEXT_JOINT
    ),
    wav2vec_seq2seq.ARCHITECTURE: Architecture(
        wav2vec_seq2seq.build,
        wav2vec_seq2seq.Reference,
        AUDIO_FINETUNING,
        wav2vec2.CASES,
        wav2vec_ctc.complete,
    ),
}
"""By Fairseq's model name."""


def export_checkpoint(
    checkpoint: Path,
    data: Data,
    output: Path,
    options: ExportOptions | None = None,
    overrides: dict[str, Any] | None = None,
) -> tuple[Bundle, Report]:
    """Export one checkpoint.

    Args:
        checkpoint: a Fairseq `.pt` file.
        data: the data directory it belongs to.
        output: the bundle directory to create.
        options: what to write.
        overrides: model arguments to replace, as Fairseq's --model-overrides.

    Returns:
        The verified bundle and the parity report.

    Raises:
        CheckpointError, ModelError: a file is missing, damaged or does not fit the others.
        ArchitectureError: the architecture has no exporter.
        ParityError: a graph does not reproduce the model; nothing is published.
        StorageError: the bundle could not be written; nothing is left behind.
    """
    options = options or ExportOptions()
    original = _original(checkpoint, data, overrides or {}, ARCHITECTURES, options.ctc)
    if isinstance(data, DataDirectory) and data.unsupported:
        raise failure(
            ModelError, "Exporting", data.path,
            "features and text that can be made without Fairseq", "; ".join(data.unsupported),
            "Choose a subset with --gen-subset if it depends on that, or run the checkpoint by "
            "fairseq-generate with this package as --user-dir, where Fairseq makes them",
        )  # fmt: skip
    return export(original, output, options)


def cached_bundle(
    checkpoint: Path,
    data: Data,
    overrides: dict[str, Any],
    cache_dir: Path,
    announce: Callable[[str], object] = logger.info,
) -> Bundle:
    """The bundle of a checkpoint, exported now if this cache has none.

    What only Fairseq can do to features and text is no reason to refuse: it does it where this bundle
    is used, and `transcribe` refuses the bundle.

    Args:
        checkpoint: a Fairseq `.pt` file.
        data: its data directory.
        overrides: model arguments to replace.
        cache_dir: where bundles are kept.
        announce: receives a line before an export and one after it.

    Raises:
        CheckpointError: there is no such file.
        StorageError: the cache directory is not writable.
        FairseqOpenVINOError: whatever `export_checkpoint` raises; nothing is left in the cache.
    """
    return _cached(checkpoint, data, overrides, cache_dir, announce, ARCHITECTURES)


def cached_decoder(
    checkpoint: Path,
    data: Data,
    overrides: dict[str, Any],
    cache_dir: Path,
) -> Bundle:
    """The bundle of a checkpoint's decoder, whatever its encoder is; see `decoder_alone`.

    Raises:
        FairseqOpenVINOError: as `cached_bundle`.
    """
    from fairseq.models import MODEL_REGISTRY

    known = dict.fromkeys(MODEL_REGISTRY, decoder_alone.ARCHITECTURE)
    return _cached(
        checkpoint, data, overrides, cache_dir, logger.info, known, decoder_alone.UNSUPPORTED
    )


def _cached(
    checkpoint: Path,
    data: Data,
    overrides: dict[str, Any],
    cache_dir: Path,
    announce: Callable[[str], object],
    known: Mapping[str, Architecture],
    unsupported: str = "",
) -> Bundle:
    """`unsupported` is what of the model is not in the bundle."""
    if not checkpoint.is_file():
        raise failure(
            CheckpointError, "Loading a checkpoint", checkpoint, "a file", "none", "Check --path"
        )
    content = {
        "checkpoint": remembered_sha256(checkpoint, cache_dir),
        "data": [sha256(path) for path in data.sources()],
        "described": {key: repr(value) for key, value in data.described().items()},
        "overrides": {key: repr(value) for key, value in sorted(overrides.items())},
        "versions": tool_versions(),
        "code": _user_code(),
        "unsupported": unsupported,
    }
    if isinstance(data, DataDirectory):
        content["statistics"] = [values.tolist() for values in data.transforms.statistics or ()]

    def make(target: Path) -> tuple[Bundle, Report]:
        original = _original(checkpoint, data, overrides, known)
        if unsupported:
            original.described["unsupported"] = unsupported
        return export(original, target, ExportOptions(overwrite=True))

    make = announced(make, checkpoint.name, checkpoint.stat().st_size, announce)
    return cached(checkpoint.stem, content, cache_dir, make)


def _user_code() -> list[str]:
    """SHA-256 of the files of packages that add an architecture or an exporter to those here."""
    from fairseq.models import MODEL_REGISTRY

    exporters = (known.build for known in ARCHITECTURES.values())
    names = {each.__module__.partition(".")[0] for each in (*MODEL_REGISTRY.values(), *exporters)}
    files: list[Path] = []
    for module in map(sys.modules.get, sorted(names - {"fairseq", "fairseq_openvino"})):
        for directory in getattr(module, "__path__", ()):
            files += sorted(Path(directory).rglob("*.py"))
        if not hasattr(module, "__path__") and getattr(module, "__file__", None):
            files.append(Path(str(module.__file__)))
    return [sha256(path) for path in files]


def _original(
    checkpoint: Path,
    data: Data,
    overrides: dict[str, Any],
    architectures: Mapping[str, Architecture],
    ctc_head: bool = False,
) -> Original:
    loaded = load(checkpoint, data, overrides, architectures)
    known = architectures[loaded.architecture]
    if ctc_head:
        known = ctc.head(known)
    graphs = known.build(loaded.model, loaded.arguments)
    data = loaded.data
    family = "s2t" if graphs.has_decoder else "ctc"
    described = {"family": family, "source": loaded.source, **data.described()}
    if isinstance(data, DataDirectory):
        _check_data(data, loaded.architecture, graphs.feature_bins)
        described["features"] = replace(described["features"], split=data.gen_subset)
    elif isinstance(data, TextDirectory):
        described["source"] |= {"languages": [data.source_lang, data.target_lang]}
    reference = known.reference(loaded.model)
    return Original(graphs, reference, described, data.copy_into, known.cases)


def _check_data(data: DataDirectory, architecture: str, feature_bins: int) -> None:
    """Say what is assumed about the training data, and refuse what the model cannot hear."""
    wanted = "true" if feature_bins == 1 else "false"
    if wanted != (stated := str(bool(data.config.use_audio_input)).lower()):
        raise fail(data.path, f"use_audio_input: {wanted} for {architecture}", stated)
    features, text = data.feature_config(), data.text_config()
    if features.sample_rate_assumed:
        logger.warning(
            f"{str(data.path)!r} says no sample_rate: {features.sample_rate_hz} Hz is assumed for the "
            "training audio (Fairseq's default; --sample-rate states another)"
        )
    if text.eos_token is not None and text.eos_token not in data.symbols():
        logger.warning(
            f"eos_token {text.eos_token!r} is not in the dictionary: Fairseq takes <unk>"
        )
