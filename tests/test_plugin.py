"""`fairseq-generate --ov-engine` against eager Fairseq, flag by flag."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    MINI,
    PACKAGE,
    TINY,
    child_environment,
    generate,
    generate_both,
    write_checkpoint,
    write_data,
)

from fairseq_openvino.bundle import is_bundle
from fairseq_openvino.commands.verify import compare
from fairseq_openvino.errors import ModelError, OptionError
from fairseq_openvino.plugin import commands
from fairseq_openvino.runtime.engine import Engine, Variant
from fairseq_openvino.runtime.model import CompiledModel


def assert_identical(eager: Any, engine: Any) -> None:
    comparison = compare(eager, engine)
    assert comparison.utterances > 0
    assert comparison.passed, comparison


@pytest.mark.parametrize("batch", [("--batch-size", "1"), ("--batch-size", "8"), ()], ids=str)
@pytest.mark.parametrize("beam", [("1", "1"), ("5", "5")], ids=["greedy", "beam5-nbest5"])
def test_hypotheses_are_identical(
    tiny: Path, cache_dir: Path, batch: tuple[str, ...], beam: tuple[str, str]
) -> None:
    flags = ["--beam", beam[0], "--nbest", beam[1], "--max-len-b", "40", *batch]
    assert_identical(*generate_both(tiny, cache_dir, *flags))


@pytest.mark.parametrize("beam", [("1", "1"), ("5", "5")], ids=["greedy", "beam5-nbest5"])
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
        "--num-workers 2",
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
    with pytest.raises(ValueError, match="--prefix-size 1"):
        generate(tmp_path, "--ov-engine", "--ov-cache-dir", str(cache_dir))


def test_only_what_the_batches_need_is_compiled_and_before_the_first(
    tiny: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    compile_variant, encode = Engine._compile, CompiledModel.encode

    def compiled(self: Engine, variant: Variant) -> Any:
        events.append((variant.graph, variant.beam))
        return compile_variant(self, variant)

    def encoded(self: CompiledModel, *args: Any) -> Any:
        events.append("encode")
        return encode(self, *args)

    monkeypatch.setattr(Engine, "_compile", compiled)
    monkeypatch.setattr(CompiledModel, "encode", encoded)
    for size, beam in ((1, 5), (3, 0)):
        events.clear()
        flags = ("--batch-size", str(size), "--required-batch-size-multiple", "1", "--beam", "5")
        generate(tiny, *flags, "--ov-engine", "--ov-cache-dir", str(cache_dir))
        assert events == [("encoder", 0), ("decoder", beam), *["encode"] * (21 // size)]


@pytest.mark.parametrize("scorer", ["sacrebleu", "wer", "chrf"])
def test_scorers(tiny: Path, cache_dir: Path, scorer: str) -> None:
    flags = ["--scoring", scorer, "--beam", "2", "--max-len-b", "12"]
    eager, engine = generate_both(tiny, cache_dir, *flags)
    assert eager.metric and eager.metric == engine.metric


@pytest.mark.parametrize(
    "flags",
    [["--retain-dropout"], ["--fp16"], ["--print-alignment"], ["--ov-threads", "0"]],
    ids=str,
)
def test_flags_that_cannot_work_are_refused(
    tiny: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    """Whether the flag is Fairseq's or a field of ours."""
    with pytest.raises(SystemExit, match="2"):
        commands.guarded(generate)(tiny, *flags, "--ov-engine", "--ov-cache-dir", str(cache_dir))
    assert re.search(rf"^error: \w.* failed in {flags[0]}: expected", capsys.readouterr().err, re.M)


def test_unknown_device_names_the_known_ones(tiny: Path, cache_dir: Path) -> None:
    from fairseq_openvino.errors import DeviceError

    with pytest.raises(DeviceError, match=r"'TPU'.*CPU"):
        generate(tiny, "--ov-engine", "--ov-device", "TPU", "--ov-cache-dir", str(cache_dir))


def test_unwritable_cache(tiny: Path, tmp_path: Path) -> None:
    from fairseq_openvino.errors import StorageError

    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Choose another cache directory"):
        generate(tiny, "--ov-engine", "--ov-cache-dir", str(tmp_path / "file"))


def test_bundle_as_path_reads_no_checkpoint(
    tiny: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_bundle, moved)
    expected = generate(tiny, "--beam", "5", "--max-len-b", "15")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.Unpickler", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    found = generate(tiny, "--beam", "5", "--max-len-b", "15", path=str(moved))
    assert_identical(expected, found)


def test_ov_model_warns_if_it_is_not_the_checkpoints(
    tiny: Path, tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_checkpoint(tmp_path, "s2t_transformer_s", vocabulary=60, seed=4, **TINY)
    flags = ["--ov-engine", "--ov-model", str(tiny_bundle), "--beam", "1", "--max-len-b", "5"]
    generate(tiny, *flags)
    assert "was not exported from" not in caplog.text
    generate(tiny, *flags, path=str(other))
    assert "was not exported from" in caplog.text
    with pytest.raises(OptionError, match="--ov-model"):
        generate(tiny, *flags, path=f"{other}:{tiny / 'checkpoint.pt'}")


def test_bundle_of_another_vocabulary_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "s2t_transformer_s", vocabulary=61, **TINY)
    write_data(tmp_path, utterances=3, frames=(40, 60))
    with pytest.raises(ModelError, match="dictionary"):
        generate(tmp_path, path=str(tiny_bundle))


def test_no_torch_weights_remain(tiny: Path, tiny_bundle: Path) -> None:
    from fairseq.data import Dictionary

    from fairseq_openvino.plugin.model import S2TOpenVINOModel
    from fairseq_openvino.recognizer import load_model

    model = S2TOpenVINOModel(load_model(tiny_bundle).model, Dictionary.load(str(tiny / "dict.txt")))
    assert list(model.parameters()) == [] and list(model.buffers()) == []


