"""`verify-bundle` and `info`: a bundle is the one expected, survives OpenVINO, and is right on a device."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from fairseq_openvino import cli, load_model
from fairseq_openvino.atomic import sha256
from fairseq_openvino.bundle import MANIFEST, Bundle, open_bundle, write_manifest
from fairseq_openvino.errors import BundleError, ModelError, OptionError
from fairseq_openvino.export import cases
from fairseq_openvino.runtime.engine import Variant
from fairseq_openvino.runtime.isolation import _answer, compile_isolated
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.runtime.options import EngineOptions

FORMAT_1 = Path(__file__).parent / "fixtures" / "format1" / "s2t"
NOT_THIS = "0" * 64


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """One to be changed."""
    return open_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def rewritten(bundle: Bundle) -> Bundle:
    """After a change of its files that its checksums cover."""
    write_manifest(bundle.directory, bundle.manifest)
    return open_bundle(bundle.directory)


def test_the_expected_digest_is_compared_before_anything_else(bundle: Bundle) -> None:
    stated = sha256(bundle.directory / MANIFEST)
    assert open_bundle(bundle.directory, stated.upper()) == bundle and bundle.digest == stated
    assert load_model(bundle, expect=stated).bundle == bundle
    (bundle.directory / MANIFEST).write_bytes(b"{")
    with pytest.raises(
        BundleError, match=f"with the SHA-256 {NOT_THIS}, got [0-9a-f]{{64}}. Do not"
    ):
        load_model(bundle.directory, expect=NOT_THIS)


@pytest.mark.parametrize("expect", ["", "0" * 12, "0" * 63, "g" * 64, "0" * 65])
def test_a_part_of_a_digest_will_not_do(bundle: Bundle, expect: str) -> None:
    with pytest.raises(OptionError, match="in expect: expected the 64 hexadecimal digits"):
        open_bundle(bundle.directory, expect)


def test_only_bundles_have_a_digest(tmp_path: Path) -> None:
    for source in ("base", tmp_path, tmp_path / "checkpoint.pt"):
        with pytest.raises(OptionError, match="in expect: expected a bundle"):
            load_model(source, data=tmp_path, expect=NOT_THIS)


def test_commands_refuse_another_bundle(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(bundle.directory)
    for words in (["verify-bundle", root], ["transcribe", "x.wav", "--model", root]):
        assert cli.main([*words, "--expect", NOT_THIS]) == 3
        assert "with the SHA-256 0000" in capsys.readouterr().err
    assert cli.main(["verify-bundle", root, "--expect", bundle.digest]) == 0
    assert f"manifest.json {bundle.digest}" in capsys.readouterr().out


def test_a_file_that_changes_behind_the_check_is_checked_again(bundle: Bundle) -> None:
    path = bundle.directory / "encoder.bin"
    content = path.read_bytes()
    os.utime(path, (1, 1))
    load_model(bundle).prepare([1])
    status = path.stat()
    path.write_bytes(content[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BundleError, match="SHA-256 .* of 'encoder.bin'"):
        load_model(bundle).prepare([1])
    path.unlink()
    with pytest.raises(BundleError, match="a file 'encoder.bin'"):
        load_model(bundle).prepare([1])


def test_what_is_read_is_what_was_verified(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late another graph is put in its place."""
    read, path = ov.Core.read_model, bundle.directory / "encoder.xml"
    another = path.read_text().replace("<net name=", "<net name='another' was=", 1)

    def swap(*arguments: Any) -> ov.Model:
        path.rename(path.with_name(".verified"))
        path.write_text(another)
        return read(*arguments)

    engine = load_model(bundle).model.engine
    monkeypatch.setattr(ov.Core, "read_model", swap)
    assert engine.model(Variant("encoder", "f32", 1)).get_friendly_name() != "another"
    with pytest.raises(BundleError, match="bytes in 'encoder.xml'"):
        engine.model(Variant("encoder", "f32", 1))


def test_stored_cases_pass(bundle: Bundle) -> None:
    assert bundle.manifest.files[cases.CASES].bytes < 100_000
    for precision in ("f32", "bf16"):
        found = cases.compare(CompiledModel(bundle, EngineOptions(precision=precision)))
        assert found is not None and found.passed and found.positions == 200, precision
        assert found.agreeing == 200 or precision != "f32"


