"""Token ids to text, as Fairseq's `Dictionary.string` and its decoders (`data/encoders`) do it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from fairseq_openvino.atomic import read_whole
from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import ModelError, failure
from fairseq_openvino.s2t import decoders

_fail = partial(
    failure, ModelError, "Loading the dictionary",
    advice="Use the dictionary the model was trained with",
)  # fmt: skip

SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
BOS, PAD, EOS, UNK = range(4)
LANGUAGE_TAG = re.compile(r"<lang:(.*)>")
OVERWRITE_FLAG = " #fairseq:overwrite"
MAX_BYTES = 32 << 20
"""Of a dictionary, or the ids of pieces."""
COUNT = re.compile(r"[+-]?\d+")


DECODERS: dict[str | None, Callable[..., str]] = {
    None: decoders.words,
    "sentencepiece": decoders.sentencepiece,
    "characters": decoders.characters,
    "letter": decoders.letters,
    "subword_nmt": decoders.subword_nmt,
    "bytes": decoders.byte_characters,
    "byte_pieces": decoders.byte_pieces,
    "bert": decoders.bert,
}
"""By `TextConfig.bpe`."""
SUBWORDS = ("sentencepiece", "characters", "subword_nmt")
"""Of text models. What `subword_nmt` stands for is read in pieces, and written in words."""


@dataclass(frozen=True)
class Vocabulary:
    """Symbols in id order; ids 0 to 3 are bos, pad, eos and unk."""

    symbols: tuple[str, ...]
    bpe: str | None
    """One of DECODERS."""
    separator: str = "@@"
    """End of a piece that continues (`subword_nmt`)."""
    pieces: Mapping[int, str] = field(default_factory=dict)
    """What the symbols are ids of (`byte_pieces`)."""
    eos: int = EOS
    """The token that ends a hypothesis, if it is not the dictionary's."""
    skip_unknown: bool = False
    """Leave out what is unknown."""
    upper_case: bool = False
    """Write capitals."""

    @classmethod
    def of(cls, bundle: Bundle) -> Vocabulary:
        """As a bundle says.

        Raises:
            ModelError: a file of it is malformed.
        """
        text = bundle.manifest.text
        if text.bpe not in DECODERS:
            known = ", ".join(filter(None, DECODERS))
            raise _fail(bundle.directory, f"subwords of {known}", repr(text.bpe))
        path = bundle.path(text.dictionary)
        symbols = load_dictionary(path)
        check_size(path, symbols, bundle.manifest.dimensions.vocabulary_size)
        return cls(
            symbols,
            text.bpe,
            text.bpe_separator,
            load_pieces(bundle.path(text.bpe_pieces)) if text.bpe_pieces else {},
            EOS if text.eos_token is None else token_id(symbols, text.eos_token),
            text.skip_unknown,
            text.upper_case,
        )

    @cached_property
    def languages(self) -> dict[str, int]:
        """Language code to the id of its `<lang:xx>` tag."""
        matches = ((LANGUAGE_TAG.fullmatch(s), i) for i, s in enumerate(self.symbols))
        return {match.group(1): i for match, i in matches if match}

    @cached_property
    def _unprinted(self) -> set[int]:
        """Ids that Fairseq leaves out (tasks/speech_to_text.py:223, `Dictionary.string`)."""
        ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        skipped = {PAD, UNK} if self.skip_unknown else set()
        return {BOS, EOS, self.eos} | skipped | {ids[s] for s in ids if LANGUAGE_TAG.match(s)}

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Symbols of a hypothesis without bos, eos and language tags (an `H-` line)."""
        return [self.symbols[i] for i in ids if i not in self._unprinted]

    def text(self, ids: Iterable[int]) -> str:
        """Detokenised text of a hypothesis (a `D-` line)."""
        options = {"subword_nmt": (self.separator,), "byte_pieces": (self.pieces,)}
        line = " ".join(self.tokens(ids))
        text = DECODERS[self.bpe](line, *options.get(self.bpe or "", ()))
        return text.upper() if self.upper_case else text


def token_id(symbols: Sequence[str], symbol: str) -> int:
    """Id of a symbol; unk for an unknown one (Fairseq `Dictionary.index`)."""
    return {known: i for i, known in enumerate(symbols)}.get(symbol, UNK)


def load_dictionary(path: Path) -> tuple[str, ...]:
    """Symbols of a Fairseq dictionary file, special symbols first.

    Raises:
        ModelError: a line is not `<symbol> <count>`, or a symbol is repeated.
    """
    symbols = list(SPECIAL_SYMBOLS)
    index = {symbol: i for i, symbol in enumerate(symbols)}
    try:
        text = read_whole(path, MAX_BYTES).decode("utf-8")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except (OSError, UnicodeError) as error:
        raise _fail(path, "a UTF-8 text file", str(error)) from error
    for number, line in enumerate(lines[: None if lines[-1] else -1], 1):
        entry = line.rstrip()
        overwrite = entry.endswith(OVERWRITE_FLAG)
        symbol, space, count = entry.removesuffix(OVERWRITE_FLAG).rpartition(" ")
        if not space or not COUNT.fullmatch(count):
            raise _fail(path, "'<symbol> <count>'", f"{line!r} in line {number}")
        if symbol in index and not overwrite:
            raise _fail(path, "each symbol once", f"{symbol!r} again in line {number}")
        index[symbol] = len(symbols)
        symbols.append(symbol)
    return tuple(symbols)


def load_pieces(path: Path) -> dict[int, str]:
    """Pieces of a byte-level BPE by id, of a JSON object the other way round.

    Raises:
        ModelError: the file is something else.
    """
    try:
        content = json.loads(read_whole(path, MAX_BYTES))
        return {int(number): str(piece) for piece, number in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _fail(path, "a JSON object of pieces and their ids", error) from error


def check_size(path: Path, symbols: Sequence[str], expected: int) -> None:
    """Refuse a dictionary that does not have the V symbols of the model.

    Raises:
        ModelError: the sizes differ.
    """
    if len(symbols) != expected:
        raise _fail(path, f"the model's {expected} symbols", f"{len(symbols)}")
