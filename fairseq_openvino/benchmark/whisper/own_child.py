"""Our engine behind the protocol of `peer_child`; with `export SOURCE BUNDLE`, the exporter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino import load_model
from fairseq_openvino.benchmark.whisper import peer_child
from fairseq_openvino.benchmark.whisper.plan import OURS, WORKLOADS
from fairseq_openvino.runtime.engine import EngineOptions
from fairseq_openvino.runtime.plan import cpu_flags, plan_batch


def load_ours(settings: dict[str, Any]) -> tuple[peer_child.Run, str, list[str]]:
    """`load_model` on the exported bundle; the log-mel front end is part of every run."""
    model = load_model(
        settings["format"],
        precision=settings["precision"],
        threads=settings["threads"],
        cache_dir=settings["cache"],
    )

    def run(clips: np.ndarray, beam: int, tokens: int, short: bool) -> list[peer_child.Output]:
        found = model.transcribe_clips(
            [model.clip(clip, peer_child.RATE_HZ) for clip in clips],
            beam=beam, language="en", task="transcribe", timestamps=False,
            audio_context="auto" if short else "full", min_tokens=tokens, max_tokens=tokens,
        )  # fmt: skip
        return [{"tokens": each.hypotheses[0][1].tokens.tolist()} for each in found]

    options = EngineOptions(precision=settings["precision"], threads=settings["threads"])
    plans = [plan_batch(options, workload.clips, cpu_flags()) for workload in WORKLOADS]
    used = dict.fromkeys(f"{plan.encoder} encoder, {plan.decoder} decoder" for plan in plans)
    return run, "; in a batch ".join(used), ["openvino"]


def main() -> None:
    """Export, or answer requests."""
    if sys.argv[1] == "export":
        from fairseq_openvino.export.whisper import export_whisper

        export_whisper(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    peer_child.ENGINES[OURS] = load_ours
    peer_child.main()


if __name__ == "__main__":
    main()
