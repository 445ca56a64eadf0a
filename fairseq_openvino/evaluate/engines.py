"""Engines as a child process sees them: load once, read clips, generate. Bundles run here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fairseq_openvino.errors import AudioError
from fairseq_openvino.evaluate.options import ORIGINAL, Options
from fairseq_openvino.model import Clip
from fairseq_openvino.speech.stored import frames, waveform

READ_BACK = (
    "INFERENCE_PRECISION_HINT",
    "KV_CACHE_PRECISION",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "INFERENCE_NUM_THREADS",
)
"""Properties of the compiled decoder that decide what is compared."""
S2T_OPTIONS = ("beam", "lenpen", "max_len_a", "max_len_b")
WHISPER_OPTIONS = ("beam", "lenpen", "task", "audio_context")


@dataclass(frozen=True)
class Output:
    """What an engine made of one clip."""

    text: str
    tokens: int
    """Of the best hypothesis, without prompt and eos."""
    score: float | None
    """Its length-normalised log-probability, base e, where the engine tells it."""


class Engine(Protocol):
    """A loaded model; only `generate` is timed."""

    load_seconds: float
    """To construct the model from its files, without importing packages."""

    def read(self, path: str) -> Clip:
        """An utterance's path to encoder input.

        Raises:
            AudioError: the clip cannot be used.
        """
        ...

    def generate(self, clips: Sequence[Clip], language: str | None) -> list[Output]:
        """Decode N clips together; `language` is what the corpus states."""
        ...

    def precision(self) -> dict[str, str]:
        """Precision in use, for the report; complete once something was generated."""
        ...


def load(name: str, options: Options) -> Engine:
    """The engine of this name."""
    if name != ORIGINAL:
        return BundleEngine(name, options)
    from fairseq_openvino.evaluate import originals

    if options.is_whisper_directory:
        return originals.WhisperEngine(options)
    return originals.FairseqEngine(options)


class BundleEngine:
    """A bundle on OpenVINO."""

    def __init__(self, name: str, options: Options) -> None:
        from fairseq_openvino.recognizer import load_model

        started = time.perf_counter()
        bundle = options.bundle_of(name)
        assert bundle is not None  # checked by Options
        self.model: Any = load_model(
            bundle,
            precision=options.precision_of(name),
            threads=options.threads,
            cache_dir=options.cache_dir,
        )
        self.load_seconds = time.perf_counter() - started
        self.search = options.search
        self.is_whisper = self.model.manifest.family == "whisper"

    def read(self, path: str) -> Clip:
        """As the model reads audio; stored features get its transforms."""
        config = self.model.manifest.features
        audio = waveform(path, config.sample_rate_hz)
        if audio is not None:
            return self.model.clip(*audio, path)
        if self.is_whisper:
            raise stored_for_whisper(path)
        found = frames(path, None, config.bins)
        return Clip(path, self.model.transformed(found.values), found.seconds)

    def generate(self, clips: Sequence[Clip], language: str | None) -> list[Output]:
        """See `Engine`."""
        names = WHISPER_OPTIONS if self.is_whisper else S2T_OPTIONS
        named = {name: getattr(self.search, name) for name in names}
        named["language"] = self.search.language or self._language(language)
        found = self.model.transcribe_clips(clips, **named)
        eos = self.model.manifest.tokens.eos
        counts = [int((one.hypotheses[0][1].tokens != eos).sum()) for one in found]
        return [Output(one.text, n, one.score) for one, n in zip(found, counts, strict=True)]

    def precision(self) -> dict[str, str]:
        """What was asked for, what the bundle stores, and what its compiled decoder says."""
        asked, stored = self.model.engine.options.precision, self.model.manifest.precision
        stated = {"asked": str(asked), "stored": str(stored)}
        compiled = next(
            (c for variant, c in self.model.engine.compiled.items() if variant.graph == "decoder"),
            None,
        )
        if compiled is None:
            return stated
        known = set(compiled.get_property("SUPPORTED_PROPERTIES"))
        return stated | {
            name: _spelled(compiled.get_property(name)) for name in READ_BACK if name in known
        }

    def _language(self, language: str | None) -> str | None:
        """What the corpus states, for a model that has to be told."""
        manifest = self.model.manifest
        if not self.is_whisper:
            return language if manifest.text.prepend_language_tag else None
        known = manifest.whisper.languages  # empty if the model knows English only
        return whisper_language(self.search.task, language) if known else None


def whisper_language(task: str, language: str | None) -> str | None:
    """Spoken language for Whisper; of a translation the corpus does not tell it."""
    if task != "transcribe" or language is None:
        return None
    return language.replace("_", "-").partition("-")[0].lower()


def stored_for_whisper(path: str) -> AudioError:
    """Whisper's spectrogram is not Kaldi's filter banks."""
    return AudioError(
        f"Reading speech failed in {path!r}: expected audio, as Whisper has its own features, "
        "got stored ones. Use a corpus of audio files."
    )


def _spelled(value: object) -> str:
    return str(value.get_type_name() if hasattr(value, "get_type_name") else value)
