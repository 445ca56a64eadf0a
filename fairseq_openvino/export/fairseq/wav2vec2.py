"""The wav2vec 2.0 encoder, built from the modules of a Fairseq model.

Letters as in `transformer_decoder.py`; T counts samples, and F = 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.fairseq import architecture
from fairseq_openvino.export.fairseq.transformer_decoder import key_bias, valid_frames
from fairseq_openvino.export.forced import Forced
from fairseq_openvino.export.layers import EncoderLayer
from fairseq_openvino.export.parity import Cases

CASES: Cases = (
    ((4_000,), 4),
    ((9_600, 5_300), 8),
    ((26_000, 25_900, 12_000, 1_700), 12),
    ((55_000, 30_100), 16),
)
"""For waveforms: as many samples as `parity.CASES` has frames, a tenth as long in time."""

MAX_SAMPLES = 960_000
"""60 s at 16 kHz, as long as Fairseq's default for filter banks. The encoder has no positions to run out
of, but its attention grows with the square of the length."""
MIN_SAMPLES = 16_000
"""A limit below it counts frames of 10 ms, as some manifests of waveforms do."""


BLOCK = 256
"""Frames that are added up together."""


class Reference(architecture.Reference):
    """A Fairseq model that reads waveforms (N, T)."""

    def encode(self, batch: Forced) -> Any:
        """What the Fairseq encoder returns."""
        waveforms = torch.from_numpy(batch.features[..., 0])
        return self.model.encoder(waveforms, torch.from_numpy(batch.lengths))


def refuse_unsupported(name: str, encoder: Any) -> None:
    """Look for options of a `Wav2VecEncoder` that have no counterpart in its graph.

    Args:
        name: Fairseq's model name.
        encoder: its `Wav2VecEncoder`.

    Raises:
        ArchitectureError: naming them.
    """
    from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer, Wav2Vec2Model

    model = encoder.w2v_model
    if type(model) is not Wav2Vec2Model:
        found = [f"the pre-trained model {type(model).__name__}"]
    else:
        kinds = {type(layer) for layer in model.encoder.layers} - {TransformerSentenceEncoderLayer}
        found = sorted(f"layers of the kind {kind.__name__}" for kind in kinds)
        found += ["quantize_input"] if model.input_quantizer is not None else []
    if found:
        raise ArchitectureError(
            f"Export failed in {name}: expected the Transformer of wav2vec 2.0, got "
            f"{', '.join(found)}. Generate with Fairseq itself."
        )


def max_samples(arguments: Any) -> int:
    """The longest clip that is heard as a whole: `max_source_positions` if that counts samples."""
    stated = int(arguments.max_source_positions)
    return stated if MIN_SAMPLES <= stated <= MAX_SAMPLES else MAX_SAMPLES


def convolutions(encoder: Any) -> list[tuple[int, int]]:
    """Kernel and stride, in samples of its input, of each layer of the feature extractor."""
    layers = [block[0] for block in encoder.w2v_model.feature_extractor.conv_layers]
    return [(layer.kernel_size[0], layer.stride[0]) for layer in layers]


def receptive_field(encoder: Any) -> tuple[int, int]:
    """Samples that make one encoder frame, and from one frame to the next."""
    samples, shift = 1, 1
    for kernel, stride in convolutions(encoder):
        samples, shift = samples + (kernel - 1) * shift, shift * stride
    return samples, shift


class Wav2Vec2(nn.Module):
    """features (N, T, 1), lengths (N,) -> (N, S, D), (N,).

    Fairseq pads S to a multiple with frames that nothing attends to and cuts them off again; they are
    left out here. A clip that is too short for a frame reads the padding of its batch, as there.

    Source: Fairseq `models/wav2vec/wav2vec2_asr.py:Wav2VecEncoder` and
    `models/wav2vec/wav2vec2.py:Wav2Vec2Model`, `TransformerEncoder`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        model = encoder.w2v_model
        self.convolutions = convolutions(encoder)
        self.extractor, self.feature_norm = _extractor(model.feature_extractor), model.layer_norm
        self.crop, self.project_in = model.crop_seq_to_multiple, model.post_extract_proj
        self.positions = _without_weight_norm(model.encoder.pos_conv)
        self.norm, self.norm_first = model.encoder.layer_norm, model.encoder.layer_norm_first
        self.layers = nn.ModuleList(
            EncoderLayer(layer, layer.layer_norm_first) for layer in model.encoder.layers
        )
        self.project_out = encoder.proj

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x = self.feature_norm(self.extractor(features.transpose(1, 2)).transpose(1, 2))
        for kernel, stride in self.convolutions:
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        lengths = torch.where(lengths < 1, lengths + x.shape[1], lengths)
        if self.crop > 1:
            x = x[:, : x.shape[1] // self.crop * self.crop]
            lengths = torch.minimum(lengths, torch.zeros_like(lengths) + x.shape[1])
        if self.project_in is not None:
            x = self.project_in(x)
        valid = valid_frames(x, lengths)
        x = torch.where(valid.unsqueeze(2), x, 0.0)
        x = x + self.positions(x.transpose(1, 2)).transpose(1, 2)
        if not self.norm_first:
            x = self.norm(x)
        bias = key_bias(valid)
        for layer in self.layers:
            x = layer(x, bias)
        if self.norm_first:
            x = self.norm(x)
        return (x if self.project_out is None else self.project_out(x)), lengths


class ChannelNorm(nn.Module):
    """Mean 0 and variance 1 of each channel over its frames, affine; (N, C, T) -> (N, C, T).

    The sums are taken in two steps: the runtimes' own normalisation adds up all frames one after the
    other, of which there are 3,200 a second, and strays from Fairseq's with the length of the clip.

    Source: Fairseq `modules/fp32_group_norm.py`, with as many groups as channels.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.epsilon = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x - _mean(x)
        scale = torch.rsqrt(_mean(x * x) + self.epsilon) * self.weight.unsqueeze(1)
        return x * scale + self.bias.unsqueeze(1)


def _mean(x: Tensor) -> Tensor:
    """Over the frames; (N, C, T) -> (N, C, 1)."""
    frames = x.shape[2]
    blocks = nn.functional.pad(x, (0, BLOCK - frames % BLOCK)).unflatten(2, (-1, BLOCK))
    return blocks.sum(3).sum(2, keepdim=True) / frames


def _extractor(module: Any) -> nn.Module:
    """The convolutions of a feature extractor, with `ChannelNorm` where it normalises channels."""
    blocks = [
        nn.Sequential(*(ChannelNorm(p) if isinstance(p, nn.GroupNorm) else p for p in block))
        for block in module.conv_layers
    ]
    return nn.Sequential(*blocks)


def _without_weight_norm(module: nn.Module) -> nn.Module:
    """The module, with a plain convolution for each whose weight torch computes from two others."""
    if not isinstance(module, nn.Conv1d):
        parts = [_without_weight_norm(part) for part in module.children()]
        return nn.Sequential(*parts) if parts else module
    hooks = module._forward_pre_hooks.values()
    computed = [hook.compute_weight(module) for hook in hooks if hasattr(hook, "compute_weight")]
    plain = skip_init(
        nn.Conv1d, module.in_channels, module.out_channels, module.kernel_size,
        padding=module.padding, groups=module.groups,
    )  # fmt: skip
    with torch.no_grad():
        plain.weight.copy_(computed[0] if computed else module.weight)
        plain.bias.copy_(module.bias)
    return plain
