"""openai-whisper in f32, with the weights of a Hugging Face directory; run by `.venv`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from protocol import BEST_OF, TEMPERATURES, Long, Peer, Segment, serve


class OpenAIWhisper(Peer):
    """`whisper.decode` without timestamps; one clip at a time."""

    module, packages, batches = "whisper", ("openai-whisper", "torch"), False

    def construct(self) -> None:
        """See `Peer`."""
        import torch
        import whisper
        from safetensors.torch import load_file

        from fairseq_openvino.export.whisper.openai import rename

        torch.set_num_threads(self.threads)
        config = json.loads((self.source / "config.json").read_text("utf-8"))
        width, heads = config["d_model"], config["encoder_attention_heads"]
        self.dims = whisper.model.ModelDimensions(
            config["num_mel_bins"], config["max_source_positions"], width, heads,
            config["encoder_layers"], config["vocab_size"], config["max_target_positions"], width,
            config["decoder_attention_heads"], config["decoder_layers"],
        )  # fmt: skip
        model, weights = (
            whisper.model.Whisper(self.dims),
            load_file(self.source / "model.safetensors"),
        )
        names = {
            original: next(iter(rename({original: value})))
            for original, value in model.state_dict().items()
        }
        model.load_state_dict({name: weights[renamed].float() for name, renamed in names.items()})
        generation = json.loads((self.source / "generation_config.json").read_text("utf-8"))
        if heads := generation.get("alignment_heads"):
            mask = torch.zeros(self.dims.n_text_layer, self.dims.n_text_head, dtype=torch.bool)
            mask[tuple(zip(*heads, strict=True))] = True
            model.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)
        self.model = model.eval()

    def transcribe(
        self, clips: list[np.ndarray], search: dict[str, Any], language: str, tokens: int | None
    ) -> list[tuple[str, int]]:
        """See `Peer`; its outputs have no exact length."""
        import whisper

        wanted = whisper.DecodingOptions(
            language=language, task=search["task"], without_timestamps=True, fp16=False,
            beam_size=search["beam"] if search["beam"] > 1 else None, sample_len=tokens,
        )  # fmt: skip
        outputs = []
        for clip in clips:
            mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(clip), self.dims.n_mels)
            found = whisper.decode(self.model, mel, wanted)
            outputs.append((found.text, len(found.tokens)))
        return outputs

    def hear_samples(self, samples: np.ndarray, how: Long, language: str) -> list[Segment]:
        """`whisper.transcribe`."""
        import whisper

        found = whisper.transcribe(
            self.model, samples, language=language, fp16=False, temperature=TEMPERATURES,
            beam_size=how.beam if how.beam > 1 else None, best_of=BEST_OF,
            condition_on_previous_text=True, word_timestamps=how.words,
        )  # fmt: skip
        return [
            Segment(
                each["start"], each["end"], each["text"],
                [(word["start"], word["word"]) for word in each["words"]] if how.words else None,
            )
            for each in found["segments"]
        ]  # fmt: skip


if __name__ == "__main__":
    serve(OpenAIWhisper)
