"""Architectures of third parties: with an exporter of their own, in parts, and wholly eager."""

from __future__ import annotations

import logging
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, Shared, assert_identical, generate, write_checkpoint, write_data

from fairseq_openvino import cli
from fairseq_openvino.errors import OptionError
from fairseq_openvino.export.cache import entries

GATED = ROOT / "examples" / "user_dir" / "gated_s2t"
FLAGS = ("--beam", "5", "--nbest", "2", "--max-len-b", "12")
ODD = """
from argparse import Namespace

from fairseq.models import register_model, register_model_architecture
from fairseq.models.speech_to_text import s2t_transformer
from fairseq.utils import import_user_module

from fairseq_openvino.export.fairseq import ARCHITECTURES

import_user_module(Namespace(user_dir={other!r}))  # --user-dir takes one directory


class Encoder(s2t_transformer.S2TTransformerEncoder):
    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        return found | {{"encoder_out": [x.flip(-1) for x in found["encoder_out"]]}}


class Decoder(s2t_transformer.TransformerDecoderScriptable):
    def output_layer(self, features):
        return super().output_layer(features) + features.sum(-1, keepdim=True).tanh() * self.slope

    slope = 1.0


def register(name, **parts):
    class Model(s2t_transformer.S2TTransformerModel):
        @classmethod
        def build_encoder(cls, args):
            return parts.get("encoder", s2t_transformer.S2TTransformerEncoder)(args)

        @classmethod
        def build_decoder(cls, args, task, embed_tokens):
            kind = parts.get("decoder", s2t_transformer.TransformerDecoderScriptable)
            return kind(args, task.target_dictionary, embed_tokens)

    Model.__name__ = name
    register_model(name)(Model)
    register_model_architecture(name, name + "_s")(s2t_transformer.s2t_transformer_s)


register("odd_encoder", encoder=Encoder)
register("odd_decoder", decoder=Decoder)
register("odd_both", encoder=Encoder, decoder=Decoder)
register("odd_exporter", encoder=Encoder)
ARCHITECTURES["odd_exporter"] = ARCHITECTURES["s2t_transformer"]  # knows nothing of the flip
"""
"""A module of further architectures that have no exporters, chained to another one."""


def import_user_dir(directory: Path) -> None:
    from fairseq.utils import import_user_module

    import_user_module(Namespace(user_dir=str(directory)))


def data_of(directory: Path, arch: str, **arguments: Any) -> Path:
    """A data directory with a tiny random checkpoint of an architecture."""
    write_checkpoint(directory, arch, vocabulary=60, **TINY | arguments)
    write_data(directory, utterances=6, frames=(30, 200))
    return directory


@pytest.fixture(scope="session")
def gated(shared: Shared) -> Path:
    import_user_dir(GATED)
    return shared("gated", lambda directory: data_of(directory, "gated_s2t_s"))


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("user") / "odd_s2t"
    directory.mkdir()
    (directory / "__init__.py").write_text(ODD.format(other=str(GATED)))
    import_user_dir(directory)
    return directory


def bundles(cache: Path) -> list[str]:
    return [entry.source for entry in entries(cache) if entry.is_bundle]


def both(data: Path, user_dir: Path, cache: Path, *flags: str) -> tuple[Any, Any]:
    words = (*FLAGS, *flags, "--user-dir", str(user_dir))
    return generate(data, *words), generate(
        data, *words, "--ov-engine", "--ov-cache-dir", str(cache)
    )


@pytest.mark.soak
def test_an_exporter_of_ones_own(
    gated: Path, odd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    eager, engine = both(gated, GATED, tmp_path)
    assert_identical(eager, engine)
    assert_identical(eager, both(gated, odd, tmp_path)[1])  # found by way of the other directory
    assert bundles(tmp_path) == ["checkpoint.pt (gated_s2t)"]
    assert caplog.text.count("exporting checkpoint.pt") == 1
    lines = (GATED / "__init__.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 30


def test_other_code_is_another_bundle(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from fairseq_openvino.export.fairseq import _user_code

    before, copy = _user_code(), tmp_path / "gated_s2t"
    shutil.copytree(GATED, copy)
    monkeypatch.setattr(sys.modules["gated_s2t"], "__path__", [str(copy)])
    assert _user_code() == before
    (copy / "layers.py").write_text("WIDTH = 2\n")
    added = _user_code()
    (copy / "layers.py").write_text("WIDTH = 3\n")
    assert len({tuple(before), tuple(added), tuple(_user_code())}) == 3


@pytest.mark.soak
def test_export_imports_a_user_dir(
    gated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--path", str(gated / "checkpoint.pt"), "--data", str(gated), "--output"]
    assert cli.main([*words, str(tmp_path / "bundle"), "--user-dir", str(GATED)]) == 0
    assert "gated_s2t exported" in capsys.readouterr().out
    assert cli.main([*words, str(tmp_path / "other"), "--user-dir", str(tmp_path / "none")]) == 2
    assert "in --user-dir: expected the directory of a Python module" in capsys.readouterr().err


@pytest.mark.soak
@pytest.mark.parametrize(
    ("arch", "line"),
    [
        ("odd_exporter_s", "odd_exporter runs in PyTorch: The parity gate failed"),
        ("odd_encoder_s", "the decoder runs on OpenVINO, its encoder in PyTorch: Exporting failed"),
        ("odd_decoder_s", "the encoder runs on OpenVINO, its decoder in PyTorch: Exporting failed"),
        ("odd_both_s", "odd_both runs in PyTorch: Exporting failed"),
    ],
)
def test_what_has_no_exporter_runs_in_parts(
    odd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, arch: str, line: str
) -> None:
    data = data_of(tmp_path, arch)
    eager, engine = both(data, odd, tmp_path / "cache")
    assert_identical(eager, engine)
    assert line in caplog.text
    assert bundles(tmp_path / "cache") == (
        ["checkpoint.pt (odd_encoder)"] if arch == "odd_encoder_s" else []
    )


@pytest.mark.soak
@pytest.mark.parametrize("arch", ["odd_encoder_s", "odd_decoder_s"])
def test_parts_at_true_size(odd: Path, tmp_path: Path, arch: str) -> None:
    """With the options that are Fairseq's by default, of which `TINY` has others."""
    write_checkpoint(tmp_path, arch, vocabulary=1000)
    write_data(tmp_path, utterances=8, frames=(100, 600))
    for flags in (("--beam", "1", "--batch-size", "1"), ("--beam", "5", "--nbest", "5")):
        assert_identical(*both(tmp_path, odd, tmp_path / "cache", "--max-len-b", "30", *flags))


@pytest.mark.soak
def test_an_option_without_counterpart(
    odd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = data_of(tmp_path, "s2t_transformer_s", scale_heads=True)
    assert_identical(*both(data, odd, tmp_path / "cache"))
    line = "the encoder runs on OpenVINO, its decoder in PyTorch: Export failed in s2t_transformer"
    assert f"{line}: expected a model without scale_heads" in caplog.text
    with pytest.raises(OptionError, match="in threads: expected at least 1"):
        both(data, odd, tmp_path / "cache", "--ov-threads", "0")


@pytest.mark.soak
def test_a_decoder_with_a_search_of_fairseq(odd: Path, tmp_path: Path) -> None:
    data = data_of(tmp_path, "odd_encoder_s")
    for flags in ("--temperature 1.4", "--no-repeat-ngram-size 2", "--max-tokens 300"):
        assert_identical(*both(data, odd, tmp_path / "cache", *flags.split()))
