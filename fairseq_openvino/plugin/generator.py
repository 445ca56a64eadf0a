"""Our beam search behind the interface of Fairseq's `SequenceGenerator`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from fairseq_openvino.errors import NumericsError
from fairseq_openvino.model import Head, Hypothesis
from fairseq_openvino.plugin.model import S2TOpenVINOModel, encoder_inputs
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.s2t.search import TokenIds, candidate_count, decode_batch

BATCH_SIZES = "ov_batch_sizes"
"""Attribute of a task, set by its `get_batch_iterator`."""


class OpenVINOGenerator:
    """Plain beam search of one model: same hypotheses as Fairseq's generator, less work a step."""

    def __init__(
        self, original: Any, model: S2TOpenVINOModel, utterances: Collection[int] = (1,)
    ) -> None:
        """In place of `original`; `utterances` are the sizes of the batches to come."""
        self.model = model.compiled
        self.eos = original.eos
        self.symbols_to_strip_from_output = original.symbols_to_strip_from_output
        self.options = S2TOptions(
            beam=original.beam_size,
            max_len_a=original.max_len_a,
            max_len_b=original.max_len_b,
            min_len=original.min_len,
            lenpen=original.len_penalty,
            unkpen=original.unk_penalty,
            unnormalized=not original.normalize_scores,
        )
        self.pad, self.unk = original.pad, original.unk
        suppressed = original.token_indices_to_suppress
        self.suppressed = () if suppressed is None else tuple(suppressed.tolist())
        vocabulary_size = self.model.manifest.dimensions.vocabulary_size
        head = Head(candidate_count(self.options.beam, vocabulary_size))
        self.model.prepare(utterances, self.options.beam, head)

    def generate(
        self,
        models: Any,
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Any = None,
        bos_token: int | None = None,
    ) -> list[list[dict[str, Any]]]:
        """A batch as Fairseq's dataset collates it to n-best lists of dictionaries.

        Raises:
            NumericsError: naming the utterances whose scores are not numbers.
        """
        source = sample["net_input"]
        features, lengths = encoder_inputs(self.model, source["src_tokens"], source["src_lengths"])
        prefix = None if prefix_tokens is None else prefix_tokens.cpu().numpy()
        ids = TokenIds(self.pad, self.eos, self.unk, bos_token, self.suppressed)
        try:
            found = decode_batch(self.model, features, lengths, self.options, ids, prefix)
        except NumericsError as error:
            ids = sample.get("id", range(len(lengths)))  # fairseq-interactive gives none
            affected = [int(ids[i]) for i in error.indices]
            raise NumericsError(f"{error} Utterances: {affected}.", error.indices) from error
        return [[as_fairseq(hypothesis) for hypothesis in best] for best in found]


def batch_sizes(task: Any) -> Collection[int]:
    """Sizes of the batches a task has made; before it made any, one utterance."""
    sizes: Collection[int] = getattr(task, BATCH_SIZES, ())
    return sizes or (1,)


def replaces(generator: Any) -> bool:
    """Whether `OpenVINOGenerator` computes exactly what this Fairseq generator computes."""
    from fairseq.search import BeamSearch
    from fairseq.sequence_generator import SequenceGenerator

    return (
        type(generator) is SequenceGenerator
        and type(generator.search) is BeamSearch
        and generator.model.models_size == 1
        and isinstance(generator.model.single_model, S2TOpenVINOModel)
        and generator.lm_model is None
        and generator.temperature == 1.0
        and generator.repeat_ngram_blocker is None
        and not generator.match_source_len
    )


def as_fairseq(hypothesis: Hypothesis) -> dict[str, Any]:
    """The dictionary Fairseq's generators return for a hypothesis."""
    return {
        "tokens": torch.from_numpy(hypothesis.tokens),
        "score": torch.tensor(hypothesis.score),
        "attention": torch.empty(0),  # the S2T decoders return none either
        "alignment": torch.empty(0),
        "positional_scores": torch.from_numpy(hypothesis.positional_scores),
    }
