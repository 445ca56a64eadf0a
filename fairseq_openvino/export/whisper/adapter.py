"""PEFT adapters (LoRA and the like), merged into the model they were trained on."""

from __future__ import annotations

import warnings
from typing import Any

import regex

from fairseq_openvino.errors import CheckpointError, MissingDependencyError, failure
from fairseq_openvino.export.sources import ADAPTER_WEIGHTS, Place
from fairseq_openvino.export.whisper.checkpoint import TIED, Checkpoint, build, fail

ALL_LINEAR = "all-linear"
"""What peft itself knows."""
RANKS = ("r", "init_r", "target_r")
"""Of LoRA and what is like it."""
INCOMPLETE = "Found missing adapter keys"
"""As peft warns of matrices that the file lacks and a merge would leave at random, or out."""
FETCHING = "XLORA"
"""An adapter that names others, which may be anywhere, and cannot be merged."""
PATTERN_SECONDS = 1.0
PLAIN_PATTERN = regex.compile(r"[\w.^$\\|()-]*")
"""Of names of modules, without repetition: matched in no time."""


def read(place: Place, base: Checkpoint) -> Checkpoint:
    """The base model with the adapter's changes, in float32.

    Args:
        place: the adapter's directory; its weights are safetensors.
        base: what was read of `place.base`.

    Raises:
        CheckpointError: the adapter is damaged, or of another model.
        MissingDependencyError: the library peft is not installed.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise failure(
            MissingDependencyError, "Loading a Whisper checkpoint", repr(place.name),
            "the package peft, which merges adapters", error, "Install it: pip install peft",
        ) from error  # fmt: skip
    model = build(base, place.path)
    try:
        config = PeftConfig.from_pretrained(str(place.path))
        _check(place, config, base.config.d_model, [name for name, _ in model.named_modules()])
        with warnings.catch_warnings():
            warnings.filterwarnings("error", INCOMPLETE)
            adapted = PeftModel.from_pretrained(model, str(place.path), config=config)
        merged = adapted.merge_and_unload(safe_merge=True)
    except CheckpointError:
        raise
    except Exception as error:  # peft and safetensors raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise fail(
            place.path, f"{ADAPTER_WEIGHTS} of an adapter of {place.base and place.base.name!r}",
            repr(reason), "Pass the adapter as peft's save_pretrained writes it",
        ) from error  # fmt: skip
    weights = {name: value for name, value in merged.state_dict().items() if name != TIED}
    return Checkpoint(merged.config, weights, base.stated)


def _check(place: Place, config: Any, width: int, modules: list[str]) -> None:
    """Refuse what cannot be merged, and patterns that may take for ever; others become names.

    Raises:
        CheckpointError: the configuration has such.
    """
    advice = "Pass a LoRA adapter, with the names of its modules as target_modules"
    if config.is_prompt_learning or config.peft_type == FETCHING:
        raise fail(place.path, "an adapter that can be merged", config.peft_type, advice)
    ranks = [getattr(config, field, None) or 0 for field in RANKS]
    ranks += (getattr(config, "rank_pattern", None) or {}).values()
    if not all(isinstance(rank, int) and 0 <= rank <= width for rank in ranks):
        raise fail(place.path, f"ranks of at most {width}, the width of the model", ranks, advice)
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field, None) or ():
            if not PLAIN_PATTERN.fullmatch(pattern):
                raise fail(place.path, f"names of modules in {field}", repr(pattern)[:100], advice)
    for field in ("target_modules", "exclude_modules"):
        pattern = getattr(config, field, None)
        if isinstance(pattern, str) and pattern != ALL_LINEAR:
            try:
                found = [
                    name for name in modules
                    if regex.fullmatch(pattern, name, timeout=PATTERN_SECONDS)
                ]  # fmt: skip
            except (TimeoutError, regex.error) as error:
                got = f"{pattern!r:.100}: {error}"
                raise fail(place.path, f"a pattern of modules in {field}", got, advice) from error
            setattr(config, field, set(found))
