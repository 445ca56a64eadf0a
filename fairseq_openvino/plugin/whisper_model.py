"""A Whisper bundle where Fairseq expects a model: it is only carried to the generator."""

from __future__ import annotations

from typing import Any

from fairseq.models import BaseFairseqModel

from fairseq_openvino.whisper.model import WhisperModel

ANY_LENGTH = 1 << 30
"""Manifests count frames of features that are not used here; the window is checked on reading."""


class WhisperOpenVINOModel(BaseFairseqModel):  # type: ignore[misc]
    """Holds no torch weights."""

    def __init__(self, speech_model: WhisperModel) -> None:
        super().__init__()
        self.speech_model = speech_model

    def max_positions(self) -> tuple[int, int]:
        """Source, target."""
        return ANY_LENGTH, self.speech_model.manifest.limits.max_target_tokens

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Nothing to do: graphs are compiled already."""
