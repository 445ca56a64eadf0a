"""What `evaluate` compares: its options and engines, and what they share with those of `benchmark`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.errors import invalid
from fairseq_openvino.flags import flag
from fairseq_openvino.measure.engines import PEER, EngineSpec, Search
from fairseq_openvino.metrics import BLEU_TOKENIZER, METRICS
from fairseq_openvino.whisper.options import TASKS

ACTION = "Evaluating"
ORIGINAL = "pytorch"
OPENVINO = "openvino"
INT8 = "openvino-int8"
DEFAULT_ENGINES = (ORIGINAL, OPENVINO, INT8)
AUDIO_CONTEXTS = ("full", "auto")
NORMALIZERS = ("auto", "english", "basic", "none")
PATHS = ("corpus", "config_yaml", "checkpoint", "data", "bundle", "int8_bundle", "output",
         "cache_dir")  # fmt: skip
"""Fields that are paths of this machine: records hold their last part only."""
IMMATERIAL = ("output", "cache_dir", "timeout", "shard")
"""Fields that may differ between runs whose records are put together."""


def shard(text: str) -> tuple[int, int]:
    """`2/4` to (2, 4).

    Raises:
        ValueError: it is something else.
    """
    parts = text.split("/")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):  # noqa: PLR2004
        raise ValueError("expected i/n, as 1/4")
    return int(parts[0]), int(parts[1])


def add_peers(parser: argparse._ActionsContainer) -> None:
    """The flag of the field `peers`."""
    parser.add_argument(
        "--peer", action="append", dest="peers", metavar="NAME=COMMAND", default=argparse.SUPPRESS,
        help="another engine: a program that speaks the protocol of `measure.process`; repeatable",
    )  # fmt: skip


def check_names(action: str, field: str, names: Collection[str], known: Collection[str]) -> None:
    """Raise OptionError unless all names are known."""
    for name in names:
        if name not in known:
            raise invalid(action, field, f"some of {', '.join(known)}", repr(name))


def check_positive(action: str, options: Any, *names: str) -> None:
    """Raise OptionError unless these numbers, or tuples of them, are positive and finite."""
    for name in names:
        value = getattr(options, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not 0 < number < inf:
                raise invalid(action, name, "a positive number", repr(number))


def peer_engines(action: str, peers: Iterable[str]) -> dict[str, EngineSpec]:
    """`NAME=COMMAND` to engines; raise OptionError if one is malformed."""
    found = {}
    for peer in peers:
        name, _, command = peer.partition("=")
        if not name or not command.strip():
            raise invalid(action, "peers", "NAME=COMMAND", repr(peer))
        found[name] = EngineSpec(name, command, PEER, from_samples=True)
    return found


def known_engines() -> dict[str, EngineSpec]:
    """The engines of `evaluate` by name, without models and peers."""
    from fairseq_openvino.runtime.options import PRECISIONS

    ours = {
        name: EngineSpec(f"{OPENVINO}-{name}", f"--bundle at {name}", "ours", name)
        for name in PRECISIONS
        if name != "f32"
    }
    meaning = "--int8-bundle, as `quantize` makes it; without one, --bundle at precision int8"
    ours["int8"] = replace(ours["int8"], meaning=meaning)
    meaning = "--checkpoint in PyTorch, f32: Fairseq's generator or transformers' generate()"
    original = EngineSpec(ORIGINAL, meaning, "transformers")
    exact = EngineSpec(OPENVINO, "--bundle at f32", "ours", "f32")
    return {spec.name: spec for spec in (*ours.values(), original, exact)}


@dataclass(frozen=True)
class EvaluationOptions:
    """One evaluation."""

    corpus: Path
    """Fairseq manifest, Common Voice or plain TSV (path, text), or LibriSpeech folder."""
    output: Path = field(default=Path("evaluation"), metadata=flag(metavar="DIR"))
    """For utterances.jsonl, evaluation.md, .json, .svg."""
    engines: tuple[str, ...] = field(default=DEFAULT_ENGINES, metadata=flag(metavar="LIST"))
    """See --list-engines; the first is what the others are compared with."""
    peers: Sequence[str] = ()
    """NAME=COMMAND: programs that speak the protocol of `measure.process`, for Whisper."""
    config_yaml: str = "config.yaml"
    """Fairseq's data configuration, in --data or beside the corpus."""
    checkpoint: Path | None = field(default=None, metadata=flag(metavar="CKPT"))
    """For pytorch: a Fairseq checkpoint, or a Hugging Face Whisper directory."""
    data: Path | None = field(default=None, metadata=flag(metavar="DIR"))
    """Fairseq's data directory."""
    bundle: Path | None = field(default=None, metadata=flag(metavar="BUNDLE"))
    """For the openvino engines."""
    int8_bundle: Path | None = field(default=None, metadata=flag(metavar="BUNDLE"))
    """For openvino-int8, made by quantize (default: --bundle at precision int8)."""
    int8_precision: str | None = None
    """Of what is not quantized in --int8-bundle (default: its own)."""
    name: str = field(default="", metadata=flag(metavar="NAME"))
    """Of the model, for the table."""
    text_column: str | None = field(default=None, metadata=flag(metavar="NAME"))
    """Column of the references."""
    limit: int | None = field(default=None, metadata=flag(metavar="N"))
    """The first N utterances."""
    shard: tuple[int, int] = field(default=(1, 1), metadata=flag(metavar="I/N", parse=shard))
    """Of those, every N-th from the I-th on (default: all)."""
    search: Search = field(default_factory=Search)
    """Of generate(), for every engine."""
    metrics: tuple[str, ...] = field(default=(), metadata=flag(metavar="LIST"))
    """Of bleu, chrf, wer, accuracy (default: bleu,chrf or wer,accuracy, by the corpus)."""
    normalizer: str = "auto"
    """Whisper's, for wer: auto (by the references' language), english, basic, none."""
    tokenizer: str = field(
        default=BLEU_TOKENIZER, metadata=flag(name="sacrebleu-tokenizer", metavar="NAME")
    )
    """For BLEU."""
    batch_size: int = 1
    """Utterances decoded together (N)."""
    repeats: int = 3
    """Measured passes; an utterance's time is the median of them."""
    threads: int = field(default_factory=machine.threads)
    """Of every engine (default: all cores)."""
    timeout: float = field(default=600.0, metadata=flag(metavar="SECONDS"))
    """For loading or a batch."""
    cache_dir: Path | None = field(default=None, metadata=flag(metavar="DIR"))
    """For compiled models, and for what peers convert (default: none are kept)."""

    def __post_init__(self) -> None:
        check_names(ACTION, "engines", self.engines, self._known)
        if not self.engines or len(set(self.engines)) < len(self.engines):
            raise invalid(ACTION, "engines", "each engine once", ",".join(self.engines) or "none")
        check_names(ACTION, "metrics", self.metrics, METRICS)
        for name, value, choices in (
            ("normalizer", self.normalizer, NORMALIZERS),
            ("task", self.search.task, TASKS),
            ("audio_context", self.search.audio_context, AUDIO_CONTEXTS),
        ):
            if value not in choices:
                raise invalid(ACTION, name, f"one of {', '.join(choices)}", repr(value))
        check_positive(ACTION, self.search, "beam")
        check_positive(ACTION, self, "batch_size", "repeats", "threads", "timeout")
        for name in ("lenpen", "max_len_a"):
            if not isfinite(getattr(self.search, name)):
                raise invalid(ACTION, name, "a finite number", repr(getattr(self.search, name)))
        if ORIGINAL in self.engines and self.checkpoint is None:
            raise invalid(ACTION, "checkpoint", "the model of the engine pytorch", "none")
        if ORIGINAL in self.engines and not self.is_whisper_directory and self.data is None:
            raise invalid(ACTION, "data", "the data directory of the Fairseq checkpoint", "none")
        for spec in self.specs:
            if spec.is_ours and spec.bundle is None:
                raise invalid(ACTION, "bundle", f"a bundle for the engine {spec.name}", "none")
            if spec.kind == PEER and not self.is_whisper_directory:
                expected = f"a Hugging Face Whisper directory for the engine {spec.name}"
                raise invalid(ACTION, "checkpoint", expected, str(self.checkpoint))

    @property
    def specs(self) -> list[EngineSpec]:
        """The engines with the models they run."""
        return [self._with_model(self._known[name]) for name in self.engines]

    @property
    def _known(self) -> dict[str, EngineSpec]:
        return known_engines() | peer_engines(ACTION, self.peers)

    def _with_model(self, spec: EngineSpec) -> EngineSpec:
        if spec.name == INT8 and self.int8_bundle is not None:
            spec = replace(spec, precision=self.int8_precision, bundle=str(self.int8_bundle))
        elif spec.is_ours and self.bundle is not None:
            spec = replace(spec, bundle=str(self.bundle))
        if spec.name == ORIGINAL and not self.is_whisper_directory:
            spec = replace(spec, kind="fairseq")
        return replace(
            spec,
            threads=self.threads,
            checkpoint=_text(self.checkpoint),
            data=_text(self.data),
            config_yaml=self.config_yaml,
            cache_dir=_text(self.cache_dir and self.cache_dir / spec.name),
            work_dir=str(self.cache_dir or self.output / "peers"),
            from_samples=bool(self.peers),
        )

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

    def recorded(self) -> dict[str, Any]:
        """As JSON, without the directories of this machine, for the records."""
        plain = asdict(self)
        for key in PATHS:
            if plain[key] is not None:
                plain[key] = Path(plain[key]).name
        plain["peers"] = list(peer_engines(ACTION, self.peers))
        again: dict[str, Any] = json.loads(json.dumps(plain))  # as it will be read
        return again


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
