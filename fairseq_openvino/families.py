"""What models of one kind have in common, and the table of these kinds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

from fairseq_openvino.ctc.family import CTC
from fairseq_openvino.model import Clip, Head, Ledger, Model, News, Transcript
from fairseq_openvino.s2t.family import S2T
from fairseq_openvino.speech.frontend import FrontEnd
from fairseq_openvino.speech.recordings import Recording
from fairseq_openvino.whisper.family import Whisper


class Family(Protocol):
    """What models of one kind have in common: front end, text, options, search."""

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
        self,
        model: Model,
        recordings: Iterable[Recording | Clip | News],
        options: Any,
        width: int,
        ledger: Ledger | None = None,
    ) -> Iterator[News]:
        """Recordings of any length, `width` windows at a time: news of each, in the order given.

        In place of one there may be a clip of features, or the only news of what could not be opened.
        What the ledger knows is not computed again.

        Raises:
            OptionError: the options do not fit the model.
        """
        ...


FAMILIES: dict[str, type[Any]] = {"s2t": S2T, "whisper": Whisper, "ctc": CTC}
"""By `Manifest.family`; each is made from a bundle. "s2t" is any source to target model of Fairseq."""


def options_for(family: Family, wanted: Mapping[str, Any], stated: str | None) -> Any:
    """Options of a family out of those that are asked of every model.

    Args:
        family: of the model.
        wanted: by name; what the family does not have is left out, as `beam` of CTC.
        stated: the language that the corpus states, see `Family.language`.

    Raises:
        OptionError: a value is out of range.
    """
    known = family.options.__dataclass_fields__
    options = family.options(**{name: value for name, value in wanted.items() if name in known})
    if "language" not in known:
        return options
    return replace(options, language=family.language(stated, options))
