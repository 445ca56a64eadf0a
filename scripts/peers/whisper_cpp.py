"""whisper.cpp through pywhispercpp, without temperature fallback; f16 or q8_0; one clip at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ggml
import numpy as np
from protocol import END, Peer, serve


class WhisperCpp(Peer):
    """Greedy and beam search share the weights."""

    module, packages, batches = "pywhispercpp", ("pywhispercpp",), False

    def convert(self) -> Path:
        """See `ggml`."""
        path = self.work / f"ggml-{self.precision}"
        if not path.exists():
            ggml.convert(self.source, path.with_suffix(".partial"), self.precision)
            path.with_suffix(".partial").rename(path)
        return path

    def construct(self) -> None:
        """See `Peer`."""
        import _pywhispercpp as library
        from pywhispercpp.model import Model

        self.library = library
        self.options: dict[str, Any] = {
            "n_threads": self.threads, "no_timestamps": True, "single_segment": True,
            "temperature_inc": 0.0, "print_progress": False,
        }  # fmt: skip
        self.model = Model(str(self.convert()), params_sampling_strategy=0, **self.options)
        # The strategy belongs to the parameters: a second set of them shares the weights.
        kinds = library.whisper_sampling_strategy
        beams = library.whisper_full_default_params(kinds.WHISPER_SAMPLING_BEAM_SEARCH)
        self.parameters = {False: self.model._params, True: beams}

    def transcribe(
        self, clips: list[np.ndarray], search: dict[str, Any], language: str, tokens: int | None
    ) -> list[tuple[str, int]]:
        """See `Peer`."""
        library, context, beam = self.library, self.model._ctx, search["beam"]
        self.model._params = self.parameters[beam > 1]
        options = self.options | {"language": language, "translate": search["task"] == "translate"}
        if beam > 1:
            options["beam_search"] = {"beam_size": beam, "patience": -1.0}
        if tokens is not None:
            options["max_tokens"] = tokens - 1
        outputs = []
        for clip in clips:
            segments = self.model.transcribe(clip, **options)
            found = [
                library.whisper_full_get_token_id(context, i, j)
                for i in range(library.whisper_full_n_segments(context))
                for j in range(library.whisper_full_n_tokens(context, i))
            ]
            text = "".join(segment.text for segment in segments)
            outputs.append((text, sum(token < END for token in found)))
        return outputs

    def summary(self) -> str:
        """See `Peer`."""
        return f"weights {self.precision}, activations f32"


if __name__ == "__main__":
    serve(WhisperCpp)
