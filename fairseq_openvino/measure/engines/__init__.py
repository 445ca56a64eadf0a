"""Measured engines: each loads a model in a process of its own, reads clips and decodes them.

| file           | engines                                                                     |
|----------------|-----------------------------------------------------------------------------|
| `ours`         | a bundle by `load_model`                                                    |
| `fairseq`      | a Fairseq checkpoint: eager, autocast, quantized, compiled, or `--ov-engine` |
| `onnx`         | our ONNX graphs under onnxruntime, and OpenVINO without state, in Fairseq   |
| `transformers` | a Hugging Face Whisper directory by `generate()`                            |

A new one is a class here, its name in KINDS, and a row in `plan` or `options`. Engines that need
packages of their own are programs that speak the protocol of `process` (`--peer NAME=COMMAND`).
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any, Protocol

from fairseq_openvino.errors import AudioError
from fairseq_openvino.model import Clip
from fairseq_openvino.speech.stored import waveform

KINDS = {
    "ours": "ours.BundleEngine",
    "fairseq": "fairseq.FairseqEngine",
    "plugin": "fairseq.PluginEngine",
    "onnx": "onnx.GraphEngine",
    "transformers": "transformers.WhisperEngine",
}
"""Kind to the class that is it, below this package."""
PEER = "peer"
"""Kind of an engine that is another program."""


@dataclass(frozen=True)
class EngineSpec:
    """An engine: its row in the tables, and all that its process is told."""

    name: str
    meaning: str
    """For `--list-engines` and the report; of a peer its command."""
    kind: str
    """Of KINDS, or PEER."""
    precision: str | None = None
    """What its kind understands; None: its default."""
    form: str = ""
    """What it loads, see `material.forms`; empty: the checkpoint, or a bundle there already is."""
    threads: int = 1
    """From here on: of one run."""
    checkpoint: str | None = None
    """A Fairseq checkpoint, or a Hugging Face Whisper directory."""
    data: str | None = None
    """Data directory of a Fairseq checkpoint."""
    config_yaml: str = "config.yaml"
    bundle: str | None = None
    """What `form` is made into, or a bundle there already is."""
    calibration: str | None = None
    """Corpus for a quantized form."""
    judged: bool = False
    """Whether a quantized form has to pass the gate, which random weights cannot."""
    work_dir: str | None = None
    """Where a peer keeps what it converts."""
    cache_dir: str | None = None
    """For compiled models; None: none are kept."""
    batch_sizes: tuple[int, ...] = ()
    """Utterances of the batches to come, where they are known."""
    from_samples: bool = False
    """Computing log-mel features is part of the time."""

    @property
    def is_ours(self) -> bool:
        """Whether a bundle of this project does the work."""
        return self.kind in ("ours", "plugin")

    def command(self) -> list[str]:
        """What starts its process."""
        settings = json.dumps(asdict(self))
        if self.kind == PEER:
            return [*shlex.split(self.meaning), settings]
        return [sys.executable, "-m", "fairseq_openvino.measure.child", settings]


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
    task: str = "transcribe"
    """transcribe or translate (Whisper)."""
    audio_context: str = "full"
    """full or auto: what the encoder of the `openvino` engines sees of a window (Whisper)."""


@dataclass(frozen=True)
class Output:
    """What an engine made of one clip."""

    text: str
    tokens: int
    """Of the best hypothesis, without prompt and eos."""
    score: float | None
    """Its length-normalised log-probability, base e, where the engine tells it."""


@dataclass(frozen=True)
class Decoded:
    """What an engine made of clips it decoded together."""

    outputs: list[Output]
    figures: dict[str, Any] = field(default_factory=dict)
    """What only some engines tell, see `fairseq.FairseqEngine.generate`."""


class Engine(Protocol):
    """A loaded model; only `generate` is timed."""

    load_seconds: float
    """To construct the model from its files, without importing packages."""

    @property
    def summary(self) -> str:
        """What it computes in, for a table."""
        ...

    def read(self, path: str) -> Clip:
        """An utterance's path to encoder input.

        Raises:
            AudioError: the clip cannot be used.
        """
        ...

    def generate(
        self, clips: Sequence[Clip], search: Search, language: str | None, tokens: int | None
    ) -> Decoded:
        """Decode N clips together.

        Args:
            clips: as `read` returned them.
            search: options.
            language: what the corpus states.
            tokens: which every hypothesis is to have; None: as the search finds them.
        """
        ...

    def precision(self) -> dict[str, str]:
        """Precision in use, for the report; complete once something was generated."""
        ...


def samples(path: str, rate_hz: int) -> Clip:
    """A clip of Whisper's before its features: samples (samples,) in their place.

    Raises:
        AudioError: the audio cannot be used, or it is stored features.
    """
    audio = waveform(path, rate_hz)
    if audio is None:
        raise AudioError(
            f"Reading speech failed in {path!r}: expected audio, as Whisper has its own features, "
            "got stored ones. Use a corpus of audio files."
        )
    return Clip(path, audio[0], len(audio[0]) / rate_hz)


def load(spec: EngineSpec) -> Engine:
    """The engine, of a kind of KINDS."""
    module, _, name = KINDS[spec.kind].partition(".")
    engine: Engine = getattr(import_module(f"{__name__}.{module}"), name)(spec)
    return engine
