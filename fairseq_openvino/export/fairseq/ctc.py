"""Encoders with a CTC layer behind them: the head of a model trained with --ctc-weight, and CTC models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.fairseq.architecture import Architecture, Reference
from fairseq_openvino.export.fairseq.transformer_decoder import EncoderGraph
from fairseq_openvino.export.forced import Forced
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.model import LOG_PROBS
from fairseq_openvino.tensors import TensorSpec


class CTCGraph(nn.Module):
    """features (N, T, F), lengths (N,) -> encoder_lengths (N,), log_probs (N, S, V).

    Source: Fairseq `models/speech_to_text/s2t_transformer.py:S2TTransformerModel.get_ctc_output`.
    """

    def __init__(self, body: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.body, self.output = body, output

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x, lengths = self.body(features, lengths)
        return lengths, torch.log_softmax(self.output(x), dim=-1)


def graphs(
    architecture: str, body: nn.Module, output: Any, feature_bins: int, max_source_frames: int,
    subsampling: int, min_source_frames: int = 1,
) -> Graphs:  # fmt: skip
    """The one graph of a model whose output layer, D -> V, is behind its encoder.

    The other arguments are those of `transformer_decoder.graphs`.
    """
    return Graphs(
        architecture=architecture,
        encoder=CTCGraph(body, output).eval(),
        decoder=None,
        layers=0,
        memory=(TensorSpec(LOG_PROBS, ("N", "S", output.out_features)),),
        state=(),
        model_width=output.in_features,
        feature_bins=feature_bins,
        vocabulary_size=output.out_features,
        max_source_frames=max_source_frames,
        max_target_tokens=0,
        subsampling=subsampling,
        min_source_frames=min_source_frames,
    )


class HeadReference(Reference):
    """Encoder and head of a Fairseq model."""

    def logits(self, batch: Forced) -> Tensor:
        """See `parity.Reference`."""
        encoded = self.encode(batch)
        return valid(*self.model.get_ctc_output((None, {"encoder_out": encoded}), None))


def valid(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """(S, N, V), (N,) -> (valid frames of all utterances, V)."""
    return torch.cat([log_probs[:length, i] for i, length in enumerate(lengths.tolist())])


def head(known: Architecture) -> Architecture:
    """How encoder and CTC head of models of an architecture are exported."""

    def build(model: Any, arguments: Any) -> Graphs:
        output = getattr(getattr(model, "encoder", None), "ctc_proj", None)
        if output is None:
            raise ArchitectureError(
                f"Exporting failed in ctc: expected a model with a CTC head (ctc_weight above 0), got a "
                f"{type(model).__name__} without one. Leave --ctc out, or train with --ctc-weight."
            )
        whole = known.build(model, arguments)
        if not isinstance(whole.encoder, EncoderGraph):
            raise ArchitectureError(
                f"Exporting failed in ctc: expected an encoder of a Transformer decoder, got that of "
                f"{whole.architecture!r}. Leave --ctc out."
            )
        return graphs(
            whole.architecture, whole.encoder.body, output, whole.feature_bins,
            whole.max_source_frames, whole.subsampling, whole.min_source_frames,
        )  # fmt: skip

    return replace(known, build=build, reference=HeadReference)
