"""Dictionary and detokenisation against Fairseq's own."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import MINI
from fairseq.data import Dictionary, encoders
from fairseq.data.encoders import (
    byte_bpe,
    byte_utils,
    bytes,
    characters,
    fastbpe,
    gpt2_bpe,
    gpt2_bpe_utils,
    hf_bert_bpe,
    hf_byte_bpe,
    subword_nmt_bpe,
)

from fairseq_openvino.errors import ModelError
from fairseq_openvino.s2t.vocabulary import Vocabulary, load_dictionary, load_pieces


def shipped(kind: str) -> Path:
    return next(MINI.glob(f"spm_*.{kind}"))


def test_the_shipped_dictionary_decodes_as_in_fairseq() -> None:
    reference = Dictionary.load(str(shipped("txt")))
    symbols = load_dictionary(shipped("txt"))
    assert list(symbols) == reference.symbols
    bpe = encoders.build_bpe(
        Namespace(bpe="sentencepiece", sentencepiece_model=str(shipped("model")),
                  sentencepiece_enable_sampling=False, sentencepiece_alpha=None)
    )  # fmt: skip
    vocabulary = Vocabulary(symbols, "sentencepiece")
    random = np.random.default_rng(0)
    for _ in range(300):
        ids = random.integers(0, len(symbols), random.integers(0, 30)).tolist()
        line = reference.string(ids)
        assert " ".join(vocabulary.tokens(ids)) == line
        assert vocabulary.text(ids) == bpe.decode(line)


def test_flags_special_symbols_and_languages(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_text("a 1\n<lang:de> 1\nb c 5\n<unk> 1 #fairseq:overwrite\n<lang:fr> 0\n")
    reference, symbols = Dictionary.load(str(path)), load_dictionary(path)
    assert list(symbols) == reference.symbols
    vocabulary = Vocabulary(symbols, None)
    assert vocabulary.languages == {"de": 5, "fr": 8}
    assert vocabulary.text([5, 4, 6, 2]) == "a b c"


def test_other_decoders_are_fairseqs() -> None:
    """Their `decode` needs no package, unlike their construction."""
    symbols = ("<s>", "<pad>", "</s>", "<unk>", "a@@", "b", "▁", "c@@@@", "|")
    decoders = {
        ("characters", "@@"): characters.Characters.decode,
        ("subword_nmt", "@@"): partial(fastbpe.fastBPE.decode, Namespace(bpe_symbol="@@ ")),
        ("subword_nmt", "|"): partial(
            subword_nmt_bpe.SubwordNMTBPE.decode, Namespace(bpe_symbol="| ")
        ),
    }
    random = np.random.default_rng(0)
    for (bpe, separator), decode in decoders.items():
        vocabulary = Vocabulary(symbols, bpe, separator)
        for length in range(20):
            ids = random.integers(3, len(symbols), length).tolist()
            assert vocabulary.text(ids) == decode(" ".join(symbols[i] for i in ids))


def random_lines(symbols: Sequence[str], count: int = 60) -> Iterator[tuple[list[int], str]]:
    """Ids of symbols, and the line that Fairseq decodes."""
    random = np.random.default_rng(1)
    for length in range(count):
        ids = random.integers(4, len(symbols), length // 2).tolist()
        yield ids, " ".join(symbols[i] for i in ids)


def test_bytes_are_decoded_as_in_fairseq() -> None:
    whole = [str(byte_utils.BYTE_TO_BCHAR[b]) for b in "äß €𝄞 a.".encode()]
    pieces = ["▁", "ab", "".join(whole[:4]), "".join(whole[4:7]), *whole, *byte_utils.BCHAR_TO_BYTE]
    symbols = ("<s>", "<pad>", "</s>", "<unk>", *dict.fromkeys(p for p in pieces if p != " "))
    vocabulary = Vocabulary(symbols, "bytes")
    for ids, line in random_lines(symbols):
        assert vocabulary.text(ids) == bytes.Bytes.decode(line) == byte_bpe.ByteBPE.decode(line)
    ids = [symbols.index(character.replace(" ", "▁")) for character in whole]
    assert vocabulary.text([*ids, 3]) == "äß €𝄞 a.<unk>"


def test_byte_level_pieces_are_decoded_as_in_fairseq(tmp_path: Path) -> None:
    characters = list(gpt2_bpe_utils.bytes_to_unicode().values())
    pieces = [*characters, "ab", "\u0120the", "".join(characters[i] for i in (67, 102, 90, 12))]
    ids = {piece: i for i, piece in enumerate(pieces)}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    paths = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    gpt2 = gpt2_bpe.GPT2BPE(Namespace(gpt2_encoder_json=paths[0], gpt2_vocab_bpe=paths[1]))
    config = Namespace(bpe_vocab=paths[0], bpe_merges=paths[1], bpe_add_prefix_space=False)
    theirs = hf_byte_bpe.HuggingFaceByteLevelBPE(config)
    symbols = ("<s>", "<pad>", "</s>", "<unk>", *map(str, range(len(pieces))))
    vocabulary = Vocabulary(symbols, "byte_pieces", pieces=load_pieces(tmp_path / "vocab.json"))
    for chosen, line in random_lines(symbols):
        assert vocabulary.text(chosen) == gpt2.decode(line) == theirs.decode(line)
    text = "der Schlüssel ist 3 € wert\n"
    assert vocabulary.text([4 + int(i) for i in gpt2.encode(text).split()]) == text
    assert vocabulary.text([3, 4 + ids["\u0120the"]]) == gpt2.decode(f"<unk> {ids['Ġthe']}")


def test_word_pieces_are_decoded_as_in_fairseq(tmp_path: Path) -> None:
    pieces = ["[UNK]", "do", "not", "##ing", "n't", "'", "s", "'s", "##'s", ".", ",", "?", "!", "##.",
              "'m", "'ve", "'re", "##", "word", "##n't", "t"]  # fmt: skip
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    path = str(tmp_path / "vocab.txt")
    theirs = hf_bert_bpe.BertBPE(Namespace(bpe_vocab_file=path, bpe_cased=False))
    symbols = ("<s>", "<pad>", "</s>", "<unk>", *pieces)
    vocabulary = Vocabulary(symbols, "bert")
    for ids, line in random_lines(symbols, 400):
        assert vocabulary.text(ids) == theirs.decode(line)


def test_symbols_may_hold_every_separator_but_a_newline(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_text("a\u2028b 1\nc\x85d 1\ne\x1cf g 1\n 4\n+ +2\n\x0b -1\n", "utf-8")
    assert list(load_dictionary(path)) == Dictionary.load(str(path)).symbols


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n", "line 1"),
        ("a 1\na 2\n", "'a' again in line 2"),
        ("a x\n", "line 1"),
        ("\n", "line 1"),
        ("a 1\n\n", "line 2"),
    ],
)
def test_malformed_dictionaries(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "dict.txt"
    path.write_text(content)
    with pytest.raises(ModelError, match=message):
        load_dictionary(path)
    with pytest.raises((ValueError, RuntimeError)):
        Dictionary.load(str(path))


def test_unreadable_dictionaries(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xe4 1\n")
    for name in ("latin", "absent"):
        with pytest.raises(ModelError, match=name):
            load_dictionary(tmp_path / name)
