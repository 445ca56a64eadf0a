"""Shims for Fairseq's audio reading and S2T data configuration; applied by `compat.apply_shims`."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from fairseq_openvino.errors import AudioError, ModelError
from fairseq_openvino.speech.audio import AUDIO_EXTENSIONS, read_audio
from fairseq_openvino.speech.configuration import read_yaml
from fairseq_openvino.speech.features import PCM16_SCALE, fbank
from fairseq_openvino.speech.slices import Slice

logger = logging.getLogger(__name__)

MP3_SYNC_MASK = 0xE0
"""The three highest bits of an MPEG frame's second byte are ones, after a byte of ones."""
AUDIO_MAGIC = (b"RIF", b"RF64", b"riff", b"fLa", b"Ogg", b"ID3", b"FORM", b".snd", b"caff")
"""First bytes of the other formats."""


def _rebind(original: Any, replacement: Any) -> None:
    """Replace a function in every loaded Fairseq module that imported it by value."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in ("fairseq", "fairseq_cli"):
            continue
        for attribute, value in list(vars(module).items()):
            if value is original:
                setattr(module, attribute, replacement)


def convert_waveform(
    waveform: Any,
    sample_rate: int,
    normalize_volume: bool = False,
    to_mono: bool = False,
    to_sample_rate: int | None = None,
) -> tuple[Any, int]:
    """Fairseq's SoX effect chain `gain -n`, `rate`, `channels 1` without SoX.

    Args:
        waveform: shape (channels, samples), float32 array or torch tensor.
        sample_rate: its rate in Hz.
        normalize_volume: scale the peak to 1.
        to_mono: average the channels.
        to_sample_rate: resample to this rate in Hz.

    Returns:
        The waveform, of the type given, and its rate.
    """
    is_tensor = not isinstance(waveform, np.ndarray)
    samples = waveform.numpy() if is_tensor else waveform
    peak = np.abs(samples).max(initial=0.0)
    if normalize_volume and peak > 0:
        samples = samples / peak
    if to_sample_rate is not None and to_sample_rate != sample_rate:
        samples = soxr.resample(samples.T, sample_rate, to_sample_rate).T
        sample_rate = to_sample_rate
    if to_mono and samples.shape[0] > 1:
        samples = samples.mean(axis=0, keepdims=True)
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if is_tensor:
        import torch

        return torch.from_numpy(samples), sample_rate
    return samples, sample_rate


def read_waveform(
    path_or_fp: str | BinaryIO, mono: bool, frames: int, start: int
) -> tuple[np.ndarray, int]:
    """Decode to shape (channels, samples), float32 in [-1, 1], and the rate in Hz.

    Raises:
        AudioError: the source cannot be decoded.
    """
    if mono and frames == -1 and start == 0:
        waveform, rate_hz = read_audio(path_or_fp)
        return waveform[np.newaxis], rate_hz
    try:
        waveform, rate_hz = soundfile.read(
            path_or_fp, dtype="float32", always_2d=True, frames=frames, start=start
        )
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(
            f"Decoding audio failed in {str(path_or_fp)!r}: expected {frames} samples from sample "
            f"{start}, got {error}. Check the file."
        ) from error
    return convert_waveform(waveform.T, rate_hz, to_mono=mono)


def get_waveform(
    path_or_fp: str | BinaryIO,
    normalization: bool = True,
    mono: bool = True,
    frames: int = -1,
    start: int = 0,
    always_2d: bool = True,
    output_sample_rate: int | None = None,
    normalize_volume: bool = False,
    waveform_transforms: Any = None,
) -> tuple[np.ndarray, int]:
    """Fairseq's `get_waveform`, decoding within the bounds of `audio` and with our errors.

    Returns:
        The waveform, shape (channels, samples) or (samples,), and its rate in Hz.

    Raises:
        AudioError: the source cannot be decoded or has an unknown extension.
    """
    if isinstance(path_or_fp, str) and Path(path_or_fp).suffix not in AUDIO_EXTENSIONS:
        raise AudioError(
            f"Decoding audio failed in {path_or_fp!r}: expected one of the extensions "
            f"{', '.join(AUDIO_EXTENSIONS)}, got {Path(path_or_fp).suffix!r}. Convert the file."
        )
    waveform, rate_hz = read_waveform(path_or_fp, mono, frames, start)
    waveform, rate_hz = convert_waveform(
        waveform, rate_hz, normalize_volume, to_sample_rate=output_sample_rate
    )
    if not normalization:
        waveform = waveform * np.float32(PCM16_SCALE)
    if waveform_transforms is not None:
        waveform, rate_hz = waveform_transforms(waveform, rate_hz)
    return (waveform if always_2d else waveform.squeeze(axis=0)), rate_hz


def kaldi_fbank(waveform: np.ndarray, sample_rate: int, n_bins: int = 80) -> np.ndarray:
    """`features.fbank` for a waveform of shape (channels, samples) scaled by 2**15; (T, F).

    Raises:
        AudioError: the waveform is shorter than one frame of 25 ms.
    """
    features = fbank(waveform[0] / np.float32(PCM16_SCALE), sample_rate, n_bins)
    if not len(features):
        raise AudioError(
            f"Extracting features failed: expected at least 25 ms of audio, "
            f"got {waveform.shape[1]} samples at {sample_rate} Hz. Drop the file."
        )
    return features


def _check_array(path: str, values: np.ndarray, rank: int) -> np.ndarray:
    """Features (T, F), rank 2, or a waveform (samples,), rank 1.

    Raises:
        AudioError: the array is empty, of another shape, not of numbers or not finite.
    """
    is_shaped = values.ndim == rank and 0 not in values.shape
    if not is_shaped or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise AudioError(
            f"Reading speech failed in {path!r}: expected finite numbers in {rank} dimensions, got an "
            f"array of shape {values.shape} and type {values.dtype}. Compute it again."
        )
    return values


def _read_part(path: str, raw: bool, use_sample_rate: Any = None, **options: Any) -> np.ndarray:
    """Fairseq's `get_features_or_waveform` for a part of an audio file."""
    part = Slice.parse(path)
    assert part is not None
    options |= {"always_2d": not raw, "output_sample_rate": use_sample_rate if raw else None}
    found, rate_hz = get_waveform(io.BytesIO(part.wav()), raw, **options)
    return found if raw else kaldi_fbank(found, rate_hz)


