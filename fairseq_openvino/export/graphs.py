"""What every architecture hands to the exporter: two torch graphs and the numbers around them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fairseq_openvino.bundle import Manifest
from fairseq_openvino.tensors import TensorSpec


@dataclass(frozen=True)
class Graphs:
    """Encoder and decoder as `torch.nn.Module` with the signatures of `export/onnx.py`."""

    architecture: str
    encoder: Any
    decoder: Any
    """None if the encoder is all there is, as of a CTC model: then `state` is empty too."""
    layers: int
    """P, decoder layers; 0 without a decoder."""
    memory: tuple[TensorSpec, ...]
    """Outputs of the encoder behind `encoder_lengths`."""
    state: tuple[TensorSpec, ...]
    """What the decoder is given and returns at each call."""
    model_width: int
    """D of the decoder."""
    feature_bins: int
    """F; 0: the encoder reads token ids."""
    vocabulary_size: int
    """V."""
    max_source_frames: int
    """Largest T the model was configured for."""
    max_target_tokens: int
    """Decoder positions."""
    subsampling: int
    """T / S, rounded."""
    min_source_frames: int = 1
    """Smallest T that gives an encoder frame."""
    source_vocabulary_size: int = 0
    """Symbols of the source, where F is 0."""

    @classmethod
    def of(cls, manifest: Manifest) -> Graphs:
        """The numbers of an exported model."""
        sizes, limits = manifest.dimensions, manifest.limits
        return cls(
            manifest.architecture, None, None, sizes.layers, manifest.memory, manifest.state,
            sizes.model_width, sizes.feature_bins, sizes.vocabulary_size, limits.max_source_frames,
            limits.max_target_tokens, sizes.subsampling, limits.min_source_frames,
            sizes.source_vocabulary_size,
        )  # fmt: skip

    @property
    def has_decoder(self) -> bool:
        """Whether there are two graphs."""
        return self.layers > 0

    def without_modules(self) -> Graphs:
        """The numbers alone, which keep no weights in memory."""
        return replace(self, encoder=None, decoder=None)
