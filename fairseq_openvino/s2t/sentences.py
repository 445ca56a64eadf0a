"""Text to token ids, as `fairseq-interactive` does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import sentencepiece

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import UtteranceTooLongError
from fairseq_openvino.s2t.decoders import BLANK, WORD_BOUNDARY
from fairseq_openvino.s2t.vocabulary import EOS, UNK, check_size, load_dictionary

Encode = Callable[[str], str]
"""Text to its symbols, separated by blanks."""


@dataclass(frozen=True)
class Sentences:
    """In place of a `FrontEnd` where a model reads text."""

    ids: Mapping[str, int]
    """Of the symbols of the source."""
    encode: Encode
    max_tokens: int
    """Positions of the encoder's input (max_source_positions), eos included."""

    @classmethod
    def of(cls, bundle: Bundle) -> Sentences:
        """As a bundle says.

        Raises:
            ModelError: a file of it is malformed.
        """
        manifest = bundle.manifest
        path = bundle.path(manifest.text.source_dictionary)
        symbols = load_dictionary(path)
        check_size(path, symbols, manifest.dimensions.source_vocabulary_size)
        ids = {symbol: i for i, symbol in enumerate(symbols)}
        return cls(ids, _encoder(bundle), manifest.limits.max_source_frames)

    def __call__(self, text: str) -> np.ndarray:
        """A sentence to (T,) int64, eos last.

        Source: Fairseq `data/dictionary.py:Dictionary.encode_line`.

        Raises:
            UtteranceTooLongError: it is longer than the model can read.
        """
        symbols = self.encode(text).split()
        if len(symbols) >= self.max_tokens:
            raise UtteranceTooLongError(
                f"Reading text failed: expected at most {self.max_tokens - 1} tokens "
                f"(max_source_positions), got {len(symbols)}. Split the sentence."
            )
        return np.array([*(self.ids.get(symbol, UNK) for symbol in symbols), EOS], np.int64)


def _encoder(bundle: Bundle) -> Encode:
    """Source: Fairseq `data/encoders`; without a model for it the text comes in symbols."""
    text = bundle.manifest.text
    if text.sentencepiece is not None:
        processor = sentencepiece.SentencePieceProcessor(
            model_file=str(bundle.path(text.sentencepiece))
        )
        return lambda line: BLANK.join(processor.encode(line, out_type=str))
    if text.bpe == "characters":
        return lambda line: BLANK.join(line.replace(BLANK, WORD_BOUNDARY))
    return lambda line: line
