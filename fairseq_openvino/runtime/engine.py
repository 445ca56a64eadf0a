"""OpenVINO compilation, request pools and properties: the only file that compiles bundles."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from fairseq_openvino import machine
from fairseq_openvino.atomic import LOCK, locked
from fairseq_openvino.bundle import DECODER_IR, ENCODER_IR, Bundle
from fairseq_openvino.errors import StorageError
from fairseq_openvino.model import Head
from fairseq_openvino.runtime import ports, rewrite
from fairseq_openvino.runtime.graphs import compile_graph, read_verified
from fairseq_openvino.runtime.options import EngineOptions

logger = logging.getLogger(__name__)

# The first `data` of a process fills a static table of OpenVINO's binding (`ov_type_to_dtype`) and meanwhile
# lets go of the GIL: two threads whose first ones coincide wait for each other, for the table and the GIL.
_ = ov.Tensor(np.zeros(1, np.float32)).data

DYNAMIC_QUANTIZATION_GROUP = "32"
"""Activations that share a scale under int8."""
KERNELS = "128"
"""Of a kind that a graph keeps for shapes it has seen, as nearly every utterance has a length of its own.
With 512 the shipped S2T model grows from 640 to 980 MB over 10,000 utterances, with the CPU plugin's default
of 5000 further; with 128 it stays below 460 MB, and is up to 9 % slower where the same lengths come again."""
MAX_IDLE = 16
"""Requests of a variant that wait to be used again; a new one takes about a millisecond."""
TRIM_LEASES = 64
"""Leases after which freed memory goes back to the system: of many lengths, it breaks into pieces."""
INDIRECT = ("AUTO", "HETERO", "MULTI")
"""OpenVINO's devices that run models on others."""
INT8_BF16 = "int8-bf16"
"""A variant's precision that `fast` may choose: 8-bit weights, everything else in bf16."""


@dataclass(frozen=True)
class Variant:
    """One compiled form of a graph."""

    graph: str
    """encoder or decoder."""
    precision: str
    """f32, bf16, f16, int8 or INT8_BF16."""
    streams: int
    beam: int = 0
    """K of a decoder for one utterance with static shapes, 0 for dynamic shapes."""
    head: Head = Head()
    """Of a decoder."""


def compile_properties(
    precision: str,
    device: str,
    threads: int | None = None,
    streams: int | None = None,
) -> dict[str, Any]:
    """OpenVINO properties of a precision.

    The cache precision is set too: left alone, the CPU plugin stores keys and values in 8 bits and
    an "f32" model is wrong in the third digit, or gives NaN. The same holds for dynamic quantization,
    which is on for 8-bit weights only. A device that runs models on others hands them on.
    """
    compute = {"int8": "f32", INT8_BF16: "bf16"}.get(precision, precision)
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": compute,
    }  # fmt: skip
    group = DYNAMIC_QUANTIZATION_GROUP if precision in ("int8", INT8_BF16) else "0"
    of_cpu = {"KV_CACHE_PRECISION": compute, "DYNAMIC_QUANTIZATION_GROUP_SIZE": group}
    of_cpu["CPU_RUNTIME_CACHE_CAPACITY"] = KERNELS
    if threads is not None:
        of_cpu["INFERENCE_NUM_THREADS"] = str(threads)
        if threads < machine.threads():  # pinned, processes would share the first cores
            of_cpu["ENABLE_CPU_PINNING"] = "NO"
    name, _, others = device.upper().partition(":")
    if name.startswith("CPU"):
        properties |= of_cpu
    elif name in INDIRECT and (not others or "CPU" in others):
        properties["DEVICE_PROPERTIES"] = {"CPU": of_cpu}
    if streams is not None:
        properties["NUM_STREAMS"] = str(streams)
    return properties


def read_back(compiled: ov.CompiledModel, names: Iterable[str]) -> dict[str, str]:
    """What became of these properties; those the device does not know are left out."""
    known = set(compiled.get_property("SUPPORTED_PROPERTIES"))
    values = {name: compiled.get_property(name) for name in names if name in known}
    return {
        name: str(value.get_type_name() if hasattr(value, "get_type_name") else value)
        for name, value in values.items()
    }


