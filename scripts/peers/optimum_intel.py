"""OpenVINO below transformers' generate, through optimum-intel; f32, bf16, or int8 weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from protocol import RATE_HZ, Peer, serve

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


class OpenVINOPeer(Peer):
    """What optimum-intel and openvino-genai share: the same files."""

    def convert(self) -> Path:
        """`optimum-cli export openvino`."""
        int8 = self.precision == "int8"
        path = self.work / ("openvino-int8" if int8 else "openvino")
        if not path.exists():
            subprocess.run(
                [
                    sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino",
                    "--model", str(self.source), "--task", "automatic-speech-recognition-with-past",
                    *(["--weight-format", "int8"] if int8 else []), str(path),
                ],
                check=True,
            )  # fmt: skip
        return path

    @property
    def options(self) -> dict[str, Any]:
        """Of OpenVINO; without EXACT the CPU's default precision."""
        chosen = {"INFERENCE_NUM_THREADS": self.threads, "CACHE_DIR": self.cache}
        return chosen | (EXACT if self.precision == "f32" else {})


class OptimumIntel(OpenVINOPeer):
    """`OVModelForSpeechSeq2Seq`."""

    module = "optimum.intel"
    packages = ("optimum-intel", "openvino", "transformers", "torch")

    def construct(self) -> None:
        """See `Peer`."""
        import torch
        from optimum.intel import OVModelForSpeechSeq2Seq
        from transformers import WhisperProcessor

        torch.set_num_threads(self.threads)
        self.model = OVModelForSpeechSeq2Seq.from_pretrained(
            self.convert(), ov_config=self.options, compile=True
        )
        self.processor = WhisperProcessor.from_pretrained(self.source)

    def transcribe(
        self, clips: list[np.ndarray], search: dict[str, Any], language: str, tokens: int | None
    ) -> list[tuple[str, int]]:
        """See `Peer`."""
        import torch

        features = self.processor(
            clips, sampling_rate=RATE_HZ, return_tensors="pt", return_attention_mask=True
        )
        named = {} if tokens is None else {"min_new_tokens": tokens, "max_new_tokens": tokens}
        if self.model.generation_config.is_multilingual:
            named |= {"language": language, "task": search["task"]}
        with torch.inference_mode():
            found = self.model.generate(
                features.input_features, attention_mask=features.attention_mask,
                return_timestamps=False, num_beams=search["beam"], **named,
            )  # fmt: skip
        end = self.processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        counts = [sum(token < end for token in row) for row in found.tolist()]
        texts = self.processor.batch_decode(found, skip_special_tokens=True)
        return list(zip(texts, counts, strict=True))

    def summary(self) -> str:
        """As read back from the compiled decoder."""
        compiled = self.model.decoder.request.get_compiled_model()
        hint, cache = (compiled.get_property(name).get_type_name() for name in EXACT)
        return f"{'weights int8, ' if self.precision == 'int8' else ''}{hint}, KV cache {cache}"


if __name__ == "__main__":
    serve(OptimumIntel)
