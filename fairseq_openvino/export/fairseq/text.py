"""The data directory of Fairseq's task `translation`: what of it belongs into a bundle."""

from __future__ import annotations

import shutil
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairseq_openvino.bundle import ASSUMED_RATE_HZ, FeatureConfig, SpecialTokens, TextConfig
from fairseq_openvino.errors import ModelError, failure, invalid
from fairseq_openvino.export.fairseq.data import DICTIONARY, SENTENCEPIECE, check_pieces
from fairseq_openvino.export.fairseq.preprocessing import fail
from fairseq_openvino.s2t.vocabulary import BOS, EOS, PAD, SUBWORDS, UNK, load_dictionary

SOURCE_DICTIONARY = "dict.source.txt"


@dataclass(frozen=True)
class TextDirectory:
    """The directory given to Fairseq as DATA, and what its commands are told about text."""

    root: Path
    source_lang: str | None = None
    """As --source-lang; None: as the checkpoint says."""
    target_lang: str | None = None
    """As --target-lang."""
    bpe: str | None = None
    """One of `SUBWORDS`, as --bpe; None: `sentencepiece` if there is a model, else words."""
    sentencepiece_model: Path | None = None
    """As --sentencepiece-model, for the source; None: the only `*.model` in the directory, if any."""

    def __post_init__(self) -> None:
        if self.bpe not in (None, *SUBWORDS):
            raise invalid("Exporting", "bpe", f"one of {', '.join(SUBWORDS)}", repr(self.bpe))

    @property
    def path(self) -> Path:
        """What errors name."""
        return self.root

    def of(self, arguments: Namespace) -> TextDirectory:
        """With the languages of a checkpoint's arguments.

        Raises:
            ModelError: neither names them, or they are not those that were stated.
        """
        found: dict[str, Any] = {}
        for name in ("source_lang", "target_lang"):
            stated, trained = getattr(self, name), getattr(arguments, name, None)
            flag = "--" + name.replace("_", "-")
            if stated and trained and stated != trained:
                expected, advice = f"{flag} {trained} as in training", "Leave it out"
                raise failure(ModelError, "Exporting", self.root, expected, stated, advice)
            if not (stated or trained):
                raise invalid(
                    "Exporting", name, "a language of the dictionaries", "none", "State it"
                )
            found[name] = stated or trained
        return replace(self, **found)

    @property
    def dictionary(self) -> Path:
        """Of the target; the languages must be known."""
        return self.root / f"dict.{self.target_lang}.txt"

    @property
    def source_dictionary(self) -> Path:
        """Of the source."""
        return self.root / f"dict.{self.source_lang}.txt"

    @property
    def sentencepiece(self) -> Path | None:
        """The SentencePiece model of the source, or None.

        Raises:
            ModelError: it is stated and missing.
        """
        if self.bpe not in (None, "sentencepiece"):
            return None
        stated = self.sentencepiece_model
        found = sorted(self.root.glob("*.model")) if stated is None else [stated]
        if len(found) == 1 and found[0].is_file():
            return found[0]
        if self.bpe or stated:
            got = ", ".join(map(str, found)) or "none"
            raise fail(self.root, "one SentencePiece model (--sentencepiece-model)", got)
        return None

    def symbols(self) -> tuple[str, ...]:
        """The dictionary of the target; that of the source is checked too.

        Raises:
            ModelError: one is malformed, or the source's is not that of the SentencePiece model.
        """
        source = load_dictionary(self.source_dictionary)
        if self.sentencepiece is not None:
            check_pieces(self.sentencepiece, self.source_dictionary, source)
        return load_dictionary(self.dictionary)

    def sources(self) -> list[Path]:
        """Every file whose content may end up in a bundle as it is."""
        named = self.source_lang and self.target_lang
        found = sorted(self.root.glob("dict.*.txt"))
        files = [self.source_dictionary, self.dictionary] if named else found
        return files if self.sentencepiece is None else [*files, self.sentencepiece]

    def described(self) -> dict[str, Any]:
        """The fields of a manifest that come from here."""
        model = self.sentencepiece
        return {
            "tokens": SpecialTokens(BOS, PAD, EOS, UNK),
            "features": FeatureConfig(0, ASSUMED_RATE_HZ, ()),
            "text": TextConfig(
                dictionary=DICTIONARY,
                source_dictionary=SOURCE_DICTIONARY,
                bpe=self.bpe if model is None else "sentencepiece",
                sentencepiece=None if model is None else SENTENCEPIECE,
            ),
        }

    def copy_into(self, directory: Path) -> None:
        """Write dictionaries and SentencePiece model under their bundle names."""
        shutil.copyfile(self.dictionary, directory / DICTIONARY)
        shutil.copyfile(self.source_dictionary, directory / SOURCE_DICTIONARY)
        if self.sentencepiece is not None:
            shutil.copyfile(self.sentencepiece, directory / SENTENCEPIECE)
