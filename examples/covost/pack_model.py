"""Pack a model with the test split of its corpus so that the directory works wherever it is moved.

    python examples/covost/pack_model.py --data ROOT/en -t de --checkpoint PT --output mini
    python examples/covost/pack_model.py --data ROOT/en -t de ca --checkpoint PT \
        --output models/st_en_deca --half --clips mini

Options are those of `prep_covost.py`. Manifests refer to the MP3 files themselves: copies beside
them or, with `--clips`, those of a directory packed before. With `--text` the model is one of the
translation task, and its test split is text.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sys
from pathlib import Path

import torch
import yaml
from covost_corpus import Direction, joint_task, read_corpus
from covost_features import measure
from prep_covost import write_config, write_manifest

from fairseq_openvino.errors import EXIT_OK, FairseqOpenVINOError, OptionError, failure

SPLIT = "test"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", required=True, type=Path, help="filled by prep_covost.py")
    parser.add_argument("--src-lang", "-s", default="en")
    parser.add_argument("--tgt-lang", "-t", nargs="+", help="default: a recognition model")
    parser.add_argument("--text", action="store_true", help="a model of prep_text.py's text")
    parser.add_argument("--checkpoint", required=True, type=Path, help="averaged, stripped")
    parser.add_argument("--half", action="store_true", help="store the weights in 16 bits")
    parser.add_argument("--clips", type=Path, help="packed directory that has the clips")
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args(arguments)
    directions = [Direction(options.src_lang, target) for target in options.tgt_lang or [None]]
    try:
        if options.text:
            pack_text(options.data, directions[0], options.output)
        else:
            pack_speech(options.data, directions, options.output, options.clips)
        _write_checkpoint(options.checkpoint, options.output / "checkpoint.pt", options.half)
    except FairseqOpenVINOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def pack_speech(
    data: Path, directions: list[Direction], output: Path, clips: Path | None = None
) -> None:
    """Copy vocabulary and test clips, and write a manifest a direction and the YAML file.

    Args:
        data: directory of `prep_covost.py`.
        directions: several for a multilingual model.
        output: created if need be.
        clips: directory whose `clips/` already has the test clips; None copies them to `output`.
    """
    name = f"config_{joint_task(directions)}.yaml"
    config = yaml.safe_load(_existing(data / name).read_text("utf-8"))
    stem = config["vocab_filename"].removesuffix(".txt")
    output.mkdir(parents=True, exist_ok=True)
    _copy(data, output, f"{stem}.model", f"{stem}.txt")
    for direction in directions:
        manifest = f"{SPLIT}_{direction.task}.tsv"
        kept = _ids(_existing(data / manifest))
        corpus = read_corpus(data, direction)
        utterances = [item for item in corpus.utterances if item.id in kept]
        paths = [item.path for item in utterances]
        if clips is None:
            (output / "clips").mkdir(exist_ok=True)
            _copy(data / "clips", output / "clips", *paths)
        extraction = measure(clips or output, paths, os.cpu_count() or 1)
        if extraction.sample_rate_hz != config["sample_rate"]:
            raise OptionError(
                f"Packing failed in {data}: expected clips at the {config['sample_rate']} Hz of "
                f"the features, got {extraction.sample_rate_hz} Hz. "
                "Prepare with --sample-rate native."
            )
        write_manifest(output / manifest, utterances, extraction, direction)
    write_config(
        output / name,
        stem,
        "." if clips is None else os.path.relpath(clips, output),
        config["sample_rate"],
        "specaugment" in config,
        config.get("prepend_tgt_lang_tag", False),
    )


def pack_text(data: Path, direction: Direction, output: Path) -> None:
    """Copy SentencePiece model, dictionaries and the test sentences of a translation model."""
    output.mkdir(parents=True, exist_ok=True)
    languages = (direction.source, str(direction.target))
    text = data / f"mt_{direction.pair}"
    models = [path.name for path in text.glob("spm_*.model")]
    _copy(text, output, *models, *(f"{SPLIT}.{language}" for language in languages))
    _copy(text / "data-bin", output, *(f"dict.{language}.txt" for language in languages))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise failure(
            OptionError,
            "Packing",
            path.parent,
            path.name,
            "no such file",
            "Run the steps of the recipe before this one",
        )
    return path


def _copy(source: Path, target: Path, *names: str) -> None:
    for name in names:
        shutil.copyfile(_existing(source / name), target / name)


def _ids(manifest: Path) -> set[str]:
    with open(manifest, encoding="utf-8", newline="") as file:
        return {
            row["id"] for row in csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE)
        }


def _write_checkpoint(source: Path, target: Path, half: bool) -> None:
    """Copy the checkpoint; Fairseq copies weights of 16 bits into its own of 32 when it loads."""
    if not half:
        shutil.copyfile(_existing(source), target)
        return
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(_existing(source), weights_only=True)
    state["model"] = {
        name: value.half() if value.is_floating_point() else value
        for name, value in state["model"].items()
    }
    torch.save(state, target)


if __name__ == "__main__":
    sys.exit(main())
