"""The `xm_transformer` family: wav2vec 2.0, an adaptor of the length, a Transformer decoder.

Letters as in `transformer_decoder.py`; T counts samples, and F = 1.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.fairseq import transformer_decoder, wav2vec2
from fairseq_openvino.export.fairseq.pretrained import wav2vec2_arguments
from fairseq_openvino.export.fairseq.transformer_decoder import valid_frames
from fairseq_openvino.export.graphs import Graphs

ARCHITECTURE = "xm_transformer"


def complete(arguments: Namespace) -> Namespace:
    """See `Architecture.complete`; all weights come from the checkpoint.

    Source: Fairseq `models/speech_to_text/xm_transformer.py:XMTransformerModel.build_encoder`.
    """
    arguments = wav2vec2_arguments(arguments)
    arguments.load_pretrained_encoder_from = arguments.load_pretrained_decoder_from = None
    arguments.w2v_path = None
    if not (getattr(arguments, "adaptor_proj", 0) or getattr(arguments, "encoder_proj", 0)):
        arguments.encoder_embed_dim = arguments.w2v_args.model.encoder_embed_dim
    return arguments


def build(model: Any, arguments: Any) -> Graphs:
    """Wrap a loaded `XMTransformerModel`.

    Args:
        model: the Fairseq model, in eval mode.
        arguments: its `args` (checkpoint `cfg.model`).

    Raises:
        ArchitectureError: an option of the checkpoint has no counterpart in these graphs.
    """
    encoder, adaptor = model.encoder.w2v_encoder, model.encoder.adaptor
    wav2vec2.refuse_unsupported(ARCHITECTURE, encoder)
    transformer_decoder.refuse_unsupported(ARCHITECTURE, model.decoder)
    samples, shift = wav2vec2.receptive_field(encoder)
    for layer in () if adaptor is None else adaptor.layers:
        kernel, shift = layer.kernel_size[0], shift * adaptor.stride
        if kernel % 2 == 0:
            raise ArchitectureError(
                f"Export failed in {ARCHITECTURE}: expected an odd adaptor_kernel_size, got {kernel}, "
                "with which Fairseq's own lengths do not fit. Generate with Fairseq itself."
            )
    return transformer_decoder.graphs(
        ARCHITECTURE,
        Encoder(model.encoder),
        model.decoder,
        feature_bins=1,
        max_source_frames=wav2vec2.max_samples(arguments),
        subsampling=shift,
        min_source_frames=samples,
    )


class Encoder(nn.Module):
    """features (N, T, 1), lengths (N,) -> (N, S, D), (N,).

    Source: Fairseq `models/speech_to_text/xm_transformer.py:Wav2VecEncoderWithAdaptor`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.wav2vec2 = wav2vec2.Wav2Vec2(encoder.w2v_encoder)
        self.norm = encoder.w2v_proj_ln
        self.adaptor = None if encoder.adaptor is None else Adaptor(encoder.adaptor)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x, lengths = self.wav2vec2(features, lengths)
        if self.norm is not None:
            x = self.norm(x)
        return (x, lengths) if self.adaptor is None else self.adaptor(x, lengths)


class Adaptor(nn.Module):
    """Strided convolutions, between two residual projections where the model has them.

    x (N, S, D), lengths (N,) -> the same with a smaller S.

    Source: Fairseq `models/speech_to_text/xm_transformer.py:Conv1dAdaptor`.
    """

    def __init__(self, adaptor: Any) -> None:
        super().__init__()
        self.norm = adaptor.layernorm
        self.project_in, self.project_in_norm = adaptor.proj, adaptor.proj_ln
        self.layers, self.stride = adaptor.layers, adaptor.stride
        self.project_out, self.project_out_norm = adaptor.post_proj, adaptor.post_proj_ln

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        if self.norm is not None:
            x = self.norm(x)
        if self.project_in is not None:
            x = self.project_in_norm(x + 0.5 * self.project_in(x))
        x = _without_padding(x, lengths).transpose(1, 2)
        for layer in self.layers:
            x = nn.functional.glu(layer(x), dim=1)
            lengths = torch.div(lengths - 1, self.stride, rounding_mode="floor") + 1
        x = x.transpose(1, 2)
        if self.project_out is not None:
            x = self.project_out_norm(x + 0.5 * self.project_out(x))
        return _without_padding(x, lengths), lengths


def _without_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Zeros behind each length; (N, S, D), (N,) -> (N, S, D)."""
    return torch.where(valid_frames(x, lengths).unsqueeze(2), x, 0.0)
