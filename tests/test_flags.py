"""Flags from dataclasses, and the flags of every command as version 0.1.0 had them."""

from __future__ import annotations

import argparse
import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from fairseq_openvino import cli
from fairseq_openvino.errors import OptionError, invalid
from fairseq_openvino.export.options import ExportOptions
from fairseq_openvino.flags import add_flags, docstrings, flag, given, spelled
from fairseq_openvino.measure.engines import Search
from fairseq_openvino.measure.options import EvaluationOptions
from fairseq_openvino.measure.plan import BenchmarkOptions
from fairseq_openvino.quantize.options import Options as QuantizeOptions
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.speech.options import AudioOptions, SubtitleOptions
from fairseq_openvino.whisper.options import WhisperOptions

OLDER = json.loads((Path(__file__).parent / "fixtures" / "flags.json").read_text())
"""By command and option string: what it takes, written down before flags came from dataclasses."""


@dataclass(frozen=True)
class Example:
    """Every kind of field."""

    beam: int = 5
    """Beams (K)."""
    lenpen: float = 0.0
    """Length penalty,
    on two lines."""
    timestamps: bool = False
    """Find `segments`."""
    careful: bool = True
    """Look twice."""
    alphas: tuple[float, ...] = (-1.0, 0.5)
    """Some numbers."""
    mode: str = field(default="int8", metadata=flag(choices=("int8", "int4")))
    """One of two."""
    threads: int | None = field(default=None, metadata=flag(name="cores", metavar="N"))
    """CPU threads (default: all 100 % of them)."""
    context: str | int = field(
        default="full", metadata=flag(parse=lambda text: int(text) if text[0].isdigit() else text)
    )
    """A word or a number."""
    output: Path | None = None
    """Where."""


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("example")
    add_flags(made, Example)
    return made


def parsed(parser: argparse.ArgumentParser, text: str) -> dict[str, Any]:
    return given(parser.parse_args(text.split()), Example)


def test_values_have_the_types_of_their_fields(parser: argparse.ArgumentParser) -> None:
    words = "--beam 3 --lenpen 1 --timestamps --alphas=-1,0.25 --mode int4 --cores 2 --context 60"
    found = parsed(parser, words + " --output a/b --no-careful")
    assert found == {
        "beam": 3, "lenpen": 1.0, "timestamps": True, "alphas": (-1.0, 0.25), "mode": "int4",
        "threads": 2, "context": 60, "output": Path("a/b"), "careful": False,
    }  # fmt: skip
    assert type(found["lenpen"]) is float
    assert parsed(parser, "--context auto") == {"context": "auto"}


def test_what_is_left_out_is_left_to_the_dataclass(parser: argparse.ArgumentParser) -> None:
    assert parsed(parser, "") == {}
    assert Example(**parsed(parser, "--beam 1")) == Example(beam=1)


def test_help_is_the_docstring_and_the_default(parser: argparse.ArgumentParser) -> None:
    text = " ".join(parser.format_help().split())
    assert "Beams (K) (default: 5)" in text
    assert "Length penalty, on two lines (default: 0.0)" in text
    assert "Find segments" in text and "(default: False)" not in text
    assert "Some numbers (default: -1.0,0.5)" in text
    assert "--cores N CPU threads (default: all 100 % of them)" in text
    assert "--output OUTPUT Where" in text and "None" not in text


@pytest.mark.parametrize(
    "words", ["--beam x", "--mode int2", "--alphas 1,x", "--context", "--context 6x", "--bea 1 --x"]
)
def test_wrong_values_are_wrong_usage(
    parser: argparse.ArgumentParser, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parsed(parser, words)
    assert raised.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_prefix_belongs_to_the_flag_and_not_to_the_field() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Example, ("beam", "timestamps"), "--ov-", beam="Rays")
    assert "Rays (default: 5)" in parser.format_help() and "--lenpen" not in parser.format_help()
    namespace = parser.parse_args(["--ov-beam", "2"])
    assert vars(namespace) == {"ov_beam": 2}
    assert given(namespace, Example, "--ov-") == {"beam": 2} and given(namespace, Example) == {}
    error = invalid("Searching", "beam", "at least 1", 0)
    assert str(error) == "Searching failed in beam: expected at least 1, got 0. Correct it."
    assert spelled(error, parser, "--ov-").startswith("Searching failed in --ov-beam: expected")
    assert spelled(error, parser) == str(error)  # a parser that has no such flag


