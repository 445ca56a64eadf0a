"""Bundles to models that run without torch and without fairseq."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike

from fairseq_openvino.bundle import Bundle, open_bundle
from fairseq_openvino.errors import BundleError
from fairseq_openvino.runtime.engine import EngineOptions
from fairseq_openvino.runtime.s2t import S2TModel
from fairseq_openvino.runtime.transcriber import Transcriber
from fairseq_openvino.runtime.whisper import WhisperModel

FAMILIES: dict[str, Callable[[Bundle, EngineOptions], Transcriber]] = {
    "s2t": S2TModel,
    "whisper": WhisperModel,
}


def load_model(
    bundle: str | PathLike[str] | Bundle,
    *,
    device: str = "CPU",
    precision: str | None = None,
    threads: int | None = None,
    streams: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
) -> Transcriber:
    """Verify a bundle and prepare it for inference; graphs are compiled at their first use.

    Args:
        bundle: a bundle directory, or one already opened.
        device: OpenVINO device.
        precision: inference and key/value cache precision; default: the bundle's own, which is f32
            unless it was quantized for another.
        threads: CPU threads; default: all cores.
        streams: requests that may run at the same time.
        cache_dir: directory for compiled models.

    Raises:
        BundleError: the bundle is damaged or of an unknown family.
        OptionError: an option is out of range.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    family = opened.manifest.family
    if family not in FAMILIES:
        raise BundleError(
            f"Opening a bundle failed in {str(opened.directory)!r}: expected a family of "
            f"{', '.join(FAMILIES)}, got {family!r}. Update fairseq-openvino."
        )
    precision = precision or opened.manifest.runtime.inference
    options = EngineOptions(device, precision, threads, streams, cache_dir)
    return FAMILIES[family](opened, options)
