"""OpenVINO GenAI's pipeline in C++; f32, bf16, or int8 weights; one clip at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from optimum_intel import OpenVINOPeer
from protocol import Long, Segment, serve


class OpenVINOGenAI(OpenVINOPeer):
    """`WhisperPipeline`."""

    module, packages, batches = "openvino_genai", ("openvino-genai", "openvino"), False

    def construct(self) -> None:
        """See `Peer`."""
        import openvino_genai

        self.pipeline = openvino_genai.WhisperPipeline(str(self.convert()), "CPU", **self.options)

    def transcribe(
        self, clips: list[np.ndarray], search: dict[str, Any], language: str, tokens: int | None
    ) -> list[tuple[str, int]]:
        """See `Peer`."""
        outputs, beam = [], search["beam"]
        for clip in clips:
            config = self.pipeline.get_generation_config()
            config.language, config.task = f"<|{language}|>", search["task"]
            config.return_timestamps, config.num_beams = False, beam
            if tokens is not None:
                config.max_new_tokens, config.ignore_eos = tokens, beam == 1
            found = self.pipeline.generate(clip.tolist(), config)
            count = found.perf_metrics.get_num_generated_tokens()
            # it counts each beam, but the first step once
            outputs.append((found.texts[0], (count - 1) // beam + 1))
        return outputs

    def hear_samples(self, samples: np.ndarray, how: Long, language: str) -> list[Segment]:
        """It has neither fallback nor conditioning; the end of a last segment may be unknown."""
        config = self.pipeline.get_generation_config()
        if config.is_multilingual:
            config.language, config.task = f"<|{language}|>", "transcribe"
        config.return_timestamps, config.num_beams = True, how.beam
        found = self.pipeline.generate(samples.tolist(), config)
        return [Segment(each.start_ts, each.end_ts, each.text) for each in found.chunks]

    def summary(self) -> str:
        """The pipeline does not tell: what the CPU chooses."""
        import openvino

        if self.precision == "f32":
            return "f32, KV cache f32"
        hint = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
        return f"{'weights int8, ' if self.precision == 'int8' else ''}{hint}, the CPU's default"


if __name__ == "__main__":
    serve(OpenVINOGenAI)
