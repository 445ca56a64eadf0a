"""From a line of symbols to text, as Fairseq's `data/encoders` do it; pure functions.

Each takes the symbols of a hypothesis separated by blanks, as `--bpe` of an `H-` line.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

BLANK, WORD_BOUNDARY = " ", "\u2581"
MAX_UTF8_BYTES = 4
WORD_PIECE = "##"
CONTRACTIONS = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s",
    " 've": "'ve", " 're": "'re",
}  # fmt: skip
"""What BERT's detokenisation puts together, in this order."""


def words(line: str) -> str:
    """No subwords."""
    return line


def sentencepiece(line: str) -> str:
    """`sentencepiece_bpe.py`."""
    return line.replace(BLANK, "").replace(WORD_BOUNDARY, BLANK).strip()


def characters(line: str) -> str:
    """`characters.py`."""
    return line.replace(BLANK, "").replace(WORD_BOUNDARY, BLANK)


def letters(line: str) -> str:
    """Letters with `|` between words: `data_utils.py:post_process`, "letter"."""
    return line.replace(BLANK, "").replace("|", BLANK).strip()


def subword_nmt(line: str, separator: str) -> str:
    """`subword_nmt_bpe.py`, `fastbpe.py`; `separator` ends a piece that continues."""
    return (line + BLANK).replace(separator + BLANK, "").rstrip()


def byte_characters(line: str) -> str:
    """`bytes.py`, `byte_bpe.py`: a character for each byte; what is no UTF-8 is left out."""
    written = line.replace(BLANK, "").replace(WORD_BOUNDARY, BLANK)
    return _utf8(written) or _recovered(written)


def _utf8(written: str) -> str:
    """`byte_utils.py:byte_decode`; empty if it is none."""
    known = _byte_of()
    try:
        return bytes(known[character] for character in written).decode("utf-8")
    except (KeyError, ValueError):
        return ""


def _recovered(written: str) -> str:
    """Most valid characters of damaged UTF-8, as `byte_utils.py:smart_byte_decode` finds them."""
    best, before = [0], [0]
    for end in range(1, len(written) + 1):
        best.append(best[-1])
        before.append(end - 1)
        for size in range(1, min(MAX_UTF8_BYTES, end) + 1):
            if best[end - size] + 1 > best[end] and _utf8(written[end - size : end]):
                best[end], before[end] = best[end - size] + 1, end - size
    text, end = "", len(written)
    while end > 0:
        start = before[end]
        if best[end] == best[start] + 1:
            text = _utf8(written[start:end]) + text
        end = start
    return text


@cache
def _byte_of() -> dict[str, int]:
    printable = {*range(32, 127), *range(161, 173), *range(174, 256)}
    return {chr(byte if byte in printable else 256 + byte): byte for byte in range(256)}


def byte_pieces(line: str, pieces: Mapping[int, str]) -> str:
    """`gpt2_bpe.py`, `hf_byte_bpe.py`: symbols are ids of `pieces`, whose characters are bytes."""
    content = bytearray()
    for symbol in line.split():
        piece = pieces.get(int(symbol), "") if symbol.isdecimal() else symbol
        try:
            content += bytes(_gpt2_byte_of()[character] for character in piece)
        except KeyError:
            content += piece.encode()
    return content.decode("utf-8", errors="replace")


@cache
def _gpt2_byte_of() -> dict[str, int]:
    """`gpt2_bpe_utils.py:bytes_to_unicode`, the other way round."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    own = {chr(byte): byte for byte in printable}
    return own | {chr(256 + place): byte for place, byte in enumerate(others)}


def bert(line: str) -> str:
    """`hf_bert_bpe.py`: word pieces, which `tokenizers` and then transformers put together."""
    first, *others = line.split(BLANK)
    parts = [first]
    for piece in others:
        joined = piece.removeprefix(WORD_PIECE) if piece.startswith(WORD_PIECE) else BLANK + piece
        parts.append(joined)
    contracted = (_contracted(part).replace(" do not", " don't") for part in parts)
    return _contracted("".join(contracted))


def _contracted(text: str) -> str:
    for apart, together in CONTRACTIONS.items():
        text = text.replace(apart, together)
    return text
