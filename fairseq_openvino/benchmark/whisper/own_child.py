"""Our engine behind the protocol of `peer_child`.

With `export SOURCE BUNDLE` the exporter, with `quantize SOURCE BUNDLE` the quantizer too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fairseq_openvino import load_model, machine
from fairseq_openvino.benchmark.whisper import peer_child
from fairseq_openvino.benchmark.whisper.material import make_clips
from fairseq_openvino.benchmark.whisper.plan import OURS, WORKLOADS
from fairseq_openvino.runtime.precision import plan_batch


def load_ours(settings: dict[str, Any]) -> tuple[peer_child.Run, str, list[str]]:
    """`load_model` on the exported bundle; the log-mel front end is part of every run."""
    model = load_model(
        settings["format"],
        precision=settings["precision"],
        threads=settings["threads"],
        cache_dir=settings["cache"],
    )

    def run(clips: np.ndarray, beam: int, tokens: int) -> list[peer_child.Output]:
        found = model.transcribe_clips(
            [model.clip(clip, peer_child.RATE_HZ) for clip in clips],
            beam=beam, language="en", task="transcribe", timestamps=False,
            min_tokens=tokens, max_tokens=tokens,
        )  # fmt: skip
        return [{"tokens": each.hypotheses[0][1].tokens.tolist()} for each in found]

    plans = [plan_batch(model.engine.options, workload.clips) for workload in WORKLOADS]
    used = dict.fromkeys(f"{plan.encoder} encoder, {plan.decoder} decoder" for plan in plans)
    return run, "; in a batch ".join(used), ["openvino"]


def export(source: Path, bundle: Path) -> None:
    """A checkpoint to a bundle."""
    from fairseq_openvino.export.whisper import export_whisper

    export_whisper(source, bundle)


def quantize(source: Path, bundle: Path) -> None:
    """A checkpoint to an INT8 bundle; random weights are calibrated on the clips, unjudged."""
    import soundfile

    from fairseq_openvino.quantize.options import Options
    from fairseq_openvino.quantize.procedure import quantize_bundle

    options = Options(
        inference_precision="bf16" if machine.cpu().has_bf16 else "f32", calibration_size=4,
        held_out_size=1, alphas=(0.5,), beam=1, max_drop=1e6, language="en",
    )  # fmt: skip
    with TemporaryDirectory() as scratch:
        work = Path(scratch)
        export(source, work / "bundle")
        rows = ["path\ttext"]
        for number, clip in enumerate(make_clips(options.calibration_size + 2)):
            soundfile.write(work / f"{number}.wav", clip, peer_child.RATE_HZ)
            rows.append(f"{number}.wav\tnothing")
        (work / "clips.tsv").write_text("\n".join(rows) + "\n")
        quantize_bundle(work / "bundle", work / "clips.tsv", bundle, options)


def main() -> None:
    """Export, quantize, or answer requests."""
    if sys.argv[1] in ("export", "quantize"):
        make = {"export": export, "quantize": quantize}[sys.argv[1]]
        make(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    peer_child.ENGINES[OURS] = load_ours
    peer_child.main()


if __name__ == "__main__":
    main()
