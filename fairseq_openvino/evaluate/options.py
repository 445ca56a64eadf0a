"""What is compared: models, engines, corpus, search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.errors import OptionError
from fairseq_openvino.metrics import BLEU_TOKENIZER, METRICS
from fairseq_openvino.speech.corpus import FAIRSEQ, Utterance

ORIGINAL = "pytorch"
OPENVINO = "openvino"
INT8 = "openvino-int8"
DEFAULT_ENGINES = (ORIGINAL, OPENVINO, INT8)
TRANSCRIBE, TRANSLATE = "transcribe", "translate"
AUDIO_CONTEXTS = ("full", "auto")
NORMALIZERS = ("auto", "english", "basic", "none")
TRANSLATION_METRICS = ("bleu", "chrf")
RECOGNITION_METRICS = ("wer", "accuracy")
PATHS = ("corpus", "config_yaml", "checkpoint", "data", "bundle", "int8_bundle", "output",
         "cache_dir")  # fmt: skip
"""Fields that are paths of this machine: records hold their last part only."""
IMMATERIAL = ("output", "cache_dir", "timeout", "shard")
"""Fields that may differ between runs whose records are put together."""


@dataclass(frozen=True)
class Search:
    """Options of generate(), the same for every engine."""

    beam: int = 5
    """Beams (K)."""
    lenpen: float = 1.0
    """Length penalty."""
    max_len_a: float = 0.0
    """Longest output = max_len_a * frames + max_len_b tokens (S2T)."""
    max_len_b: int = 200
    """See max_len_a (S2T)."""
    language: str | None = None
    """S2T: target language; Whisper: spoken language. Default: the corpus', else the model's."""
    task: str = TRANSCRIBE
    """transcribe or translate (Whisper)."""
    audio_context: str = "full"
    """full or auto: what the encoder of the `openvino` engines sees of a window (Whisper)."""


@dataclass(frozen=True)
class Options:
    """One evaluation."""

    corpus: Path
    """TSV file or LibriSpeech folder."""
    output: Path
    """Directory for records, tables and chart."""
    engines: tuple[str, ...] = DEFAULT_ENGINES
    """Names; the first is what the others are compared with."""
    config_yaml: str = "config.yaml"
    """Fairseq's data configuration, in `data` or beside the corpus."""
    checkpoint: Path | None = None
    """For `pytorch`: a Fairseq checkpoint, or a Hugging Face Whisper directory."""
    data: Path | None = None
    """Fairseq's data directory."""
    bundle: Path | None = None
    """For the `openvino` engines."""
    int8_bundle: Path | None = None
    """For `openvino-int8`; default: `bundle`, its weights and activations quantized as loaded."""
    int8_precision: str | None = None
    """Precision at which `int8_bundle` computes what is not quantized in it; default: its own."""
    name: str = ""
    """Of the model, for the table; default: that of the bundle or checkpoint."""
    text_column: str | None = None
    """Column of the references."""
    limit: int | None = None
    """Utterances to take."""
    shard: tuple[int, int] = (1, 1)
    """(i, n): every n-th of them from the i-th on."""
    search: Search = field(default_factory=Search)
    metrics: tuple[str, ...] = ()
    """Of METRICS; empty: by the corpus, see `default_metrics`."""
    normalizer: str = "auto"
    """auto (by the references' language), english, basic, none."""
    tokenizer: str = BLEU_TOKENIZER
    """sacrebleu's, for BLEU."""
    batch_size: int = 1
    """Utterances decoded together (N)."""
    repeats: int = 3
    """Measured passes; an utterance's time is the median of them."""
    threads: int = field(default_factory=machine.threads)
    """CPU threads of every engine."""
    timeout: float = 600.0
    """Seconds an engine may take to load or to decode one batch."""
    cache_dir: Path | None = None
    """Directory for compiled models; default: none are kept."""

    def __post_init__(self) -> None:
        known = known_engines()
        for name in self.engines:
            if name not in known:
                raise fail("--engines", f"some of {', '.join(known)}", repr(name))
        if not self.engines or len(set(self.engines)) < len(self.engines):
            raise fail("--engines", "each engine once", ",".join(self.engines) or "none")
        for name in self.metrics:
            if name not in METRICS:
                raise fail("--metrics", f"some of {', '.join(METRICS)}", repr(name))
        if self.normalizer not in NORMALIZERS:
            raise fail("--normalizer", f"one of {', '.join(NORMALIZERS)}", repr(self.normalizer))
        if self.search.task not in (TRANSCRIBE, TRANSLATE):
            raise fail("--task", f"{TRANSCRIBE} or {TRANSLATE}", repr(self.search.task))
        if self.search.audio_context not in AUDIO_CONTEXTS:
            expected = " or ".join(AUDIO_CONTEXTS)
            raise fail("--audio-context", expected, repr(self.search.audio_context))
        numbers: tuple[tuple[str, float], ...] = (
            ("beam", self.search.beam),
            ("batch-size", self.batch_size),
            ("repeats", self.repeats),
            ("threads", self.threads),
            ("timeout", self.timeout),
        )
        for flag, value in numbers:
            if not 0 < value < inf:
                raise fail(f"--{flag}", "a positive number", repr(value))
        for flag, value in (("lenpen", self.search.lenpen), ("max-len-a", self.search.max_len_a)):
            if not isfinite(value):
                raise fail(f"--{flag}", "a finite number", repr(value))
        self._check_models()

    def _check_models(self) -> None:
        """Every engine has its model."""
        if ORIGINAL in self.engines:
            if self.checkpoint is None:
                raise fail("--checkpoint", "the model of the engine pytorch", "none")
            if not self.is_whisper_directory and self.data is None:
                raise fail("--data", "the data directory of the Fairseq checkpoint", "none")
        for name in self.engines:
            if name != ORIGINAL and self.bundle_of(name) is None:
                raise fail("--bundle", f"a bundle for the engine {name}", "none")

    @property
    def is_whisper_directory(self) -> bool:
        """Whether `pytorch` is a Hugging Face model."""
        return self.checkpoint is not None and self.checkpoint.is_dir()

    @property
    def data_config(self) -> Path | None:
        """The YAML with the `audio_root`, if there is one."""
        if self.data is not None:
            return self.data / self.config_yaml
        beside = self.corpus.parent / self.config_yaml
        return beside if beside.is_file() else None

    @property
    def model_name(self) -> str:
        """For the table."""
        found = self.bundle or self.checkpoint or self.int8_bundle
        return self.name or (found.absolute().stem if found else "")

    def bundle_of(self, engine: str) -> Path | None:
        """Bundle of an `openvino` engine."""
        return self.int8_bundle or self.bundle if engine == INT8 else self.bundle

    def precision_of(self, engine: str) -> str | None:
        """`--ov-precision` of an `openvino` engine; None: the bundle's own."""
        if engine == INT8 and self.int8_bundle is not None:
            return self.int8_precision
        return "f32" if engine == OPENVINO else engine.removeprefix(f"{OPENVINO}-")

    def plain(self) -> dict[str, Any]:
        """As JSON, for child processes."""
        return {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(self).items()
        }

    def recorded(self) -> dict[str, Any]:
        """As JSON, without the directories of this machine, for the records."""
        plain = self.plain()
        for key in PATHS:
            if plain[key] is not None:
                plain[key] = Path(plain[key]).name
        listed: dict[str, Any] = json.loads(json.dumps(plain))  # as it will be read again
        return listed


