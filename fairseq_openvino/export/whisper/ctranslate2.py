"""Whisper models of CTranslate2, as faster-whisper has them, in the terms of transformers.

`model.bin`, little-endian: version, specification, revision, number of variables; of each its name, rank,
dimensions, type, size in bytes and data; then aliases. A string is a 16-bit length, which counts the
zero byte at its end, and its bytes. Source: CTranslate2 `specs/model_spec.py`, `specs/whisper_spec.py`.

Every length is checked against what is left of the file before anything is allocated.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fairseq_openvino.compat.transformers import transformers
from fairseq_openvino.export.sources import Place, read_json
from fairseq_openvino.export.whisper.checkpoint import Checkpoint, fail

VERSION, SPECIFICATION, REVISION = 6, "WhisperSpec", 3
TYPES = (
    torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16,
)  # fmt: skip
"""By number in the file."""
QUANTIZED = (torch.int8, torch.int16)
MAX_RANK, MAX_NAME_BYTES, MAX_POSITIONS = 4, 256, 1 << 20
MAX_TIMES = 8
"""Of the file, what 8-bit weights take as floats: 4, and an embedding is the projection too."""
CONVERT = "Convert the model again with the current ct2-transformers-converter"
SCALE = "_scale"
HEADS = "num_heads"

LAYER = (
    ("self_attention/layer_norm", ("self_attn_layer_norm",)),
    ("self_attention/linear_0", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("self_attention/linear_1", ("self_attn.out_proj",)),
    ("attention/layer_norm", ("encoder_attn_layer_norm",)),
    ("attention/linear_0", ("encoder_attn.q_proj",)),
    ("attention/linear_1", ("encoder_attn.k_proj", "encoder_attn.v_proj")),
    ("attention/linear_2", ("encoder_attn.out_proj",)),
    ("ffn/layer_norm", ("final_layer_norm",)),
    ("ffn/linear_0", ("fc1",)),
    ("ffn/linear_1", ("fc2",)),
)
"""Parts of a layer, and what transformers calls them; several are the rows of one matrix, in order."""
MODEL = {
    "encoder/conv1": "model.encoder.conv1",
    "encoder/conv2": "model.encoder.conv2",
    "encoder/layer_norm": "model.encoder.layer_norm",
    "encoder/position_encodings": "model.encoder.embed_positions",
    "decoder/layer_norm": "model.decoder.layer_norm",
    "decoder/position_encodings": "model.decoder.embed_positions",
    "decoder/embeddings": "model.decoder.embed_tokens",
    "decoder/projection": "proj_out",
}
PARAMETERS = {"gamma": "weight", "beta": "bias", "encodings": "weight"}
KEYS = {
    "suppress_ids": "suppress_tokens",
    "suppress_ids_begin": "begin_suppress_tokens",
    "alignment_heads": "alignment_heads",
}
"""Of its config.json, to those of generation_config.json. `lang_ids` lacks languages or has foreign
ones in many published models: they follow from the tokenizer."""


def read(place: Place) -> Checkpoint:
    """Configuration and weights of a directory; 8-bit weights are multiplied out.

    Raises:
        CheckpointError: a file is missing or damaged, or not of a Whisper model.
    """
    (path,) = place.weights
    with open(path, "rb") as file:
        reader = _Reader(file, path)
        reader.check_header()
        variables = dict(reader.variables())
        for name, original in reader.aliases():
            if original in variables:
                variables[name] = variables[original]
    weights = _renamed(_dequantized(variables, path), path)
    content = read_json(place.path / "config.json", place.name)
    stated = {KEYS[name]: value for name, value in content.items() if name in KEYS}
    config = _configuration(variables, weights, path)
    return Checkpoint(config, weights, stated)


class _Reader:
    """Of one file, from its beginning to its end."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.left = file, path, path.stat().st_size

    def check_header(self) -> None:
        """Raise CheckpointError if it is another format or kind of model."""
        (version,) = self._numbers("I")
        if version != VERSION:
            raise self._fail(f"binary version {VERSION}", version)
        specification, (revision,) = self._string(), self._numbers("I")
        if (specification, revision) != (SPECIFICATION, REVISION):
            raise self._fail(f"{SPECIFICATION} {REVISION}", f"{specification} {revision}")

    def variables(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor."""
        (count,) = self._numbers("I")
        for _ in range(count):
            name, (rank,) = self._string(), self._numbers("B")
            if rank > MAX_RANK:
                raise self._fail(f"at most {MAX_RANK} dimensions of {name!r}", rank)
            shape = self._numbers(f"{rank}I")
            number, size = self._numbers("BI")
            if number >= len(TYPES):
                raise self._fail(f"a known type of {name!r}", number)
            expected = math.prod(shape) * TYPES[number].itemsize
            if size != expected or size == 0:
                raise self._fail(f"{expected} bytes of {name!r}, of shape {shape}", size)
            data = bytearray(self._take(size))
            yield name, torch.frombuffer(data, dtype=TYPES[number]).reshape(shape)

    def aliases(self) -> Iterator[tuple[str, str]]:
        """Name, and the name of the variable it stands for."""
        (count,) = self._numbers("I")
        for _ in range(count):
            yield self._string(), self._string()

    def _take(self, size: int) -> bytes:
        if size > self.left:
            raise self._fail(f"{size} more bytes", self.left)
        self.left -= size
        return self.file.read(size)

    def _numbers(self, kinds: str) -> tuple[int, ...]:
        packed = f"<{kinds}"
        return struct.unpack(packed, self._take(struct.calcsize(packed)))

    def _string(self) -> str:
        (length,) = self._numbers("H")
        if not 0 < length <= MAX_NAME_BYTES:
            raise self._fail(f"a name of 1 to {MAX_NAME_BYTES} bytes", length)
        return self._take(length)[:-1].decode("utf-8", "replace")

    def _fail(self, expected: str, got: object) -> Exception:
        return fail(self.path, f"a Whisper model of CTranslate2 ({expected})", got, CONVERT)


def _dequantized(variables: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors with a rank; integers divided by their scales, one a row or one in all."""

    def floats(name: str, tensor: Tensor) -> Tensor:
        if tensor.dtype not in QUANTIZED or name + SCALE not in variables:
            return tensor
        scale = variables[name + SCALE].float()
        if scale.numel() not in (1, len(tensor)):
            got = f"{scale.numel()} of the shape {tuple(tensor.shape)}"
            raise fail(path, f"a scale for each row of {name!r}", got, CONVERT)
        rows = scale.reshape(-1, *[1] * (tensor.dim() - 1)) if scale.dim() else scale
        return tensor.float() / rows

    weights = {
        name: tensor
        for name, tensor in variables.items()
        if tensor.dim() and not name.endswith(SCALE)
    }
    quantized = (tensor for tensor in weights.values() if tensor.dtype in QUANTIZED)
    needed, most = 4 * sum(map(Tensor.numel, quantized)), MAX_TIMES * path.stat().st_size
    if needed > most:
        raise fail(path, f"weights of at most {most} bytes as floats", needed, CONVERT)
    return {name: floats(name, tensor) for name, tensor in weights.items()}


def _renamed(variables: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Under the names of transformers, fused matrices taken apart."""
    parts = dict(LAYER)
    found = {}
    for name, tensor in variables.items():
        scope, _, parameter = name.rpartition("/")
        parameter = PARAMETERS.get(parameter, parameter)
        layer = re.fullmatch(r"(encoder|decoder)/layer_(\d+)/(.+)", scope)
        if layer is None or layer[3] not in parts:
            found[f"{MODEL.get(scope, scope)}.{parameter}"] = tensor
            continue
        names = parts[layer[3]]
        if len(tensor) % len(names):
            expected = f"rows of {len(names)} matrices of one size in {name!r}"
            raise fail(path, expected, len(tensor), CONVERT)
        for own, rows in zip(names, tensor.chunk(len(names)), strict=True):
            if not (
                own.endswith("k_proj") and parameter == "bias"
            ):  # no key bias in Whisper: zeros
                found[f"model.{layer[1]}.layers.{layer[2]}.{own}.{parameter}"] = rows.contiguous()
    return found


def _configuration(
    variables: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path
) -> Any:
    """Sizes as the weights have them."""

    def layers(side: str) -> int:
        found = (re.match(rf"model\.{side}\.layers\.(\d+)\.", name) for name in weights)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    try:
        encoder, decoder = "model.encoder", "model.decoder"
        width, bins, _ = weights[f"{encoder}.conv1.weight"].shape
        return transformers.WhisperConfig(
            vocab_size=weights[f"{decoder}.embed_tokens.weight"].shape[0],
            num_mel_bins=bins,
            d_model=width,
            max_source_positions=weights[f"{encoder}.embed_positions.weight"].shape[0],
            max_target_positions=weights[f"{decoder}.embed_positions.weight"].shape[0],
            encoder_layers=layers("encoder"),
            encoder_attention_heads=int(variables[f"encoder/{HEADS}"]),
            encoder_ffn_dim=weights[f"{encoder}.layers.0.fc1.weight"].shape[0],
            decoder_layers=layers("decoder"),
            decoder_attention_heads=int(variables[f"decoder/{HEADS}"]),
            decoder_ffn_dim=weights[f"{decoder}.layers.0.fc1.weight"].shape[0],
            pad_token_id=None,
        )
    except (KeyError, ValueError, IndexError, RuntimeError, OverflowError) as error:
        raise fail(
            path, "the variables of a Whisper model", repr(error), "Convert the model again"
        ) from error
