"""The tokenizer of a checkpoint: its own, one that is named, or OpenAI's by the vocabulary's size.

`vocabularies/` holds the two files of openai-whisper's `assets`, compressed, under OpenAI's licence.
"""

from __future__ import annotations

import base64
import logging
import lzma
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fairseq_openvino.atomic import read_whole
from fairseq_openvino.compat.transformers import transformers
from fairseq_openvino.errors import ModelError
from fairseq_openvino.speech.languages import LANGUAGES
from fairseq_openvino.whisper.tokenizer import checked

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"
SHIPPED = Path(__file__).parent / "vocabularies"
ENGLISH_VOCABULARY, MULTILINGUAL_VOCABULARY = 51_864, 51_865
"""Tokens of the first models, with 99 languages; later ones add languages."""
MAX_BYTES, MAX_TOKEN_BYTES = 64 << 20, 256
FIRST_LANGUAGES = 99
TIMESTAMPS, TIMESTAMP_SECONDS = 1501, 0.02
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def find(place: Path, vocabulary_size: int, name: str) -> Tokenizer:
    """A tokenizer.

    Args:
        place: its file; or where it may be: a directory, or a checkpoint that it may lie beside.
        vocabulary_size: of the model.
        name: of the model, for messages.

    Raises:
        ModelError: there is none, and the vocabulary is not OpenAI's; or it is damaged.
    """
    tiktoken = _tiktoken(vocabulary_size)
    if place.is_file() and place.suffix in (".json", ".tiktoken"):
        return _read(place, vocabulary_size)
    directory = place if place.is_dir() else place.parent
    for file in (directory / TOKENIZER, directory / tiktoken):
        if file.is_file():
            return _read(file, vocabulary_size)
    if (directory / "vocab.json").is_file():
        return _read(directory, vocabulary_size)
    if not ENGLISH_VOCABULARY <= vocabulary_size <= _largest_vocabulary() or not place.exists():
        raise ModelError(
            f"Loading a Whisper tokenizer failed in {name!r}: expected tokenizer.json, vocab.json with "
            f"merges.txt, or {tiktoken} beside weights of {vocabulary_size} tokens, got none (OpenAI's "
            f"models have {ENGLISH_VOCABULARY} to {_largest_vocabulary()}). Put it there or name it "
            "with --tokenizer."
        )
    logger.info(f"{name} comes without a tokenizer: OpenAI's {tiktoken} is taken")
    return _read(SHIPPED / f"{tiktoken}.xz", vocabulary_size)


def _tiktoken(vocabulary_size: int) -> str:
    return f"{'multilingual' if vocabulary_size >= MULTILINGUAL_VOCABULARY else 'gpt2'}.tiktoken"


def _largest_vocabulary() -> int:
    return MULTILINGUAL_VOCABULARY + len(LANGUAGES) - FIRST_LANGUAGES


def _read(path: Path, vocabulary_size: int) -> Tokenizer:
    try:
        if path.is_dir():
            tokenizer = transformers.WhisperTokenizer.from_pretrained(path).backend_tokenizer
        elif path.suffix == ".json":
            tokenizer = Tokenizer.from_buffer(read_whole(path, MAX_BYTES))
        else:
            tokenizer = _of_ranks(path, _special_tokens(vocabulary_size))
        return checked(tokenizer)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the libraries raise bare Exception, and panics of Rust less
        raise ModelError(
            f"Loading a Whisper tokenizer failed in {str(path)!r}: expected a complete file, got "
            f"{str(error)!r}. Copy or download it again."
        ) from error


def _of_ranks(path: Path, specials: list[str]) -> Tokenizer:
    """A `.tiktoken` file, lines of base64 and rank, with special tokens behind them."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):  # type: ignore[misc]
        """Reads the file itself, without the tiktoken package."""

        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            content = read_whole(Path(tiktoken_url), MAX_BYTES)
            if tiktoken_url.endswith(".xz"):  # the package's own
                content = lzma.decompress(content)
            pairs = (line.split() for line in content.splitlines() if line)
            ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
            longest = max(map(len, ranks), default=0)
            if longest > MAX_TOKEN_BYTES:
                raise ValueError(f"a token of {longest} bytes")
            return ranks

    return Converter(str(path), PATTERN, extra_special_tokens=specials).converted()


def _special_tokens(vocabulary_size: int) -> list[str]:
    """In the order of openai-whisper's `tokenizer.py`."""
    languages = FIRST_LANGUAGES + max(vocabulary_size - MULTILINGUAL_VOCABULARY, 0)
    names: list[Any] = ["endoftext", "startoftranscript", *list(LANGUAGES)[:languages]]
    names += ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    names += [f"{i * TIMESTAMP_SECONDS:.2f}" for i in range(TIMESTAMPS)]
    return [f"<|{name}|>" for name in names]
