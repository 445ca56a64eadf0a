"""The manifest of a bundle: what is in `manifest.json`.

It names every other file with its size and SHA-256; names are relative and have no
directory part.

Format 2 holds a SHA-256 of the manifest's own content; once it matches, fields that this version does
not know are ignored. Format 1, which has none and describes transformer decoders only, is still read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from fairseq_openvino.atomic import sha256
from fairseq_openvino.bundle.files import open_no_follow, strict_json
from fairseq_openvino.errors import BundleError, failure, invalid
from fairseq_openvino.tensors import Count, TensorSpec, attention_specs

FORMAT = 2
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 16 << 30
Layers = Annotated[int, msgspec.Meta(ge=0, le=1_000)]
Bins = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
Symbols = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
Positions = Annotated[int, msgspec.Meta(ge=0)]
Rate = Annotated[int, msgspec.Meta(ge=1_000, le=384_000)]
"""In Hz, of audio that can be read."""
Bytes = Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_BYTES)]
ASSUMED_RATE_HZ = 16_000
"""Of features whose training configuration says none (Fairseq data/audio/data_cfg.py:sample_rate)."""
DIGITS = re.compile(r"[0-9a-fA-F]{64}")
DIGEST = "sha256"
"""Of everything else in a manifest, as JSON with sorted keys and no blanks."""


@dataclass(frozen=True)
class Dimensions:
    """Sizes of the graphs, in the letters of the package docstring."""

    layers: Layers
    """0 without a decoder."""
    model_width: Count
    feature_bins: Bins
    vocabulary_size: Symbols
    subsampling: Count
    source_vocabulary_size: Symbols = 0
    """Where the encoder reads token ids, F = 0."""

    @classmethod
    def of(cls, graphs: Any) -> Dimensions:
        """From an object with attributes of the same names."""
        return cls(**{entry.name: int(getattr(graphs, entry.name)) for entry in fields(cls)})


@dataclass(frozen=True)
class Limits:
    """Longest input and output the model was configured for, and the shortest input it can hear."""

    max_source_frames: Positions
    max_target_tokens: Positions
    min_source_frames: Count = 1


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids with a meaning of their own."""

    bos: Count
    pad: Count
    eos: Count
    unk: Count


@dataclass(frozen=True)
class FeatureConfig:
    """How a waveform becomes the encoder's input."""

    bins: Bins
    """F."""
    sample_rate_hz: Rate
    """Rate of the audio the features are computed from."""
    transforms: tuple[str, ...]
    """In order: `utterance_cmvn`, `two_pass_cmvn`, `global_cmvn` over filter banks, or `log_mel` alone, or
    `layer_norm` alone, of the samples themselves."""
    global_cmvn: str | None = None
    """File with `mean` and `std`, (F,) each."""
    norm_means: bool = True
    """Option of the CMVN of an utterance."""
    norm_vars: bool = True
    """Option of the CMVN of an utterance."""
    sample_rate_assumed: bool = False
    """The training configuration does not say the rate."""
    split: str | None = None
    """Fairseq split whose transforms these are; None: those of every split that is not trained on."""


@dataclass(frozen=True)
class TextConfig:
    """How token ids become text."""

    dictionary: str | None = None
    """Fairseq dictionary file (S2T)."""
    bpe: str | None = None
    """One of `s2t.vocabulary.DECODERS`; `None` if tokens are words (S2T)."""
    source_dictionary: str | None = None
    """Fairseq dictionary file of what the encoder reads, where that is text."""
    sentencepiece: str | None = None
    """SentencePiece model file; of the source, where that is text."""
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
    bpe_pieces: str | None = None
    """JSON file with the id of each piece (`byte_pieces`)."""
    skip_unknown: bool = False
    """Unknown words leave no `<unk>` in the text."""
    upper_case: bool = False
    """The text is in capitals."""


@dataclass(frozen=True)
class Generation:
    """How transformers' `generate` searches with a checkpoint of its own (S2T)."""

    max_length: Count
    """Longest sequence, its first token included, unless the options say otherwise."""
    early_stopping: bool = False
    """A beam search ends with K hypotheses, not when none can become better."""
    first_token: Count | None = None
    """Forced where no language is named."""