def is_sf_audio_data(data: bytes) -> bool:
    """Whether bytes inside a ZIP begin like an audio file."""
    if data.startswith(AUDIO_MAGIC):
        return True
    return len(data) > 1 and data[0] == 0xFF and data[1] & MP3_SYNC_MASK == MP3_SYNC_MASK  # noqa: PLR2004


def audio_reading() -> None:
    """Audio is read without torchaudio.

    data/audio/audio_utils.py:46 imports `torchaudio.sox_effects`, removed in torchaudio 2.9, for
    every audio file, and torchaudio 2.11 itself needs the CUDA build of torch. Decoding is
    libsndfile's, resampling soxr's, filter banks kaldi-native-fbank's; MP3 and others are new. A
    file that cannot be read or holds no features is an `AudioError` with its name. Versions: all.
    """
    from fairseq.data.audio import audio_utils

    audio_utils.SF_AUDIO_FILE_EXTENSIONS.update(AUDIO_EXTENSIONS)
    audio_utils.FEATURE_OR_SF_AUDIO_FILE_EXTENSIONS.update(AUDIO_EXTENSIONS)
    original = audio_utils.get_features_or_waveform

    def get_features_or_waveform(
        path: str, need_waveform: bool = False, *args: Any, **kwargs: Any
    ) -> np.ndarray:
        try:
            read = original if Slice.parse(path) is None else _read_part
            found = read(path, need_waveform, *args, **kwargs)
            return _check_array(path, found, 1 if need_waveform else 2)
        except (OSError, ValueError, IndexError, AssertionError, AudioError) as error:
            if isinstance(error, AudioError) and repr(path) in str(error):
                raise
            raise AudioError(
                f"Reading speech failed in {path!r}: expected stored features (.npy), an audio "
                f"file, <zip>:<offset>:<bytes> or <audio>:<first sample>:<samples>, got: {error} "
                "Repair or drop this row."
            ) from error

    _rebind(original, get_features_or_waveform)
    _rebind(audio_utils.convert_waveform, convert_waveform)
    _rebind(audio_utils.get_waveform, get_waveform)
    _rebind(audio_utils._get_torchaudio_fbank, kaldi_fbank)
    _rebind(audio_utils.is_sf_audio_data, is_sf_audio_data)


BPE_FILES = (
    "sentencepiece_model", "sentencepiece_model_path", "gpt2_encoder_json", "gpt2_vocab_bpe",
    "bpe_vocab", "bpe_merges", "bpe_vocab_file", "bpe_codes",
)  # fmt: skip
"""Options of `bpe_tokenizer` that are paths."""
_warned_paths: set[str] = set()


def _beside(root: Path, path: str) -> str:
    """The path, or the same path or file name beside the YAML if only that exists."""
    if not path or os.path.exists(path):
        return path
    if os.path.exists(root / path):
        return (root / path).as_posix()
    moved = root / Path(path).name
    if not os.path.exists(moved):
        return path
    if path not in _warned_paths:
        _warned_paths.add(path)
        logger.warning("%r of the data configuration is gone; using %r", path, moved.as_posix())
    return moved.as_posix()


def _bad_configuration(path: Path, got: str) -> ModelError:
    if not os.path.isfile(path):
        there = ", ".join(sorted(each.name for each in path.parent.glob("*.y*ml")))
        got = f"no such file (there: {there or 'no YAML file'})"
    return ModelError(
        f"Reading the data configuration failed in {str(path)!r}: expected a YAML file of options, "
        f"got {got}. Check the data directory and --config-yaml."
    )


