"""Small Whisper checkpoints and waveforms for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino.measure.material.whisper import (
    Layout,
    write_whisper,
)
from fairseq_openvino.model import Clip, Memory
from fairseq_openvino.whisper.options import WhisperOptions

TEXT_TOKENS = Layout().text_tokens


def waveforms(count: int, seconds: float, seed: int = 0) -> list[np.ndarray]:
    """Noise with slow amplitude and moving pitch, at 16 kHz, of up to `seconds`."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        samples = int(16000 * seconds * random.uniform(0.4, 1.0))
        time = np.arange(samples) / 16000
        pitch = random.uniform(80, 300) * (
            1 + 0.3 * np.sin(2 * np.pi * random.uniform(1, 4) * time)
        )
        voice = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / 16000) / k for k in range(1, 12))
        envelope = np.abs(np.sin(2 * np.pi * random.uniform(1, 3) * time))
        noise = random.standard_normal(samples) * 0.02
        made.append((0.1 * voice * envelope + noise).astype(np.float32))
    return made


LAYOUTS = {
    "multilingual": Layout(),
    "ending": Layout(mels=128, languages=100, seed=40, ending=4.0),
    "long": Layout(positions=200, targets=210, text_only=True),
    "english": Layout(languages=0, seed=7, ending=3.0),
}

START = [TEXT_TOKENS + 1, TEXT_TOKENS + 2, TEXT_TOKENS + 102, TEXT_TOKENS + 106]
"""<|startoftranscript|><|en|><|transcribe|><|notimestamps|> of the multilingual model."""


def write_pair(directory: Path, layout: Layout) -> None:
    """A checkpoint, `source`, and its `bundle`."""
    from fairseq_openvino.export.whisper import export_whisper

    export_whisper(write_whisper(directory / "source", layout), directory / "bundle")


class Pair:
    """A transformers model and our bundle of it, with clips."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        import torch

        from fairseq_openvino import load_model
        from fairseq_openvino.compat.transformers import transformers

        self.layout, self.directory = layout, directory / "source"
        self.model: Any = load_model(directory / "bundle")
        self.bundle = self.model.bundle
        self.vocabulary, self.config = self.model.family.vocabulary, self.model.family.config
        self.original = transformers.WhisperForConditionalGeneration.from_pretrained(
            self.directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.waveforms = waveforms(3, layout.positions / 50, seed=3)
        self.clips: list[Clip] = [self.model.clip(each, 16000) for each in self.waveforms]
        samples = layout.positions * 320
        self.whole = [self.model.clip(np.resize(each, samples), 16000) for each in self.waveforms]
        """Clips as long as the window: transformers goes on in the padding behind shorter ones."""

    def expected(self, clips: Sequence[Clip], **options: Any) -> dict[str, Any]:
        """transformers' `generate` with segments."""
        import torch

        features = torch.from_numpy(np.stack([clip.features for clip in clips])).transpose(1, 2)
        if not self.layout.languages:
            options = {k: v for k, v in options.items() if k not in ("language", "task")}
        with torch.no_grad():
            found: dict[str, Any] = self.original.generate(
                features, return_segments=True, **options
            )
        return found

    def encoded(self, *clips: Clip) -> Memory:
        """Whole windows, as one batch."""
        features = np.stack([clip.features for clip in clips])
        memory: Memory = self.model.model.encode(features, np.full(len(clips), features.shape[1]))
        return memory

    def without_end(self, tokens: Sequence[int]) -> list[int]:
        """Tokens up to <|endoftext|>."""
        kept = [int(token) for token in tokens]
        while kept and kept[-1] == TEXT_TOKENS:
            kept.pop()
        return kept

    def greedy(self, clip: Clip, tokens: list[int], frames: int, count: int) -> list[int]:
        """Greedy continuation of a prompt by the reference, without a cache."""
        import torch

        from fairseq_openvino.export.whisper.graphs import Reference

        original, tokens = self.original, list(tokens)
        rules = self.model.family.rules(WhisperOptions())
        with torch.no_grad():
            states = Reference(original).encode(torch.from_numpy(clip.features[None, :frames]))
            for step in range(count):
                logits = original(
                    decoder_input_ids=torch.tensor([tokens]), encoder_outputs=(states,)
                ).logits[0, -1]
                tokens.append(int(np.argmax(logits.numpy() + rules.bias(step)[0])))
        return tokens[-count:]


NAMES = {
    "layers": "blocks", "fc1": "mlp.0", "fc2": "mlp.2", "final_layer_norm": "mlp_ln",
    "encoder_attn_layer_norm": "cross_attn_ln", "self_attn_layer_norm": "attn_ln",
    "encoder_attn": "cross_attn", "self_attn": "attn", "q_proj": "query", "k_proj": "key",
    "v_proj": "value", "out_proj": "out", "embed_tokens": "token_embedding",
    "embed_positions.weight": "positional_embedding", "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
}  # fmt: skip
"""Parts of names of weights: transformers' and openai-whisper's, to be replaced in this order."""


def openai_checkpoint(model: Any) -> dict[str, Any]:
    """What openai-whisper would store of a transformers model."""
    config, state = model.config, {}
    for original, weights in model.model.state_dict().items():
        name = original
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        state[name] = weights
    dims = {
        "n_mels": config.num_mel_bins, "n_vocab": config.vocab_size,
        "n_audio_ctx": config.max_source_positions, "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads, "n_audio_layer": config.encoder_layers,
        "n_text_ctx": config.max_target_positions, "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads, "n_text_layer": config.decoder_layers,
    }  # fmt: skip
    return {"dims": dims, "model_state_dict": state}


def openai_model(model: Any) -> Any:
    """openai-whisper's own module with the weights and alignment heads of a transformers model."""
    import torch
    from whisper.model import ModelDimensions, Whisper

    stored = openai_checkpoint(model)
    made = Whisper(ModelDimensions(**stored["dims"]))
    made.load_state_dict(stored["model_state_dict"])
    if heads := getattr(model.generation_config, "alignment_heads", None):
        mask = torch.zeros(made.dims.n_text_layer, made.dims.n_text_head, dtype=torch.bool)
        mask[tuple(zip(*heads, strict=True))] = True
        made.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)
    return made.eval()


class OpenAITokenizer:
    """What openai-whisper's decoding asks of its tokenizer, for the vocabulary of a pair."""

    def __init__(self, pair: Pair) -> None:
        config = pair.config
        self.text, self._tokens = pair.vocabulary.text, pair.vocabulary.tokens
        self.eot, self.sot, self.sot_prev = pair.model.family.eos, config.start, config.previous
        self.no_speech, self.no_timestamps = config.no_speech, config.no_timestamps
        self.timestamp_begin, self.sot_lm = config.first_timestamp, config.previous - 1
        self.transcribe, self.translate = (
            config.tasks[name] for name in ("transcribe", "translate")
        )
        self.language, self.language_token = "en", config.languages["en"]
        self.all_language_tokens = tuple(config.languages.values())
        self.all_language_codes = tuple(config.languages)
        self.sot_sequence = (self.sot, self.language_token, self.transcribe)
        self.sot_sequence_including_notimestamps = (*self.sot_sequence, self.no_timestamps)

    def encode(self, text: str) -> list[int]:
        """Of a text that follows other words."""
        return list(self._tokens(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """To text, without timestamps."""
        return str(self.text(tokens))
