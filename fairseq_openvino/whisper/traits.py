"""What a bundle says of its Whisper model."""

from __future__ import annotations

import numpy as np

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.errors import BundleError, UtteranceTooLongError, failure, invalid
from fairseq_openvino.model import Clip, Head
from fairseq_openvino.speech.frontend import LogMel
from fairseq_openvino.whisper import context
from fairseq_openvino.whisper.context import FRAMES_PER_POSITION
from fairseq_openvino.whisper.options import FULL, WhisperOptions
from fairseq_openvino.whisper.rules import Rules
from fairseq_openvino.whisper.tokenizer import WhisperTokenizer

MAX_WINDOW = 60_000
"""10 minutes."""


class Traits:
    """Special tokens, vocabulary, window and rules of one model."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        if self.manifest.whisper is None:
            raise failure(
                BundleError, "Opening a bundle", bundle.directory,
                "the section 'whisper' in the manifest", "none", "Export the bundle again",
            )  # fmt: skip
        self.config = self.manifest.whisper
        self.eos, self.window = self.manifest.tokens.eos, self.manifest.limits.max_source_frames
        if not 0 < self.window <= MAX_WINDOW:
            raise failure(
                BundleError, "Opening a bundle", bundle.directory,
                f"a window of 1 to {MAX_WINDOW} frames", self.window, "Export the bundle again",
            )  # fmt: skip
        self.vocabulary = WhisperTokenizer(bundle.path(self.manifest.text.tokenizer), self.eos)
        self.front_end = LogMel(self.manifest.features, self.window)
        self.watched = (self.config.no_speech, *self.config.languages.values())

    def head(self, options: WhisperOptions) -> Head:
        """What a session reports in a search."""
        if options.temperatures[0] > 0:
            return Head(last=True)
        count = 1 if options.beam == 1 else 2 * options.beam
        return Head(count, self.watched, self.rules(options).mask, renormalised=True)

    def rules(self, options: WhisperOptions) -> Rules:
        """What may follow."""
        size = self.manifest.dimensions.vocabulary_size
        return Rules(self.config, self.eos, size, options.timed, options.min_tokens)

    def ranked(self, shares: np.ndarray) -> dict[str, float]:
        """Probabilities of the languages, in their order, by code, most probable first."""
        codes = list(self.config.languages)
        return {codes[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable")}

    def encoded_frames(self, clip: Clip, options: WhisperOptions) -> int:
        """T that is encoded of a clip."""
        wanted = options.audio_context
        if wanted == FULL:
            return self.window
        if isinstance(wanted, str):
            window = self.window // FRAMES_PER_POSITION
            return FRAMES_PER_POSITION * context.auto_positions(clip, window)
        frames, needed = FRAMES_PER_POSITION * wanted, context.positions(clip)
        if frames > self.window:
            expected = f"at most {self.window // FRAMES_PER_POSITION} positions"
            raise invalid("Transcribing", "audio_context", expected, wanted, "Use full")
        if frames < FRAMES_PER_POSITION * needed:
            raise failure(
                UtteranceTooLongError, "Transcribing", clip.path,
                f"at most {wanted} positions of 20 ms (audio_context)", needed, "Use full or auto",
            )  # fmt: skip
        return frames