class Engine:
    """Compiled graphs of one bundle; thread-safe. Each variant is compiled at its first use."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        self.bundle, self.options = bundle, options
        self._cache_dir = options.cache_dir
        self._core = ov.Core()
        self._lock = threading.Lock()
        self._compiled: dict[Variant, ov.CompiledModel] = {}
        self._leases = 0
        self._unused: set[Variant] = set()
        self._idle: dict[Variant, deque[ov.InferRequest]] = defaultdict(lambda: deque((), MAX_IDLE))

    @property
    def on_cpu(self) -> bool:
        """Whether the device is the CPU plugin."""
        return self.options.device.upper().startswith("CPU")

    @property
    def compiled(self) -> dict[Variant, ov.CompiledModel]:
        """What has been compiled so far."""
        return dict(self._compiled)

    def idle(self, variant: Variant) -> int:
        """Requests of a variant that wait in its pool, at most MAX_IDLE."""
        return len(self._idle[variant])

    def lease(self, variant: Variant) -> Lease:
        """A request of a variant, from its pool or new.

        The encoder maps features, lengths to encoder_lengths and the memory. The decoder is as
        `rewrite.append_head` leaves it.
        """
        with self._lock:
            self._leases += 1
            if self._leases % TRIM_LEASES == 0:
                machine.trim()
            idle = self._idle[variant]
            if variant not in self._compiled:
                self._compiled[variant] = self._compile(variant)
                self._let_go()
                self._unused.add(variant)
            request = idle.pop() if idle else self._compiled[variant].create_infer_request()
            settle = partial(self._settle, variant) if variant in self._unused else None
            return Lease(request, idle, settle)

    def _let_go(self) -> None:
        """Pages of files that have been read: the device stores weights anew, in a form of its own."""
        for directory in (self.bundle.directory, self._cache_dir):
            if directory is not None:
                machine.let_go(Path(directory))

    def _settle(self, variant: Variant) -> None:
        """Behind the first inference, which stores most of the weights."""
        self._unused.discard(variant)
        self._let_go()
        if variant.graph == "encoder":
            with suppress(RuntimeError):  # another request is at work
                self._compiled[variant].release_memory()
        machine.trim()

    def _compile(self, variant: Variant) -> ov.CompiledModel:
        options = self.options
        bounded = machine.threads() if machine.cpu_quota() else None  # OpenVINO counts cores only
        properties = compile_properties(
            variant.precision, options.device, options.threads or bounded, variant.streams
        )
        if variant.precision == INT8_BF16 and variant.beam == 1:  # one row: nothing to amortise it
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
        if options.profile:
            properties["PERF_COUNT"] = "YES"
        model = self.model(variant)
        self._let_go()
        if self._cache_dir is not None:
            try:
                cache = Path(self._cache_dir) / variant.precision
                return self._compile_cached(model, properties, cache)
            except (RuntimeError, StorageError) as error:
                logger.warning(f"compiling without the cache {self._cache_dir}: {error}")
                self._cache_dir = None  # the other graphs too: one warning is enough
        return compile_graph(self._core, model, options.device, properties)

    def _compile_cached(
        self, model: ov.Model, properties: dict[str, Any], cache: Path
    ) -> ov.CompiledModel:
        """Under a lock: OpenVINO maps a cached file that another process may be writing.

        Each precision has a directory of its own: with 2026.4 a graph compiled at bf16 crashes when it
        runs if the cache holds it compiled at f32.
        """
        with locked(cache / LOCK):
            properties = properties | {"CACHE_DIR": str(cache)}
            return self._core.compile_model(model, self.options.device, properties)

    def model(self, variant: Variant) -> ov.Model:
        """The graph of a variant as it is compiled.

        Raises:
            BundleError: OpenVINO cannot read it, or it is not the manifest's.
        """
        encoder = variant.graph == "encoder"
        name = ENCODER_IR if encoder else DECODER_IR
        model = read_verified(self.bundle, name, self._core)
        ports.check(model, variant.graph, self.bundle.manifest, self.bundle.directory / name)
        if variant.precision in ("int8", INT8_BF16) and not self.bundle.manifest.quantization:
            rewrite.quantize_weights(
                model, self._let_go
            )  # else `quantize` has decided about every layer
        if self.on_cpu:
            rewrite.keep_16_bits(model)
        is_narrow = self.on_cpu and variant.precision in ("bf16", INT8_BF16)
        described = [spec.name for spec in self.bundle.manifest.memory if not spec.is_mask]
        if encoder:
            if is_narrow and self.bundle.manifest.has_decoder:
                rewrite.narrow_outputs(model, described)
            return model
        if self.on_cpu:
            rewrite.fold_causal_mask(model)
        if is_narrow:
            rewrite.narrow_inputs(model, described)
        rewrite.append_head(model, variant.head)
        if variant.beam:
            rewrite.fix_batch(model, 1, variant.beam, self.bundle.manifest.memory)
        return model


class Lease:
    """An infer request taken from a pool; `release` returns it, dropping the lease discards it."""

    def __init__(
        self,
        request: ov.InferRequest,
        idle: deque[ov.InferRequest],
        settle: Callable[[], None] | None = None,
    ) -> None:
        self.request, self._idle, self._settle = request, idle, settle

    def infer(self) -> None:
        """Run the request on its tensors."""
        self.request.infer(share_outputs=True)
        if self._settle is not None:
            self._settle()
            self._settle = None

    def release(self) -> None:
        """Return the request, in place of the oldest if the pool is full; it must be in a usable state."""
        self._idle.append(self.request)
