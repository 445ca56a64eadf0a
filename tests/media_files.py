"""Files of FFmpeg's containers and codecs, made by PyAV."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np


def encoded(
    samples: np.ndarray, container: str, codec: str, rate_hz: int = 16_000,
    pause: tuple[int, float] | None = None, video: bool = False, begin: float = 0.0, **options: str,
) -> bytes:  # fmt: skip
    """A file in memory.

    Args:
        samples: shape (samples,) or (samples, channels), float32.
        container: FFmpeg's name.
        codec: FFmpeg's name.
        rate_hz: of the samples.
        pause: from which sample on time jumps, and by how many seconds.
        video: with a black picture in front.
        begin: time of the first sample, s.
        options: of the container.
    """
    file = io.BytesIO()
    packed = samples.reshape(len(samples), -1)
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[packed.shape[1]]
    with av.open(file, "w", format=container, options=options) as output:
        picture = output.add_stream("mpeg4", rate=25) if video else None
        stream: Any = output.add_stream(codec, rate=rate_hz, layout=layout)
        if picture is not None:
            picture.width = picture.height = 64
            output.mux(picture.encode(av.VideoFrame(64, 64, "yuv420p")))
            output.mux(picture.encode(None))
        kind = stream.codec_context.format.name if stream.codec_context.format else "fltp"
        resampler = av.AudioResampler(kind, layout, rate_hz)
        cuts = [0, len(packed)] if pause is None else [0, pause[0], len(packed)]
        for i, (first, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
            for at in range(first, end, 1024):
                part = np.ascontiguousarray(packed[at : min(at + 1024, end)], np.float32)
                frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), "flt", layout)
                frame.sample_rate = rate_hz
                frame.pts = at + int((begin + (i * pause[1] if pause else 0.0)) * rate_hz)
                for converted in resampler.resample(frame):
                    output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return file.getvalue()
