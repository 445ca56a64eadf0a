"""Whisper and Distil-Whisper as two explicit graphs.

The graphs have the signatures of `export/onnx.py`. The mel length is dynamic: the position table is
sliced, so a shorter audio context is a shorter input. Letters as in `export/fairseq/transformer_decoder.py`.
Source of the model: transformers `models/whisper/modeling_whisper.py`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_openvino.export.forced import Forced
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.layers import DecoderLayer, EncoderLayer, causal_bias, split_heads
from fairseq_openvino.export.parity import Cases, at_nodes
from fairseq_openvino.tensors import MASKED, attention_specs

FRAMES_PER_POSITION = 2
"""The second convolution halves the frame rate."""
TOKENIZER = "tokenizer.json"


class EncoderGraph(nn.Module):
    """Log-mel frames to the cross-attention inputs of every decoder layer.

    features (N, T, F), T even and at most twice the positions, lengths (N,) -> encoder_lengths (N,),
    cross_bias (N, 1, 1, S), then cross_key, cross_value (N, H, S, dh) for each layer. As in the
    original, every frame is attended to within the encoder; `lengths` masks cross-attention.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        encoder = model.model.encoder
        self.conv1, self.conv2 = encoder.conv1, encoder.conv2
        self.register_buffer("positions", encoder.embed_positions.weight.detach().clone())
        self.layers = nn.ModuleList(EncoderLayer(layer, True) for layer in encoder.layers)
        self.norm = encoder.layer_norm
        attentions = [layer.encoder_attn for layer in model.model.decoder.layers]
        self.heads = attentions[0].num_heads
        self.cross_keys = nn.ModuleList(attention.k_proj for attention in attentions)
        self.cross_values = nn.ModuleList(attention.v_proj for attention in attentions)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        x = nn.functional.gelu(self.conv1(features.transpose(1, 2)))  # (N, D, T)
        x = nn.functional.gelu(self.conv2(x)).transpose(1, 2)  # (N, S, D)
        frame = torch.arange(x.shape[1], device=x.device)  # (S,)
        x = x + nn.functional.embedding(frame, self.positions)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        lengths = torch.div(lengths + 1, FRAMES_PER_POSITION, rounding_mode="floor")
        valid = frame.unsqueeze(0) < lengths.unsqueeze(1)  # (N, S)
        bias = torch.where(valid, 0.0, MASKED).unsqueeze(1).unsqueeze(1)  # (N, 1, 1, S)
        cross: list[Tensor] = []
        for key, value in zip(self.cross_keys, self.cross_values, strict=True):
            cross += [split_heads(key(x), self.heads), split_heads(value(x), self.heads)]
        return lengths, bias, *cross


class DecoderGraph(nn.Module):
    """l new tokens of every row to logits; see `export/fairseq/transformer_decoder.py:DecoderGraph`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.model.decoder
        self.tokens, self.norm = decoder.embed_tokens, decoder.layer_norm
        self.register_buffer("positions", decoder.embed_positions.weight.detach().clone())
        self.layers = nn.ModuleList(DecoderLayer(layer, True) for layer in decoder.layers)
        self.output = model.proj_out

    def forward(
        self, tokens: Tensor, offset: Tensor, cross_bias: Tensor, *caches: Tensor
    ) -> tuple[Tensor, ...]:
        """See the class."""
        step = torch.arange(tokens.shape[1], device=tokens.device)  # (l,)
        x = nn.functional.embedding(tokens, self.tokens.weight)  # (R, l, D)
        x = x + nn.functional.embedding(step + offset, self.positions)
        causal = causal_bias(step, caches[0].shape[2])
        present: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            past_key, past_value, key, value = caches[4 * i : 4 * i + 4]
            x, new_key, new_value = layer(
                x, causal, (past_key, past_value), (key, value, cross_bias)
            )
            present += [new_key, new_value]
        return self.output(self.norm(x)), *present


class Reference:
    """The transformers model itself, for the parity gate; see `parity.Reference`."""

    name = "transformers"

    def __init__(self, model: Any) -> None:
        self.model = model
        model.set_attn_implementation("sdpa")  # keeps no scores (H, S, S)

    def logits(self, batch: Forced) -> Tensor:
        """See `parity.Reference`; frames behind the length of an utterance are cut off its states."""
        decoder = self.model.model.decoder
        encoded = self.encode(torch.from_numpy(batch.features))
        hidden = []
        for utterance, length in enumerate(batch.lengths):
            paths = torch.from_numpy(batch.paths[batch.utterances == utterance])
            states = encoded[utterance, : (length + 1) // FRAMES_PER_POSITION]
            states = states.expand(len(paths), -1, -1)
            found = decoder(input_ids=paths, encoder_hidden_states=states, use_cache=False)
            hidden.append(found.last_hidden_state)
        logits: Tensor = self.model.proj_out(at_nodes(torch.cat(hidden), batch))
        return logits

    def encode(self, features: Tensor) -> Tensor:
        """(N, T, F) -> (N, S, D), with the position table cut to T."""
        encoder = copy.copy(self.model.model.encoder)  # shares all weights
        encoder._modules = dict(encoder._modules)
        positions = features.shape[1] // FRAMES_PER_POSITION
        table = encoder.embed_positions.weight[:positions]
        encoder.embed_positions = nn.Embedding.from_pretrained(table)
        encoder.config = copy.copy(encoder.config)
        encoder.config.max_source_positions = positions
        states: Tensor = encoder(features.transpose(1, 2)).last_hidden_state
        return states


def build(model: Any) -> Graphs:
    """Wrap a loaded `WhisperForConditionalGeneration`."""
    config = model.config
    heads = config.decoder_attention_heads
    memory, state = attention_specs(config.decoder_layers, heads, config.d_model // heads)
    return Graphs(
        architecture="whisper",
        encoder=EncoderGraph(model).eval(),
        decoder=DecoderGraph(model).eval(),
        layers=config.decoder_layers,
        memory=memory,
        state=state,
        model_width=config.d_model,
        feature_bins=config.num_mel_bins,
        vocabulary_size=config.vocab_size,
        max_source_frames=FRAMES_PER_POSITION * config.max_source_positions,
        max_target_tokens=config.max_target_positions,
        subsampling=FRAMES_PER_POSITION,
    )


def parity_cases(graphs: Graphs) -> Cases:
    """(T of each utterance, steps): short contexts, alone and in a batch, and the whole window."""
    return (
        ((40,), 4),
        ((96, 52), 8),
        ((260, 260, 120), 12),
        ((graphs.max_source_frames,), 16),
    )
