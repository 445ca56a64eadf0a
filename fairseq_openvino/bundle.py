"""The bundle: one flat, movable directory with everything needed to run a model.

`manifest.json` names every other file with its size and SHA-256; names are relative and have no
directory part. A bundle is verified completely before a native parser sees any of it. Checksums
detect damage, not malice: load bundles from people you trust.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fairseq_openvino.atomic import sha256
from fairseq_openvino.errors import BundleError

FORMAT = 1
MANIFEST = "manifest.json"
ENCODER_IR = "encoder.xml"
DECODER_IR = "decoder.xml"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 16 << 30
ASSUMED_RATE_HZ = 16_000
"""Of features whose training configuration says none (Fairseq data/audio/data_cfg.py:sample_rate)."""
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Dimensions:
    """Sizes of the graphs, in the letters of the package docstring."""

    layers: int
    heads: int
    head_width: int
    model_width: int
    feature_bins: int
    vocabulary_size: int
    subsampling: int

    @classmethod
    def of(cls, graphs: Any) -> Dimensions:
        """From an object with attributes of the same names."""
        return cls(**{entry.name: int(getattr(graphs, entry.name)) for entry in fields(cls)})


@dataclass(frozen=True)
class Limits:
    """Longest input and output the model was configured for."""

    max_source_frames: int
    max_target_tokens: int


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids with a meaning of their own."""

    bos: int
    pad: int
    eos: int
    unk: int


@dataclass(frozen=True)
class FeatureConfig:
    """How a waveform becomes the encoder's input."""

    bins: int
    """F."""
    sample_rate_hz: int
    """Rate of the audio the features are computed from."""
    transforms: tuple[str, ...]
    """In order: `utterance_cmvn`, `global_cmvn` over filter banks, or `log_mel` alone."""
    global_cmvn: str | None = None
    """File with `mean` and `std`, (F,) each."""
    norm_means: bool = True
    """Option of `utterance_cmvn`."""
    norm_vars: bool = True
    """Option of `utterance_cmvn`."""
    sample_rate_assumed: bool = False
    """The training configuration does not say the rate."""


@dataclass(frozen=True)
class TextConfig:
    """How token ids become text."""

    dictionary: str | None = None
    """Fairseq dictionary file (S2T)."""
    bpe: str | None = None
    """One of `s2t.vocabulary.DECODERS`; `None` if tokens are words (S2T)."""
    sentencepiece: str | None = None
    """SentencePiece model file."""
    prepend_language_tag: bool = False
    """The first target token is a `<lang:xx>` tag that must be forced."""
    tokenizer: str | None = None
    """File of the `tokenizers` library (Whisper)."""
    bpe_separator: str = "@@"
    """End of a piece that continues (`subword_nmt`)."""
    append_language_tag: bool = False
    """A `<lang:xx>` tag starts and ends the target in place of eos."""
    eos_token: str | None = None
    """Symbol that starts and ends the target in place of eos, unless a language is named."""


@dataclass(frozen=True)
class WhisperConfig:
    """Special tokens and rules of a Whisper checkpoint, from its generation configuration."""

    start: int
    """<|startoftranscript|>."""
    previous: int | None
    """<|startofprev|>, before a prompt."""
    no_speech: int
    """<|nospeech|>."""
    no_timestamps: int
    """<|notimestamps|>; the timestamps follow it, `timestamp_seconds` apart."""
    languages: dict[str, int]
    """Token of each language code; empty if the model knows English only."""
    tasks: dict[str, int]
    """Tokens of `transcribe` and `translate`; empty if the model can only transcribe."""
    suppressed: tuple[int, ...]
    """Tokens that are never generated."""
    suppressed_at_start: tuple[int, ...]
    """Tokens that are never generated first."""
    max_initial_timestamp: int | None
    """Largest index of the first timestamp."""
    max_tokens: int
    """Longest sequence, prompt included."""
    timestamp_seconds: float = 0.02

    @property
    def first_timestamp(self) -> int:
        """<|0.00|>."""
        return self.no_timestamps + 1


@dataclass(frozen=True)
class RuntimePrecision:
    """What a bundle is meant to be run and compared at; `load_model` takes it by default."""

    inference: str = "f32"
    """Of everything that is not quantized."""
    kv_cache: str = "f32"
    """Of the self-attention cache."""


