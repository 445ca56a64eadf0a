"""Silero's voice detector: the probability of speech, for each 32 ms of a recording.

The graph is upstream's `silero_vad_16k_sequence.onnx` (`silero/SOURCE`): frames (n, 64 + 512) at 16 kHz,
each behind the last 64 samples of the one before, and the state (1, 1, 128) twice. In bf16 its
probabilities are up to 0.3 off, so it computes in f32 whatever the device prefers. It hears no voice that
is recorded too softly, so a recording is amplified as long as it has been soft throughout.
Source: silero-vad 6.2.3 `sequence_vad.py`.
"""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

import numpy as np
import openvino as ov

from fairseq_openvino.atomic import sha256
from fairseq_openvino.errors import ModelError, failure
from fairseq_openvino.runtime.engine import compile_properties
from fairseq_openvino.runtime.graphs import compile_graph
from fairseq_openvino.speech.activity import FRAME_SAMPLES

MODEL = Path(__file__).parent / "silero" / "silero_vad_16k_sequence.onnx"
SHA256 = "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85"
CONTEXT_SAMPLES = 64
STATE_SHAPE = (1, 1, 128)
CALL_FRAMES = 256
"""Frames a call, however the samples arrive: rounding and amplification depend on it."""
SOFT_RMS = 0.03
"""Of the loudest frame: speech below it, at -40 dB for instance, is missed unless it is amplified to it."""
MAX_GAIN = 1000.0


@cache
def load_voice() -> SileroVoice:
    """The detector of this process, compiled at the first call.

    Raises:
        ModelError: its file is missing or not the one that was released.
    """
    return SileroVoice(MODEL)


class SileroVoice:
    """The compiled detector (`speech.activity.Voice`)."""

    def __init__(self, model: Path) -> None:
        digest = sha256(model) if model.is_file() else "no file"
        if digest != SHA256:
            raise failure(
                ModelError, "Loading the voice detector", model, f"SHA-256 {SHA256[:12]}...",
                f"{digest[:12]}...", "Install fairseq-openvino anew",
            )  # fmt: skip
        properties = compile_properties("f32", "CPU", threads=1)
        self._compiled = compile_graph(ov.Core(), model, "CPU", properties)
        self._idle: list[ov.InferRequest] = []
        self._lock = threading.Lock()

    def listen(self) -> SileroListener:
        """See `speech.activity.Voice`."""
        return SileroListener(self)

    def __call__(
        self, frames: np.ndarray, state: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Probabilities (n,) of frames (n, 64 + 512), and the state behind them."""
        with self._lock:
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        found = request.infer(dict(zip(("input", "h", "c"), (frames, *state), strict=True)))
        self._idle.append(request)
        return found["speech_probs"], (found["hn"], found["cn"])


class SileroListener:
    """Hears one recording (`speech.activity.Listener`)."""

    def __init__(self, voice: SileroVoice) -> None:
        self._voice = voice
        self._state = np.zeros(STATE_SHAPE, np.float32), np.zeros(STATE_SHAPE, np.float32)
        self._samples = np.zeros(CONTEXT_SAMPLES, np.float32)
        """Those that were not heard yet, behind the context of the first one."""
        self._loudest = SOFT_RMS / MAX_GAIN
        """Root mean square of the loudest frame so far."""

    def hear(self, samples: np.ndarray) -> np.ndarray:
        """See `speech.activity.Listener`."""
        self._samples = np.concatenate([self._samples, samples], dtype=np.float32)
        size = CALL_FRAMES * FRAME_SAMPLES
        count = (len(self._samples) - CONTEXT_SAMPLES) // size
        found = [self._hear(i * size, CALL_FRAMES) for i in range(count)]
        self._samples = self._samples[count * size :]
        return np.concatenate([np.empty(0, np.float32), *found])

    def end(self) -> np.ndarray:
        """See `speech.activity.Listener`."""
        left = len(self._samples) - CONTEXT_SAMPLES
        if not left:
            return np.empty(0, np.float32)
        self._samples = np.pad(self._samples, (0, -left % FRAME_SAMPLES))
        return self._hear(0, -(-left // FRAME_SAMPLES))

    def _hear(self, start: int, count: int) -> np.ndarray:
        """So many frames, the context of the first of which starts there."""
        size = CONTEXT_SAMPLES + FRAME_SAMPLES
        whole = self._samples[start : start + CONTEXT_SAMPLES + count * FRAME_SAMPLES]
        frames = np.lib.stride_tricks.sliding_window_view(whole, size)[::FRAME_SAMPLES]
        powers = np.square(frames[:, CONTEXT_SAMPLES:]).mean(axis=1)
        self._loudest = max(self._loudest, float(np.sqrt(powers.max())))
        gain = np.float32(max(SOFT_RMS / self._loudest, 1.0))
        found, self._state = self._voice(gain * frames, self._state)
        return found
