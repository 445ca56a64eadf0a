"""CTranslate2 through faster-whisper; f32 or int8 weights. Clips run without temperature fallback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from protocol import BEST_OF, RATE_HZ, TEMPERATURES, Long, Peer, Segment, serve

PROMPT_TOKENS = 4
"""Start, language, task, no timestamps; CTranslate2 halves prompt and limit together."""
KINDS = {"f32": "float32", "int8": "int8"}


class FasterWhisper(Peer):
    """Several clips of one length go through its batched pipeline, others run alone.

    Free-running texts are made with its timestamps: without them it drops the ends of clips.
    """

    module, packages = "faster_whisper", ("faster-whisper", "ctranslate2")

    def convert(self) -> Path:
        """`ct2-transformers-converter`."""
        path = self.work / f"ctranslate2-{self.precision}"
        if not path.exists():
            extra = ["--quantization", "int8"] if self.precision == "int8" else []
            names = ("tokenizer.json", "preprocessor_config.json")
            files = [name for name in names if (self.source / name).is_file()]
            subprocess.run(
                [
                    sys.executable, "-m", "ctranslate2.converters.transformers", "--model",
                    str(self.source), "--output_dir", str(path), "--copy_files", *files, *extra,
                ],
                check=True,
            )  # fmt: skip
        return path

    def construct(self) -> None:
        """See `Peer`."""
        from faster_whisper import BatchedInferencePipeline, WhisperModel

        self.model = WhisperModel(
            str(self.convert()), device="cpu", compute_type=KINDS[self.precision],
            cpu_threads=self.threads,
        )  # fmt: skip
        self.batched = BatchedInferencePipeline(self.model)

    def transcribe(
        self, clips: list[np.ndarray], search: dict[str, Any], language: str, tokens: int | None
    ) -> list[tuple[str, int]]:
        """See `Peer`."""
        options: dict[str, Any] = {
            "language": language, "task": search["task"], "beam_size": search["beam"],
            "temperature": 0.0, "condition_on_previous_text": False, "vad_filter": False,
        }  # fmt: skip
        if tokens is None:
            found = [list(self.model.transcribe(clip, **options)[0]) for clip in clips]
        else:
            options |= {
                "without_timestamps": True, "no_speech_threshold": None,
                "log_prob_threshold": None, "compression_ratio_threshold": None,
                "max_new_tokens": 2 * tokens - PROMPT_TOKENS,
            }  # fmt: skip
            found = self._exactly(clips, options)
        return [
            ("".join(segment.text for segment in clip), sum(map(self._count, clip)))
            for clip in found
        ]

    def hear_samples(self, samples: np.ndarray, how: Long, language: str) -> list[Segment]:
        """Sequential, or its batched pipeline: cut by VAD, without fallback and conditioning."""
        options: dict[str, Any] = {
            "language": language, "beam_size": how.beam, "best_of": BEST_OF,
            "temperature": TEMPERATURES, "condition_on_previous_text": True,
            "without_timestamps": not how.timestamps, "word_timestamps": how.words,
        }  # fmt: skip
        if how.batch:
            found, _ = self.batched.transcribe(samples, batch_size=how.batch, **options)
        else:
            found, _ = self.model.transcribe(samples, vad_filter=False, **options)
        return [
            Segment(
                s.start, s.end, s.text, how.words and [(w.start, w.word) for w in s.words] or None
            )
            for s in found
        ]

    def _exactly(self, clips: list[np.ndarray], options: dict[str, Any]) -> list[list[Any]]:
        if len(clips) == 1:
            return [list(self.model.transcribe(clips[0], **options)[0])]
        seconds = len(clips[0]) / RATE_HZ
        parts = [{"start": i * seconds, "end": (i + 1) * seconds} for i in range(len(clips))]
        segments, _ = self.batched.transcribe(
            np.concatenate(clips), clip_timestamps=parts, batch_size=len(clips), **options
        )
        return [[segment] for segment in segments]

    def _count(self, segment: Any) -> int:
        return sum(
            token < self.model.hf_tokenizer.token_to_id("<|endoftext|>") for token in segment.tokens
        )

    def summary(self) -> str:
        """See `Peer`."""
        return str(self.model.model.compute_type)


if __name__ == "__main__":
    serve(FasterWhisper)
