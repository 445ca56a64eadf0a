"""What models of one kind have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

from fairseq_openvino.model import Clip, Head, Model, News, Transcript
from fairseq_openvino.speech.frontend import FrontEnd
from fairseq_openvino.speech.recordings import Recording


class Family(Protocol):
    """Front end, text, options, search."""

    options: ClassVar[type[Any]]
    """A frozen dataclass; its fields are the keywords of `Recognizer.transcribe`."""
    splits: ClassVar[bool]
    """See `runtime.model.CompiledModel`."""
    front_end: FrontEnd
    vocabulary: Any
    """`text(tokens)` gives the detokenised text."""

    def head(self, options: Any) -> Head:
        """What a session reports in a search with these options."""
        ...

    def language(self, stated: str | None, options: Any) -> str | None:
        """The option `language` for clips whose corpus states one: None if the model is not told it."""
        ...

    def decode(self, model: Model, clips: Sequence[Clip], options: Any) -> list[Transcript]:
        """Clips decoded together, in the order given.

        Raises:
            OptionError: the options do not fit the model.
        """
        ...

    def follow(
        self, model: Model, recordings: Iterable[Recording | Clip | News], options: Any, width: int
    ) -> Iterator[News]:
        """Recordings of any length, `width` windows at a time: news of each, in the order given.

        In place of one there may be a clip of features, or the only news of what could not be opened.

        Raises:
            OptionError: the options do not fit the model.
        """
        ...
