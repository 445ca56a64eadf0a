"""The --ov-* flags, and what they may not be combined with."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, Optional

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import invalid
from fairseq_openvino.export.cache import COMPILED, default_cache_dir, is_writable
from fairseq_openvino.flags import add_flags, given
from fairseq_openvino.runtime.engine import EngineOptions

PREFIX = "--ov-"
ACTION = "Generating with --ov-engine"
REFUSED = {
    "retain_dropout": "dropout is not part of an exported graph",
    "print_alignment": "the engine's decoders return no attention",
    "fp16": "precision is set by --ov-precision",
    "iter_decode_with_beam": "iterative refinement is not autoregressive",
}
"""Options that cannot work with --ov-engine, and why."""
WHISPER_NEUTRAL = {
    "sampling": False, "prefix_size": 0, "no_repeat_ngram_size": 0, "lm_path": None,
    "score_reference": False, "constraints": None, "diverse_beam_groups": -1,
    "diversity_rate": -1.0, "match_source_len": False, "unkpen": 0,
}  # fmt: skip
"""Options of Fairseq's search that Whisper's does not have, and the value at which they do nothing."""


class Unstated(int):
    """A default that the user did not type; as such it reaches the arguments of the task."""


def settings(task: Any) -> Namespace:
    """What a task of Fairseq was set up with, or of one with a dataclass what is not None."""
    if getattr(task, "args", None) is not None or getattr(task, "cfg", None) is None:
        return getattr(task, "args", None) or Namespace()
    values = task.cfg if isinstance(task.cfg, Mapping) else vars(task.cfg)
    return Namespace(**{name: value for name, value in values.items() if value is not None})


def with_engine_flags(config: type[Any]) -> type[Any]:
    """The dataclass of a task, with a field for each of the --ov-* flags."""
    parser = ArgumentParser(add_help=False)
    add_engine_flags(parser)
    own: list[tuple[str, Any, Any]] = []
    for action in parser._actions:
        if action.nargs == 0:
            own.append((action.dest, bool, False))
        else:  # Fairseq knows no other spelling of this type (dataclass/utils.py:interpret_dc_type)
            own.append((action.dest, Optional[action.type or str], None))  # noqa: UP045
    return make_dataclass(config.__name__, own, bases=(config,))


def add_engine_flags(parser: ArgumentParser) -> None:
    """The --ov-* flags."""
    group = parser.add_argument_group("OpenVINO")
    group.add_argument("--ov-engine", action="store_true", help="generate with OpenVINO")
    group.add_argument(
        "--ov-model", metavar="BUNDLE", help="exported bundle to run (default: export and cache)"
    )
    group.add_argument(
        "--ov-tgt-lang", metavar="LANG",
        help="target language of a multilingual model, as de (default: the manifest's)",
    )  # fmt: skip
    group.add_argument(
        "--ov-resume", metavar="DIR",
        help="keep the hypotheses of every batch here, and take those that a stopped run of the same "
        "command has left",
    )  # fmt: skip
    add_flags(
        group, EngineOptions, ("device", "precision", "threads", "streams", "cache_dir"), PREFIX,
        cache_dir="exported bundles and compiled models are kept here",
    )  # fmt: skip


def engine_options(arguments: Namespace, bundle: Bundle | None) -> EngineOptions:
    """What the flags say for a bundle, or none; left out, the precision is the bundle's own, or f32.

    Raises:
        OptionError: a value is out of range.
    """
    own: dict[str, Any] = {} if bundle is None else {"precision": bundle.manifest.runtime.inference}
    chosen = given(arguments, EngineOptions, PREFIX)
    cache = cache_dir(arguments)
    kept = {"cache_dir": cache / COMPILED if is_writable(cache) else None}
    return EngineOptions(**own | chosen | kept)


def cache_dir(arguments: Namespace) -> Path:
    """Where exported bundles and compiled models are kept."""
    chosen = getattr(arguments, "ov_cache_dir", None)
    return default_cache_dir() if chosen is None else Path(chosen)


def check_options(arguments: Namespace) -> None:
    """Refuse, before any work, what the engine cannot do.

    Raises:
        OptionError: naming the flag and the reason.
    """
    for name, reason in REFUSED.items():
        value = getattr(arguments, name, None)
        if value and not (name == "iter_decode_with_beam" and value == 1):
            flag = "--" + name.replace("_", "-")
            got = f"{value!r}; {reason}"
            raise invalid(ACTION, flag, "it unset", got, f"Leave out {flag} or --ov-engine")


def check_whisper_options(arguments: Any) -> None:
    """Refuse options of a search that is not Whisper's.

    Raises:
        OptionError: naming the flag.
    """
    for name, neutral in WHISPER_NEUTRAL.items():
        value = getattr(arguments, name, neutral)
        if value != neutral:
            flag = "--" + name.replace("_", "-")
            action = "Generating with a Whisper bundle"
            raise invalid(action, flag, "it unset", repr(value), "Leave it out")
