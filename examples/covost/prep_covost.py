"""Prepare CoVoST 2 (or the corpus of `synthesize.py`) for Fairseq's speech_to_text task.

    python examples/covost/prep_covost.py --data-root ROOT --src-lang en --tgt-lang de \
        --vocab-type unigram --vocab-size 400

writes `fbank80.zip`, manifests, a SentencePiece vocabulary and a YAML file to `ROOT/en`. Options
and file names are those of Fairseq's `prep_covost_data.py`; without `--tgt-lang` the task is speech
recognition, with several one multilingual model. Every row and clip that is left out is counted in a
table at the end and listed in `skipped_<task>.tsv`; one that is damaged makes the exit code 1.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import yaml
from covost_corpus import SPLITS, Direction, Utterance, joint_task, read_corpus, write_rows
from covost_features import Extraction, extract, measure
from covost_problems import (
    MAX_TRAIN_FRAMES,
    MIN_FRAMES,
    Kind,
    Problem,
    exit_code,
    summary,
)

from fairseq_openvino.errors import EXIT_ENVIRONMENT, FairseqOpenVINOError, OptionError

MANIFEST_COLUMNS = ("id", "audio", "n_frames", "tgt_text", "speaker") + (
    "src_text",
    "src_lang",
    "tgt_lang",
)
MEL_BINS = 80
SPECIAL_PIECES = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3}
"""Fairseq's ids of `<s>`, `<pad>`, `</s>` and `<unk>`, which its dictionary files leave out."""
SPECAUGMENT_LB = {
    "time_wrap_W": 0,
    "freq_mask_N": 1,
    "freq_mask_F": 27,
    "time_mask_N": 1,
    "time_mask_T": 100,
    "time_mask_p": 1.0,
}
"""Fairseq `data_utils.py:set_specaugment_lb_policy`."""


