"""Exported files as the parity gate runs them: one class for ONNX, one for IR.

The encoder runs on all batches and is dropped before the decoder is loaded, for the sake of memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import openvino as ov

from fairseq_openvino import machine
from fairseq_openvino.bundle import DECODER_IR, ENCODER_IR
from fairseq_openvino.export.forced import Forced
from fairseq_openvino.export.graphs import Graphs
from fairseq_openvino.export.onnx import DECODER_ONNX, ENCODER_ONNX, past
from fairseq_openvino.model import LOG_PROBS
from fairseq_openvino.runtime import rewrite
from fairseq_openvino.runtime.engine import compile_properties
from fairseq_openvino.runtime.graphs import compile_graph, read_graph
from fairseq_openvino.tensors import TensorSpec


class Runner(Protocol):
    """The decoder of one format, after the encoder; without one only `encoded` is there."""

    def encoded(self, batch: int) -> np.ndarray:
        """What an encoder without a decoder made of a batch, see `valid`."""
        ...

    def start(self, batch: int) -> None:
        """Empty caches, and what the encoder made of a batch."""
        ...

    def step(self, tokens: np.ndarray, beam_idx: np.ndarray, offset: int) -> np.ndarray:
        """tokens (R, l), behind `offset` others, beam_idx (R,) i32 -> logits (R, l, V)."""
        ...


class OnnxRunner:
    """The ONNX graphs under onnxruntime, caches passed explicitly."""

    def __init__(
        self, directory: Path, graphs: Graphs, batches: Sequence[Forced], threads: int
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")  # no second copy
        encoder = onnxruntime.InferenceSession(str(directory / ENCODER_ONNX), options)
        names = [spec.name for spec in graphs.memory]
        self.memory, self.lengths = [], []
        for batch in batches:
            lengths, *memory = encoder.run(["encoder_lengths", *names], encoder_inputs(batch))
            self.memory.append(dict(zip(names, memory, strict=True)))
            self.lengths.append(lengths)
        del encoder
        machine.trim()
        if not graphs.has_decoder:
            return
        self.decoder = onnxruntime.InferenceSession(str(directory / DECODER_ONNX), options)
        self.state, self.rows = graphs.state, [batch.rows for batch in batches]

    def encoded(self, batch: int) -> np.ndarray:
        """See `Runner`."""
        return valid(self.memory[batch], self.lengths[batch])

    def start(self, batch: int) -> None:
        """See `Runner`."""
        self.inputs = self.memory[batch]
        self.past = {past(spec): self._start(spec, batch) for spec in self.state}

    def _start(self, spec: TensorSpec, batch: int) -> np.ndarray:
        """See `TensorSpec.start`."""
        rows = self.rows[batch]
        if spec.start is not None:
            memory = self.inputs[spec.start]
            return np.repeat(memory, rows // len(memory), axis=0)
        sizes = [dim if isinstance(dim, int) else 0 for dim in spec.dims[1:]]
        return np.zeros((rows, *sizes), np.float32)

    def step(self, tokens: np.ndarray, beam_idx: np.ndarray, offset: int) -> np.ndarray:
        """See `Runner`."""
        states = {name: value[beam_idx] for name, value in self.past.items()}
        inputs = {"tokens": tokens, "offset": np.array(offset), **self.inputs, **states}
        logits, *present = self.decoder.run(None, inputs)
        self.past = dict(zip(map(past, self.state), present, strict=True))
        return np.asarray(logits)


class IrRunner:
    """The IR models on the CPU at f32, the decoder's caches inside."""

    def __init__(
        self, directory: Path, graphs: Graphs, batches: Sequence[Forced], threads: int
    ) -> None:
        encoder = _compiled(directory / ENCODER_IR, threads)
        self.memory, self.lengths = [], []
        for batch in batches:
            outputs = encoder(encoder_inputs(batch))
            self.memory.append({o.get_any_name(): outputs[o] for o in encoder.outputs[1:]})
            self.lengths.append(outputs["encoder_lengths"])
        del encoder, outputs
        machine.trim()
        if not graphs.has_decoder:
            return
        self.decoder = _compiled(directory / DECODER_IR, threads)
        self.request = self.decoder.create_infer_request()

    def encoded(self, batch: int) -> np.ndarray:
        """See `Runner`."""
        return valid(self.memory[batch], self.lengths[batch])

    def start(self, batch: int) -> None:
        """See `Runner`."""
        self.inputs = self.memory[batch]
        self.request.reset_state()

    def step(self, tokens: np.ndarray, beam_idx: np.ndarray, offset: int) -> np.ndarray:
        """See `Runner`."""
        inputs = {"tokens": tokens, "beam_idx": beam_idx, "offset": np.array(offset)}
        logits: np.ndarray = self.request.infer(inputs | self.inputs)["logits"]
        return logits


def _compiled(path: Path, threads: int) -> ov.CompiledModel:
    model = read_graph(path)
    rewrite.keep_16_bits(model)
    properties = compile_properties("f32", "CPU", threads or None)
    return compile_graph(ov.Core(), model, "CPU", properties)


def valid(memory: Mapping[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """Log-probabilities (N, S, V) without padding: (valid frames of all utterances, V)."""
    pairs = zip(memory[LOG_PROBS], lengths, strict=True)
    return np.concatenate([frames[:length] for frames, length in pairs])


def encoder_inputs(batch: Forced) -> dict[str, np.ndarray]:
    """Features and lengths, see `Forced`."""
    return {"features": batch.features, "lengths": batch.lengths}
