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
from fairseq_openvino.model import EncoderOutput, SpeechModel
from fairseq_openvino.recognizer import load_model

SESSION, ORDER, UTTERANCES = "session", "order", "utterances"
"""Keys of an incremental state: open session, pending row order, utterances still in the batch."""


@register_model("s2t_openvino")
class S2TOpenVINOModel(FairseqEncoderDecoderModel):  # type: ignore[misc]
    """Encoder and decoder of a bundle behind Fairseq's interface; holds no torch weights."""

    def __init__(self, speech_model: SpeechModel, dictionary: Any) -> None:
        super().__init__(OpenVINOEncoder(speech_model), OpenVINODecoder(speech_model, dictionary))
        self.speech_model = speech_model

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        """The bundle to run."""
        parser.add_argument("--bundle", metavar="DIR", help="bundle directory to run")

    @classmethod
    def build_model(cls, args: Any, task: Any) -> S2TOpenVINOModel:
        """Open `args.bundle` at f32; generation options come from the task's --ov-* flags."""
        return cls(load_model(args.bundle), task.target_dictionary)

    def max_positions(self) -> tuple[int, int]:
        """As the S2T models: the task limits the source, the decoder the target."""
        return self.encoder.max_positions(), self.decoder.max_positions()


@register_model_architecture("s2t_openvino", "s2t_openvino")
def base_architecture(args: Any) -> None:
    """All dimensions come from the bundle."""


class OpenVINOEncoder(FairseqEncoder):  # type: ignore[misc]
    """src_tokens (N, T, F), src_lengths (N,) -> the encoder output and the utterance of each row."""

    def __init__(self, speech_model: SpeechModel) -> None:
        super().__init__(None)
        self.speech_model = speech_model

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **_: Any) -> dict[str, Any]:
        """Encode one padded batch."""
        encoded = self.speech_model.encode(src_tokens.cpu().numpy(), src_lengths.cpu().numpy())
        return {"encoded": encoded, "rows": np.arange(encoded.utterances)}

    def reorder_encoder_out(self, encoder_out: dict[str, Any], new_order: Tensor) -> dict[str, Any]:
        """Only the row table is reordered, never the tensors."""
        return {
            "encoded": encoder_out["encoded"],
            "rows": encoder_out["rows"][new_order.cpu().numpy()],
        }


class OpenVINODecoder(FairseqIncrementalDecoder):  # type: ignore[misc]
    """Log-probabilities in place of logits: Fairseq's log-softmax leaves them unchanged."""

    def __init__(self, speech_model: SpeechModel, dictionary: Any) -> None:
        super().__init__(dictionary)
        self.speech_model = speech_model
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
        encoded, rows = encoder_out["encoded"], encoder_out["rows"]
        tokens = prev_output_tokens.cpu().numpy()
        if incremental_state is None:
            beam = _rows_per_utterance(rows, np.arange(encoded.utterances))
            with self.speech_model.open(encoded, beam) as session:
                log_probs = session.step(tokens, np.arange(len(tokens)))
                return torch.from_numpy(log_probs.copy()), {"attn": None}
        self._follow(incremental_state, encoded, rows)
        order = incremental_state.pop(ORDER, None)
        if order is None:
            order = np.arange(len(tokens))
        log_probs = incremental_state[SESSION].step(tokens[:, -1:], order)
        return torch.from_numpy(log_probs.copy()), None

    def _follow(self, state: dict[str, Any], encoded: EncoderOutput, rows: np.ndarray) -> None:
        """Open the session of a new state, or drop utterances that Fairseq has finished."""
        remaining = np.unique(rows)
        beam = _rows_per_utterance(rows, remaining)
        if SESSION not in state:
            state[SESSION] = self.speech_model.open(encoded, beam)
            state[UTTERANCES] = np.arange(encoded.utterances)
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
        return self.speech_model.manifest.limits.max_target_tokens


def _rows_per_utterance(rows: np.ndarray, utterances: np.ndarray) -> int:
    """K, if the rows are K neighbours for each utterance in order."""
    beam = len(rows) // max(len(utterances), 1)
    if not np.array_equal(rows, np.repeat(utterances, beam)):
        raise ModelError(
            f"Decoding failed: expected {beam} neighbouring rows for each of {len(utterances)} "
            f"utterances, got the row table {rows.tolist()}. Generate without --ov-engine."
        )
    return beam
