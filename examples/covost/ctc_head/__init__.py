"""A Fairseq criterion that trains any speech encoder with CTC beside cross-entropy (`--user-dir`).

Fairseq's `label_smoothed_cross_entropy_with_ctc` needs a CTC head in the model, which only
s2t_transformer has. Here the head belongs to the criterion: the model stays Fairseq's own.
"""

from dataclasses import dataclass, field

import torch
from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy_with_ctc import (
    LabelSmoothedCrossEntropyWithCtcCriterion,
    LabelSmoothedCrossEntropyWithCtcCriterionConfig,
)


@dataclass
class CtcHeadConfig(LabelSmoothedCrossEntropyWithCtcCriterionConfig):
    """Options of the criterion."""

    ctc_input_dim: int = field(default=256, metadata={"help": "channels of the encoder's output"})


@register_criterion("label_smoothed_cross_entropy_with_ctc_head", dataclass=CtcHeadConfig)
class CtcHeadCriterion(LabelSmoothedCrossEntropyWithCtcCriterion):
    """Label-smoothed cross-entropy of the decoder plus CTC of a linear layer on the encoder."""

    # Fairseq fills the parameters from the configuration by their names.
    def __init__(
        self,
        task,
        sentence_avg,
        label_smoothing,
        ignore_prefix_size,
        report_accuracy,
        ctc_weight,
        ctc_input_dim,
    ):
        super().__init__(
            task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy, ctc_weight
        )
        self.head = torch.nn.Linear(ctc_input_dim, len(task.target_dictionary))

    def forward(self, model, sample, reduce=True):
        """Fairseq's loss; the model only lends its parts."""
        return super().forward(_WithHead(model, self.head), sample, reduce)


class _WithHead:
    """What Fairseq's criterion asks a model with a CTC head for."""

    def __init__(self, model, head: torch.nn.Linear):
        self._head = head
        self._model = model
        self.get_normalized_probs = model.get_normalized_probs
        self.get_targets = model.get_targets

    def __call__(self, src_tokens, src_lengths, prev_output_tokens):
        self._encoded = self._model.encoder(src_tokens, src_lengths)
        return self._model.decoder(prev_output_tokens, encoder_out=self._encoded)

    def get_ctc_target(self, sample):
        """Target ids (N, U) and their lengths."""
        return sample["target"], sample["target_lengths"]

    def get_ctc_output(self, net_output, sample):
        """Log-probabilities (S, N, V) and the lengths of the encoder's outputs."""
        states, mask = self._encoded["encoder_out"], self._encoded["encoder_padding_mask"]
        if isinstance(states, list):  # Transformers list (S, N, D) and, if any pads, (N, S)
            states, mask = states[0], mask[0] if mask else None
        else:  # s2t_berard: (S, N, D) and (S, N)
            mask = mask.t()
        lengths = torch.full((states.shape[1],), states.shape[0])
        if mask is not None:
            lengths -= mask.sum(dim=-1)
        return utils.log_softmax(self._head(states).float(), dim=-1), lengths
