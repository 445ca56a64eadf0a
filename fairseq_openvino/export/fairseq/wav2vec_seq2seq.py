"""`wav2vec_seq2seq`: wav2vec 2.0 and a Transformer decoder.

Letters as in `transformer_decoder.py`; T counts samples, and F = 1.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fairseq_openvino.export.fairseq import transformer_decoder, wav2vec2
from fairseq_openvino.export.fairseq.wav2vec_ctc import waveforms
from fairseq_openvino.export.forced import Forced
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.parity import at_nodes

ARCHITECTURE = "wav2vec_seq2seq"


def build(model: Any, arguments: Any) -> Graphs:
    """Wrap a loaded `Wav2Vec2Seq2SeqModel`.

    Args:
        model: the Fairseq model, in eval mode.
        arguments: its options.

    Raises:
        ArchitectureError: an option of the checkpoint has no counterpart in these graphs.
    """
    wav2vec2.refuse_unsupported(ARCHITECTURE, model.encoder)
    decoder = _decoder(model.decoder)
    transformer_decoder.refuse_unsupported(ARCHITECTURE, decoder)
    samples, shift = wav2vec2.receptive_field(model.encoder)
    body = wav2vec2.Wav2Vec2(model.encoder)
    return transformer_decoder.graphs(
        ARCHITECTURE, body, decoder, 1, wav2vec2.MAX_SAMPLES, shift, samples
    )


def _decoder(decoder: Any) -> Any:
    """The decoder with the members of Fairseq's usual one, whose subset it is.

    Source: Fairseq `models/wav2vec/wav2vec2_asr.py:TransformerDecoder`.
    """
    shared = decoder.share_input_output_embed
    weight = decoder.embed_tokens.weight if shared else decoder.embed_out
    output = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False)
    output.weight = weight
    return SimpleNamespace(
        layers=decoder.layers, embed_dim=decoder.output_embed_dim, output_projection=output,
        max_positions=decoder.max_positions, padding_idx=decoder.padding_idx,
        embed_tokens=decoder.embed_tokens, embed_scale=decoder.embed_scale,
        embed_positions=decoder.embed_positions, layer_norm=decoder.layer_norm,
        project_in_dim=decoder.project_in_dim, project_out_dim=None, layernorm_embedding=None,
        adaptive_softmax=None, quant_noise=None, cross_self_attention=False,
    )  # fmt: skip


class Reference(wav2vec2.Reference):
    """A `Wav2Vec2Seq2SeqModel`."""

    def encode(self, batch: Forced) -> Any:
        """What the Fairseq encoder returns."""
        return self.model.encoder(**waveforms(batch))

    def logits(self, batch: Forced) -> Tensor:
        """See `parity.Reference`."""
        encoder, decoder = self.model.encoder, self.model.decoder
        utterances = torch.from_numpy(batch.utterances)
        encoded = encoder.reorder_encoder_out(self.encode(batch), utterances)
        hidden, _ = decoder.extract_features(torch.from_numpy(batch.paths), encoded)
        logits: Tensor = decoder.output_layer(at_nodes(hidden, batch))
        return logits
