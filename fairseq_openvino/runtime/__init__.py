"""Bundles to models that run without torch and without fairseq."""

from __future__ import annotations

from os import PathLike

from fairseq_openvino.bundle import Bundle, open_bundle
from fairseq_openvino.errors import BundleError
from fairseq_openvino.runtime.engine import EngineOptions
from fairseq_openvino.runtime.s2t import S2TModel

FAMILIES = {"s2t": S2TModel}


def load_model(
    bundle: str | PathLike[str] | Bundle,
    *,
    device: str = "CPU",
    precision: str = "f32",
    threads: int | None = None,
    streams: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
) -> S2TModel:
    """Verify a bundle and prepare it for inference; graphs are compiled at their first use.

    Args:
        bundle: a bundle directory, or one already opened.
        device: OpenVINO device.
        precision: inference and key/value cache precision.
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
    options = EngineOptions(device, precision, threads, streams, cache_dir)
    return FAMILIES[family](opened, options)
