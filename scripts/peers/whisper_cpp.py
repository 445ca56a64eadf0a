"""whisper.cpp through pywhispercpp; f16 or q8_0; one clip at a time. Clips run without fallback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ggml
import numpy as np
from protocol import BEST_OF, END, TEMPERATURES, Long, Peer, Segment, serve


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

    def recording(self, **named: Any) -> dict[str, Any]:
        """A request; a context remembers what was said before, and so is made anew for each."""
        self.construct()
        return super().recording(**named)

    def hear_samples(self, samples: np.ndarray, how: Long, language: str) -> list[Segment]:
        """Falls back by entropy instead of compression; conditioned as its own program is."""
        self.model._params = self.parameters[how.beam > 1]
        found = self.model.transcribe(
            samples, language=language, n_threads=self.threads, print_progress=False,
            no_timestamps=False, single_segment=False, no_context=False, max_tokens=0,
            temperature_inc=TEMPERATURES[1], greedy={"best_of": BEST_OF},
            beam_search={"beam_size": how.beam, "patience": -1.0},
        )  # fmt: skip
        return [Segment(each.t0 / 100, each.t1 / 100, f" {each.text}") for each in found]

    def summary(self) -> str:
        """See `Peer`."""
        return f"weights {self.precision}, activations f32"


if __name__ == "__main__":
    serve(WhisperCpp)
