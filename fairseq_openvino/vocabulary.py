"""Token ids to text, as Fairseq's `Dictionary.string` and its SentencePiece decoder do it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq_openvino.errors import ModelError

SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
BOS, PAD, EOS, UNK = range(4)
LANGUAGE_TAG = re.compile(r"<lang:(.*)>")
WORD_BOUNDARY = "\u2581"
OVERWRITE_FLAG = " #fairseq:overwrite"


@dataclass(frozen=True)
class Vocabulary:
    """Symbols in id order; ids 0 to 3 are bos, pad, eos and unk."""

    symbols: tuple[str, ...]
    bpe: str | None
    """`sentencepiece` or `None`."""

    @property
    def languages(self) -> dict[str, int]:
        """Language code to the id of its `<lang:xx>` tag."""
        matches = ((LANGUAGE_TAG.fullmatch(s), i) for i, s in enumerate(self.symbols))
        return {match.group(1): i for match, i in matches if match}

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Symbols of a hypothesis without bos, eos and language tags (an `H-` line)."""
        ignored = {BOS, EOS, *self.languages.values()}
        return [self.symbols[i] for i in ids if i not in ignored]

    def text(self, ids: Iterable[int]) -> str:
        """Detokenised text of a hypothesis (a `D-` line)."""
        tokens = self.tokens(ids)
        if self.bpe is None:
            return " ".join(tokens)
        # Fairseq data/encoders/sentencepiece_bpe.py:decode
        return "".join(tokens).replace(" ", "").replace(WORD_BOUNDARY, " ").strip()


def load_dictionary(path: Path) -> tuple[str, ...]:
    """Symbols of a Fairseq dictionary file, special symbols first.

    Raises:
        ModelError: a line is not `<symbol> <count>`, or a symbol is repeated.
    """
    symbols = list(SPECIAL_SYMBOLS)
    index = {symbol: i for i, symbol in enumerate(symbols)}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise _fail(path, "a UTF-8 text file", str(error)) from error
    for number, line in enumerate(lines, 1):
        entry = line.rstrip()
        overwrite = entry.endswith(OVERWRITE_FLAG)
        symbol, _, count = entry.removesuffix(OVERWRITE_FLAG).rpartition(" ")
        if not symbol or not count.lstrip("-").isdigit():
            raise _fail(path, "'<symbol> <count>'", f"{line!r} in line {number}")
        if symbol in index and not overwrite:
            raise _fail(path, "each symbol once", f"{symbol!r} again in line {number}")
        index[symbol] = len(symbols)
        symbols.append(symbol)
    return tuple(symbols)


def check_size(path: Path, symbols: Sequence[str], expected: int) -> None:
    """Refuse a dictionary that does not have the V symbols of the model.

    Raises:
        ModelError: the sizes differ.
    """
    if len(symbols) != expected:
        raise _fail(path, f"the model's {expected} symbols", f"{len(symbols)}")


def _fail(path: Path, expected: str, got: str) -> ModelError:
    return ModelError(
        f"Loading the dictionary failed in {str(path)!r}: expected {expected}, got {got}. "
        "Use the dictionary the model was trained with."
    )