def test_an_error_without_a_field_is_printed_as_it_is(parser: argparse.ArgumentParser) -> None:
    for error in (OptionError("failed in beam: x"), invalid("Doing", "threads", "1", 0)):
        shown = spelled(error, parser)
        assert shown == str(error).replace("in threads:", "in --cores:")


MEASURED = (EvaluationOptions, BenchmarkOptions, Search)
ALL = (AudioOptions, SubtitleOptions, EngineOptions, S2TOptions, WhisperOptions, ExportOptions,
       QuantizeOptions)  # fmt: skip


@pytest.mark.parametrize("options", [*ALL, *MEASURED], ids=lambda options: options.__qualname__)
def test_every_option_is_described(options: type[Any]) -> None:
    described = docstrings(options)
    for each in fields(options):
        assert described[each.name].endswith("."), each.name
        assert each.default is not MISSING or options in MEASURED, each.name


def options_of(command: str) -> dict[str, argparse.Action]:
    (subparsers,) = (a for a in cli.build_parser()._actions if isinstance(a.choices, dict))
    actions = subparsers.choices[command]._actions
    return {name: action for action in actions for name in action.option_strings or [action.dest]}


SPLIT = ("LIST", "I/N", "DICT")
"""Values that were text here and are taken apart now."""


@pytest.mark.parametrize("command", sorted(OLDER))
def test_flags_mean_what_they_meant(command: str) -> None:
    now = options_of(command)
    for name, before in OLDER[command].items():
        action = now[name]
        assert [action.nargs, action.required] == [before["nargs"], before["required"]], name
        if before["choices"] is not None:
            assert list(action.choices or ()) == before["choices"], name
        for text, value in before["values"].items() if action.metavar not in SPLIT else ():
            kind = action.type or str
            assert repr(kind(text)) == value, (name, text)  # type: ignore[operator]


DEFAULTS = {
    "transcribe": {"--beam": 5, "--nbest": 1, "--lenpen": 1, "--max-len-a": 0, "--max-len-b": 200,
                   "--task": "transcribe", "--seed": 1, "--device": "CPU",
                   "--audio-context": "full", "--timestamps": False, "--max-tokens": None,
                   "--prompt": None, "--prefix": None, "--language": None, "--threads": None},
    "quantize": {"--mode": "auto", "--calibration-size": 32, "--validation-size": 200,
                 "--metric": "auto", "--sacrebleu-tokenizer": "13a", "--max-drop": None, "--beam": 5,
                 "--batch-size": 8, "--inference-precision": "f32", "--seed": 1,
                 "--alphas": (-1.0, 0.5), "--overwrite": False},
    "export": {"--precision": "f32", "--onnx-only": False, "--overwrite": False},
}  # fmt: skip
"""As the help of version 0.1.0 stated them; but --mode was int8, --alphas had
0.3, 0.8 and 0.95 too, and the sizes were 50 and 500."""


@pytest.mark.parametrize("command", sorted(DEFAULTS))
def test_defaults_are_what_they_were(command: str) -> None:
    known = {each.name: each.default for options in ALL for each in fields(options)}
    for name, value in DEFAULTS[command].items():
        assert known[options_of(command)[name].dest] == value, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("transcribe --model {bundle} --beam 0 x.wav", "Searching failed in --beam: expected"),
        ("transcribe --model {bundle} --max-len-a inf x.wav", "in --max-len-a: expected a finite"),
        ("transcribe --model {bundle} --timestamps x.wav", "in --timestamps: expected an option of"),
        ("transcribe --model {bundle} --threads 0 x.wav", "Compiling failed in --threads: expected"),
        ("transcribe --model {bundle} --batch-size 0 x.wav", "in --batch-size: expected at least 1"),
        ("quantize {bundle} --calibration x --output y --seed 1 --max-drop -1",
         "Quantizing failed in --max-drop: expected"),
    ],
)  # fmt: skip
def test_errors_name_the_flag_that_was_typed(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(__file__).parent / "fixtures" / "format1" / "s2t"
    assert cli.main(words.format(bundle=bundle).split()) == 2
    assert message in capsys.readouterr().err
