"""What `benchmark` measures: its options, engines by name, and cases."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from fairseq_openvino import machine
from fairseq_openvino.errors import invalid
from fairseq_openvino.flags import flag
from fairseq_openvino.measure.engines import EngineSpec
from fairseq_openvino.measure.material.whisper import SIZES
from fairseq_openvino.measure.options import check_names, check_positive, peer_engines
from fairseq_openvino.runtime.options import PRECISIONS

ACTION = "Benchmarking"
MODELS = {
    "s": "s2t_transformer_s",
    "m": "s2t_transformer_m",
    "l": "s2t_transformer_l",
    "conformer-abs": "s2t_conformer",
    "conformer-rope": "s2t_conformer",
    "conformer-rel_pos": "s2t_conformer",
    "convtransformer": "convtransformer",
    "berard": "s2t_berard_512_5_3",
    "xm": "xm_transformer",
}
"""Random Fairseq models of true size, by name."""
ARGUMENTS: dict[str, dict[str, Any]] = {
    "conformer-rope": {"attn_type": "espnet", "pos_enc_type": "rope"},
    "conformer-rel_pos": {"attn_type": "espnet", "pos_enc_type": "rel_pos"},
    "xm": {"decoder_layers": 6, "share_decoder_input_output_embed": True},
}
"""Of those, where they are not the architecture's defaults; xm has the base wav2vec 2.0."""
TRAINED = "mini"
"""The model of `trained`."""
BASELINES = ("eager", "transformers-f32")
"""Every ratio and every comparison of hypotheses refers to the one that is there."""
SLOW_TO_CACHE = ("torch-compile",)
"""Compilation takes minutes: its first process is also measured, its cache serves later ones."""
MEASURED = tuple(precision for precision in PRECISIONS if precision != "f16")
"""On CPUs f16 is emulated or runs as another precision."""
WHISPER_CASES = {
    (1, 1): "one clip, greedy",
    (1, 5): "one clip, beam 5",
    (8, 1): "8 clips in a batch, greedy",
}
"""By clips and beam."""
MIN_VOCABULARY = 8
CLIP_SECONDS = 8
"""Duration of every clip for Whisper."""
WHISPER_TOKENS = (4, 220)
"""Least and most: whisper.cpp drops shorter outputs; CTranslate2 counts twice the tokens against 448."""


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

    models: tuple[str, ...] = field(default=("s",), metadata=flag(metavar="LIST"))
    """s,m,l,conformer-abs,conformer-rope,conformer-rel_pos,convtransformer,berard,xm (random weights),
    mini (that of --trained); default: s, and mini if there is one."""
    trained: Path | None = field(default=None, metadata=flag(metavar="DIR"))
    """Trained Fairseq model: checkpoint.pt, config*.yaml, test*.tsv; Whisper hears its clips/*.mp3."""
    vocabularies: tuple[int, ...] = field(default=(250,), metadata=flag(metavar="LIST"))
    """Sizes for the random models."""
    utterances: tuple[int, ...] = field(default=(1, 8, 32), metadata=flag(metavar="LIST"))
    """Of the batch, random models."""
    beams: tuple[int, ...] = field(default=(5,), metadata=flag(metavar="LIST"))
    """Beams (K)."""
    engines: tuple[str, ...] = field(default=(), metadata=flag(metavar="LIST"))
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
        check_names(ACTION, "models", self.models, (*MODELS, TRAINED))
        check_names(ACTION, "whisper", self.whisper, SIZES)
        check_names(ACTION, "engines", self.engines, self.known_engines)
        check_positive(
            ACTION, self, "utterances", "beams", "rounds", "tokens", "frames", "threads", "timeout"
        )
        for vocabulary in self.vocabularies:
            if vocabulary < MIN_VOCABULARY:
                expected = f"at least {MIN_VOCABULARY}"
                raise invalid(ACTION, "vocabularies", expected, repr(vocabulary))
        for name in ("models", "vocabularies", "utterances", "beams"):
            if not getattr(self, name):
                raise invalid(ACTION, name, "at least one", "none")
        least, most = WHISPER_TOKENS
        if self.whisper and not least <= self.tokens <= most:
            raise invalid(ACTION, "tokens", f"{least} to {most}", repr(self.tokens))
        if TRAINED in self.models and not self.whisper and self.trained is None:
            raise invalid(ACTION, "models", f"--trained for {TRAINED}", "none")
        if self.peers and not self.whisper:
            raise invalid(ACTION, "peers", "--whisper beside it", "none")
        for name in ("trained", "trained_whisper"):
            directory = getattr(self, name)
            if directory is not None and not directory.is_dir():
                raise invalid(ACTION, name, "a directory", repr(str(directory)))

    @property
    def known_engines(self) -> dict[str, EngineSpec]:
        """All that can be measured, by name; ours last."""
        table = whisper_engines() if self.whisper else fairseq_engines()
        others = peer_engines(ACTION, self.peers)
        specs = sorted([*table, *others.values()], key=lambda spec: spec.is_ours)
        return {spec.name: spec for spec in specs}

    @property
    def chosen_engines(self) -> list[EngineSpec]:
        """Those to measure; Fairseq's baseline always, and first."""
        chosen = {*(self.engines or self.known_engines), *(() if self.whisper else BASELINES[:1])}
        return [spec for name, spec in self.known_engines.items() if name in chosen]

    @property
    def name(self) -> str:
        """Of the files."""
        return "whisper" if self.whisper else "benchmark"

    @property
    def kept_work_dir(self) -> Path:
        """Where models of Whisper stay from run to run."""
        return (self.work_dir or self.output / "whisper-work").absolute()

    def recorded(self) -> dict[str, Any]:
        """As JSON, without the directories of this machine."""
        paths = ("output", "work_dir", "trained", "trained_whisper")
        plain = {name: value for name, value in asdict(self).items() if name not in paths}
        return plain | {"peers": list(peer_engines(ACTION, self.peers))}


