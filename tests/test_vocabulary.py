"""Dictionary and detokenisation against Fairseq's own."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import MINI
from fairseq.data import Dictionary, encoders
from fairseq.data.encoders import characters, fastbpe, subword_nmt_bpe

from fairseq_openvino.errors import ModelError
from fairseq_openvino.s2t.vocabulary import Vocabulary, load_dictionary


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
