"""What a CTC model is asked for: there is no search, and so none of its options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CTCOptions:
    """Keywords of `Recognizer.transcribe`; named and defined as Whisper's."""

    timestamps: bool = False
    """Find segments."""
    word_timestamps: bool = False
    """Find when each word is said; includes `timestamps`."""

    @property
    def beam(self) -> int:
        """The best path alone."""
        return 1

    @property
    def timed(self) -> bool:
        """Whether segments are to be found."""
        return self.timestamps or self.word_timestamps
