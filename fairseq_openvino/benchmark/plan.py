"""What is measured: options, engines by name, configurations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.errors import OptionError

BASELINE = "eager"
"""Every ratio and every comparison of hypotheses refers to this engine."""
OURS = "ours-"
NNCF = f"{OURS}nncf"
"""Ours, with a bundle that `quantize` made."""
ALTERNATIVES = {
    BASELINE: "PyTorch eager, f32: plain Fairseq",
    "eager-bf16": "PyTorch eager under bf16 autocast",
    "torch-int8": "torch.ao.quantization.quantize_dynamic on nn.Linear",
    "torch-compile": "torch.compile of encoder and decoder, dynamic shapes",
    "onnxruntime": "our ONNX graphs under onnxruntime, caches passed explicitly, our search",
    "openvino-stateless": "our ONNX decoder without state: the prefix anew each step, our search",
}
"""Engines other than ours."""
SLOW_TO_CACHE = ("torch-compile",)
"""Compilation takes minutes: its first process is also measured, its cache serves later ones."""
UNMEASURED_PRECISIONS = ("f16",)
"""On CPUs f16 is emulated or runs as another precision."""
SIZES = {"s": "s2t_transformer_s", "m": "s2t_transformer_m", "l": "s2t_transformer_l"}
"""Random models of true size, by name."""
TRAINED = "mini"
"""The trained model shipped in examples/covost."""
TRAINED_DIRECTORY = Path(__file__).parent.parent.parent / "examples" / "covost" / "mini"
MIN_VOCABULARY = 8


@dataclass(frozen=True)
class Options:
    """One benchmark run."""

    models: tuple[str, ...] = ("s",)
    """s, m, l: random weights at true size; mini: the trained model of examples/covost."""
    vocabularies: tuple[int, ...] = (250,)
    """Vocabulary sizes of the random models: 250 as characters, 10000 as unigrams."""
    utterances: tuple[int, ...] = (1, 8, 32)
    """Utterances of the single batch (random models)."""
    beams: tuple[int, ...] = (5,)
    """Beams (K)."""
    engines: tuple[str, ...] = ()
    """Engines to measure; empty: all. The eager baseline always runs."""
    rounds: int = 5
    """Measured rounds of every configuration."""
    tokens: int = 60
    """Tokens every hypothesis of a random model has (--min-len, --max-len-b)."""
    frames: int = 550
    """Feature frames of each utterance of a random model, 10 ms each."""
    threads: int = field(default_factory=machine.threads)
    """CPU threads of every engine."""
    timeout: float = 180.0
    """Seconds a child may take to load or to run one round."""
    output: Path = Path("benchmark")
    """Directory for benchmark.md, benchmark.json, benchmark.png."""
    work_dir: Path | None = None
    """Directory for models, data and caches; must be new for cold times; default: temporary."""
    model_overrides: dict[str, Any] = field(default_factory=dict)
    """Arguments of the random models to replace, as Fairseq's --model-overrides."""

    def __post_init__(self) -> None:
        known = (*SIZES, TRAINED)
        for name in self.models:
            if name not in known:
                raise _fail("--models", f"some of {', '.join(known)}", repr(name))
        for flag in ("utterances", "beams", "rounds", "tokens", "frames", "threads", "timeout"):
            value = getattr(self, flag)
            for each in value if isinstance(value, tuple) else (value,):
                if not 0 < each < inf:
                    raise _fail(f"--{flag}", "positive numbers", repr(each))
        for vocabulary in self.vocabularies:
            if vocabulary < MIN_VOCABULARY:
                raise _fail("--vocabularies", f"at least {MIN_VOCABULARY}", repr(vocabulary))
        for flag in ("models", "vocabularies", "utterances", "beams"):
            if not getattr(self, flag):
                raise _fail(f"--{flag}", "at least one", "none")
        if TRAINED in self.models and not TRAINED_DIRECTORY.is_dir():
            raise _fail("--models mini", f"the directory {str(TRAINED_DIRECTORY)!r}", "none")


@dataclass(frozen=True)
class Case:
    """One configuration."""

    model: str
    vocabulary: int | None
    """None for a trained model."""
    utterances: int | None
    """None for a trained model: all of its test set."""
    beam: int

    @property
    def material(self) -> str:
        """Directory name of the model and its data."""
        return self.model if self.vocabulary is None else f"{self.model}-{self.vocabulary}"

    @property
    def cache(self) -> str:
        """Directory name of the caches: what is compiled depends on the beam too."""
        return f"{self.material}-beam{self.beam}"

    @property
    def title(self) -> str:
        """For a heading."""
        if self.vocabulary is None:
            return f"{self.model} (trained), test set, beam {self.beam}"
        architecture = SIZES[self.model]
        batch = f"{self.utterances} utterance{'s' if self.utterances != 1 else ''}"
        return f"{architecture}, vocabulary {self.vocabulary}, {batch}, beam {self.beam}"

    @property
    def short(self) -> str:
        """For an axis."""
        if self.vocabulary is None:
            return f"{self.model}\nK={self.beam}"
        return f"{self.model}, V={self.vocabulary}\nN={self.utterances}, K={self.beam}"


def cases(options: Options) -> list[Case]:
    """All configurations, small ones first."""
    found = []
    for model in options.models:
        trained = model == TRAINED
        for vocabulary in (None,) if trained else options.vocabularies:
            for utterances in (None,) if trained else options.utterances:
                found += [Case(model, vocabulary, utterances, beam) for beam in options.beams]
    return found


def known_engines() -> dict[str, str]:
    """Name and description of every engine; ours in every precision this version has."""
    from fairseq_openvino.runtime.options import PRECISIONS

    ours = {
        f"{OURS}{precision}": f"fairseq-generate --ov-engine --ov-precision {precision}"
        for precision in PRECISIONS
        if precision not in UNMEASURED_PRECISIONS
    }
    quantized = "--ov-model BUNDLE --ov-precision fast, a bundle that `quantize` made"
    return ALTERNATIVES | ours | {NNCF: quantized}


def chosen_engines(names: Sequence[str]) -> tuple[str, ...]:
    """Engines to run, the baseline first.

    Raises:
        OptionError: an unknown name.
    """
    known = known_engines()
    for name in names:
        if name not in known:
            raise _fail("--engines", f"some of {', '.join(known)}", repr(name))
    return tuple(dict.fromkeys((BASELINE, *(names or known))))


def split(text: str) -> tuple[str, ...]:
    """`a,b` to a tuple, without empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """`1,8` to a tuple.

    Raises:
        OptionError: naming the flag.
    """
    try:
        return tuple(int(part) for part in split(text))
    except ValueError as error:
        raise _fail(flag, "whole numbers separated by commas", repr(text)) from error


def describe(engines: Iterable[str]) -> list[str]:
    """One Markdown list item an engine."""
    known = known_engines()
    return [f"- `{name}`: {known[name]}" for name in engines]


def _fail(where: str, expected: str, got: str) -> OptionError:
    return OptionError(
        f"Benchmarking failed in {where}: expected {expected}, got {got}. Correct the flag."
    )
