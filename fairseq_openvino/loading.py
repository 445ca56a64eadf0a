"""`load_model`: whatever a model comes as, to a `Recognizer`.

A checkpoint is exported when it is first named, into the cache of `export.cache`, and found there by
content afterwards; only the export itself needs torch.
"""

from __future__ import annotations

import sys
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_openvino.bundle import ENCODER_IR, Bundle, is_bundle, open_bundle
from fairseq_openvino.errors import MissingDependencyError, failure, invalid
from fairseq_openvino.export.cache import cached, default_cache_dir
from fairseq_openvino.export.first_use import announced, remembered_sha256, tool_versions
from fairseq_openvino.export.options import ExportOptions
from fairseq_openvino.export.sources import SPEECH2TEXT, Place, locate
from fairseq_openvino.recognizer import Recognizer
from fairseq_openvino.runtime.options import EngineOptions

if TYPE_CHECKING:
    from fairseq_openvino.export.parity import Report

ACTION = "Loading a model"
DEFAULT_CONFIG = "config.yaml"


def load_model(
    source: str | PathLike[str] | Bundle,
    *,
    data: str | PathLike[str] | None = None,
    config_yaml: str | None = None,
    device: str = "CPU",
    precision: str | None = None,
    threads: int | None = None,
    streams: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
    expect: str | None = None,
) -> Recognizer:
    """Verify a model and prepare it for inference; graphs are compiled at their first use.

    Args:
        source: a bundle; a model as `export.sources` lists them, such as "base" or a Hugging Face
            directory of Whisper or Speech2Text; or with `data` a Fairseq checkpoint. All but bundles are
            exported on first use, which needs an extra of this package.
        data: the data directory of a Fairseq checkpoint.
        config_yaml: the YAML in it; default: config.yaml, or the only one.
        device: OpenVINO device.
        precision: inference and key/value cache precision; default: the bundle's own, which is f32
            unless it was quantized for another.
        threads: CPU threads; default: all cores.
        streams: requests that may run at the same time.
        cache_dir: directory for compiled models and exported bundles; default: no compiled models are
            kept, and bundles in `export.cache.default_cache_dir()`.
        expect: SHA-256 of the bundle's manifest.json, see `bundle.open_bundle`.

    Raises:
        BundleError: the bundle is damaged, of an unknown family, or not the one expected.
        CheckpointError, ModelError: there is no such model, or it cannot be exported.
        MissingDependencyError: the export needs a package.
        OptionError: an option is out of range.
    """
    bundle = find_bundle(source, data, config_yaml, cache_dir, expect)
    precision = precision or bundle.manifest.runtime.inference
    return Recognizer(bundle, EngineOptions(device, precision, threads, streams, cache_dir))


def find_bundle(
    source: str | PathLike[str] | Bundle,
    data: str | PathLike[str] | None = None,
    config_yaml: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    expect: str | None = None,
) -> Bundle:
    """The bundle of a model, exported now if it is none and not in the cache; as `load_model`."""
    if isinstance(source, Bundle):
        return source if expect is None else open_bundle(source.directory, expect)
    path, cache = Path(source), Path(cache_dir or default_cache_dir())
    is_there = is_bundle(path) or (path / ENCODER_IR).exists()
    if expect is not None and not is_there:
        raise invalid(
            ACTION, "expect", "a bundle", repr(str(source)), "Export it and name the bundle"
        )
    if data is not None and not path.is_dir():
        return _of_fairseq(path, Path(data), config_yaml, cache)
    for field, value in (("data", data), ("config_yaml", config_yaml)):
        if value is not None:
            expected, advice = "a Fairseq checkpoint with its data directory", "Leave it out"
            raise invalid(ACTION, field, expected, repr(str(source)), advice)
    if is_there:
        return open_bundle(path, expect)
    return _of_place(locate(str(source)), cache)


def _of_place(place: Place, cache_dir: Path) -> Bundle:
    content = {
        "form": place.form,
        "files": [[path.name, remembered_sha256(path, cache_dir)] for path in place.files],
        "versions": tool_versions(),
    }

    def make(target: Path) -> tuple[Bundle, Report]:
        return export_place(place, target, ExportOptions(overwrite=True))

    size = sum(path.stat().st_size for path in (place.base or place).weights)
    (origin,) = place.origin.values()
    name = Path(origin).name
    return cached(name, content, cache_dir, announced(make, name, size, _tell))


def export_place(
    place: Place, output: Path, options: ExportOptions, tokenizer: Path | None = None
) -> tuple[Bundle, Report]:
    """Export what `export.sources.locate` found, by the exporter of its form.

    Raises:
        MissingDependencyError: a package that this needs is not installed.
        FairseqOpenVINOError: as `export.whisper.export_whisper` and `export.speech2text`.
    """
    if options.ctc:
        got, advice = repr(place.name), "Leave it out"
        raise invalid("Exporting", "ctc", "a Fairseq checkpoint with a CTC head", got, advice)
    try:
        if place.form == SPEECH2TEXT:
            from fairseq_openvino.export.speech2text import export_speech2text

            return export_speech2text(place.path, output, options)
        from fairseq_openvino.export.whisper import export_whisper
    except ImportError as error:
        raise _missing(place.name, "whisper-export", error) from error
    return export_whisper(place, output, options, tokenizer)


def _of_fairseq(checkpoint: Path, data: Path, config_yaml: str | None, cache_dir: Path) -> Bundle:
    try:
        from fairseq_openvino.export.fairseq import cached_bundle
        from fairseq_openvino.export.fairseq.data import DataDirectory
        from fairseq_openvino.export.fairseq.task import data_directory
    except ImportError as error:
        raise _missing(str(checkpoint), "fairseq", error) from error
    directory = data_directory(data, config_yaml)
    if config_yaml is None and isinstance(directory, DataDirectory):
        directory = DataDirectory(data, _only_config(data))
    return cached_bundle(checkpoint, directory, {}, cache_dir, _tell)


def _only_config(data: Path) -> str:
    """The YAML that Fairseq takes if it is told none, or the only one there is."""
    found = sorted(path.name for path in data.glob("config*.yaml"))
    if DEFAULT_CONFIG in found or len(found) == 1:
        return DEFAULT_CONFIG if DEFAULT_CONFIG in found else found[0]
    got = ", ".join(found) or "none"
    advice = "Name one with --config-yaml" if found else "Name the directory that holds it"
    raise invalid(ACTION, "config_yaml", f"one config*.yaml in {str(data)!r}", got, advice)


def _missing(name: str, extra: str, error: ImportError) -> MissingDependencyError:
    return failure(
        MissingDependencyError, ACTION, repr(name), "what an export needs", error,
        f'Install it: pip install "fairseq-openvino[{extra}]"; or pass a bundle made elsewhere',
    )  # fmt: skip


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