@dataclass(frozen=True)
class File:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`."""

    family: str
    architecture: str
    precision: str
    dimensions: Dimensions
    limits: Limits
    tokens: SpecialTokens
    features: FeatureConfig
    text: TextConfig
    whisper: WhisperConfig | None = None
    unsupported: str = ""
    """What of the training configuration this package cannot reproduce: then only Fairseq makes the
    features and the text. Empty: nothing."""
    runtime: RuntimePrecision = field(default_factory=RuntimePrecision)
    quantization: dict[str, Any] = field(default_factory=dict)
    """Modes, alphas, calibration and every trial of the quality gate; empty if not quantized."""
    parity: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    directory: Path
    manifest: Manifest

    def path(self, name: str | None) -> Path:
        """Path of a file that the manifest lists."""
        if name is None or name not in self.manifest.files:
            raise BundleError(
                f"Opening a bundle failed in {str(self.directory)!r}: expected a file {name!r}, "
                "got a manifest without it. Export the bundle again."
            )
        return self.directory / name


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a directory with a manifest; says nothing about its integrity."""
    return (Path(path) / MANIFEST).is_file()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """List every file of the directory in the manifest and write it last."""
    names = sorted(p.name for p in directory.iterdir() if p.name != MANIFEST)
    files = {
        name: asdict(File((directory / name).stat().st_size, sha256(directory / name)))
        for name in names
    }
    content = asdict(manifest) | {"files": files}
    (directory / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")


def open_bundle(directory: str | os.PathLike[str]) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleError: the manifest or a file is missing, damaged, not regular, or of another format.
    """
    root = Path(directory)
    manifest = _parse(root, _read_manifest(root))
    for name, expected in manifest.files.items():
        _verify_file(root, name, expected)
    return Bundle(root, manifest)


def _fail(root: Path, expected: str, got: str) -> BundleError:
    return BundleError(
        f"Opening a bundle failed in {str(root)!r}: expected {expected}, got {got}. "
        "Export the bundle again or restore the file."
    )


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise _fail(root, f"a manifest below {MAX_MANIFEST_BYTES} bytes", "a larger one")
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _fail(root, f"a readable {MANIFEST}", str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise _fail(root, f"bundle format {FORMAT}", repr(found))
    return content


def _parse(root: Path, content: dict[str, Any]) -> Manifest:
    try:
        parts: dict[str, Any] = {
            "dimensions": _build(Dimensions, content["dimensions"]),
            "limits": _build(Limits, content["limits"]),
            "tokens": _build(SpecialTokens, content["tokens"]),
            "features": _features(content["features"]),
            "text": TextConfig(**content["text"]),
            "whisper": _whisper(content.get("whisper")),
            "runtime": RuntimePrecision(**content.get("runtime", {})),
            "files": {name: File(**entry) for name, entry in content["files"].items()},
        }
        return Manifest(**(content | parts))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _fail(root, "a complete manifest", f"{type(error).__name__}: {error}") from error


def _features(content: dict[str, Any]) -> FeatureConfig:
    values = content | {"transforms": tuple(content["transforms"])}
    if values["sample_rate_hz"] is None:  # older bundles: the configuration says none
        values |= {"sample_rate_hz": ASSUMED_RATE_HZ, "sample_rate_assumed": True}
    return FeatureConfig(**values)


def _whisper(content: dict[str, Any] | None) -> WhisperConfig | None:
    if content is None:
        return None
    lists = {name: tuple(content[name]) for name in ("suppressed", "suppressed_at_start")}
    return WhisperConfig(**(content | lists))


def _build(kind: type[Any], content: dict[str, Any]) -> Any:
    value = kind(**content)
    for entry in fields(kind):
        number = getattr(value, entry.name)
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"{entry.name} = {number!r}")
    return value


def _verify_file(root: Path, name: str, expected: File) -> None:
    if not FILE_NAME.fullmatch(name):
        raise _fail(root, "file names without a directory part", repr(name))
    path = root / name
    try:
        status = os.lstat(path)
    except OSError as error:
        raise _fail(root, f"a file {name!r}", str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise _fail(root, f"a regular file {name!r}", "a link, directory or device")
    if status.st_size != expected.bytes or expected.bytes > MAX_FILE_BYTES:
        raise _fail(root, f"{expected.bytes} bytes in {name!r}", f"{status.st_size}")
    digest = sha256(path)
    if digest != expected.sha256:
        raise _fail(root, f"SHA-256 {expected.sha256[:12]}... of {name!r}", f"{digest[:12]}...")
