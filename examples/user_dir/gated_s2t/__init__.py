"""A Fairseq architecture with its exporter, for `--user-dir examples/user_dir/gated_s2t --ov-engine`."""

from fairseq.models import register_model, register_model_architecture
from fairseq.models.speech_to_text import s2t_transformer
from torch import nn

import fairseq_openvino.plugin.task  # noqa: F401  all that --user-dir fairseq_openvino brings
from fairseq_openvino.export.fairseq import ARCHITECTURES, Architecture, transformer_decoder
from fairseq_openvino.export.fairseq.s2t_transformer import SUBSAMPLING, Encoder


class Gate(nn.Linear):
    """x (..., D) times the sigmoid of a projection of it."""

    def forward(self, x):
        """See the class."""
        return super().forward(x).sigmoid() * x


@register_model("gated_s2t")
class GatedS2T(s2t_transformer.S2TTransformerModel):
    """`s2t_transformer` with a gate behind its encoder."""

    @classmethod
    def build_encoder(cls, args):
        """The encoder, for training and for eager generation."""
        encoder, width = super().build_encoder(args), args.encoder_embed_dim
        encoder.layer_norm = nn.Sequential(encoder.layer_norm, Gate(width, width))
        return encoder


def build(model, arguments):
    """Its graphs: any module that maps features, lengths to (N, S, D), lengths can be the encoder."""
    encoder, bins = Encoder(model.encoder), arguments.input_feat_per_channel
    limit = arguments.max_source_positions
    return transformer_decoder.graphs("gated_s2t", encoder, model.decoder, bins, limit, SUBSAMPLING)


register_model_architecture("gated_s2t", "gated_s2t_s")(s2t_transformer.s2t_transformer_s)
ARCHITECTURES["gated_s2t"] = Architecture(build)
