"""All shipped models of examples/covost: complete, safe and as good as its README says."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import generate

RECIPE = Path(__file__).parents[1] / "examples" / "covost"
SPEECH = sorted(path.parent for path in (RECIPE / "models").glob("*/config_*.yaml"))
MODELS = [RECIPE / "mini", RECIPE / "models" / "mt_en_de", *SPEECH]
MAX_TOTAL_BYTES = 30 * 10**6
WER = ("--scoring", "wer", "--wer-tokenizer", "13a", "--wer-lowercase", "--wer-remove-punct")


def _state(directory: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(directory / "checkpoint.pt", weights_only=True)


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE))


def test_all_shipped_models_together_are_small() -> None:
    places = [RECIPE / "mini", RECIPE / "models", RECIPE / "whisper" / "mini"]
    files = [
        path
        for place in places
        for path in place.rglob("*")
        if path.is_file() and path.parent.name != "clips"
    ]
    assert sum(path.stat().st_size for path in files) <= MAX_TOTAL_BYTES


@pytest.mark.parametrize("directory", MODELS, ids=lambda path: path.name)
def test_shipped_models_fit_their_dictionaries_and_name_no_machine(directory: Path) -> None:
    state = _state(directory)
    (dictionary,) = [*directory.glob("spm_*.txt"), *directory.glob("dict.de.txt")]
    pieces = len(dictionary.read_text("utf-8").splitlines()) + 4
    assert state["model"]["decoder.embed_tokens.weight"].shape[0] == pieces
    for path in directory.iterdir():
        content = path.read_bytes() if path.is_file() else b""
        assert not re.search(rb"/(work|tmp|home|root)/", content), path


@pytest.mark.parametrize("directory", SPEECH, ids=lambda path: path.name)
def test_shipped_manifests_share_the_clips_of_mini(directory: Path) -> None:
    (config,) = directory.glob("config_*.yaml")
    root = directory / yaml.safe_load(config.read_text("utf-8"))["audio_root"]
    assert root.resolve() == RECIPE / "mini"
    for manifest in directory.glob("test_*.tsv"):
        rows = _rows(manifest)
        assert len(rows) == 100 and all((root / row["audio"]).is_file() for row in rows)
        assert {row["tgt_lang"] for row in rows} == {manifest.stem.rsplit("_", 1)[1]}


def _ctc_head() -> Any:
    """The user directory as Fairseq imports it; a second import would register it again."""
    path = RECIPE / "ctc_head" / "__init__.py"
    specification = importlib.util.spec_from_file_location("ctc_head", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_ctc_head_beside_the_model_computes_fairseqs_ctc_loss() -> None:
    pytest.importorskip("fairseq")
    from fairseq.criterions.label_smoothed_cross_entropy_with_ctc import (
        LabelSmoothedCrossEntropyWithCtcCriterion,
    )
    from fairseq.data import Dictionary
    from fairseq.models.speech_to_text import S2TTransformerModel

    directory = RECIPE / "models" / "asr_en"
    state = _state(directory)
    target = Dictionary.load(str(directory / "spm_bpe400_asr_en.txt"))
    task = argparse.Namespace(target_dictionary=target, source_dictionary=None)
    model = S2TTransformerModel.build_model(state["cfg"]["model"], task).eval()
    model.load_state_dict(state["model"])
    tokens = torch.randint(4, len(target), (2, 6))
    tokens[:, -1], tokens[1, 4:] = target.eos(), torch.tensor([target.eos(), target.pad()])
    sample = {
        "net_input": {
            "src_tokens": torch.randn(2, 90, 80),
            "src_lengths": torch.tensor([90, 61]),
            "prev_output_tokens": tokens.roll(1, 1),
        },
        "target": tokens,
        "target_lengths": torch.tensor([6, 5]),
        "ntokens": 11,
    }
    options = (task, False, 0.1, 0, True, 1.0)
    inside = LabelSmoothedCrossEntropyWithCtcCriterion(*options)(model, sample)
    criterion = _ctc_head().CtcHeadCriterion(*options, 128)
    criterion.head.load_state_dict(model.encoder.ctc_proj.state_dict())
    model.encoder.ctc_proj = None
    beside = criterion(model, sample)
    assert inside[0].isfinite() and inside[2]["ctc_loss"] > 0
    torch.testing.assert_close(beside[0], inside[0])
    assert beside[2] == inside[2]


QUALITY = [
    ("mini", "st_en_de", (), 84.46),
    ("models/asr_en", "asr_en", WER, 9.86),
    ("models/st_en_de_conformer", "st_en_de", (), 94.16),
    ("models/st_en_de_berard", "st_en_de", (), 87.09),
    ("models/st_en_deca", "st_en_de", ("--prefix-size", "1"), 71.03),
    ("models/st_en_deca", "st_en_ca", ("--prefix-size", "1"), 70.51),
]


@pytest.mark.soak
@pytest.mark.parametrize(("place", "subset", "flags", "score"), QUALITY)
def test_shipped_models_score_what_the_readme_says(
    place: str, subset: str, flags: tuple[str, ...], score: float
) -> None:
    pytest.importorskip("fairseq")
    directory = RECIPE / place
    (config,) = directory.glob("config_*.yaml")
    run = generate(directory, "--gen-subset", f"test_{subset}", *flags, config=config.name)
    assert run.metric_value == pytest.approx(score, abs=0.3)
    assert f"**{score}**" in (RECIPE / "README.md").read_text("utf-8")
