"""The bundle: one flat, movable directory with everything needed to run a model.

`manifest.json` names every other file with its size and SHA-256. A bundle is verified completely before a
native parser sees any of it, and a file that changed meanwhile once more when it is read. Checksums detect
damage, not malice: load bundles from people you trust, or state the digest that they told you.
"""

from fairseq_openvino.bundle.directory import DECODER_IR, ENCODER_IR, Bundle, is_bundle, open_bundle
from fairseq_openvino.bundle.manifest import (
    ASSUMED_RATE_HZ,
    DIGEST,
    MANIFEST,
    Dimensions,
    FeatureConfig,
    File,
    Generation,
    Limits,
    Manifest,
    RuntimePrecision,
    SpecialTokens,
    TextConfig,
    WhisperConfig,
    read_manifest,
    write_manifest,
)

__all__ = [
    "ASSUMED_RATE_HZ",
    "DECODER_IR",
    "DIGEST",
    "ENCODER_IR",
    "MANIFEST",
    "Bundle",
    "Dimensions",
    "FeatureConfig",
    "File",
    "Generation",
    "Limits",
    "Manifest",
    "RuntimePrecision",
    "SpecialTokens",
    "TextConfig",
    "WhisperConfig",
    "is_bundle",
    "open_bundle",
    "read_manifest",
    "write_manifest",
]