def audio_root() -> None:
    """Paths in the S2T YAML survive moving the data directory.

    data/audio/data_cfg.py:137 takes a relative `audio_root` from the current directory, and the
    preparation scripts write absolute paths of the files of subwords and of the CMVN statistics.
    Relative ones are now also looked up beside the YAML; of absolute ones that no longer exist the
    file name is, with a warning. An `audio_root` of "." always means the YAML's
    directory (the current one is Fairseq's default). The file is read as `read_yaml` does, where
    data_cfg.py:24 lets YAML name Python's objects. Versions: all.
    """
    from fairseq.data.audio.data_cfg import S2TDataConfig

    def __init__(self: Any, yaml_path: Path) -> None:  # noqa: N807
        self.root = Path(yaml_path).parent
        try:
            self.config = read_yaml(Path(yaml_path))
        except (OSError, ValueError) as error:
            raise _bad_configuration(Path(yaml_path), str(error)) from error
        if not isinstance(self.config, dict):
            raise _bad_configuration(Path(yaml_path), type(self.config).__name__)
        root = self.root
        relative = self.config.get("audio_root") or ""
        if not isinstance(relative, str):
            got = f"audio_root of the type {type(relative).__name__}"
            raise _bad_configuration(Path(yaml_path), got)
        absent = relative == "." or (relative and not os.path.exists(relative))
        if absent and os.path.exists(root / relative):
            self.config["audio_root"] = (root / relative).as_posix()
        files = (*(("bpe_tokenizer", key) for key in BPE_FILES), ("global_cmvn", "stats_npz_path"))
        for section, key in files:
            options = self.config.get(section)
            if isinstance(options, dict) and isinstance(options.get(key), str):
                options[key] = _beside(root, options[key])

    S2TDataConfig.__init__ = __init__


def _stored_rate_hz(path: str) -> int | None:
    """Rate of an audio file or of audio bytes in a ZIP; None for stored features or on damage."""
    from fairseq.data.audio.audio_utils import parse_path, read_from_stored_zip

    try:
        part = Slice.parse(path)
        source: Any = path if part is None else part.file
        if part is None and Path(path).suffix not in AUDIO_EXTENSIONS:
            file, slices = parse_path(path)
            if not slices:
                return None
            data = read_from_stored_zip(file, *slices)
            if not is_sf_audio_data(data):
                return None
            source = io.BytesIO(data)
        if not isinstance(source, io.BytesIO) and not os.path.isfile(source):
            return None
        with soundfile.SoundFile(source) as audio:
            return int(audio.samplerate)
    except (soundfile.LibsndfileError, OSError, ValueError, AssertionError):
        return None  # The reader, which comes next, reports it.


def sample_rate_guard() -> None:
    """Audio of another rate than the YAML's `sample_rate` is an error, not wrong features.

    data/audio/audio_utils.py:259 computes filter banks at the file's own rate whatever the YAML
    says, so a model trained on 48 kHz features is silently fed 16 kHz ones
    (facebookresearch/fairseq#3310). Only a rate written in the YAML is checked, and only for
    audio; stored features and raw-waveform models are not concerned. Versions: all.
    """
    from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDataset

    original = SpeechToTextDataset._get_source_audio

    def _get_source_audio(self: Any, index: Any) -> Any:
        expected_hz = self.cfg.config.get("sample_rate")
        if expected_hz is not None and not self.cfg.use_audio_input:
            indices: Iterable[Any] = index if isinstance(index, (list, tuple)) else (index,)
            for position in indices:
                _check_rate(self.audio_paths[position], int(expected_hz))
        return original(self, index)

    SpeechToTextDataset._get_source_audio = _get_source_audio


def _check_rate(path: str, expected_hz: int) -> None:
    rate_hz = _stored_rate_hz(path)
    if rate_hz is not None and rate_hz != expected_hz:
        raise AudioError(
            f"Extracting features failed in {path!r}: expected {expected_hz} Hz as `sample_rate` "
            f"in the data configuration says, got {rate_hz} Hz. Resample the file to "
            f"{expected_hz} Hz, or prepare data and model with {rate_hz} Hz."
        )


def feature_shape_guard() -> None:
    """Features of another size than the data configuration says are an error of their utterance.

    data/audio/speech_to_text_dataset.py:320 collates whatever an array holds, so that one wrong
    `.npy` ends the run in the model. Only filter banks are checked. Versions: all.
    """
    from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDataset

    original = SpeechToTextDataset._get_source_audio

    def _get_source_audio(self: Any, index: Any) -> Any:
        source = original(self, index)
        bins = self.cfg.input_feat_per_channel * self.cfg.input_channels
        if not self.cfg.use_audio_input and source.shape[-1] != bins:
            path = self.audio_paths[index] if np.ndim(index) == 0 else index
            raise AudioError(
                f"Reading speech failed in {path!r}: expected {bins} feature bins as in the data "
                f"configuration, got {source.shape[-1]}. Compute the features again."
            )
        return source

    SpeechToTextDataset._get_source_audio = _get_source_audio
