"""Utterances of a corpus through a recognizer: stored features too, in the language it states."""

from __future__ import annotations

from typing import Any

from fairseq_openvino.errors import AudioError
from fairseq_openvino.model import Clip
from fairseq_openvino.runtime.engine import read_back
from fairseq_openvino.speech.stored import frames, waveform

READ_BACK = (
    "INFERENCE_PRECISION_HINT",
    "KV_CACHE_PRECISION",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "INFERENCE_NUM_THREADS",
)
"""Properties of the compiled decoder that decide what is compared."""


def read(model: Any, path: str) -> Clip:
    """As the recognizer reads audio; stored features get its transforms.

    Args:
        model: a recognizer.
        path: as in `corpus.Utterance`.

    Raises:
        AudioError: the clip cannot be used.
    """
    config = model.manifest.features
    audio = waveform(path, config.sample_rate_hz)
    if audio is not None:
        clip: Clip = model.clip(*audio, path)
        return clip
    if model.manifest.whisper is not None:
        raise stored_for_whisper(path)
    found = frames(path, None, config.bins)
    return Clip(path, model.transformed(found.values), found.seconds)


def language_for(model: Any, stated: str | None, task: str = "transcribe") -> str | None:
    """What the corpus states, for a model that has to be told; else None."""
    manifest = model.manifest
    if manifest.whisper is None:
        return stated if manifest.text.prepend_language_tag else None
    known = manifest.whisper.languages  # empty if the model knows English only
    return whisper_language(task, stated) if known else None


def whisper_language(task: str, stated: str | None) -> str | None:
    """Spoken language for Whisper; of a translation the corpus does not tell it."""
    if task != "transcribe" or stated is None:
        return None
    return stated.replace("_", "-").partition("-")[0].lower()


def stored_for_whisper(path: str) -> AudioError:
    """Whisper's spectrogram is not Kaldi's filter banks."""
    return AudioError(
        f"Reading speech failed in {path!r}: expected audio, as Whisper has its own features, "
        "got stored ones. Use a corpus of audio files."
    )


def precision_in_use(model: Any) -> dict[str, str]:
    """READ_BACK of a model's compiled decoder; empty before there is one."""
    compiled = (c for variant, c in model.engine.compiled.items() if variant.graph == "decoder")
    decoder = next(compiled, None)
    return {} if decoder is None else read_back(decoder, READ_BACK)