@dataclass(frozen=True)
class WhisperConfig:
    """Special tokens and rules of a Whisper checkpoint, from its generation configuration."""

    start: Count
    """<|startoftranscript|>."""
    previous: Count | None
    """<|startofprev|>, before a prompt."""
    no_speech: Count
    """<|nospeech|>."""
    no_timestamps: Count
    """<|notimestamps|>; the timestamps follow it, `timestamp_seconds` apart."""
    languages: dict[str, Count]
    """Token of each language code; empty if the model knows English only."""
    tasks: dict[str, Count]
    """Tokens of `transcribe` and `translate`; empty if the model can only transcribe."""
    suppressed: tuple[Count, ...]
    """Tokens that are never generated."""
    suppressed_at_start: tuple[Count, ...]
    """Tokens that are never generated first."""
    max_initial_timestamp: Count | None
    """Largest index of the first timestamp."""
    max_tokens: Count
    """Longest sequence, prompt included."""
    timestamp_seconds: float = 0.02
    alignment_heads: tuple[tuple[Count, Count], ...] = ()
    """(decoder layer, head) of the cross-attention that follows the audio; empty: not known."""
    translates: bool = True
    """Whether it learned to translate; turbo and distilled models did not."""

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

    bytes: Bytes
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`."""

    family: str
    architecture: str
    precision: str
    """Of the stored weights."""
    dimensions: Dimensions
    limits: Limits
    tokens: SpecialTokens
    features: FeatureConfig
    text: TextConfig
    memory: tuple[TensorSpec, ...]
    """What the encoder leaves for the decoder, in the order of its outputs."""
    state: tuple[TensorSpec, ...]
    """What the decoder keeps between calls, in the order of its outputs."""
    whisper: WhisperConfig | None = None
    generation: Generation | None = None
    """None: the search is Fairseq's (S2T), or Whisper's."""
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

    @property
    def has_decoder(self) -> bool:
        """Whether there is a decoder; of a CTC model the encoder's memory is the result."""
        return self.dimensions.layers > 0


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """List every file of the directory in the manifest and write it last."""
    files = {
        path.name: File(path.stat().st_size, sha256(path))
        for path in sorted(directory.iterdir())
        if path.name != MANIFEST
    }
    content = msgspec.to_builtins(replace(manifest, files=files, format=FORMAT))
    content[DIGEST] = _digest(content)
    (directory / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")


def read_manifest(root: Path, expect: str | None = None) -> tuple[Manifest, str]:
    """The manifest of a bundle whose files are not looked at, and the SHA-256 of its file.

    Raises:
        BundleError: it is missing, damaged, of another format, or not the one expected.
        OptionError: `expect` is no SHA-256.
    """
    if expect is not None and not DIGITS.fullmatch(expect):
        got = f"{len(expect)} characters"
        raise invalid("Opening a bundle", "expect", "the 64 hexadecimal digits of a SHA-256", got)
    try:
        with open_no_follow(root / MANIFEST) as file:
            stored = file.read(MAX_MANIFEST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise refused(root, f"a readable {MANIFEST}", error) from error
    if len(stored) > MAX_MANIFEST_BYTES:
        raise refused(root, f"a {MANIFEST} below {MAX_MANIFEST_BYTES} bytes", "a larger one")
    digest = hashlib.sha256(stored).hexdigest()
    if expect is not None and digest != expect.lower():
        advice = "Do not use it, or ask whoever made it for the digest of this version"
        raise refused(root, f"a {MANIFEST} with the SHA-256 {expect}", digest, advice)
    try:
        content = strict_json(stored)
    except ValueError as error:
        raise refused(root, f"a readable {MANIFEST}", error) from error
    return _manifest_of(root, content), digest


def _manifest_of(root: Path, content: Any) -> Manifest:
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found == FORMAT and content.get(DIGEST) != _digest(content):
        raise refused(root, f"a {MANIFEST} that agrees with its own {DIGEST}", "other content")
    if found not in (1, FORMAT) or isinstance(found, bool):
        raise refused(root, f"bundle format 1 or {FORMAT} in {MANIFEST}", repr(found))
    try:
        manifest = _of_format_1(content) if found == 1 else msgspec.convert(content, Manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise refused(
            root, f"a complete manifest in {MANIFEST}", f"{type(error).__name__}: {error}"
        ) from error
    largest, symbols = max(_ids(manifest)), manifest.dimensions.vocabulary_size
    if largest >= symbols:
        raise refused(root, f"token ids below {symbols} in {MANIFEST}", largest)
    if manifest.has_decoder != bool(manifest.state):
        raise refused(root, f"a decoder with a state, or neither, in {MANIFEST}", "one of them")
    for specs, first in ((manifest.memory, "N"), (manifest.state, "R")):
        names = [spec.name for spec in specs if spec.dims[:1] == (first,)]
        if len(set(names)) < len(specs):
            raise refused(
                root, f"tensors by names of their own, {first} first, in {MANIFEST}", names
            )
    if (bins := manifest.features.bins) != (wanted := manifest.dimensions.feature_bins):
        raise refused(root, f"features of {wanted} numbers in {MANIFEST}", f"{bins}")
    return manifest


def _ids(manifest: Manifest) -> Iterator[int]:
    """All tokens that the manifest names."""
    yield from vars(manifest.tokens).values()
    if manifest.generation is not None:
        yield manifest.generation.first_token or 0
    if (whisper := manifest.whisper) is not None:
        yield from (whisper.start, whisper.no_timestamps)
        yield from (token for token in (whisper.previous, whisper.no_speech) if token is not None)
        yield from (*whisper.languages.values(), *whisper.tasks.values())
        yield from (*whisper.suppressed, *whisper.suppressed_at_start)


def refused(
    root: Path,
    expected: str,
    got: object,
    advice: str = "Export the bundle again or restore the file",
) -> BundleError:
    """The error of a bundle that cannot be used."""
    return failure(BundleError, "Opening a bundle", root, expected, got, advice)


def _digest(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class _Attention:
    """What format 1 says of memory and state."""

    layers: Layers
    heads: Count
    head_width: Count


def _of_format_1(content: dict[str, Any]) -> Manifest:
    """As format 2 has it. Nothing but the names of its fields protects it, so each must be known."""
    numbers, features = dict(content["dimensions"]), dict(content["features"])
    sizes = msgspec.convert(numbers, _Attention)
    specs = attention_specs(sizes.layers, sizes.heads, sizes.head_width)
    memory, state = msgspec.to_builtins(specs)
    numbers = {name: size for name, size in numbers.items() if name not in ("heads", "head_width")}
    if features["sample_rate_hz"] is None:  # the oldest: the configuration says none
        features |= {"sample_rate_hz": ASSUMED_RATE_HZ, "sample_rate_assumed": True}
    content = content | {
        "dimensions": numbers, "features": features, "memory": memory, "state": state,
    }  # fmt: skip
    manifest = msgspec.convert(content, Manifest)
    known = msgspec.to_builtins(manifest)
    for name, section in (("", content), *content.items()):
        sections = known if not name else known.get(name)
        if isinstance(section, dict) and (unknown := sorted(section.keys() - sections.keys())):
            raise KeyError(f"unknown field {unknown[0]!r} {name and f'in {name!r}'}".rstrip())
    return manifest