def fairseq_engines() -> list[EngineSpec]:
    """What runs a Fairseq checkpoint; ours in every precision this version has."""
    stateless = "our ONNX decoder without state: the prefix anew each step, our search"
    cached = "our ONNX graphs under onnxruntime, caches passed explicitly, our search"
    compiled = "torch.compile of encoder and decoder, dynamic shapes"
    quantized = "torch.ao.quantization.quantize_dynamic on nn.Linear"
    ours = "fairseq-generate --ov-engine --ov-precision"
    nncf = "--ov-model BUNDLE --ov-precision fast, a bundle that `quantize` made"
    return [
        EngineSpec("eager", "PyTorch eager, f32: plain Fairseq", "fairseq"),
        EngineSpec("eager-bf16", "PyTorch eager under bf16 autocast", "fairseq", "bf16"),
        EngineSpec("torch-int8", quantized, "fairseq", "int8"),
        EngineSpec("torch-compile", compiled, "fairseq", "compiled"),
        EngineSpec("onnxruntime", cached, "onnx", "onnxruntime", "onnx"),
        EngineSpec("openvino-stateless", stateless, "onnx", "stateless", "onnx"),
        *(EngineSpec(f"ours-{name}", f"{ours} {name}", "plugin", name) for name in MEASURED),
        EngineSpec("ours-nncf", nncf, "plugin", "fast", "quantized"),
    ]


def whisper_engines() -> list[EngineSpec]:
    """What runs a Whisper checkpoint without packages of its own."""
    original, ours = ("transformers", "transformers"), ("fairseq-openvino", "ours")
    specs = [
        *(EngineSpec(f"transformers-{name}", *original, name) for name in ("f32", "bf16")),
        *(EngineSpec(f"ours-{name}", *ours, name, "bundle") for name in MEASURED),
        EngineSpec("ours-nncf", *ours, "fast", "quantized"),
    ]
    return [replace(spec, from_samples=True) for spec in specs]


@dataclass(frozen=True)
class Case:
    """One thing to decode, by every engine."""

    number: int
    model: str
    """Of MODELS, TRAINED, or a size of Whisper."""
    vocabulary: int | None
    """None for a trained model and for Whisper."""
    utterances: int | None
    """None for a trained model: all of its test set."""
    beam: int
    tokens: int | None
    """Which every hypothesis is to have; None: as the search finds them."""
    whisper: bool = False

    @property
    def material(self) -> str:
        """Directory name of the model and its data."""
        if self.whisper:
            return f"whisper-{self.model}"
        return self.model if self.vocabulary is None else f"{self.model}-{self.vocabulary}"

    @property
    def title(self) -> str:
        """For a heading."""
        if self.whisper:
            return f"{self.material}: {self.short}"
        if self.utterances is None:
            return f"{self.model} (trained), test set, beam {self.beam}"
        batch = f"{self.utterances} utterance{'s' if self.utterances != 1 else ''}"
        arch = MODELS[self.model] + (f" ({self.model})" if self.model in ARGUMENTS else "")
        return f"{arch}, vocabulary {self.vocabulary}, {batch}, beam {self.beam}"

    @property
    def short(self) -> str:
        """Of Whisper, for a row."""
        return WHISPER_CASES[self.utterances or 1, self.beam]

    @property
    def label(self) -> str:
        """For an axis."""
        if self.whisper:
            return f"{self.material}\n{self.short}"
        if self.utterances is None:
            return f"{self.model}\nK={self.beam}"
        return f"{self.model}, V={self.vocabulary}\nN={self.utterances}, K={self.beam}"


def cases(options: BenchmarkOptions) -> list[list[Case]]:
    """All cases, small ones first; those of a list are served by one load."""
    numbers, tokens = count(), options.tokens
    if options.whisper:
        return [
            [Case(next(numbers), size, None, *case, tokens, True) for case in WHISPER_CASES]
            for size in options.whisper
        ]
    found = []
    for model in options.models:
        trained = model == TRAINED
        asked = None if trained else tokens
        for vocabulary in (None,) if trained else options.vocabularies:
            for beam in options.beams:
                sizes: tuple[int | None, ...] = (None,) if trained else options.utterances
                found.append(
                    [Case(next(numbers), model, vocabulary, size, beam, asked) for size in sizes]
                )
    return found


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
