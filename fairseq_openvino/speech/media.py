"""Decoding by FFmpeg (PyAV, the extra `media`): containers and codecs that libsndfile refuses.

The first audio stream, at its own rate, all channels, samples only scaled: mixing and resampling are
ours, so that both decoders give the same samples. FFmpeg skips what an encoder put in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any, BinaryIO

import numpy as np

from fairseq_openvino.speech.containers import Inspection
from fairseq_openvino.speech.sndfile import BLOCK_SAMPLES, CONVERT, FORMATS
from fairseq_openvino.speech.waveform import (
    as_floats,
    check_channels,
    check_rate,
    of_equal_size,
    unusable,
)

EXTENSIONS = (
    ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".aac", ".webm", ".mkv", ".mka", ".wma",
    ".asf", ".wmv", ".amr", ".awb", ".ac3", ".eac3", ".dts", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg",
    ".avi", ".flv", ".mp2", ".ape", ".dsf", ".tta", ".wv", ".mpc",
)  # fmt: skip
DEMUXERS = (
    "mov", "matroska", "asf", "aac", "loas", "amr", "amrnb", "amrwb", "ac3", "eac3", "dts", "dtshd",
    "truehd", "mpegts", "mpeg", "avi", "flv", "mp3", "ogg", "ape", "dsf", "tta", "wv", "mpc", "mpc8",
    "tak", "oma", "rm", "mxf", "nut", "caf", "wav", "w64", "aiff", "au", "flac",
)  # fmt: skip
"""FFmpeg's names of containers that hold everything themselves: none that names other files or hosts."""
SIGNATURES = {
    b"ftyp": "MP4 (m4a, mp4, mov)",
    b"\x1a\x45\xdf\xa3": "Matroska (webm, mkv)",
    b"\x30\x26\xb2\x75": "ASF (wma)",
}
"""By the first four bytes, or those from the fifth on."""
DURATIONS = ("mov", "matroska", "avi", "flv", "wav", "w64", "aiff", "flac", "tta", "wv", "ape")
"""Containers that declare how long the audio is; others round it, or FFmpeg estimates it."""
MIN_MISSING_SECONDS = 0.25
"""Declared durations are rounded to packets, and some count what an encoder put in front."""
MIN_GAP_SECONDS = 0.1
"""Times of packets jitter by less."""
MAX_PAUSE_SECONDS = 1.0
"""Opus pauses in silence, for less than this; with other codecs a gap is a loss."""
MAX_GAP_SECONDS = 600.0
"""A longer one is another clock, not a pause; so is what makes more than this beyond all that is heard."""


def decoder(name: str, file: BinaryIO, inspection: Inspection, refusal: str) -> MediaDecoder:
    """Open what libsndfile refused.

    Args:
        name: of the file, for messages.
        file: it can seek.
        inspection: of this file.
        refusal: libsndfile's words.

    Raises:
        AudioError: FFmpeg refuses it too, or is not installed.
    """
    file.seek(0)
    head = file.read(8)
    file.seek(0)
    known = SIGNATURES.get(head[:4]) or SIGNATURES.get(head[4:])
    try:
        import av
    except ImportError as error:
        install = (
            f'Install FFmpeg\'s decoders: pip install "fairseq-openvino[media]". Or c{CONVERT}'
        )
        advice = install if known else f"Check that it is a whole audio file. {install}"
        expected = f"one of {', '.join(FORMATS)}"
        raise unusable(name, expected, known or refusal, advice) from error
    try:
        return MediaDecoder(name, file, inspection)
    except av.error.FFmpegError as error:
        expected = "audio that libsndfile or FFmpeg can read"
        got = f"{known}: {_reason(error)}" if known else refusal
        raise unusable(name, expected, got, "Check that it is a whole audio file") from error


