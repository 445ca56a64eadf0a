"""Directories of transformers: safetensors, or pickles by safe loading; single or in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fairseq_openvino.checkpoint import load_object
from fairseq_openvino.compat.transformers import transformers
from fairseq_openvino.errors import ModelError
from fairseq_openvino.export.sources import Place, joined, read_json
from fairseq_openvino.export.whisper.checkpoint import Checkpoint, checked, fail

RATE_HZ, FFT_SAMPLES, HOP_SAMPLES = 16_000, 400, 160
GENERATION = "generation_config.json"
FRONT_END = "preprocessor_config.json"
UNSTATED = {
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "max_initial_timestamp_index": None,
}
"""What transformers takes for keys that a generation configuration leaves out."""
OF_THE_MODEL = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


def read(place: Place) -> Checkpoint:
    """Configuration and weights of a directory.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnsafeCheckpointError: a pickle would run code.
        ModelError: it is another kind of model.
    """
    config = _config(place)
    weights = joined((path, _weights(path)) for path in place.weights)
    _check_front_end(place, config)
    return Checkpoint(config, weights, _stated(place))


def _config(place: Place) -> Any:
    content = read_json(place.path / "config.json", place.name)
    if content.get("model_type") != "whisper":
        raise ModelError(
            f"Loading a Whisper checkpoint failed in {place.name!r}: expected model type whisper, "
            f"got {content.get('model_type')!r}. Only Whisper and Distil-Whisper have an exporter."
        )
    try:
        return transformers.WhisperConfig.from_dict(content)
    except Exception as error:  # its checks raise many kinds
        reason = str(error).strip().splitlines()[-1]
        advice = "Take it from where the model was trained or downloaded"
        raise fail(place.path, "a valid config.json", repr(reason), advice) from error


def _stated(place: Place) -> dict[str, Any]:
    """Of generation_config.json; older models have some of its keys in config.json."""
    model = read_json(place.path / "config.json", place.name)
    if not (place.path / GENERATION).is_file():
        return model
    generation = read_json(place.path / GENERATION, place.name)
    return UNSTATED | {name: model.get(name) for name in OF_THE_MODEL} | generation


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return _safetensors(path) if path.suffix == ".safetensors" else _pickle(path)


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors that are read from the file when they are used."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise fail(
            path, "complete weights", repr(str(error)), "Copy or download it again"
        ) from error


def _pickle(path: Path) -> dict[str, torch.Tensor]:
    content = load_object(path)
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if torch.is_tensor(value)}
    return checked(path, content)


def _check_front_end(place: Place, config: Any) -> None:
    """The front end is fixed; a checkpoint made for another one is refused."""
    if not (place.path / FRONT_END).is_file():
        return
    front = read_json(place.path / FRONT_END, place.name)
    found = tuple(
        front.get(name, usual)
        for name, usual in (
            ("sampling_rate", RATE_HZ), ("n_fft", FFT_SAMPLES), ("hop_length", HOP_SAMPLES),
            ("feature_size", config.num_mel_bins),
        )
    )  # fmt: skip
    expected = (RATE_HZ, FFT_SAMPLES, HOP_SAMPLES, config.num_mel_bins)
    if found != expected or front.get("do_normalize") or front.get("dither"):
        raise ModelError(
            f"Loading a Whisper checkpoint failed in {FRONT_END!r} of {place.name!r}: "
            f"expected sampling_rate, n_fft, hop_length, feature_size {expected} without "
            f"normalization and dither, got {found}. Only Whisper's own front end is supported."
        )
