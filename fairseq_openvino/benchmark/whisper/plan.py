"""What is measured: options, workloads, engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from fairseq_openvino import machine
from fairseq_openvino.benchmark.whisper.checkpoint import SIZES
from fairseq_openvino.errors import OptionError
from fairseq_openvino.runtime.options import PRECISIONS

ROOT = Path(__file__).parents[3]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
"""Made by `make peers`."""
OURS = "fairseq-openvino"
BASELINE = "transformers-f32"
SECONDS = 8
"""Duration of every clip."""
UNMEASURED_PRECISIONS = ("f16",)
"""On CPUs f16 is emulated or runs as another precision."""


@dataclass(frozen=True)
class Workload:
    """One thing to transcribe."""

    name: str
    title: str
    clips: int
    beam: int


WORKLOADS = (
    Workload("single", "one clip, greedy", 1, 1),
    Workload("beam", "one clip, beam 5", 1, 5),
    Workload("batch", "8 clips in a batch, greedy", 8, 1),
)


@dataclass(frozen=True)
class Engine:
    """One process: a package at one precision."""

    name: str
    package: str
    """Key of `peer_child.ENGINES`, or OURS."""
    precision: str
    format: str = ""
    """Key of `material.FORMATS`; empty: the checkpoint itself."""
    batches: bool = True
    """False: clips of a batch run one after the other."""


PEERS = (
    Engine(BASELINE, "transformers", "f32"),
    Engine("transformers-bf16", "transformers", "bf16"),
    Engine("optimum-intel-f32", "optimum-intel", "f32", "openvino"),
    Engine("optimum-intel-bf16", "optimum-intel", "bf16", "openvino"),
    Engine("optimum-intel-int8", "optimum-intel", "int8", "openvino-int8"),
    Engine("openvino-genai-bf16", "openvino-genai", "bf16", "openvino", batches=False),
    Engine("openvino-genai-int8", "openvino-genai", "int8", "openvino-int8", batches=False),
    Engine("faster-whisper-f32", "faster-whisper", "f32", "ctranslate2"),
    Engine("faster-whisper-int8", "faster-whisper", "int8", "ctranslate2-int8"),
    Engine("whisper.cpp-f16", "whisper.cpp", "f16", "ggml-f16", batches=False),
    Engine("whisper.cpp-q8_0", "whisper.cpp", "q8_0", "ggml-q8_0", batches=False),
)
ENGINES = (
    *PEERS,
    *(
        Engine(f"ours-{precision}", OURS, precision, "bundle")
        for precision in PRECISIONS
        if precision not in UNMEASURED_PRECISIONS
    ),
    Engine("ours-nncf", OURS, "fast", "bundle-nncf"),
)


@dataclass(frozen=True)
class Options:
    """One run of `benchmark --whisper`."""

    sizes: tuple[str, ...] = ("base",)
    """Of the random models: tiny, base, small."""
    engines: tuple[str, ...] = ()
    """Engines to measure; empty: all."""
    rounds: int = 3
    """Measured rounds of every workload."""
    tokens: int = 64
    """Tokens every hypothesis has."""
    threads: int = field(default_factory=machine.threads)
    """CPU threads of every engine."""
    timeout: float = 180.0
    """Seconds an engine may take to load or to run one round."""
    output: Path = Path("benchmark")
    """Directory for whisper.md, whisper.json, whisper.png."""
    work_dir: Path | None = None
    """Directory for models and compiled caches, kept for the next run; default: in `output`."""

    def __post_init__(self) -> None:
        for size in self.sizes:
            if size not in SIZES:
                raise _fail("--whisper", f"some of {', '.join(SIZES)}", repr(size))
        known = [engine.name for engine in ENGINES]
        for name in self.engines:
            if name not in known:
                raise _fail("--engines", f"some of {', '.join(known)}", repr(name))
        for flag in ("rounds", "threads", "timeout"):
            if not 0 < getattr(self, flag) < inf:
                raise _fail(f"--{flag}", "a positive number", repr(getattr(self, flag)))
        if not MIN_TOKENS <= self.tokens <= MAX_TOKENS:
            expected = f"{MIN_TOKENS} to {MAX_TOKENS}"
            raise _fail("--tokens", expected, repr(self.tokens))

    @property
    def material(self) -> Path:
        """Absolute path of the work directory."""
        return (self.work_dir or self.output / "whisper-work").absolute()

    @property
    def chosen(self) -> tuple[Engine, ...]:
        """Engines to measure."""
        return tuple(each for each in ENGINES if not self.engines or each.name in self.engines)


MIN_TOKENS = 4
"""whisper.cpp drops shorter outputs; CTranslate2 counts twice the tokens against 448 positions."""
MAX_TOKENS = 220


def _fail(where: str, expected: str, got: str) -> OptionError:
    return OptionError(
        f"Benchmarking failed in {where}: expected {expected}, got {got}. Correct the flag."
    )
