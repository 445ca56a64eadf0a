"""`dual_input_s2t_transformer`, trained on speech and text together: its branch for speech.

Letters as in `transformer_decoder.py`.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.fairseq import architecture, s2t_transformer, transformer_decoder
from fairseq_openvino.export.graphs import Graphs

ARCHITECTURE = "dual_input_s2t_transformer"


def build(model: Any, arguments: Any) -> Graphs:
    """Wrap the speech encoder and the speech decoder of a `DualInputS2TTransformerModel`.

    Args:
        model: the Fairseq model, in eval mode.
        arguments: its `args` (checkpoint `cfg.model`).

    Raises:
        ArchitectureError: an option of the checkpoint has no counterpart in these graphs.
    """
    encoder, decoder = model.encoder.spch_encoder, model.decoder.spch_decoder
    transformer_decoder.refuse_unsupported(ARCHITECTURE, decoder)
    if getattr(encoder, "adapter", None) is not None:
        raise ArchitectureError(
            f"Export failed in {ARCHITECTURE}: expected a model without speech_encoder_adapter_type, got "
            f"{arguments.speech_encoder_adapter_type!r}, with which Fairseq itself cannot generate "
            "(s2t_dualinputtransformer.py:apply_adapter). Train it without."
        )
    return transformer_decoder.graphs(
        ARCHITECTURE,
        SpeechEosEncoder(encoder) if arguments.add_speech_eos else s2t_transformer.Encoder(encoder),
        decoder,
        int(arguments.input_feat_per_channel) * int(arguments.input_channels),
        int(arguments.max_source_positions),
        s2t_transformer.SUBSAMPLING,
    )


def reference(model: Any) -> architecture.Reference:
    """The speech branch as the parity gate calls it."""
    return architecture.Reference(
        Namespace(encoder=model.encoder, decoder=model.decoder.spch_decoder)
    )


class SpeechEosEncoder(nn.Module):
    """A few frames that say "end" behind each utterance, then the encoder.

    features (N, T, F), lengths (N,) -> (N, S, D), (N,).

    Source: Fairseq `examples/speech_text_joint_to_text/models/s2t_dualinputtransformer.py:SpeechEoSEncoder`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.frames, self.end = encoder.eos_num, encoder.eos_emb
        self.encoder = s2t_transformer.Encoder(encoder.encoder)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x = nn.functional.pad(features, (0, 0, 0, self.frames))
        behind = torch.arange(x.shape[1]).unsqueeze(0) - lengths.unsqueeze(1)  # (N, T + frames)
        is_end = (behind >= 0) & (behind < self.frames)
        x = torch.where(is_end.unsqueeze(2), self.end, x)
        found: tuple[Tensor, Tensor] = self.encoder(x, lengths + self.frames)
        return found
