"""Whisper's tokens to text and back, with the `tokenizers` library."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fairseq_openvino.errors import BundleError, MissingDependencyError

WITHOUT_SPACES = {"zh", "ja", "th", "lo", "my", "yue"}
"""Languages that do not put blanks between words."""
REPLACEMENT = "\ufffd"
NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents"}
DECODERS = {"ByteLevel", "ByteFallback", "BPEDecoder", "Fuse", "Metaspace", "Strip", "WordPiece"}
"""Those that make no text much longer, as replacements do: 40 of them make a terabyte of a letter."""


def checked(tokenizer: Any) -> Any:
    """A `Tokenizer` without padding and truncation, and not with steps that make any text of a short one.

    Raises:
        ValueError: it has such steps.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for kind, known in (("normalizer", NORMALIZERS), ("decoder", DECODERS)):
        if (step := getattr(tokenizer, kind)) is not None:
            found = json.loads(step.__getstate__())
            steps = found.get(f"{kind}s", [found])
            if unknown := sorted({str(each["type"]) for each in steps} - known):
                raise ValueError(f"the {kind}s {', '.join(unknown)}")
    return tokenizer


class WhisperTokenizer:
    """The checkpoint's own tokenizer; tokens from `eos` on are special or timestamps."""

    def __init__(self, path: Path, eos: int) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingDependencyError(
                f"Opening a bundle failed in {str(path)!r}: expected the package tokenizers, got "
                f"{error}. Install fairseq-openvino[whisper]."
            ) from error
        try:
            self._tokenizer = checked(Tokenizer.from_file(str(path)))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and panics of Rust less
            raise BundleError(
                f"Opening a bundle failed in {str(path)!r}: expected a tokenizer file, got "
                f"{str(error)!r}. Export the bundle again."
            ) from error
        self.eos = eos

    def text(self, tokens: Iterable[int]) -> str:
        """Text without special tokens, timestamps and surrounding blanks."""
        return self._decode([int(token) for token in tokens if token < self.eos]).strip()

    def split_to_words(
        self, tokens: Sequence[int], language: str | None
    ) -> tuple[list[str], list[list[int]]]:
        """Words of tokens below `eos`, with the blanks in front of them, and the tokens of each.

        Where a language has no blanks between words, a word is as few tokens as are whole characters.

        Source: openai-whisper `tokenizer.py:split_to_word_tokens, split_tokens_on_spaces`.
        """
        words: list[str] = []
        word_tokens: list[list[int]] = []
        for text, part in self._characters(tokens):
            begins = text.startswith(" ") or text.strip() in string.punctuation or not words
            if begins or language in WITHOUT_SPACES:
                words.append(text)
                word_tokens.append(part)
            else:
                words[-1] += text
                word_tokens[-1] += part
        return words, word_tokens

    def _characters(self, tokens: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
        """As few tokens at a time as are whole characters, and their text.

        Source: openai-whisper `tokenizer.py:split_tokens_on_unicode`.
        """
        whole, offset, part = self._decode(tokens), 0, []
        for token in tokens:
            part.append(token)
            text = self._decode(part)
            broken = text.find(REPLACEMENT)
            if broken < 0 or whole[offset + broken : offset + broken + 1] == REPLACEMENT:
                yield text, part
                offset, part = offset + len(text), []
        if part:
            yield text, part

    def _decode(self, tokens: Sequence[int]) -> str:
        decoded: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return decoded

    def tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that follows other words; `<|...|>` in it is text like any other."""
        text, normalizer = f" {text.strip()}", self._tokenizer.normalizer
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        words = self._tokenizer.pre_tokenizer.pre_tokenize_str(text)
        model = self._tokenizer.model  # without the special tokens, which are added to it
        return tuple(token.id for word, _ in words for token in model.tokenize(word))

    def token(self, symbol_id: int) -> str:
        """The symbol of one token, as stored in the tokenizer."""
        symbol: str | None = self._tokenizer.id_to_token(symbol_id)
        return symbol if symbol is not None else f"<|{symbol_id}|>"
