"""What `benchmark` measures: its options, engines by name, and cases."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.flags import flag
from fairseq_openvino.measure.engines import EngineSpec
from fairseq_openvino.measure.material.whisper import SIZES
from fairseq_openvino.measure.options import Checks, listed

BENCHMARKING = Checks("Benchmarking")
MODELS = {"s": "s2t_transformer_s", "m": "s2t_transformer_m", "l": "s2t_transformer_l"}
"""Random Fairseq models of true size, by name."""
TRAINED = "mini"
"""The model of `trained`."""
BASELINES = ("eager", "transformers-f32")
"""Every ratio and every comparison of hypotheses refers to the one that is there."""
SLOW_TO_CACHE = ("torch-compile",)
"""Compilation takes minutes: its first process is also measured, its cache serves later ones."""
UNMEASURED_PRECISIONS = ("f16",)
"""On CPUs f16 is emulated or runs as another precision."""
NNCF = "--ov-model BUNDLE --ov-precision fast, a bundle that `quantize` made"
MIN_VOCABULARY = 8
CLIP_SECONDS = 8
"""Duration of every clip for Whisper."""
WHISPER_TOKENS = (4, 220)
"""Least and most: whisper.cpp drops shorter outputs; CTranslate2 counts twice the tokens against 448."""


def numbers(text: str) -> tuple[int, ...]:
    """`1,8` to a tuple."""
    return tuple(int(part) for part in listed(text))


def dictionary(text: str) -> dict[str, Any]:
    """A Python literal.

    Raises:
        ValueError: it is no dictionary.
    """
    try:
        value = ast.literal_eval(text)
    except SyntaxError:
        value = None
    if not isinstance(value, dict):
        raise ValueError("expected a dictionary, as \"{'name': value}\"")  # noqa: TRY004
    return value


@dataclass(frozen=True)
class BenchmarkOptions:
    """One benchmark run."""

    models: tuple[str, ...] = field(default=("s",), metadata=flag(metavar="LIST", parse=listed))
    """s,m,l (random weights), mini (that of --trained); default: s, and mini if there is one."""
    trained: Path | None = field(default=None, metadata=flag(metavar="DIR"))
    """Trained Fairseq model: checkpoint.pt, config*.yaml, test*.tsv; Whisper hears its clips/*.mp3."""
    vocabularies: tuple[int, ...] = field(
        default=(250,), metadata=flag(metavar="LIST", parse=numbers)
    )
    """Sizes for the random models."""
    utterances: tuple[int, ...] = field(
        default=(1, 8, 32), metadata=flag(metavar="LIST", parse=numbers)
    )
    """Of the batch, random models."""
    beams: tuple[int, ...] = field(default=(5,), metadata=flag(metavar="LIST", parse=numbers))
    """Beams (K)."""
    engines: tuple[str, ...] = field(default=(), metadata=flag(metavar="LIST", parse=listed))
    """Default: all, see --list-engines."""
    peers: Sequence[str] = ()
    """NAME=COMMAND: programs that speak the protocol of `measure.process`, for Whisper."""
    rounds: int = 5
    """Default: 5; Whisper: 3."""
    tokens: int = 60
    """Of each random hypothesis (default: 60; Whisper: 64)."""
    frames: int = 550
    """Of each utterance of a random model, 10 ms each."""
    threads: int = field(default_factory=machine.threads)
    """Of every engine (default: all cores)."""
    timeout: float = field(default=180.0, metadata=flag(metavar="SECONDS"))
    """For one load or run."""
    output: Path = field(default=Path("benchmark"), metadata=flag(metavar="DIR"))
    """For benchmark.* or whisper.* (.jsonl, .md, .json, .png)."""
    work_dir: Path | None = field(default=None, metadata=flag(metavar="DIR"))
    """Keep models and caches (default: temporary; Whisper: in --output)."""
    model_overrides: dict[str, Any] = field(
        default_factory=dict, metadata=flag(metavar="DICT", parse=dictionary)
    )
    """Arguments of the random models to replace."""
    whisper: tuple[str, ...] = ()
    """Instead: Whisper against its other engines (random weights: tiny, base, small)."""
    whisper_memory: bool = False
    """Instead: memory over 2000 Whisper clips."""
    trained_whisper: Path | None = field(default=None, metadata=flag(metavar="DIR"))
    """For --whisper-memory: a Hugging Face directory (default: random weights)."""

    def __post_init__(self) -> None:
        BENCHMARKING.names("models", self.models, (*MODELS, TRAINED))
        BENCHMARKING.names("whisper", self.whisper, SIZES)
        BENCHMARKING.names("engines", self.engines, self.known_engines)
        BENCHMARKING.positive(
            self, "utterances", "beams", "rounds", "tokens", "frames", "threads", "timeout"
        )
        for vocabulary in self.vocabularies:
            if vocabulary < MIN_VOCABULARY:
                expected = f"at least {MIN_VOCABULARY}"
                raise BENCHMARKING.fail("vocabularies", expected, repr(vocabulary))
        for name in ("models", "vocabularies", "utterances", "beams"):
            if not getattr(self, name):
                raise BENCHMARKING.fail(name, "at least one", "none")
        least, most = WHISPER_TOKENS
        if self.whisper and not least <= self.tokens <= most:
            raise BENCHMARKING.fail("tokens", f"{least} to {most}", repr(self.tokens))
        if TRAINED in self.models and not self.whisper and self.trained is None:
            raise BENCHMARKING.fail("models", f"--trained for {TRAINED}", "none")
        if self.peers and not self.whisper:
            raise BENCHMARKING.fail("peers", "--whisper beside it", "none")
        for name in ("trained", "trained_whisper"):
            directory = getattr(self, name)
            if directory is not None and not directory.is_dir():
                raise BENCHMARKING.fail(name, "a directory", repr(str(directory)))

    @property
    def known_engines(self) -> dict[str, EngineSpec]:
        """All that can be measured, by name."""
        specs = whisper_engines() if self.whisper else fairseq_engines()
        others = BENCHMARKING.peers(self.peers)
        return {
            spec.name: spec for spec in sorted([*specs, *others], key=lambda spec: spec.is_ours)
        }

    @property
    def chosen_engines(self) -> list[EngineSpec]:
        """Those to measure; Fairseq's baseline always, and first."""
        chosen = set(self.engines or self.known_engines)
        if not self.whisper:
            chosen.add(BASELINES[0])
        return [spec for name, spec in self.known_engines.items() if name in chosen]

    @property
    def name(self) -> str:
        """Of the files."""
        return "whisper" if self.whisper else "benchmark"

    def recorded(self) -> dict[str, Any]:
        """As JSON, without the directories of this machine."""
        plain = asdict(self)
        for name in ("output", "work_dir", "trained", "trained_whisper"):
            del plain[name]
        plain["peers"] = [spec.name for spec in BENCHMARKING.peers(self.peers)]
        return plain


def fairseq_engines() -> list[EngineSpec]:
    """What runs a Fairseq checkpoint; ours in every precision this version has."""
    stateless = "our ONNX decoder without state: the prefix anew each step, our search"
    cached = "our ONNX graphs under onnxruntime, caches passed explicitly, our search"
    compiled = "torch.compile of encoder and decoder, dynamic shapes"
    quantized = "torch.ao.quantization.quantize_dynamic on nn.Linear"
    return [
        EngineSpec("eager", "PyTorch eager, f32: plain Fairseq", "fairseq"),
        EngineSpec("eager-bf16", "PyTorch eager under bf16 autocast", "fairseq", "bf16"),
        EngineSpec("torch-int8", quantized, "fairseq", "int8"),
        EngineSpec("torch-compile", compiled, "fairseq", "compiled"),
        EngineSpec("onnxruntime", cached, "onnx", "onnxruntime", "onnx"),
        EngineSpec("openvino-stateless", stateless, "onnx", "stateless", "onnx"),
        *(
            EngineSpec(
                f"ours-{precision}", f"fairseq-generate --ov-engine --ov-precision {precision}",
                "plugin", precision,
            )
            for precision in _precisions()
        ),
        EngineSpec("ours-nncf", NNCF, "plugin", "fast", "quantized"),
    ]  # fmt: skip


def whisper_engines() -> list[EngineSpec]:
    """What runs a Whisper checkpoint without packages of its own."""
    return [
        *(
            EngineSpec(
                f"transformers-{precision}", "transformers", "transformers", precision,
                from_samples=True,
            )
            for precision in ("f32", "bf16")
        ),
        *(
            EngineSpec(
                f"ours-{precision}", "fairseq-openvino", "ours", precision, "bundle",
                from_samples=True,
            )
            for precision in _precisions()
        ),
        EngineSpec(
            "ours-nncf", "fairseq-openvino", "ours", "fast", "quantized", from_samples=True
        ),
    ]  # fmt: skip


def _precisions() -> list[str]:
    from fairseq_openvino.runtime.options import PRECISIONS

    return [precision for precision in PRECISIONS if precision not in UNMEASURED_PRECISIONS]


@dataclass(frozen=True)
class Case:
    """One thing to decode, by every engine."""

    title: str
    """For a heading."""
    short: str
    """For an axis."""
    material: str
    """Directory name of the model and its data."""
    model: str
    vocabulary: int | None
    """None for Whisper and for a trained model."""
    utterances: int | None
    """None for a trained model: all of its test set."""
    beam: int
    tokens: int | None
    """Which every hypothesis is to have; None: as the search finds them."""


def cases(options: BenchmarkOptions) -> list[list[Case]]:
    """All cases, small ones first; those of a list are served by one load."""
    if options.whisper:
        return [_whisper_cases(size, options) for size in options.whisper]
    found = []
    for model in options.models:
        for beam in options.beams if model == TRAINED else ():
            title, short = f"{model} (trained), test set, beam {beam}", f"{model}\nK={beam}"
            found.append(Case(title, short, model, model, None, None, beam, None))
        for vocabulary in options.vocabularies if model != TRAINED else ():
            for utterances in options.utterances:
                found += [
                    _random_case(model, vocabulary, utterances, beam, options)
                    for beam in options.beams
                ]
    return [[case] for case in found]


def _random_case(
    model: str, vocabulary: int, utterances: int, beam: int, options: BenchmarkOptions
) -> Case:
    batch = f"{utterances} utterance{'s' if utterances != 1 else ''}"
    return Case(
        f"{MODELS[model]}, vocabulary {vocabulary}, {batch}, beam {beam}",
        f"{model}, V={vocabulary}\nN={utterances}, K={beam}",
        f"{model}-{vocabulary}", model, vocabulary, utterances, beam, options.tokens,
    )  # fmt: skip


def _whisper_cases(size: str, options: BenchmarkOptions) -> list[Case]:
    name = f"whisper-{size}"
    return [
        Case(f"{name}: {title}", title, name, size, None, utterances, beam, options.tokens)
        for title, utterances, beam in (
            ("one clip, greedy", 1, 1),
            ("one clip, beam 5", 1, 5),
            ("8 clips in a batch, greedy", 8, 1),
        )
    ]


def fairseq_batches(frames: list[int], max_tokens: int) -> list[list[int]]:
    """Positions of utterances by batch, as `fairseq-generate --max-tokens` makes them.

    Longest first, so many that their number times the longest does not exceed `max_tokens` frames.
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(frames)), key=lambda i: -frames[i]):
        if batches and (len(batches[-1]) + 1) * frames[batches[-1][0]] <= max_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches
