"""The wav2vec 2.0 encoder, built from the modules of a Fairseq model.

Letters as in `transformer_decoder.py`; T counts samples, and F = 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.fairseq import architecture
from fairseq_openvino.export.fairseq.conformer_layer import ConformerLayer
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
"""For waveforms: T counts samples, up to 3.4 s at 16 kHz."""
MAX_SAMPLES = 960_000
"""60 s at 16 kHz, as long as Fairseq's default for filter banks. The encoder has no positions to run out
of, but its attention grows with the square of the length."""
MIN_SAMPLES = 16_000
"""A limit below it counts frames of 10 ms, as some manifests of waveforms do."""


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
    from fairseq.modules.conformer_layer import ConformerWav2Vec2EncoderLayer

    model = encoder.w2v_model
    if type(model) is not Wav2Vec2Model:
        found = [f"the pre-trained model {type(model).__name__}"]
    else:
        known = {TransformerSentenceEncoderLayer, ConformerWav2Vec2EncoderLayer}
        kinds = {type(layer) for layer in model.encoder.layers} - known
        found = sorted(f"layers of the kind {kind.__name__}" for kind in kinds)
        found += ["quantize_input"] if model.input_quantizer is not None else []
    if found:
        raise ArchitectureError(
            f"Export failed in {name}: expected wav2vec 2.0 with Transformer or Conformer layers, got "
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

    Fairseq pads S to a multiple with frames that nothing attends to and cuts them off again: they reach
    the convolutions of Conformer layers, and are left out for Transformer layers. A clip that is too short
    for a frame reads the padding of its batch, as there.

    Source: Fairseq `models/wav2vec/wav2vec2_asr.py:Wav2VecEncoder` and
    `models/wav2vec/wav2vec2.py:Wav2Vec2Model`, `TransformerEncoder`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        model = encoder.w2v_model
        self.convolutions = convolutions(encoder)
        self.extractor = _extractor(model.feature_extractor)
        self.feature_norm = model.layer_norm
        self.crop, self.project_in = model.crop_seq_to_multiple, model.post_extract_proj
        self.positions = _without_weight_norm(model.encoder.pos_conv)
        self.norm, self.norm_first = model.encoder.layer_norm, model.encoder.layer_norm_first
        is_conformer = not hasattr(model.encoder.layers[0], "layer_norm_first")
        self.multiple = model.encoder.required_seq_len_multiple if is_conformer else 1
        self.layers = nn.ModuleList(
            ConformerLayer(layer, None)
            if is_conformer
            else EncoderLayer(layer, layer.layer_norm_first)
            for layer in model.encoder.layers
        )
        self.project_out = encoder.proj

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x = self.feature_norm(self.extractor(features))
        for kernel, stride in self.convolutions:
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        lengths = torch.where(lengths < 1, lengths + x.shape[1], lengths)
        if self.crop > 1:
            x = x[:, : x.shape[1] // self.crop * self.crop]
            lengths = torch.minimum(lengths, torch.zeros_like(lengths) + x.shape[1])
        if self.project_in is not None:
            x = self.project_in(x)
        frames, valid = x.shape[1], valid_frames(x, lengths)
        x = torch.where(valid.unsqueeze(2), x, 0.0)
        x = x + self.positions(x.transpose(1, 2)).transpose(1, 2)
        if not self.norm_first:
            x = self.norm(x)
        if self.multiple > 1:
            x = nn.functional.pad(x, (0, 0, 0, -frames % self.multiple))
        bias = key_bias(valid_frames(x, lengths))
        for layer in self.layers:
            x = layer(x, bias)
        x = x[:, :frames]
        if self.norm_first:
            x = self.norm(x)
        return (x if self.project_out is None else self.project_out(x)), lengths


def _extractor(extractor: Any) -> nn.Module:
    """(N, T, 1) -> (N, S, C); frame by frame where every layer normalises frames.

    Source: Fairseq `models/wav2vec/wav2vec2.py:ConvFeatureExtractionModel`.
    """
    blocks = extractor.conv_layers
    if not all(isinstance(block[2], nn.Sequential) for block in blocks):
        return ByChannel(blocks)
    parts = ((ByFrame(block[0]), block[2][1], block[3]) for block in blocks)
    return nn.Sequential(*(part for block in parts for part in block))


class ByChannel(nn.Module):
    """The layers as they are: OpenVINO keeps the order of their tensors from one to the next."""

    def __init__(self, blocks: Iterable[Any]) -> None:
        super().__init__()
        parts = (part for block in blocks for part in block)
        self.layers = nn.Sequential(
            *(TimeNorm(part) if isinstance(part, nn.GroupNorm) else part for part in parts)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, 1) -> (N, S, C)."""
        x: Tensor = self.layers(features.transpose(1, 2))
        return x.transpose(1, 2)


class TimeNorm(nn.Module):
    """A group norm with a group for each channel; (N, C, T) -> (N, C, T).

    Sums are made of the sums of short blocks: one after the other, the samples of a clip round too much.
    """

    BLOCK = 64

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.epsilon = norm.eps
        self.register_buffer("scale", norm.weight.detach()[:, None])  # (C, 1)
        self.register_buffer("bias", norm.bias.detach()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x - self._mean(x)
        return x * torch.rsqrt(self._mean(x * x) + self.epsilon) * self.scale + self.bias

    def _mean(self, x: Tensor) -> Tensor:
        """(N, C, T) -> (N, C, 1)."""
        samples = x.shape[2]
        padded = nn.functional.pad(x, (0, -samples % self.BLOCK))
        blocks = nn.functional.avg_pool1d(padded, self.BLOCK)
        return blocks.sum(2, keepdim=True) * (self.BLOCK / samples)


class ByFrame(nn.Module):
    """A convolution as a product with the frames it sees: a norm of frames needs no transposing then.

    (N, T, C) -> (N, S, C').
    """

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        (self.kernel,), (self.stride,) = convolution.kernel_size, convolution.stride
        self.width = convolution.in_channels * self.stride
        width, has_bias = convolution.in_channels * self.kernel, convolution.bias is not None
        self.project = skip_init(nn.Linear, width, convolution.out_channels, bias=has_bias)
        with torch.no_grad():
            self.project.weight.copy_(convolution.weight.transpose(1, 2).flatten(1))
            if has_bias:
                self.project.bias.copy_(convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        count = (x.shape[1] - self.kernel) // self.stride + 1
        whole = self.kernel // self.stride * self.stride
        seen = [
            x[:, first : first + count * self.stride].reshape(x.shape[0], -1, self.width)
            for first in range(0, whole, self.stride)
        ]
        last = (count - 1) * self.stride + 1
        seen += [x[:, i : i + last : self.stride] for i in range(whole, self.kernel)]
        return self.project(torch.cat(seen, 2) if len(seen) > 1 else seen[0])


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