def from_plain(plain: dict[str, Any]) -> Options:
    """The inverse of `Options.plain`."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()
    }
    for key in PATHS:
        if key != "config_yaml" and fields[key] is not None:
            fields[key] = Path(fields[key])
    fields["search"] = Search(**plain["search"])
    return Options(**fields)


def known_engines() -> dict[str, str]:
    """Name and meaning of every engine."""
    from fairseq_openvino.runtime.options import PRECISIONS

    found = {
        ORIGINAL: "--checkpoint in PyTorch, f32: Fairseq's generator or transformers' generate()",
        OPENVINO: "--bundle at f32",
        INT8: "--int8-bundle, as `quantize` makes it; without one, --bundle at precision int8",
    }
    others = {f"{OPENVINO}-{name}": f"--bundle at {name}" for name in PRECISIONS if name != "f32"}
    return {**others, **found}


def default_metrics(kind: str, first: Utterance, options: Options) -> tuple[str, ...]:
    """Translations are scored by BLEU and chrF, transcripts by word errors.

    Args:
        kind: layout of the corpus.
        first: its first utterance.
        options: if they name metrics, those are taken.
    """
    if options.metrics:
        return options.metrics
    translated = kind == FAIRSEQ and options.text_column is None
    if first.language is not None and first.source_language is not None:
        translated = first.language != first.source_language and options.text_column is None
    if options.search.task == TRANSLATE:
        translated = True
    return TRANSLATION_METRICS if translated else RECOGNITION_METRICS


def split(flag: str, text: str, separator: str = ",") -> tuple[str, ...]:
    """`a,b` to a tuple.

    Raises:
        OptionError: there is nothing in it.
    """
    parts = tuple(part.strip() for part in text.split(separator) if part.strip())
    if not parts:
        raise fail(flag, "at least one", repr(text))
    return parts


def shard(text: str) -> tuple[int, int]:
    """`2/4` to (2, 4).

    Raises:
        OptionError: it is something else.
    """
    parts: Sequence[str] = text.split("/")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):  # noqa: PLR2004
        raise fail("--shard", "i/n, as 1/4", repr(text))
    return int(parts[0]), int(parts[1])


def fail(where: str, expected: str, got: str) -> OptionError:
    """An error that names a flag."""
    return OptionError(
        f"Evaluating failed in {where}: expected {expected}, got {got}. Correct the flag."
    )
