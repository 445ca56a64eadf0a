"""OpenVINO compilation, request pools and properties: the only inference file that knows OpenVINO.

The decoder of a bundle computes logits. What a search needs after that is appended here, before
compiling: log-probabilities of every position, or the C best tokens under a bias.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from fairseq_openvino.bundle import DECODER_IR, ENCODER_IR, Bundle
from fairseq_openvino.errors import DeviceError, OptionError

PRECISIONS = ("f32", "bf16", "f16")
"""Inference precisions; the key/value cache has the same."""


@dataclass(frozen=True)
class EngineOptions:
    """Where and how a bundle is compiled."""

    device: str = "CPU"
    """OpenVINO device: CPU, GPU, NPU, AUTO, ..."""
    precision: str = "f32"
    """One of PRECISIONS; f32 reproduces Fairseq's hypotheses."""
    threads: int | None = None
    """CPU threads for inference; default: all cores."""
    streams: int | None = None
    """Requests that may run at the same time; default: 1."""
    cache_dir: str | PathLike[str] | None = None
    """Directory for compiled models; default: none are kept."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise OptionError(
                f"Compiling failed in --ov-precision: expected one of {', '.join(PRECISIONS)}, "
                f"got {self.precision!r}. Choose another precision."
            )
        for flag, value in (("--ov-threads", self.threads), ("--ov-streams", self.streams)):
            if value is not None and value < 1:
                raise OptionError(
                    f"Compiling failed in {flag}: expected at least 1, got {value}. "
                    "Give a positive number or leave the flag out."
                )


def compile_properties(
    precision: str,
    device: str,
    threads: int | None = None,
    streams: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
) -> dict[str, str]:
    """OpenVINO properties of a precision.

    The cache precision is set too: left alone, the CPU plugin stores keys and values in 8 bits and
    an "f32" model is wrong in the third digit. The same holds for dynamic quantization.
    """
    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if device.upper().startswith("CPU"):
        properties |= {"KV_CACHE_PRECISION": precision, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = str(threads)
    if streams is not None:
        properties["NUM_STREAMS"] = str(streams)
    if cache_dir is not None:
        properties["CACHE_DIR"] = str(Path(cache_dir))
    return properties


class Engine:
    """Compiled graphs of one bundle; thread-safe. Each variant is compiled at its first use."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        self.bundle, self.options = bundle, options
        self._core = ov.Core()
        self._properties = compile_properties(
            options.precision, options.device, options.threads, options.streams, options.cache_dir
        )
        self._lock = threading.Lock()
        self._compiled: dict[str, ov.CompiledModel] = {}
        self._idle: dict[str, list[ov.InferRequest]] = defaultdict(list)

    def encoder(self) -> Lease:
        """A request of the encoder: features, lengths -> encoder_lengths, cross tensors."""
        return self._lease("encoder", lambda: self._read(ENCODER_IR))

    def decoder(self, candidates: int = 0) -> Lease:
        """A request of the stateful decoder.

        Its output is `log_probs` (R, l, V), or, with C = `candidates`, `scores` and `best` (R, C)
        of the last position under the extra input `bias` (1 or R, V).
        """
        if candidates:
            return self._lease(f"decoder-{candidates}", lambda: self._candidates(candidates))
        return self._lease("decoder", self._log_probs)

    def prepare(self, candidates: int = 0) -> None:
        """Compile the encoder and this decoder variant now instead of at the first batch."""
        self.encoder().release()
        self.decoder(candidates).release()

    def compiled(self, variant: str) -> ov.CompiledModel | None:
        """A variant compiled so far: `encoder`, `decoder` or `decoder-<C>`."""
        return self._compiled.get(variant)

    def _lease(self, variant: str, build: Callable[[], ov.Model]) -> Lease:
        with self._lock:
            if self._idle[variant]:
                return Lease(self._idle[variant].pop(), self._idle[variant])
            if variant not in self._compiled:
                self._compiled[variant] = self._compile(build())
            return Lease(self._compiled[variant].create_infer_request(), self._idle[variant])

    def _read(self, name: str) -> ov.Model:
        return self._core.read_model(self.bundle.path(name))

    def _compile(self, model: ov.Model) -> ov.CompiledModel:
        device = self.options.device
        try:
            return self._core.compile_model(model, device, self._properties)
        except RuntimeError as error:
            first_line = str(error).strip().splitlines()[-1]
            raise DeviceError(
                f"Compiling failed on device {device!r}: expected one of "
                f"{', '.join(self._core.available_devices)} with {self._properties}, "
                f"got {first_line}. Choose another --ov-device or --ov-precision."
            ) from error

    def _log_probs(self) -> ov.Model:
        model = self._read(DECODER_IR)
        logits = model.output("logits").get_node().input_value(0)
        _replace_outputs(model, {"log_probs": ops.log_softmax(logits, -1).output(0)})
        return model

    def _candidates(self, count: int) -> ov.Model:
        model = self._read(DECODER_IR)
        logits = model.output("logits").get_node().input_value(0)
        last = ops.gather(logits, ops.constant(np.int64(-1)), ops.constant(np.int64(1)))  # (R, V)
        bias = ops.parameter([-1, self.bundle.manifest.dimensions.vocabulary_size], np.float32)
        bias.output(0).get_tensor().set_names({"bias"})
        model.add_parameters([bias])
        scores = ops.add(ops.log_softmax(last, -1), bias)
        best = ops.topk(scores, ops.constant(np.int32(count)), -1, "max", "value")
        _replace_outputs(model, {"scores": best.output(0), "best": best.output(1)})
        return model


class Lease:
    """An infer request taken from a pool; `release` returns it, dropping the lease discards it."""

    def __init__(self, request: ov.InferRequest, idle: list[ov.InferRequest]) -> None:
        self.request, self._idle = request, idle

    def release(self) -> None:
        """Return the request; it must be in a usable state."""
        self._idle.append(self.request)


def _replace_outputs(model: ov.Model, outputs: dict[str, ov.Output]) -> None:
    model.remove_result(model.output("logits").get_node())
    results = []
    for name, output in outputs.items():
        output.get_tensor().set_names({name})
        results.append(ops.result(output))
    model.add_results(results)
    model.validate_nodes_and_infer_types()
