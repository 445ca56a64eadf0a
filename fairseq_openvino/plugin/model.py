"""A Fairseq model whose encoder and decoder are compiled graphs.

Fairseq's generators see an ordinary `FairseqEncoderDecoderModel`. Keys and values never leave the
runtime: reordering rows only updates which row follows which, and cross-attention is stored once
per utterance whatever the beam.
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

import numpy as np
import torch
from fairseq.models import (
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
    register_model,
    register_model_architecture,
)
from torch import Tensor

from fairseq_openvino.errors import ModelError
from fairseq_openvino.loading import load_model
from fairseq_openvino.model import Ask, Head, Memory, Model

SESSION, ORDER, UTTERANCES = "session", "order", "utterances"
"""Keys of an incremental state: open session, pending row order, utterances still in the batch."""


@register_model("s2t_openvino")
class S2TOpenVINOModel(FairseqEncoderDecoderModel):  # type: ignore[misc]
    """Encoder and decoder of a bundle behind Fairseq's interface; holds no torch weights."""

    def __init__(self, model: Model, dictionary: Any) -> None:
        super().__init__(OpenVINOEncoder(model), OpenVINODecoder(model, dictionary))
        self.compiled = model

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        """The bundle to run."""
        parser.add_argument("--bundle", metavar="DIR", help="bundle directory to run")

    @classmethod
    def build_model(cls, args: Any, task: Any) -> S2TOpenVINOModel:
        """Open `args.bundle` at f32; generation options come from the task's --ov-* flags."""
        return cls(load_model(args.bundle).model, task.target_dictionary)

    def max_positions(self) -> tuple[int, int]:
        """As Fairseq's models."""
        return self.encoder.max_positions(), self.decoder.max_positions()


@register_model_architecture("s2t_openvino", "s2t_openvino")
def base_architecture(args: Any) -> None:
    """All dimensions come from the bundle."""


def encoder_inputs(
    model: Model, src_tokens: Tensor, src_lengths: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """What Fairseq collates, as `Model.encode` takes it.

    Text is padded behind, not in front; a waveform (N, T) has one bin, (N, T, 1).
    """
    source = src_tokens.cpu().numpy()
    bins = model.manifest.dimensions.feature_bins
    if bins:
        return source if source.ndim > len("NT") else source[..., None], src_lengths.cpu().numpy()
    is_padding = source == model.manifest.tokens.pad
    order = np.argsort(is_padding, axis=1, kind="stable")
    return np.take_along_axis(source, order, 1), np.sum(~is_padding, 1)


class OpenVINOEncoder(FairseqEncoder):  # type: ignore[misc]
    """src_tokens (N, T, F), waveforms or ids (N, T), src_lengths (N,) -> output, utterance of each row."""

    def __init__(self, model: Model) -> None:
        super().__init__(None)
        self.compiled = model

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **_: Any) -> dict[str, Any]:
        """Encode one padded batch."""
        memory = self.compiled.encode(*encoder_inputs(self.compiled, src_tokens, src_lengths))
        return {"memory": memory, "rows": np.arange(memory.utterances)}

    def max_positions(self) -> int:
        """Of text the exported model's, as Fairseq's; of speech the task knows."""
        manifest = self.compiled.manifest
        is_text = not manifest.dimensions.feature_bins
        return manifest.limits.max_source_frames if is_text else super().max_positions()

    def reorder_encoder_out(self, encoder_out: dict[str, Any], new_order: Tensor) -> dict[str, Any]:
        """Only the row table is reordered, never the tensors."""
        return {
            "memory": encoder_out["memory"],
            "rows": encoder_out["rows"][new_order.cpu().numpy()],
        }


class OpenVINODecoder(FairseqIncrementalDecoder):  # type: ignore[misc]
    """Log-probabilities in place of logits: Fairseq's log-softmax leaves them unchanged."""

    def __init__(self, model: Model, dictionary: Any) -> None:
        super().__init__(dictionary)
        self.compiled = model
        self.adaptive_softmax = None

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: dict[str, Any] | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Any] | None]:
        """tokens (R, L) -> (R, 1, V) incrementally, or (R, L, V) for all positions at once."""
        assert encoder_out is not None
        memory, rows = encoder_out["memory"], encoder_out["rows"]
        tokens = prev_output_tokens.cpu().numpy()
        if incremental_state is None:
            beam = _rows_per_utterance(rows, np.arange(memory.utterances))
            with self.compiled.open(memory, beam, Head()) as session:
                log_probs = session.step(Ask(tokens, np.arange(len(tokens)))).scores
                return torch.from_numpy(log_probs.copy()), {"attn": None}
        self._follow(incremental_state, memory, rows)
        order = incremental_state.pop(ORDER, None)
        if order is None:
            order = np.arange(len(tokens))
        log_probs = incremental_state[SESSION].step(Ask(tokens[:, -1:], order)).scores
        return torch.from_numpy(log_probs.copy()), None

    def _follow(self, state: dict[str, Any], memory: Memory, rows: np.ndarray) -> None:
        """Open the session of a new state, or drop utterances that Fairseq has finished."""
        remaining = np.unique(rows)
        beam = _rows_per_utterance(rows, remaining)
        if SESSION not in state:
            state[SESSION] = self.compiled.open(memory, beam, Head())
            state[UTTERANCES] = np.arange(memory.utterances)
        if len(remaining) < len(state[UTTERANCES]):
            state[SESSION].keep(np.searchsorted(state[UTTERANCES], remaining))
            state[UTTERANCES] = remaining

    def reorder_incremental_state_scripting(
        self, incremental_state: dict[str, Any], new_order: Tensor
    ) -> None:
        """Remember the order for the next step."""
        order = new_order.cpu().numpy()
        pending = incremental_state.get(ORDER)
        incremental_state[ORDER] = order if pending is None else pending[order]

    def max_positions(self) -> int:
        """Decoder positions of the exported model."""
        return self.compiled.manifest.limits.max_target_tokens


def _rows_per_utterance(rows: np.ndarray, utterances: np.ndarray) -> int:
    """K, if the rows are K neighbours for each utterance in order."""
    beam = len(rows) // max(len(utterances), 1)
    if not np.array_equal(rows, np.repeat(utterances, beam)):
        raise ModelError(
            f"Decoding failed: expected {beam} neighbouring rows for each of {len(utterances)} "
            f"utterances, got the row table {rows.tolist()}. Generate without --ov-engine."
        )
    return beam
