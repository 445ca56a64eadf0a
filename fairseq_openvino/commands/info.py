"""`fairseq-openvino info`: what a bundle is, what it was made from, and how well it was checked."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fairseq_openvino.bundle import Bundle, open_bundle
from fairseq_openvino.errors import EXIT_OK
from fairseq_openvino.tables import aligned, human_bytes, number

FORMATS = ("text", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The bundle and the form of the answer."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0],
        help="a table, or everything as JSON (default: %(default)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Verify the bundle, then print what it says of itself."""
    bundle = open_bundle(arguments.bundle)
    if arguments.format == "json":
        print(json.dumps(described(bundle), indent=1))
    else:
        rows = [(name, _printable(value)) for name, value in _rows(bundle) if value]
        print("\n".join(aligned(rows)))
    return EXIT_OK


def described(bundle: Bundle) -> dict[str, Any]:
    """The manifest, with the digest of its file, the size of all files, and the languages."""
    manifest = msgspec.to_builtins(bundle.manifest)
    size = sum(file.bytes for file in bundle.manifest.files.values())
    found = {"digest": bundle.digest, "bytes": size, "languages": _languages(bundle)}
    return found | manifest


def _languages(bundle: Bundle) -> list[str]:
    """Codes of those that the model is told or tells; empty if there is one, which it does not name."""
    from fairseq_openvino.s2t.vocabulary import Vocabulary

    manifest = bundle.manifest
    if manifest.whisper is not None:
        return sorted(manifest.whisper.languages)
    if manifest.text.prepend_language_tag or manifest.text.append_language_tag:
        return sorted(Vocabulary.of(bundle).languages)
    return []


def _rows(bundle: Bundle) -> list[tuple[str, str]]:
    """Name and value, which may be empty."""
    manifest = bundle.manifest
    sizes, limits = manifest.dimensions, manifest.limits
    languages = _languages(bundle)
    return [
        ("family", manifest.family),
        ("architecture", manifest.architecture),
        ("dimensions", _named(msgspec.to_builtins(sizes))),
        ("limits", _named(msgspec.to_builtins(limits))),
        ("features", f"{', '.join(manifest.features.transforms)} at {manifest.features.sample_rate_hz} Hz"),
        ("languages", f"{len(languages)}: {', '.join(languages)}" if languages else ""),
        ("weights", manifest.precision),
        ("runs at", manifest.runtime.inference),
        ("quantized", str(manifest.quantization.get("mode", ""))),
        ("parity", _parity(manifest.parity)),
        ("made from", _named(manifest.source)),
        ("versions", _named(manifest.versions)),
        ("cannot do", manifest.unsupported),
        *((name, f"{human_bytes(file.bytes)}  {file.sha256}") for name, file in manifest.files.items()),
        ("size", human_bytes(sum(file.bytes for file in manifest.files.values()))),
        ("digest", bundle.digest),
    ]  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """Errors of a case, see `export.parity.Row`."""

    ir_steps: float | None = None
    ir_sequence: float | None = None


@dataclass(frozen=True)
class _Gate:
    """See `export.parity.Report`."""

    reference: str
    largest: float
    ir_limit: float
    rows: tuple[_Row, ...]


def _parity(figures: dict[str, Any]) -> str:
    """Of the gate at the export; empty where it said something else."""
    try:
        gate = msgspec.convert(figures, _Gate)
    except msgspec.ValidationError:
        return ""
    errors = [error for row in gate.rows for error in (row.ir_steps, row.ir_sequence)]
    largest = max((error for error in errors if error is not None), default=None)
    return (
        f"logits within {number(largest, '.1e')} of {gate.reference} in f64 (limit "
        f"{gate.ir_limit:.1e}, largest logit {gate.largest:.1f})"
    )


def _named(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in values.items() if value not in (0, None, "", {})
    )


def _printable(text: str) -> str:
    """What a manifest says must not move the cursor of a terminal."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