def test_a_model_of_other_weights_does_not_pass(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    places = re.findall(r'offset="(\d+)".*? size="(\d+)"', bundle.path("decoder.xml").read_text())
    size, offset = max((int(size), int(offset)) for offset, size in places)
    with open(bundle.path("decoder.bin"), "r+b") as file:  # its largest matrix
        file.seek(offset)
        file.write(bytes(size))
    rewritten(bundle)
    assert cli.main(["verify-bundle", str(bundle.directory), "--precision", "f32"]) == 1
    assert "CPU at f32" in (said := capsys.readouterr().out) and "FAILED" in said


def test_a_quantized_bundle_expects_what_it_computes_itself(bundle: Bundle) -> None:
    before = cases.read(bundle)
    half = replace(bundle.manifest.runtime, inference="bf16")
    cases.record(Bundle(bundle.directory, replace(bundle.manifest, runtime=half)))
    found = cases.compare(CompiledModel(rewritten(bundle), EngineOptions(precision="bf16")))
    assert found is not None and found.difference < 1e-6 and found.agreeing == found.positions
    after = cases.read(open_bundle(bundle.directory))
    assert after is not None and before is not None and after.cases != before.cases


@pytest.mark.parametrize("device", ["AUTO", "AUTO:CPU", "HETERO:CPU", "MULTI:CPU"])
def test_devices_that_choose_another_one_tell_it_the_precision(bundle: Bundle, device: str) -> None:
    """Without it the CPU kept keys and values in 8 bits, and a log-probability was NaN."""
    found = cases.compare(CompiledModel(bundle, EngineOptions(device=device, threads=1)))
    direct = cases.compare(CompiledModel(bundle, EngineOptions(threads=1)))
    assert found == direct and found.passed


def test_bundles_without_cases_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify-bundle", str(FORMAT_1)]) == 0
    assert cli.main(["verify-bundle", str(FORMAT_1), "--device", "CPU"]) == 1
    assert "the bundle has no stored cases" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda c: c["cases"][0]["tokens"][0].__setitem__(0, 60), BundleError, "beyond the 60"),
        (lambda c: c["cases"][0]["tokens"][0].pop(), BundleError, "not 5 tokens"),
        (lambda c: c["cases"][0]["log_probs"].pop(), BundleError, "not 5 tokens"),
        (lambda c: c["cases"][0].update(tokens=[], log_probs=[]), BundleError, "not 5 tokens"),
        (lambda c: c.pop("limit"), BundleError, "limit"),
        (lambda c: c["cases"][0].update(frames=[10**9] * 10**4), BundleError, "10000000000000 fr"),
        (lambda c: c.update(cases=[]), BundleError, "length >= 1"),
        (lambda c: c.update(cases=41 * c["cases"][:1]), BundleError, "length <= 40"),
        (lambda c: c.update(more="x" * (4 << 20)), BundleError, "bytes, more than 4194304"),
        (lambda c: c["cases"][0].update(frames=[]), BundleError, "a batch of 0 frames"),
        (lambda c: c["cases"][0].update(steps=10**6), BundleError, "steps"),
        (lambda c: c["cases"][0].update(checksum=1), ModelError, "inputs that follow from their seed"),
    ],
)  # fmt: skip
def test_malformed_cases(bundle: Bundle, change, kind: type[Exception], message: str) -> None:
    path = bundle.directory / cases.CASES
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(kind, match=message) as raised:
        cases.compare(CompiledModel(rewritten(bundle), EngineOptions()))
    assert type(raised.value) is kind


def test_a_limited_child_compiles(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify-bundle", str(FORMAT_1), "--isolated"]) == 0
    assert "compiled in a child" in capsys.readouterr().out
    for limits, message in (((0, 30.0), "got "), ((4 << 30, 0.0), "got no answer in time")):
        with pytest.raises(BundleError, match=message) as raised:
            compile_isolated(open_bundle(FORMAT_1), *limits)
        assert raised.value.exit_code == 3


def test_a_child_that_crashes_is_told_by_its_signal() -> None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=os.abort)
    child.start()
    theirs.close()
    with ours:
        assert _answer(ours, child, 30) == "signal 6 (Aborted)"


def test_a_graph_that_crashes_openvino_costs_only_the_child(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2026.4.1 reads an operation without the inputs that it needs at address 0."""
    bundle = open_bundle(shutil.copytree(FORMAT_1, tmp_path / "bundle"))
    path = bundle.path("encoder.xml")
    path.write_text(path.read_text().replace('type="Const"', 'type="Broadcast"', 1))
    rewritten(bundle)
    assert cli.main(["verify-bundle", str(bundle.directory), "--isolated"]) == 3
    assert "Compiling in a child failed" in capsys.readouterr().err


def test_info_tells_what_a_bundle_is(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(bundle.directory)]) == 0
    said = capsys.readouterr().out
    for words in ("s2t_transformer", "layers 2", "of Fairseq in f64", bundle.digest, "encoder.bin"):
        assert words in said
    assert cli.main(["info", str(bundle.directory), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["digest"] == bundle.digest and found["languages"] == []
    assert found["bytes"] == sum(file["bytes"] for file in found["files"].values())


def test_what_a_manifest_says_reaches_no_terminal(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = replace(
        bundle.manifest, architecture="\x1b[2J\n", parity={"rows": 3}, source={"a": ["\x07\x9b"]}
    )
    write_manifest(bundle.directory, odd)
    assert cli.main(["info", str(bundle.directory)]) == 0
    said = capsys.readouterr().out
    assert r"\x1b[2J\n" in said and "\x1b" not in said and "\x07" not in said
    assert cli.main(["info", str(bundle.directory), "--format", "json"]) == 0
    said = capsys.readouterr().out
    assert r"\u009b" in said and "\x9b" not in said