@dataclass(frozen=True)
class Vocabulary:
    """SentencePiece type and size; a character vocabulary has the size the text gives it."""

    kind: str
    size: int

    def stem(self, task: str) -> str:
        """File name without suffix, as Fairseq forms it."""
        return f"spm_{self.kind}{'' if self.kind == 'char' else self.size}_{task}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _prepare(options)
    except FairseqOpenVINOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(
            f"Preparing the corpus failed in {options.data_root}: expected a writable directory, "
            f"got {error}. Check permission and free space.",
            file=sys.stderr,
        )
        return EXIT_ENVIRONMENT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data-root", "-d", required=True, help="holds <src-lang>/clips")
    parser.add_argument("--vocab-type", required=True, choices=("char", "unigram", "bpe"))
    parser.add_argument("--vocab-size", type=int, default=1000, help="ignored for char")
    parser.add_argument("--src-lang", "-s", required=True)
    parser.add_argument(
        "--tgt-lang",
        "-t",
        nargs="+",
        help="default: transcribe instead of translate; several: one multilingual model",
    )
    parser.add_argument(
        "--sample-rate",
        type=_sample_rate,
        metavar="native|HZ",
        default=None,
        help="rate the features are computed at (default: native, the clips' own)",
    )
    parser.add_argument(
        "--features",
        choices=("fbank80", "none"),
        default="fbank80",
        help="none: manifests refer to the clips themselves",
    )
    parser.add_argument(
        "--specaugment", choices=("lb", "none"), default="lb", help="masking while training"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    return parser


def _sample_rate(text: str) -> int | None:
    if text == "native":
        return None
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected `native` or a rate in Hz, got {text!r}")
    return int(text)


def _prepare(options: argparse.Namespace) -> int:
    root = Path(options.data_root).absolute() / options.src_lang
    targets = options.tgt_lang or [None]
    directions = [Direction(options.src_lang, target) for target in targets]
    corpora = [read_corpus(root, direction) for direction in directions]
    clips = dict.fromkeys(item.path for corpus in corpora for item in corpus.utterances)
    extraction = _extract(root, list(clips), options)
    texts: list[str] = []
    problems: list[Problem] = []
    for direction, corpus in zip(directions, corpora, strict=True):
        corpus.problems += _audio_problems(root, corpus.utterances, extraction)
        for split in SPLITS:
            written, filtered = write_manifest(
                root / f"{split}_{direction.task}.tsv",
                [item for item in corpus.utterances if item.split == split],
                extraction,
                direction,
            )
            corpus.problems += filtered
            if split == "train":
                texts += [target_text(item, direction) for item in written]
        _list_problems(root / f"skipped_{direction.task}.tsv", corpus.problems)
        problems += corpus.problems
    task = joint_task(directions)
    stem = Vocabulary(options.vocab_type, options.vocab_size).stem(task)
    joint = targets if len(targets) > 1 else []
    tags = [f"<lang:{language}>" for language in joint]
    write_vocabulary(root / stem, options.vocab_type, options.vocab_size, texts, tags)
    config = root / f"config_{task}.yaml"
    specaugment = options.specaugment == "lb"
    rate_hz = extraction.sample_rate_hz
    write_config(config, stem, root.as_posix(), rate_hz, specaugment, language_tags=bool(joint))
    print("\n".join(summary(problems, SPLITS)), end="\n" if problems else "")
    return exit_code(problems)


def _audio_problems(
    root: Path, utterances: list[Utterance], extraction: Extraction
) -> list[Problem]:
    problems = []
    for item in utterances:
        if reason := extraction.skipped.get(item.id):
            file = root / "clips" / item.path
            kind = Kind.UNDECODABLE if file.is_file() else Kind.MISSING
            if kind is Kind.UNDECODABLE and not file.stat().st_size:
                kind = Kind.EMPTY_FILE
            problems.append(Problem(kind, item.split, item.path, reason))
        elif damage := extraction.damaged.get(item.id):
            problems.append(Problem(Kind.TRUNCATED, item.split, item.path, damage))
    return problems


def _list_problems(path: Path, problems: list[Problem]) -> None:
    path.unlink(missing_ok=True)
    if problems:
        rows = ((item.split, item.path, item.kind.title, item.reason) for item in problems)
        write_rows(path, ("split", "path", "problem", "reason"), rows)
        print(f"{path.name}: {len(problems)} rows", file=sys.stderr)


def _extract(root: Path, paths: list[str], options: argparse.Namespace) -> Extraction:
    if options.features == "fbank80":
        return extract(root, paths, options.sample_rate, options.workers)
    if options.sample_rate is not None:
        raise OptionError(
            "Reading options failed in --sample-rate: expected native with --features none, "
            f"got {options.sample_rate}. Convert the clips first, or keep --features fbank80."
        )
    return measure(root, paths, options.workers)


def target_text(utterance: Utterance, direction: Direction) -> str:
    """What the model is to write."""
    return utterance.sentence if direction.target is None else utterance.translation


def write_manifest(
    path: Path, utterances: list[Utterance], extraction: Extraction, direction: Direction
) -> tuple[list[Utterance], list[Problem]]:
    """Write one split after Fairseq's filters (`data_utils.py:filter_manifest_df`).

    Returns:
        What was written, and what was filtered; clips without audio are in neither.
    """
    written, filtered, rows = [], [], []
    for utterance in utterances:
        audio = extraction.audio.get(utterance.id)
        if audio is None:
            continue
        text = target_text(utterance, direction)
        kind = _filter(utterance.split, text, audio.n_frames)
        if kind is not None:
            reason = f"{audio.n_frames} frames, {len(text)} characters"
            filtered.append(Problem(kind, utterance.split, utterance.path, reason))
            continue
        written.append(utterance)
        rows.append(
            (utterance.id, audio.reference, audio.n_frames, text, utterance.speaker)
            + (utterance.sentence, direction.source, direction.target or direction.source)
        )
    print(f"{path.name}: {len(rows)} clips")
    write_rows(path, MANIFEST_COLUMNS, rows)
    return written, filtered


def _filter(split: str, text: str, n_frames: int) -> Kind | None:
    if n_frames < MIN_FRAMES:
        return Kind.SHORT
    if not text:
        return Kind.NO_TEXT
    return Kind.LONG if split == "train" and n_frames > MAX_TRAIN_FRAMES else None


def write_vocabulary(
    stem: Path, kind: str, size: int, texts: list[str], tags: Sequence[str] = ()
) -> None:
    """Train `stem.model`, with `.vocab` and Fairseq's dictionary `.txt`; kept if it exists.

    `tags` are pieces of their own that no text is cut into, such as `<lang:de>`.

    Source: Fairseq `data_utils.py:gen_vocab`, same trainer options.
    """
    if stem.with_suffix(".txt").exists():
        print(f"{stem.name}.txt exists: the vocabulary is kept")
        return
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            character_coverage=1.0,
            num_threads=os.cpu_count(),
            minloglevel=2,
            user_defined_symbols=list(tags),
            **SPECIAL_PIECES,
        )
    except (RuntimeError, ValueError) as error:
        raise OptionError(
            f"Training SentencePiece failed in {stem.name}: expected --vocab-size to fit "
            f"{len(texts)} training sentences, got {size} ({error}). Change --vocab-size."
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
    scores = [processor.get_score(number) for number in range(processor.get_piece_size())]
    lines = [f"{piece}\t{score:g}\n" for piece, score in zip(pieces, scores, strict=True)]
    publish(stem.with_suffix(".model"), model.getvalue())
    publish(stem.with_suffix(".vocab"), "".join(lines).encode())
    entries = "".join(f"{piece} 1\n" for piece in pieces[len(SPECIAL_PIECES) :])
    publish(stem.with_suffix(".txt"), entries.encode())


def write_config(
    path: Path,
    stem: str,
    audio_root: str,
    sample_rate_hz: int,
    specaugment: bool,
    language_tags: bool = False,
) -> None:
    """Write Fairseq's data configuration; only `audio_root` is not relative to the file itself."""
    config: dict[str, object] = {
        "audio_root": audio_root,
        "bpe_tokenizer": {"bpe": "sentencepiece", "sentencepiece_model": f"{stem}.model"},
        "input_channels": 1,
        "input_feat_per_channel": MEL_BINS,
        "sample_rate": sample_rate_hz,
        "transforms": {"*": ["utterance_cmvn"]},
        "vocab_filename": f"{stem}.txt",
    }
    if language_tags:
        config["prepend_tgt_lang_tag"] = True
    if specaugment:
        config["specaugment"] = SPECAUGMENT_LB
        config["transforms"] = {
            "*": ["utterance_cmvn"],
            "_train": ["utterance_cmvn", "specaugment"],
        }
    publish(path, yaml.safe_dump(config).encode())


def publish(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_bytes(content)
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main())