def test_registered_task_needs_no_engine_flag(tiny: Path, tiny_bundle: Path) -> None:
    flags = ["--beam", "5", "--max-len-b", "15"]
    expected = generate(tiny, *flags)
    found = generate(
        tiny, *flags, "--task", "speech_to_text_openvino", "--ov-model", str(tiny_bundle)
    )
    assert_identical(expected, found)


def command(tiny: Path, cache: Path, *flags: str, user_dir: str = str(PACKAGE)) -> list[str]:
    return [
        sys.executable, "-W", "ignore", "-m", "fairseq_cli.generate", str(tiny), "--gen-subset",
        "test", "--task", "speech_to_text", "--path", str(tiny / "checkpoint.pt"), "--max-tokens",
        "50000", "--beam", "2", "--max-len-b", "9", "--scoring", "sacrebleu", "--user-dir", user_dir,
        "--ov-engine", "--ov-cache-dir", str(cache), *flags,
    ]  # fmt: skip


def test_unreadable_clip_loses_only_itself(tiny: Path, cache_dir: Path, tmp_path: Path) -> None:
    import soundfile

    data = tmp_path / "data"
    shutil.copytree(tiny, data)
    (data / "broken.wav").write_bytes(b"RIFF not a wave file")
    soundfile.write(data / "good.wav", np.random.randn(16000) * 0.1, 16000)
    rows = (data / "test.tsv").read_text().splitlines()[:9]
    rows += [f"b\t{data}/broken.wav\t70\tt1 t2\ts", f"g\t{data}/good.wav\t98\tt1 t2\ts"]
    (data / "test.tsv").write_text("\n".join(rows) + "\n")
    for workers in ("0", "1"):
        done = subprocess.run(
            command(data, cache_dir, "--num-workers", workers), capture_output=True, text=True,
            env=child_environment(),
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert done.returncode == 1, output
        assert output.count("\nH-") == 9 and "Generate test" in output
        assert "broken.wav" in output and "1 utterances were skipped" in output


def test_refusal_is_one_line_with_its_exit_code(tiny: Path, cache_dir: Path) -> None:
    done = subprocess.run(
        command(tiny, cache_dir, "--retain-dropout"), capture_output=True, text=True,
        env=child_environment(),
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "error: Generating with --ov-engine" in done.stderr


def test_several_processes_share_one_export(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    runs = [
        subprocess.Popen(
            command(tiny, cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=child_environment(),
        )
        for _ in range(3)
    ]  # fmt: skip
    outputs = [run.communicate()[0] for run in runs]
    for run, output in zip(runs, outputs, strict=True):
        assert run.returncode == 0, output[-1500:]
    assert sum("exporting" in output for output in outputs) == 1
    assert len({tuple(sorted(x for x in o.splitlines() if x[:2] == "H-")) for o in outputs}) == 1
    assert [is_bundle(p) for p in (cache / "bundles").iterdir() if p.is_dir()] == [True]


def test_user_dir_resolves_by_bare_name_from_site_packages(
    tiny: Path, cache_dir: Path, tmp_path: Path
) -> None:
    """A copy of Fairseq's folder layout: site-packages/fairseq beside site-packages/plugin."""
    import fairseq

    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "fairseq").mkdir()  # Fairseq looks for plugins in its own parent directory
    for part in Path(fairseq.__file__).parent.iterdir():
        os.symlink(part, site / "fairseq" / part.name)
    shutil.copytree(PACKAGE, site / "fairseq_openvino")
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1));"
        "from fairseq_cli.generate import cli_main; cli_main()"
    )
    words = command(tiny, cache_dir, user_dir="fairseq_openvino")[5:]
    environment = {k: v for k, v in child_environment().items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(site), *words], capture_output=True,
        text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-800:]
    assert "Generate test" in done.stdout


def test_interactive_reads_audio_paths(cache_dir: Path) -> None:
    clips = sorted((MINI / "clips").iterdir())[:3]
    expected = generate(
        MINI, "--gen-subset", "test_st_en_de", "--batch-size", "1", config="config_st_en_de.yaml"
    )
    words = [
        sys.executable, "-W", "ignore", "-m", "fairseq_cli.interactive", str(MINI), "--config-yaml",
        "config_st_en_de.yaml", "--task", "speech_to_text", "--path", str(MINI / "checkpoint.pt"),
        "--max-tokens", "50000", "--beam", "5", "--user-dir", str(PACKAGE), "--ov-engine",
        "--ov-cache-dir", str(cache_dir),
    ]  # fmt: skip
    done = subprocess.run(
        words, input="".join(f"{clip}\n" for clip in clips), capture_output=True, text=True,
        env=child_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-800:]
    found = [x.split("\t")[2] for x in done.stdout.splitlines() if x.startswith("D-")]
    assert len(found) == 3
    assert set(found) <= {line[0].text for line in expected.hypotheses.values()}


def test_second_run_starts_from_the_cache(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = generate(tiny, "--ov-engine", "--ov-cache-dir", str(cache), "--max-len-b", "5")
    before = {p: p.stat().st_mtime_ns for p in (cache / "bundles").rglob("*.bin")}
    started = time.perf_counter()
    second = generate(tiny, "--ov-engine", "--ov-cache-dir", str(cache), "--max-len-b", "5")
    assert time.perf_counter() - started < 20
    assert before == {p: p.stat().st_mtime_ns for p in (cache / "bundles").rglob("*.bin")}
    assert_identical(first, second)
