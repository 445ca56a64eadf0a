"""`fairseq-generate --ov-engine` against eager Fairseq, flag by flag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    MINI,
    TINY,
    assert_identical,
    generate,
    generate_both,
    write_checkpoint,
    write_data,
)

from fairseq_openvino.commands.verify import compare
from fairseq_openvino.errors import OptionError


@pytest.mark.parametrize("batch", [("--batch-size", "1"), ("--batch-size", "8"), ()], ids=str)
@pytest.mark.parametrize("beam", [("1", "1"), ("5", "5")], ids=["greedy", "beam5-nbest5"])
def test_hypotheses_are_identical(
    tiny: Path, cache_dir: Path, batch: tuple[str, ...], beam: tuple[str, str]
) -> None:
    flags = ["--beam", beam[0], "--nbest", beam[1], "--max-len-b", "40", *batch]
    assert_identical(*generate_both(tiny, cache_dir, *flags))


@pytest.mark.parametrize(
    "beam",
    [pytest.param(("1", "1"), marks=pytest.mark.soak), ("5", "5")],
    ids=["greedy", "beam5-nbest5"],
)
def test_hypotheses_on_the_shipped_test_set_are_identical(
    cache_dir: Path, beam: tuple[str, str]
) -> None:
    flags = ["--beam", beam[0], "--nbest", beam[1], "--gen-subset", "test_st_en_de"]
    eager, engine = generate_both(MINI, cache_dir, *flags, config="config_st_en_de.yaml")
    assert_identical(eager, engine)
    assert (eager.metric_value or 0) > 80


@pytest.mark.parametrize(
    "flags",
    [
        "--lenpen 0.3 --unkpen 2 --min-len 6",
        "--unnormalized --max-len-a 0.05 --max-len-b 3",
        "--temperature 1.7",
        "--prefix-size 2 --nbest 3",
        "--no-repeat-ngram-size 2",
        "--score-reference",
        "--diversity-rate 0.5",
        "--diverse-beam-groups 5 --diverse-beam-strength 0.4 --required-batch-size-multiple 1",
        "--beam 200 --max-len-b 6",
        "--match-source-len",
    ],
)
def test_flags_work_like_eager(tiny: Path, cache_dir: Path, flags: str) -> None:
    words = flags.split()
    if "--beam" not in words:
        words += ["--beam", "5"]
    if "--max-len-b" not in words:
        words += ["--max-len-b", "25"]
    assert_identical(*generate_both(tiny, cache_dir, *words))


def test_sampling_draws_from_the_same_distribution(tiny: Path, cache_dir: Path) -> None:
    """Fairseq seeds before it initialises the weights, so streams differ; statistics do not."""
    totals = []
    for extra in ((), ("--ov-engine", "--ov-cache-dir", str(cache_dir))):
        scores = []
        for seed in (1, 2):
            flags = ["--sampling", "--beam", "16", "--nbest", "16", "--seed", str(seed)]
            run = generate(tiny, *flags, "--max-len-b", "8", *extra)
            scores += [line.score for found in run.hypotheses.values() for line in found]
        totals.append((np.mean(scores), np.std(scores) / len(scores) ** 0.5))
    (eager, error), (engine, _) = totals
    assert abs(eager - engine) < 6 * error, totals


def test_topk_one_sampling_is_deterministic_and_identical(tiny: Path, cache_dir: Path) -> None:
    flags = ["--sampling", "--sampling-topk", "1", "--beam", "1", "--max-len-b", "20"]
    assert_identical(*generate_both(tiny, cache_dir, *flags))


def test_language_model_fusion(tiny: Path, cache_dir: Path, tmp_path: Path) -> None:
    path = write_language_model(tiny, tmp_path)
    flags = ["--lm-path", str(path), "--lm-weight", "0.4", "--beam", "5", "--max-len-b", "15"]
    eager, engine = generate_both(tiny, cache_dir, *flags)
    assert_identical(eager, engine)
    plain = generate(tiny, "--beam", "5", "--max-len-b", "15")
    assert compare(plain, eager).identical < compare(plain, eager).utterances


def write_language_model(data: Path, directory: Path) -> Path:
    from argparse import Namespace

    from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture
    from fairseq.tasks.language_modeling import LanguageModelingTask

    arguments = Namespace(
        task="language_modeling", arch="transformer_lm", data=str(data), decoder_embed_dim=16,
        decoder_ffn_embed_dim=32, decoder_layers=1, decoder_attention_heads=2, tokens_per_sample=64,
        max_target_positions=64, decoder_input_dim=16, decoder_output_dim=16, seed=1,
        sample_break_mode="none", output_dictionary_size=-1, self_target=False, future_target=False,
        past_target=False, add_bos_token=False, criterion="cross_entropy",
    )  # fmt: skip
    base_lm_architecture(arguments)
    task = LanguageModelingTask.setup_task(arguments)
    torch.manual_seed(3)
    model = TransformerLanguageModel.build_model(arguments, task)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    history = {"criterion_name": "x", "optimizer_name": "y", "lr_scheduler_state": {}}
    state = {
        "args": arguments, "model": model.state_dict(), "extra_state": {"train_iterator": {"epoch": 1}},
        "optimizer_history": [history | {"num_updates": 1}],
    }  # fmt: skip
    torch.save(state, directory / "lm.pt")
    return directory / "lm.pt"


@pytest.mark.soak
def test_ensembles_mix_checkpoints_and_bundles(
    tiny: Path, cache_dir: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    other = write_checkpoint(tmp_path, "s2t_transformer_s", vocabulary=60, seed=9, **TINY)
    both = f"{tiny / 'checkpoint.pt'}:{other}"
    flags = ["--beam", "5", "--max-len-b", "15"]
    eager, engine = generate_both(tiny, cache_dir, *flags, path=both)
    assert_identical(eager, engine)
    mixed = f"{tiny_bundle}:{other}"
    assert_identical(
        eager, generate(tiny, *flags, "--ov-engine", "--ov-cache-dir", str(cache_dir), path=mixed)
    )


def test_model_overrides_reach_the_export(tiny: Path, cache_dir: Path) -> None:
    flags = ["--model-overrides", "{'no_scale_embedding': True}", "--beam", "3", "--max-len-b", "9"]
    eager, engine = generate_both(tiny, cache_dir, *flags)
    assert_identical(eager, engine)
    plain = generate(tiny, "--beam", "3", "--max-len-b", "9")
    assert compare(plain, engine).identical < len(plain.hypotheses)


@pytest.mark.parametrize("shards", [3, pytest.param(2, marks=pytest.mark.soak)])
def test_shards_part_the_work(tiny: Path, cache_dir: Path, shards: int) -> None:
    flags = ["--batch-size", "4", "--required-batch-size-multiple", "1", "--max-len-b", "9"]
    flags += ["--beam", "2", "--ov-engine", "--ov-cache-dir", str(cache_dir)]
    whole = generate(tiny, *flags).hypotheses
    parts = [
        generate(tiny, *flags, "--num-shards", str(shards), "--shard-id", str(i)).hypotheses
        for i in range(shards)
    ]
    assert sum(map(len, parts)) == len(whole) == 21 and all(parts)
    assert {key: found for part in parts for key, found in part.items()} == whole


@pytest.mark.parametrize(
    ("shards", "chosen", "named"),
    [(7, 0, r"--num-shards: expected 1 to 6 \(batches\), got 7"), (2, 2, "--shard-id.* 0 to 1")],
)
def test_shards_that_do_not_exist(tiny: Path, shards: int, chosen: int, named: str) -> None:
    flags = ["--batch-size", "4", "--required-batch-size-multiple", "1"]
    with pytest.raises(OptionError, match=named):
        generate(tiny, *flags, "--num-shards", str(shards), "--shard-id", str(chosen))


def test_a_checkpoint_of_weights_alone(tiny: Path, cache_dir: Path, tmp_path: Path) -> None:
    weights = torch.load(tiny / "checkpoint.pt", weights_only=False)["model"]
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"model": wrapped}, tmp_path / "weights.pt", pickle_protocol=5)
    flags = ["--beam", "2", "--max-len-b", "9"]
    overrides = repr({"arch": "s2t_transformer_s", **TINY})
    engine = ["--ov-engine", "--ov-cache-dir", str(cache_dir), "--model-overrides", overrides]
    found = generate(tiny, *flags, *engine, path=str(tmp_path / "weights.pt"))
    assert_identical(generate(tiny, *flags), found)


def test_multilingual_models_need_and_use_the_language_tag(tmp_path: Path, cache_dir: Path) -> None:
    write_checkpoint(tmp_path, "s2t_transformer_s", vocabulary=60, **TINY)
    lines = (tmp_path / "dict.txt").read_text().splitlines()
    lines[-2:] = ["<lang:de> 1", "<lang:fr> 1"]
    (tmp_path / "dict.txt").write_text("\n".join(lines) + "\n")
    with open(tmp_path / "config.yaml", "a") as file:
        file.write("prepend_tgt_lang_tag: true\n")
    write_data(tmp_path, utterances=9, frames=(40, 120))
    rows = (tmp_path / "test.tsv").read_text().splitlines()
    tagged = [f"{row}\t{'fr' if i % 2 else 'de'}" for i, row in enumerate(rows[1:])]
    (tmp_path / "test.tsv").write_text("\n".join([rows[0] + "\ttgt_lang", *tagged]) + "\n")
    flags = ["--prefix-size", "1", "--beam", "5", "--max-len-b", "15"]
    eager, engine = generate_both(tmp_path, cache_dir, *flags)
    assert_identical(eager, engine)
    cells = [row.split("\t") for row in (tmp_path / "test.tsv").read_text().splitlines()]
    bare = "".join(f"{row[0]}\t{row[1]}\t{row[-1]}\n" for row in cells)
    (tmp_path / "test.tsv").write_text(bare)
    untold = generate(tmp_path, *flags, "--ov-engine", "--ov-cache-dir", str(cache_dir))
    assert untold.hypotheses == engine.hypotheses and not untold.references and not untold.metric
    with pytest.raises(OptionError, match="--prefix-size 1"):
        generate(tmp_path, "--ov-engine", "--ov-cache-dir", str(cache_dir))


@pytest.mark.parametrize("scorer", ["sacrebleu", "wer", "chrf"])
def test_scorers(tiny: Path, cache_dir: Path, scorer: str) -> None:
    flags = ["--scoring", scorer, "--beam", "2", "--max-len-b", "12"]
    eager, engine = generate_both(tiny, cache_dir, *flags)
    assert eager.metric and eager.metric == engine.metric
