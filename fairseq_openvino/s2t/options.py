"""What a Fairseq S2T model is asked for; fields are named and defined as Fairseq's options."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from fairseq_openvino.errors import invalid


@dataclass(frozen=True)
class S2TOptions:
    """Options of a search; keywords of `Recognizer.transcribe`."""

    beam: int = 5
    """Beams (K): hypotheses kept per utterance."""
    nbest: int = 1
    """Hypotheses to return, at most `beam`."""
    lenpen: float = 1.0
    """Length penalty: scores are divided by length ** lenpen."""
    language: str | None = None
    """Target language of a multilingual model (its `<lang:xx>` tag)."""
    max_len_a: float = 0.0
    """Longest output = max_len_a * T + max_len_b tokens."""
    max_len_b: int = 200
    """See max_len_a."""
    min_len: int = 1
    """Fewest tokens before eos."""
    unkpen: float = 0.0
    """Subtracted from the log-probability of unk."""
    unnormalized: bool = False
    """Do not divide scores by the length at all."""

    def __post_init__(self) -> None:
        for name, expected, value, valid in (
            ("beam", "at least 1", self.beam, self.beam >= 1),
            ("lenpen", "a finite number", self.lenpen, isfinite(self.lenpen)),
            ("max_len_a", "a finite number", self.max_len_a, isfinite(self.max_len_a)),
            ("unkpen", "a number above -inf", self.unkpen, self.unkpen > -inf),
            ("nbest", f"1 to beam, {self.beam}", self.nbest, 1 <= self.nbest <= self.beam),
        ):
            if not valid:
                raise invalid("Searching", name, expected, value)
