"""Standalone, run by .venv-peers: a Hugging Face Whisper directory to a whisper.cpp file.

Usage: `peer_ggml.py SOURCE FILE f16|q8_0`. The layout is that of whisper.cpp's own
`models/convert-h5-to-ggml.py` and `whisper-quantize`, which pywhispercpp does not ship: header,
mel filters, vocabulary, tensors. q8_0 stores 32 weights as one f16 scale and 32 int8.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC = 0x67676D6C
FILE_TYPES = {"f16": 1, "q8_0": 2007}
"""GGML_FTYPE; for q8_0 with the version of the quantization times 1000."""
F32, F16, Q8_0 = 0, 1, 8
"""GGML_TYPE of a tensor."""
BLOCK = 32
STFT_BINS, MAX_HZ, RATE_HZ = 201, 8000.0, 16000
ALWAYS_F32 = ("encoder.positional_embedding", "decoder.positional_embedding")
MATRIX = 2
NAMES = (
    ("model.", ""),
    (".layers.", ".blocks."),
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("self_attn_layer_norm", "attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
    ("encoder_attn.", "cross_attn."),
    ("self_attn.", "attn."),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
    ("embed_positions.weight", "positional_embedding"),
    ("embed_tokens", "token_embedding"),
)
"""Parts of tensor names: in transformers, in whisper.cpp."""


def convert(source: Path, target: Path, kind: str) -> None:
    """Write the file."""
    from safetensors.numpy import load_file
    from transformers.audio_utils import mel_filter_bank

    config = json.loads((source / "config.json").read_text())
    bins = config["num_mel_bins"]
    filters = mel_filter_bank(
        STFT_BINS, bins, 0.0, MAX_HZ, RATE_HZ, norm="slaney", mel_scale="slaney"
    )
    with open(target, "wb") as file:
        _integers(file, MAGIC, *_header(config), FILE_TYPES[kind], bins, STFT_BINS)
        file.write(np.ascontiguousarray(filters.T, np.float32).tobytes())
        tokens = _tokens(source)
        _integers(file, len(tokens))
        for token in tokens:
            _integers(file, len(token))
            file.write(token)
        for name, tensor in load_file(source / "model.safetensors").items():
            _tensor(file, _renamed(name), tensor, kind)


def _header(config: dict[str, Any]) -> list[int]:
    width = config["d_model"]
    return [
        config["vocab_size"],
        *(config["max_source_positions"], width),
        *(config["encoder_attention_heads"], config["encoder_layers"]),
        *(config["max_target_positions"], width),
        *(config["decoder_attention_heads"], config["decoder_layers"]),
        config["num_mel_bins"],
    ]


def _tokens(source: Path) -> list[bytes]:
    """Text tokens as bytes, in order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    values = {chr(byte): byte for byte in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
    vocabulary = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"][
        "vocab"
    ]
    ordered = sorted(vocabulary, key=lambda token: vocabulary[token])
    return [bytes(values[character] for character in token) for token in ordered]


def _renamed(name: str) -> str:
    for old, new in NAMES:
        name = name.replace(old, new)
    return name


def _tensor(file: BinaryIO, name: str, tensor: np.ndarray, kind: str) -> None:
    if name.endswith(("conv1.bias", "conv2.bias")):
        tensor, form = tensor.reshape(-1, 1), F32
    elif tensor.ndim < MATRIX or name in ALWAYS_F32:
        form = F32
    else:
        form = Q8_0 if kind == "q8_0" and tensor.ndim == MATRIX else F16
    encoded = name.encode()
    _integers(file, tensor.ndim, len(encoded), form, *reversed(tensor.shape))
    file.write(encoded)
    if form == Q8_0:
        file.write(_quantized(tensor))
    else:
        file.write(tensor.astype(np.float16 if form == F16 else np.float32).tobytes())


def _quantized(tensor: np.ndarray) -> bytes:
    blocks = tensor.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 127.0
    values = np.round(blocks / np.where(scales == 0.0, 1.0, scales)).astype(np.int8)
    packed = np.zeros(len(blocks), np.dtype([("scale", "<f2"), ("values", "i1", BLOCK)]))
    packed["scale"], packed["values"] = scales[:, 0], values
    return packed.tobytes()


def _integers(file: BinaryIO, *values: int) -> None:
    file.write(struct.pack(f"<{len(values)}i", *values))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
