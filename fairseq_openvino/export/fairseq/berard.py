"""`s2t_berard`: a convolutional BLSTM encoder, and an LSTM decoder that attends once a token.

Letters as in `transformer_decoder.py`, and C width of the encoder's output and of the decoder's
state, A of the attention, U of the decoder's embeddings.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_openvino.export.fairseq import architecture
from fairseq_openvino.export.fairseq.transformer_decoder import valid_frames
from fairseq_openvino.export.forced import Forced
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.parity import at_nodes
from fairseq_openvino.tensors import MASKED, TensorSpec

ARCHITECTURE = "s2t_berard"


def build(model: Any, arguments: Any) -> Graphs:
    """Wrap a loaded `BerardModel`.

    Args:
        model: the Fairseq model, in eval mode.
        arguments: its `args` (checkpoint `cfg.model`).
    """
    encoder, decoder = model.encoder, model.decoder
    width, attention_width = decoder.context_dim, decoder.attention.attention_dim
    memory = (
        TensorSpec("cross_bias", ("N", "S"), MASKED),
        TensorSpec("encoder_out", ("N", "S", width)),
        TensorSpec("attention_key", ("N", "S", attention_width)),
        TensorSpec("mean", ("N", width)),
    )
    state = (TensorSpec("hidden", ("R", width), start="mean"), TensorSpec("cell", ("R", width)))
    return Graphs(
        architecture=ARCHITECTURE,
        encoder=EncoderGraph(encoder, decoder.attention).eval(),
        decoder=DecoderGraph(decoder).eval(),
        layers=decoder.num_layers,
        memory=memory,
        state=state,
        model_width=width,
        feature_bins=encoder.in_channels * encoder.input_dim,
        vocabulary_size=decoder.output_projection.out_features,
        max_source_frames=int(arguments.max_source_positions),
        max_target_tokens=int(decoder.max_positions()),
        subsampling=prod(stride for _, stride in encoder.conv_kernel_sizes_and_strides),
    )


class Reference(architecture.Reference):
    """See `architecture.Reference`; this decoder has no output layer of its own."""

    def logits(self, batch: Forced) -> Tensor:
        """See `parity.Reference`."""
        utterances, paths = torch.from_numpy(batch.utterances), torch.from_numpy(batch.paths)
        encoded = self.model.encoder.reorder_encoder_out(self.encode(batch), utterances)
        return at_nodes(self.model.decoder(paths, encoder_out=encoded)[0], batch)


class EncoderGraph(nn.Module):
    """Features to what the attention reads and what the decoder begins with.

    features (N, T, F), lengths (N,) in any order -> encoder_lengths (N,), cross_bias (N, S),
    encoder_out (N, S, C), attention_key (N, S, A), mean (N, C) over all S frames, padding included.

    Source: Fairseq `models/speech_to_text/berard.py:BerardEncoder`, and of `MLPAttention` and
    `LSTMDecoder` what does not depend on the tokens.
    """

    def __init__(self, encoder: Any, attention: Any) -> None:
        super().__init__()
        self.channels, self.bins = encoder.in_channels, encoder.input_dim
        self.linears, self.convolutions = encoder.input_layers, encoder.conv_layers
        self.kernels_and_strides = encoder.conv_kernel_sizes_and_strides
        self.layers = nn.ModuleList(
            Bidirectional(encoder.lstm, layer) for layer in range(encoder.num_blstm_layers)
        )
        self.key = attention.encoder_proj

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        utterances, frames, _ = features.shape
        x = features.reshape(utterances, frames, self.channels, self.bins).transpose(1, 2)
        for linear in self.linears:
            x = torch.tanh(linear(x))
        for convolution in self.convolutions:
            x = convolution(x)
        x = x.transpose(1, 2).flatten(2)  # (N, S, .)
        for kernel, stride in self.kernels_and_strides:
            reached = lengths + (kernel // 2 * 2 - kernel)
            lengths = torch.div(reached, stride, rounding_mode="floor") + 1
        valid = valid_frames(x, lengths)
        backwards = _backwards(valid, lengths)
        for layer in self.layers:
            x = layer(x, backwards)
        x = x * valid.unsqueeze(2)
        return lengths, torch.where(valid, 0.0, MASKED), x, self.key(x), x.mean(1)


def _backwards(valid: Tensor, lengths: Tensor) -> Tensor:
    """Rows of (N * S, .) that reverse each utterance in front of its padding, (N * S,)."""
    utterances, frames = valid.shape
    frame = torch.arange(frames).unsqueeze(0)
    turned = torch.where(valid, lengths.unsqueeze(1) - 1 - frame, frame)
    return (turned + torch.arange(utterances).unsqueeze(1) * frames).flatten()


class Bidirectional(nn.Module):
    """A layer of a bidirectional `nn.LSTM` over padded utterances: x (N, S, .) -> (N, S, C).

    Both directions run forwards, the second over reversed utterances, so that padding is behind each
    one for both. OpenVINO has a kernel for that, but for an LSTM that is told lengths only a loop.
    What comes out at padding is of no use.
    """

    def __init__(self, lstm: nn.LSTM, layer: int) -> None:
        super().__init__()
        self.forwards = _direction(lstm, f"l{layer}")
        self.backwards = _direction(lstm, f"l{layer}_reverse")

    def forward(self, x: Tensor, backwards: Tensor) -> Tensor:
        """See the class; `backwards` as `_backwards` makes it."""
        there, _ = self.forwards(x)
        back, _ = self.backwards(_rows(x, backwards))
        return torch.cat([there, _rows(back, backwards)], 2)


def _direction(lstm: nn.LSTM, suffix: str) -> nn.LSTM:
    """One layer and direction of an LSTM, with its weights."""
    weights = {
        f"{part}_l0": getattr(lstm, f"{part}_{suffix}")
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    single = nn.LSTM(weights["weight_ih_l0"].shape[1], lstm.hidden_size, batch_first=True)
    single.load_state_dict(weights)
    return single


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x (N, S, .) with its N * S rows in another order."""
    return x.flatten(0, 1).index_select(0, index).reshape(x.shape)


