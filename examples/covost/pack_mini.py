"""Pack a model with the test clips of its corpus so that the directory works wherever it is moved.

    python examples/covost/pack_mini.py --data ROOT/en --checkpoint PT --output examples/covost/mini

The manifest refers to the MP3 files themselves, and `audio_root` is the directory itself.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sys
from pathlib import Path

import yaml
from covost_corpus import Direction, Utterance, read_corpus
from covost_features import measure
from prep_covost import write_config, write_manifest

from fairseq_openvino.errors import EXIT_OK, FairseqOpenVINOError, OptionError

SPLIT = "test"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="directory prep_covost.py has filled")
    parser.add_argument("--checkpoint", required=True, help="output of strip_checkpoint.py")
    parser.add_argument("--output", required=True)
    parser.add_argument("--src-lang", default="en")
    parser.add_argument("--tgt-lang", default="de")
    options = parser.parse_args(arguments)
    direction = Direction(options.src_lang, options.tgt_lang)
    try:
        pack(Path(options.data), direction, Path(options.checkpoint), Path(options.output))
    except FairseqOpenVINOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def pack(data: Path, direction: Direction, checkpoint: Path, output: Path) -> None:
    """Copy the vocabulary, the checkpoint and the test clips, and write manifest and YAML file."""
    config_name = f"config_{direction.task}.yaml"
    config = _config(data / config_name)
    stem = config["vocab_filename"].removesuffix(".txt")
    (output / "clips").mkdir(parents=True, exist_ok=True)
    for suffix in (".model", ".txt"):
        shutil.copyfile(data / (stem + suffix), output / (stem + suffix))
    shutil.copyfile(checkpoint, output / "checkpoint.pt")
    kept = _ids(data / f"{SPLIT}_{direction.task}.tsv")
    utterances = [item for item in read_corpus(data, direction) if item.id in kept]
    _copy_clips(data, output, utterances)
    extraction = measure(output, [item.path for item in utterances], os.cpu_count() or 1)
    if extraction.sample_rate_hz != config["sample_rate"]:
        raise OptionError(
            f"Packing failed in {data}: expected clips at the {config['sample_rate']} Hz of the "
            f"features, got {extraction.sample_rate_hz} Hz. Prepare with --sample-rate native."
        )
    write_manifest(output / f"{SPLIT}_{direction.task}.tsv", utterances, extraction, direction)
    specaugment = "specaugment" in config
    write_config(output / config_name, stem, ".", extraction.sample_rate_hz, specaugment)


def _config(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise OptionError(
            f"Packing failed in {path.parent}: expected {path.name}, got no such file. "
            "Run prep_covost.py first."
        )
    return yaml.safe_load(path.read_text("utf-8"))


def _ids(manifest: Path) -> set[str]:
    with open(manifest, encoding="utf-8", newline="") as file:
        return {
            row["id"] for row in csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE)
        }


def _copy_clips(data: Path, output: Path, utterances: list[Utterance]) -> None:
    for utterance in utterances:
        shutil.copyfile(data / "clips" / utterance.path, output / "clips" / utterance.path)


if __name__ == "__main__":
    sys.exit(main())
