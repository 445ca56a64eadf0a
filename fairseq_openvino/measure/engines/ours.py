"""A bundle on OpenVINO."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fairseq_openvino import utterances
from fairseq_openvino.measure.engines import Decoded, EngineSpec, Output, Search
from fairseq_openvino.model import Clip
from fairseq_openvino.speech.stored import waveform

OPTIONS = {
    "s2t": ("beam", "lenpen", "max_len_a", "max_len_b"),
    "whisper": ("beam", "lenpen", "task", "audio_context"),
}
"""Fields of `Search` that a family has."""
BATCHES = (1, 8)
"""Sizes for which `summary` says what is computed."""


class BundleEngine:
    """`load_model` and `transcribe_clips`."""

    def __init__(self, spec: EngineSpec) -> None:
        from fairseq_openvino.recognizer import load_model

        assert spec.bundle is not None  # checked by the options
        self.spec = spec
        started = time.perf_counter()
        self.model: Any = load_model(
            spec.bundle,
            precision=spec.precision,
            threads=spec.threads,
            cache_dir=spec.cache_dir,
        )
        self.load_seconds = time.perf_counter() - started

    def read(self, path: str) -> Clip:
        """As the recognizer reads it; if features are timed, its samples for now."""
        if not self.spec.from_samples:
            return utterances.read(self.model, path)
        audio = waveform(path, self.model.manifest.features.sample_rate_hz)
        if audio is None:
            raise utterances.stored_for_whisper(path)
        samples, rate_hz = audio
        return Clip(path, samples, len(samples) / rate_hz)

    def generate(
        self, clips: Sequence[Clip], search: Search, language: str | None, tokens: int | None
    ) -> Decoded:
        """See `Engine`."""
        manifest = self.model.manifest
        if self.spec.from_samples:
            rate_hz = manifest.features.sample_rate_hz
            clips = [self.model.clip(clip.features, rate_hz, clip.path) for clip in clips]
        named = {name: getattr(search, name) for name in OPTIONS[manifest.family]}
        if tokens is not None:
            named |= {"min_tokens": tokens, "max_tokens": tokens}
        stated = utterances.language_for(self.model, language, search.task)
        found = self.model.transcribe_clips(clips, language=search.language or stated, **named)
        eos = manifest.tokens.eos
        counts = [int((one.hypotheses[0][1].tokens != eos).sum()) for one in found]
        return Decoded(
            [Output(one.text, n, one.score) for one, n in zip(found, counts, strict=True)]
        )

    def precision(self) -> dict[str, str]:
        """What was asked for, what the bundle stores, and what its compiled decoder says."""
        asked, stored = self.model.engine.options.precision, self.model.manifest.precision
        stated = {"asked": str(asked), "stored": str(stored)}
        return stated | utterances.precision_in_use(self.model)

    @property
    def summary(self) -> str:
        """Precisions by graph, and those of a batch if they are others."""
        plans = [self.model.plan(size) for size in BATCHES]
        used = dict.fromkeys(f"{plan.encoder} encoder, {plan.decoder} decoder" for plan in plans)
        return "; in a batch ".join(used)
