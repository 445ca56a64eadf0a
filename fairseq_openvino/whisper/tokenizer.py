"""Whisper's tokens to text and back, with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fairseq_openvino.errors import BundleError, MissingDependencyError


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
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(
                f"Opening a bundle failed in {str(path)!r}: expected a tokenizer file, got "
                f"{str(error)!r}. Export the bundle again."
            ) from error
        self.eos = eos

    def text(self, tokens: Iterable[int]) -> str:
        """Text without special tokens, timestamps and surrounding blanks."""
        kept = [int(token) for token in tokens if token < self.eos]
        decoded: str = self._tokenizer.decode(kept, skip_special_tokens=False)
        return decoded.strip()

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
