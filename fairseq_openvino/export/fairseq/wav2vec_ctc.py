"""`wav2vec_ctc`: wav2vec 2.0 with a CTC layer, fine-tuned to letters or other labels.

Letters as in `transformer_decoder.py`; T counts samples, and F = 1.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fairseq_openvino.export.fairseq import ctc, wav2vec2
from fairseq_openvino.export.fairseq.pretrained import configured, wav2vec2_arguments
from fairseq_openvino.export.forced import Forced
from fairseq_openvino.export.graphs import Graphs

ARCHITECTURE = "wav2vec_ctc"
BLANK = 0
DEFAULTS = {"normalize": False, "autoregressive": True, "ddp_backend": ""}
"""Of options that refer to parts of a whole configuration."""


def complete(arguments: Namespace) -> Any:
    """See `Architecture.complete`; all weights come from the checkpoint.

    Returns:
        A `DictConfig` of the options that the model has.
    """
    from fairseq.models import MODEL_DATACLASS_REGISTRY

    name = getattr(arguments, "_name", None) or arguments.arch
    given = vars(wav2vec2_arguments(arguments))
    known = MODEL_DATACLASS_REGISTRY[name].__dataclass_fields__.keys() & given.keys()
    stated = DEFAULTS | {key: given[key] for key in known}
    return configured({**stated, "_name": name, "w2v_path": ""})


def build(model: Any, arguments: Any) -> Graphs:
    """Wrap a loaded `Wav2VecCtc`.

    Args:
        model: the Fairseq model, in eval mode.
        arguments: its options.

    Raises:
        ArchitectureError: an option of the checkpoint has no counterpart in this graph.
    """
    encoder = model.w2v_encoder
    wav2vec2.refuse_unsupported(ARCHITECTURE, encoder)
    samples, shift = wav2vec2.receptive_field(encoder)
    body = wav2vec2.Wav2Vec2(encoder)
    body.project_out = None  # it is the output layer
    output = _weighted(encoder.proj, float(model.blank_weight), str(model.blank_mode))
    return ctc.graphs(ARCHITECTURE, body, output, 1, wav2vec2.MAX_SAMPLES, shift, samples)


def _weighted(output: Any, weight: float, mode: str) -> nn.Linear:
    """The output layer with the logit of the blank as the model's options want it.

    Source: Fairseq `models/wav2vec/wav2vec2_asr.py:Wav2VecCtc.get_logits`.
    """
    found = skip_init(nn.Linear, output.in_features, output.out_features)
    with torch.no_grad():
        found.weight.copy_(output.weight)
        found.bias.copy_(output.bias)
        if weight and mode == "set":
            found.weight[BLANK] = found.bias[BLANK] = 0.0
        found.bias[BLANK] += weight
    return found


class Reference(wav2vec2.Reference):
    """A `Wav2VecCtc`."""

    def logits(self, batch: Forced) -> Tensor:
        """See `parity.Reference`."""
        encoded = self.model(**waveforms(batch))
        log_probs = self.model.get_normalized_probs(encoded, log_probs=True)  # (S, N, V)
        return ctc.valid(log_probs, frame_lengths(log_probs, encoded["padding_mask"]))


def waveforms(batch: Forced) -> dict[str, Tensor]:
    """Inputs of a `Wav2VecEncoder`, as `data/audio/raw_audio_dataset.py` collates them."""
    source = torch.from_numpy(batch.features[..., 0])
    lengths = torch.from_numpy(batch.lengths)
    return {
        "source": source,
        "padding_mask": torch.arange(source.shape[1]).unsqueeze(0) >= lengths.unsqueeze(1),
    }


def frame_lengths(frames: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Valid frames of (S, N, ...) by Fairseq's mask (N, S), which is None without padding."""
    if padding_mask is None:
        return torch.full((frames.shape[1],), frames.shape[0])
    return (~padding_mask).sum(dim=1)
