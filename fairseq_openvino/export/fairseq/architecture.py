"""What an exporter of a Fairseq architecture consists of."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fairseq_openvino.export.forced import Forced
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.parity import CASES, Cases, at_nodes


class Reference:
    """A Fairseq encoder-decoder model in eval mode; see `parity.Reference`."""

    name = "Fairseq"

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, batch: Forced) -> Any:
        """What the Fairseq encoder returns."""
        return self.model.encoder(torch.from_numpy(batch.features), torch.from_numpy(batch.lengths))

    def logits(self, batch: Forced) -> torch.Tensor:
        """See `parity.Reference`."""
        encoder, decoder = self.model.encoder, self.model.decoder
        utterances = torch.from_numpy(batch.utterances)
        encoded = encoder.reorder_encoder_out(self.encode(batch), utterances)
        paths = torch.from_numpy(batch.paths)
        hidden = decoder(paths, encoder_out=encoded, features_only=True)[0]  # (Q, steps, D)
        logits: torch.Tensor = decoder.output_layer(at_nodes(hidden, batch))
        return logits


@dataclass(frozen=True)
class Architecture:
    """How the checkpoints of one Fairseq model name are exported."""

    build: Callable[[Any, Any], Graphs]
    """Of the model in eval mode and its arguments; raises ArchitectureError for options of the
    checkpoint that have no counterpart."""
    reference: Callable[[Any], Reference] = Reference
    """The model as the parity gate calls it."""
    task: str = "speech_to_text"
    """Fairseq's task that builds the model, a key of `checkpoint.TASKS`."""
    cases: Cases = CASES
    """What graphs and model are compared on."""
    complete: Callable[[Namespace], Namespace] = lambda arguments: arguments
    """Arguments of a checkpoint that build its model on another machine than the one it was trained on;
    raises CheckpointError if they need a file that is not there."""
