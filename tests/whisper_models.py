"""Small Whisper checkpoints and waveforms for the tests."""

from __future__ import annotations

import numpy as np

from fairseq_openvino.measure.material.whisper import (
    Layout,
    write_whisper,  # noqa: F401  for the tests, from here
)

TEXT_TOKENS = Layout().text_tokens


def waveforms(count: int, seconds: float, seed: int = 0) -> list[np.ndarray]:
    """Noise with slow amplitude and moving pitch, at 16 kHz, of up to `seconds`."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        samples = int(16000 * seconds * random.uniform(0.4, 1.0))
        time = np.arange(samples) / 16000
        pitch = random.uniform(80, 300) * (
            1 + 0.3 * np.sin(2 * np.pi * random.uniform(1, 4) * time)
        )
        voice = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / 16000) / k for k in range(1, 12))
        envelope = np.abs(np.sin(2 * np.pi * random.uniform(1, 3) * time))
        noise = random.standard_normal(samples) * 0.02
        made.append((0.1 * voice * envelope + noise).astype(np.float32))
    return made