class DecoderGraph(nn.Module):
    """One token of every row to logits; row r belongs to utterance r // K.

    tokens (R, 1), offset (), past_hidden, past_cell (R, C), cross_bias (N, S), encoder_out (N, S, C),
    attention_key (N, S, A), mean (N, C) -> logits (R, 1, V), present_hidden, present_cell (R, C).

    Each layer continues the state of the layer below it, and the lowest that of the highest at the
    token before: that one alone is kept.

    Source: Fairseq `models/speech_to_text/berard.py:LSTMDecoder`.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.tokens = decoder.embed_tokens
        self.cells = nn.ModuleList(Cell(layer) for layer in decoder.layers)
        self.query, self.scores = decoder.attention.decoder_proj, decoder.attention.to_scores
        self.deep, self.output = decoder.deep_output_layer, decoder.output_projection

    def forward(
        self, tokens: Tensor, offset: Tensor, hidden: Tensor, cell: Tensor, bias: Tensor,
        encoded: Tensor, key: Tensor, mean: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """See the class."""
        embedded = nn.functional.embedding(tokens[:, 0], self.tokens.weight)  # (R, U)
        lowest, *others = self.cells
        hidden, cell = lowest(embedded, hidden, cell)
        seen = self.attend(hidden, bias, encoded, key)
        for layer in others:
            hidden, cell = layer(seen, hidden, cell)
        x = torch.tanh(self.deep(torch.cat([hidden, seen, embedded], 1)))
        return self.output(x).unsqueeze(1), hidden, cell

    def attend(self, hidden: Tensor, bias: Tensor, encoded: Tensor, key: Tensor) -> Tensor:
        """Hidden (R, C) -> the frames that it attends to, summed by their weights, (R, C)."""
        utterances, _, width = key.shape
        query = self.query(hidden).reshape(utterances, -1, 1, width)  # (N, K, 1, A)
        scores = self.scores(torch.tanh(query + key.unsqueeze(1))).squeeze(3)  # (N, K, S)
        weights = torch.softmax(scores + bias.unsqueeze(1), 2)
        return (weights @ encoded).flatten(0, 1)


class Cell(nn.Module):
    """`nn.LSTMCell` as one product: x (R, .), hidden, cell (R, C) -> hidden, cell (R, C)."""

    def __init__(self, cell: nn.LSTMCell) -> None:
        super().__init__()
        self.gates = nn.Linear(cell.input_size + cell.hidden_size, 4 * cell.hidden_size)
        with torch.no_grad():
            self.gates.weight.copy_(torch.cat([cell.weight_ih, cell.weight_hh], 1))
            self.gates.bias.copy_(cell.bias_ih + cell.bias_hh)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        new, kept, update, shown = self.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
        cell = torch.sigmoid(kept) * cell + torch.sigmoid(new) * torch.tanh(update)
        return torch.sigmoid(shown) * torch.tanh(cell), cell
