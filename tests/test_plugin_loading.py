"""What `fairseq-generate --ov-engine` loads and compiles, and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    TINY,
    assert_identical,
    generate,
    write_checkpoint,
    write_data,
)

from fairseq_openvino.errors import ModelError, OptionError
from fairseq_openvino.plugin import commands
from fairseq_openvino.runtime.engine import Engine, Variant
from fairseq_openvino.runtime.model import CompiledModel


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
        engine = ("--ov-engine", "--ov-cache-dir", str(cache_dir))
        generate(tiny, *flags, "--max-len-b", "9", *engine)
        assert events == [("encoder", 0), ("decoder", beam), *["encode"] * (21 // size)]


@pytest.mark.parametrize(
    "flags",
    [["--retain-dropout"], ["--fp16"], ["--print-alignment"], ["--ov-threads", "0"]],
    ids=str,
)
def test_flags_that_cannot_work_are_refused(
    tiny: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    """In one line with the flag, whether it is Fairseq's or a field of ours."""
    with pytest.raises(SystemExit, match="2"):
        commands.guarded(generate)(tiny, *flags, "--ov-engine", "--ov-cache-dir", str(cache_dir))
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert re.fullmatch(rf"error: \w.* failed in {flags[0]}: expected .*", line)


def test_unknown_device_names_the_known_ones(tiny: Path, cache_dir: Path) -> None:
    from fairseq_openvino.errors import DeviceError

    with pytest.raises(DeviceError, match=r"'TPU'.*CPU"):
        generate(tiny, "--ov-engine", "--ov-device", "TPU", "--ov-cache-dir", str(cache_dir))


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

    from fairseq_openvino.loading import load_model
    from fairseq_openvino.plugin.model import S2TOpenVINOModel

    model = S2TOpenVINOModel(load_model(tiny_bundle).model, Dictionary.load(str(tiny / "dict.txt")))
    assert list(model.parameters()) == [] and list(model.buffers()) == []


def test_registered_task_needs_no_engine_flag(tiny: Path, tiny_bundle: Path) -> None:
    flags = ["--beam", "5", "--max-len-b", "15"]
    expected = generate(tiny, *flags)
    found = generate(
        tiny, *flags, "--task", "speech_to_text_openvino", "--ov-model", str(tiny_bundle)
    )
    assert_identical(expected, found)


def test_second_run_starts_from_the_cache(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = generate(tiny, "--ov-engine", "--ov-cache-dir", str(cache), "--max-len-b", "5")
    before = {p: p.stat().st_mtime_ns for p in (cache / "bundles").rglob("*.bin")}
    second = generate(tiny, "--ov-engine", "--ov-cache-dir", str(cache), "--max-len-b", "5")
    assert before == {p: p.stat().st_mtime_ns for p in (cache / "bundles").rglob("*.bin")}
    assert_identical(first, second)