class MediaDecoder:
    """One file as blocks of shape (samples, channels), float32; can be iterated once."""

    def __init__(self, name: str, file: BinaryIO, inspection: Inspection) -> None:
        """Open it and decode the first samples, which tell what the header may not.

        Raises:
            av.error.FFmpegError: FFmpeg does not know the format.
            AudioError: it holds no audio, or is outside the limits.
        """
        import av

        self._inspection = inspection
        self._failure: type[Exception] = av.error.FFmpegError
        self._container = av.open(
            _Quiet(file), "r", metadata_errors="replace",
            container_options={"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": ""},
        )  # fmt: skip
        self._damaged, self._samples, self._lost = 0, 0, 0
        self._error: str | None = None
        with ExitStack() as stack:
            stack.enter_context(self._container)
            self._stream = self._audio_stream(name)
            self._frames = self._decoded()
            self._first = self._first_frame(name)
            self.rate_hz = check_rate(name, self._first.sample_rate)
            self.channels = int(self._first.layout.nb_channels)
            check_channels(name, self.channels)
            self._declared = self._declared_seconds()
            is_opus = self._stream.codec_context.name in ("opus", "libopus")
            self._longest_pause = MAX_PAUSE_SECONDS if is_opus else 0.0
            stack.pop_all()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Decode to the end; pauses between packets are zeros."""
        yield from of_equal_size(self._pieces(), BLOCK_SAMPLES)

    def _pieces(self) -> Iterator[np.ndarray]:
        """Frame by frame."""
        start = self._seconds(self._first) or 0.0
        with self._container:
            for frame in chain([self._first], self._frames):
                if frame.sample_rate != self.rate_hz:
                    self._error = f"it changes from {self.rate_hz} to {frame.sample_rate} Hz"
                    break
                at = self._seconds(frame)
                gap = 0 if at is None else round((at - start) * self.rate_hz) - self._samples
                most = MAX_GAP_SECONDS * self.rate_hz
                if gap > min(most, most + self._samples - 2 * self._lost):
                    start += gap / self.rate_hz
                elif gap > MIN_GAP_SECONDS * self.rate_hz:
                    self._samples += gap
                    self._lost += 0 if gap <= self._longest_pause * self.rate_hz else gap
                    for begin in range(0, gap, BLOCK_SAMPLES):
                        silent = min(BLOCK_SAMPLES, gap - begin)
                        yield np.zeros((silent, self.channels), np.float32)
                self._samples += frame.samples
                block = _samples(frame)
                if block.shape[1] != self.channels:  # broadcasts change between stereo and 5.1
                    block = block.mean(axis=1, keepdims=True).repeat(self.channels, axis=1)
                yield block

    def inspection(self) -> Inspection:
        """What is missing, once all blocks were read."""
        found, declared = self._inspection, self._declared
        problem, heard = found.problem or self._problem(), self._samples / self.rate_hz
        if declared is None or declared - heard <= MIN_MISSING_SECONDS:
            return replace(found, problem=problem)
        problem = problem or f"{declared:.2f} s are declared, {heard:.2f} s are there"
        return Inspection(problem, declared)

    def _audio_stream(self, name: str) -> Any:
        """The first audio stream.

        Raises:
            AudioError: there is none that FFmpeg decodes.
        """
        streams = self._container.streams
        if not streams.audio:
            kinds = ", ".join(sorted({stream.type for stream in streams})) or "nothing"
            raise unusable(name, "a file with audio", f"one with {kinds} only", "Drop the file")
        stream = streams.audio[0]
        if stream.codec_context is None:
            raise unusable(name, "a codec that FFmpeg decodes", "another", f"C{CONVERT}")
        return stream

    def _first_frame(self, name: str) -> Any:
        """What tells rate and channels.

        Raises:
            AudioError: nothing can be decoded.
        """
        frame = next(self._frames, None)
        if frame is None:
            got = f"none that can be decoded ({self._problem() or 'no packets'})"
            raise unusable(name, "samples", got, "Drop the file")
        return frame

    def _decoded(self) -> Iterator[Any]:
        """Frames; packets that cannot be decoded are counted, and an end before the end is noted."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._failure as error:
                self._error = _reason(error)
                return
            except IndexError:  # PyAV's end of a file in which other streams appeared later
                packet = None
            if packet is None:
                return
            self._damaged += packet.is_corrupt
            try:
                frames = packet.decode()
            except self._failure:
                self._damaged += not packet.is_corrupt
                continue
            yield from (frame for frame in frames if frame.samples)

    def _seconds(self, frame: Any) -> float | None:
        """When a frame begins, by its own clock."""
        return None if frame.pts is None else float(frame.pts * frame.time_base)

    def _problem(self) -> str | None:
        """What went wrong."""
        problems = [f"{self._damaged} packets are damaged"] if self._damaged else []
        if self._lost:
            lost = f"{self._lost / self.rate_hz:.2f} s"
            problems.append(f"{lost} have no packets and are silent here")
        return " and ".join([*problems, self._error] if self._error else problems) or None

    def _declared_seconds(self) -> float | None:
        """How long the audio should be, where the file says so."""
        if self._container.format.name.split(",")[0] not in DURATIONS:
            return None
        if self._stream.duration is not None:
            return float(self._stream.duration * self._stream.time_base)
        if len(self._container.streams) > 1 or self._container.duration is None:
            return None
        end = float(self._container.duration / 1_000_000)
        return end - (self._seconds(self._first) or 0.0)


class _Quiet:
    """A file as PyAV wants it, which prints what a seek raises; -1 tells FFmpeg that it failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int) -> int:
        """To a place that a damaged header may name."""
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError):
            return -1


def _samples(frame: Any) -> np.ndarray:
    """A frame as shape (samples, channels), float32."""
    kind = {"flt": "f4", "dbl": "f8", "u8": "u1"}.get(name := frame.format.name.removesuffix("p"))
    dtype = np.dtype(kind or f"i{int(name[1:]) // 8}")
    channels, planes = frame.layout.nb_channels, frame.planes
    if not frame.format.is_planar:
        packed = np.frombuffer(planes[0], dtype, frame.samples * channels)
        return as_floats(packed.reshape(-1, channels).copy())
    # PyAV gives frames of 8 channels a ninth plane, which is none
    parts = [np.frombuffer(plane, dtype, frame.samples) for plane in planes[:channels]]
    return as_floats(np.stack(parts, axis=1))


def _reason(error: Exception) -> str:
    """FFmpeg's words."""
    return str(getattr(error, "strerror", None) or error).rstrip(". ")
