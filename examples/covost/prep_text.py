"""Write the parallel text of CoVoST 2 for Fairseq's translation task (`fairseq-preprocess`).

    python examples/covost/prep_text.py --data-root ROOT -s en -t de --vocab-type bpe

writes to `ROOT/en/mt_en_de` the raw text `{train,valid,test}.{en,de}`, one SentencePiece model for
both languages with Fairseq's dictionary, and the text in pieces, `spm.{train,valid,test}.{en,de}`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import sentencepiece
from covost_corpus import SPLITS, Direction, Utterance, read_corpus
from prep_covost import Vocabulary, publish, write_vocabulary

from fairseq_openvino.errors import EXIT_OK, FairseqOpenVINOError

FAIRSEQ_SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data-root", "-d", required=True, help="holds <src-lang>/validated.tsv")
    parser.add_argument("--src-lang", "-s", required=True)
    parser.add_argument("--tgt-lang", "-t", required=True)
    parser.add_argument("--vocab-type", default="bpe", choices=("char", "unigram", "bpe"))
    parser.add_argument("--vocab-size", type=int, default=1000, help="ignored for char")
    options = parser.parse_args(arguments)
    root = Path(options.data_root) / options.src_lang
    direction = Direction(options.src_lang, options.tgt_lang)
    vocabulary = Vocabulary(options.vocab_type, options.vocab_size)
    try:
        write_text(
            root / f"mt_{direction.pair}",
            read_corpus(root, direction).utterances,
            direction,
            vocabulary,
        )
    except FairseqOpenVINOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def write_text(
    output: Path, utterances: list[Utterance], direction: Direction, vocabulary: Vocabulary
) -> None:
    """Write all files; a sentence without either side is left out of both."""
    output.mkdir(exist_ok=True)
    pairs = {
        split: [
            (item.sentence, item.translation)
            for item in utterances
            if item.split == split and item.sentence and item.translation
        ]
        for split in SPLITS
    }
    stem = output / vocabulary.stem(f"mt_{direction.pair}")
    texts = [text for pair in pairs["train"] for text in pair]
    write_vocabulary(stem, vocabulary.kind, vocabulary.size, texts)
    processor = sentencepiece.SentencePieceProcessor(model_file=f"{stem}.model")
    for split, name in FAIRSEQ_SPLITS.items():
        for side, language in enumerate((direction.source, direction.target)):
            lines = [pair[side] for pair in pairs[split]]
            pieces = [" ".join(line) for line in processor.encode(lines, out_type=str)]
            publish(output / f"{name}.{language}", "\n".join([*lines, ""]).encode())
            publish(output / f"spm.{name}.{language}", "\n".join([*pieces, ""]).encode())
        print(f"{name}: {len(pairs[split])} sentences")


if __name__ == "__main__":
    sys.exit(main())
