"""A bundle on OpenVINO."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

from fairseq_openvino.bundle import open_bundle
from fairseq_openvino.families import options_for
from fairseq_openvino.measure.engines import Decoded, EngineSpec, Output, Search, samples
from fairseq_openvino.model import Clip

READ_BACK = (
    "INFERENCE_PRECISION_HINT",
    "KV_CACHE_PRECISION",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "INFERENCE_NUM_THREADS",
)
"""Properties of the compiled decoder that decide what is compared."""
BATCHES = (1, 8)
"""Sizes for which `summary` says what is computed."""


class BundleEngine:
    """`load_model`, and its family's search."""

    def __init__(self, spec: EngineSpec) -> None:
        from fairseq_openvino.loading import load_model

        assert spec.bundle is not None  # checked by the options
        self.spec = spec
        started = time.perf_counter()
        self.recognizer = load_model(
            open_bundle(spec.bundle),  # nothing is exported while measuring
            precision=spec.precision,
            threads=spec.threads,
            cache_dir=spec.cache_dir,
        )
        self.load_seconds = time.perf_counter() - started

    def read(self, path: str) -> Clip:
        """As the recognizer reads it; if features are timed, its samples for now."""
        if self.spec.from_samples:
            return samples(path, self.recognizer.manifest.features.sample_rate_hz)
        return self.recognizer.read(path)

    def generate(
        self, clips: Sequence[Clip], search: Search, language: str | None, tokens: int | None
    ) -> Decoded:
        """See `Engine`."""
        recognizer = self.recognizer
        if self.spec.from_samples:
            clips = [recognizer.clip(clip.features, path=clip.path) for clip in clips]
        given = asdict(search)
        if tokens is not None:
            given |= {"min_tokens": tokens, "max_tokens": tokens}
        options = options_for(recognizer.family, given, language)
        found = recognizer.family.decode(recognizer.model, clips, options)
        eos = recognizer.manifest.tokens.eos
        counts = [int((one.hypotheses[0][1].tokens != eos).sum()) for one in found]
        return Decoded(
            [Output(one.text, n, one.score) for one, n in zip(found, counts, strict=True)]
        )

    def precision(self) -> dict[str, str]:
        """What was asked for, what the bundle stores, and what its compiled decoder says."""
        model = self.recognizer.model
        stated = {"asked": model.engine.options.precision, "stored": model.manifest.precision}
        return stated | model.properties(READ_BACK)

    @property
    def summary(self) -> str:
        """Precisions by graph, and those of a batch if they are others."""
        plans = [self.recognizer.model.plan(size) for size in BATCHES]
        used = dict.fromkeys(f"{plan.encoder} encoder, {plan.decoder} decoder" for plan in plans)
        return "; in a batch ".join(used)
