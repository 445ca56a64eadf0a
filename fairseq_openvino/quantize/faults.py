"""Texts that no score excuses: cut short, running on, without an end, repeating themselves."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from fairseq_openvino.model import Transcript

MUCH, SLACK_CHARACTERS = 2.0, 10
"""A text is as long as its reference up to this factor, and this much beside."""
MAX_COMPRESSION_RATIO = 2.4
"""A text that zlib makes smaller by more repeats itself, as in openai-whisper (`transcribe.py`)."""


@dataclass(frozen=True)
class Faults:
    """How many texts of a bundle have each of these."""

    shorter: int = 0
    """Less than half as long as the reference."""
    longer: int = 0
    """More than twice as long."""
    unfinished: int = 0
    """Ran into the limit of tokens."""
    repeating: int = 0
    """Repeat themselves."""

    @classmethod
    def of(cls, references: Sequence[str], transcripts: Sequence[Transcript], eos: int) -> Faults:
        """Count them; `eos` is the token that ends a text."""
        texts = [transcript.text for transcript in transcripts]
        pairs = list(zip(references, texts, strict=True))
        return cls(
            shorter=sum(_exceeds(reference, text) for reference, text in pairs),
            longer=sum(_exceeds(text, reference) for reference, text in pairs),
            unfinished=sum(_unfinished(transcript, eos) for transcript in transcripts),
            repeating=sum(map(_repeats, texts)),
        )

    def beyond(self, original: Faults) -> dict[str, int]:
        """Those of which there are more than the original has, and how many more."""
        before = asdict(original)
        excess = {each.name: getattr(self, each.name) - before[each.name] for each in fields(self)}
        return {name: count for name, count in excess.items() if count > 0}


def _exceeds(long: str, short: str) -> bool:
    return len(long) > MUCH * len(short) + SLACK_CHARACTERS


def _unfinished(transcript: Transcript, eos: int) -> bool:
    return any(eos not in best.tokens[-1:] for _, best in transcript.hypotheses[:1])


def _repeats(text: str) -> bool:
    data = text.encode()
    return len(data) > MAX_COMPRESSION_RATIO * len(zlib.compress(data))
