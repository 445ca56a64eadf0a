"""PEFT adapters (LoRA and the like), merged into the model they were trained on."""

from __future__ import annotations

from fairseq_openvino.errors import MissingDependencyError, failure
from fairseq_openvino.export.sources import ADAPTER_WEIGHTS, Place
from fairseq_openvino.export.whisper.checkpoint import TIED, Checkpoint, build, fail


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
        from peft import PeftModel
    except ImportError as error:
        raise failure(
            MissingDependencyError, "Loading a Whisper checkpoint", repr(place.name),
            "the package peft, which merges adapters", error, "Install it: pip install peft",
        ) from error  # fmt: skip
    model = build(base, place.path)
    try:
        merged = PeftModel.from_pretrained(model, str(place.path)).merge_and_unload(safe_merge=True)
    except Exception as error:  # peft and safetensors raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise fail(
            place.path, f"{ADAPTER_WEIGHTS} of an adapter of {place.base and place.base.name!r}",
            repr(reason), "Pass the adapter as peft's save_pretrained writes it",
        ) from error  # fmt: skip
    weights = {name: value for name, value in merged.state_dict().items() if name != TIED}
    return Checkpoint(merged.config, weights, base.stated)
