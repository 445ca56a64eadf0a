"""The Fairseq S2T family: filter banks with CMVN, eos as the first token, `<lang:xx>` prefixes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields, replace
from os import PathLike
from typing import Any, BinaryIO

import numpy as np
import soundfile

from fairseq_openvino.bundle import Bundle, FeatureConfig
from fairseq_openvino.errors import AudioError, ModelError, OptionError, UtteranceTooLongError
from fairseq_openvino.model import Clip, EncoderOutput, Hypothesis, Transcript
from fairseq_openvino.recognizer import Transcriber, check_nbest, transcript
from fairseq_openvino.runtime.engine import EngineOptions, Variant
from fairseq_openvino.runtime.precision import (
    Plan,
    plan_batch,
)
from fairseq_openvino.runtime.session import Session, concatenate, encode
from fairseq_openvino.s2t.search import SearchOptions, TokenIds, generate
from fairseq_openvino.s2t.vocabulary import Vocabulary, check_size, load_dictionary
from fairseq_openvino.speech import features as feature_functions
from fairseq_openvino.speech.audio import source_name

logger = logging.getLogger(__name__)


class S2TModel(Transcriber):
    """A `SpeechModel` over a Fairseq S2T bundle."""

    options = ("nbest", "language", *(field.name for field in fields(SearchOptions)))

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        super().__init__(bundle, options)
        text = self.manifest.text
        path = bundle.path(text.dictionary)
        symbols = load_dictionary(path)
        check_size(path, symbols, self.manifest.dimensions.vocabulary_size)
        self.vocabulary = Vocabulary.of(symbols, text)
        self._cmvn = _load_cmvn(bundle)
        self._rate_noted = not self.manifest.features.sample_rate_assumed

    def read(self, audio: str | PathLike[str] | BinaryIO) -> Clip:
        """See `Transcriber.read`; the first file of another rate than the assumed one is noted."""
        rate_hz = None if self._rate_noted else _rate_hz(audio)
        assumed_hz = self.manifest.features.sample_rate_hz
        if rate_hz not in (None, assumed_hz):
            self._rate_noted = True
            logger.warning(
                f"{source_name(audio)!r} has {rate_hz} Hz and is resampled to {assumed_hz} Hz, which is "
                "assumed: the bundle does not know the rate of its training audio (export --sample-rate)"
            )
        return super().read(audio)

    def features(self, waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Waveform (samples,) in [-1, 1] to (T, F), with the transforms of the training data.

        Raises:
            AudioError: the waveform is shorter than one frame (25 ms).
            UtteranceTooLongError: more frames than the model has positions for.
        """
        self.check_supported()
        config = self.manifest.features
        frames = feature_functions.fbank(waveform, sample_rate_hz, config.bins)
        if not len(frames):
            raise AudioError(
                f"Computing features failed: expected at least {feature_functions.FRAME_LENGTH_MS:.0f}"
                f" ms of audio, got {1000 * len(waveform) / sample_rate_hz:.1f} ms. Drop the file."
            )
        limit = self.manifest.limits.max_source_frames
        if len(frames) > limit:
            raise UtteranceTooLongError(
                f"Computing features failed: expected at most {limit} frames (max_source_positions), "
                f"got {len(frames)}. Split the audio."
            )
        return self.transformed(frames)

    def transformed(self, frames: np.ndarray) -> np.ndarray:
        """The transforms of the training data; (T, F) filter banks to (T, F), float32."""
        config = self.manifest.features
        for transform in config.transforms:
            if transform == "utterance_cmvn":
                frames = feature_functions.utterance_cmvn(
                    frames, config.norm_means, config.norm_vars
                )
            elif transform == "global_cmvn":
                frames = feature_functions.global_cmvn(frames, *self._cmvn)
            else:
                raise ModelError(
                    f"Computing features failed in {str(self.bundle.directory)!r}: expected "
                    f"utterance_cmvn or global_cmvn, got {transform!r}. Use fairseq-generate."
                )
        return frames.astype(np.float32)

    def plan(self, utterances: int) -> Plan:
        """Precisions and streams for a batch of N."""
        return plan_batch(self.engine.options, utterances)

    def streams(self, utterances: int) -> int:
        """Into how many parts, decoded at the same time, a batch of N is best split."""
        return self.plan(utterances).streams

    def encode(self, features: np.ndarray, lengths: np.ndarray, streams: int = 1) -> EncoderOutput:
        """Features (N, T, F), zero-padded, and lengths (N,) in frames, to cross-attention tensors."""
        bins = self.manifest.dimensions.feature_bins
        if features.shape[2:] != (bins,):
            raise ModelError(
                f"Encoding failed in {str(self.bundle.directory)!r}: expected features (N, T, {bins}),"
                f" got {features.shape}. Use the feature configuration the model was trained with."
            )
        variant = Variant("encoder", self.plan(len(features) * streams).encoder, streams)
        return encode(self.engine, variant, features, lengths)

    def open(self, encoded: EncoderOutput, beam: int, candidates: int = 0) -> Session:
        """A decoder session with `beam` rows an utterance; see `model.SpeechModel.open`."""
        variant = self._decoder(encoded.utterances, encoded.streams, beam, candidates)
        return Session(self.engine, variant, encoded)

    def prepare(self, beam: int, candidates: int = 0, utterances: Collection[int] = (1,)) -> None:
        """Compile what batches of these sizes need; else it happens at the first of them."""
        for count in utterances:
            plan = self.plan(count)
            streams = plan.streams if candidates else 1  # `step()` is Fairseq's, one at a time
            part = -(-count // streams)
            self.engine.lease(Variant("encoder", plan.encoder, streams)).release()
            self.engine.lease(self._decoder(part, streams, beam, candidates)).release()

    def _decoder(self, utterances: int, streams: int, beam: int, candidates: int) -> Variant:
        precision = self.plan(utterances * streams).decoder
        static = beam if candidates and utterances == 1 and self.engine.on_cpu else 0
        return Variant("decoder", precision, streams, candidates, static)

    def token_ids(self) -> TokenIds:
        """Special tokens for the search."""
        ids = self.manifest.tokens
        return TokenIds(pad=ids.pad, eos=ids.eos, unk=ids.unk)

    def transcribe_clips(
        self,
        clips: Sequence[Clip],
        *,
        nbest: int = 1,
        language: str | None = None,
        **options: Any,
    ) -> list[Transcript]:
        """Clips that were read before, decoded together.

        Each clip is encoded alone, so its result does not depend on the others.

        Args:
            clips: results of `read` or `clip`.
            nbest: hypotheses to return, at most `beam`.
            language: target language of a multilingual model (`<lang:xx>`).
            options: fields of `SearchOptions`.

        Raises:
            OptionError: the options contradict each other or the model.
        """
        self.check_supported()
        search = SearchOptions(**options)
        check_nbest(nbest, search.beam)
        ids, prefix = self._target(language)
        frames = [len(clip.features) for clip in clips]
        encoded = [
            self.encode(clip.features[None], np.array([len(clip.features)])) for clip in clips
        ]
        found: list[list[Hypothesis]] = []
        for group in _same_limit(frames, search):
            batch = concatenate([encoded[i] for i in group])
            forced = None if prefix is None else np.repeat(prefix, len(group), axis=0)
            found += generate(self, batch, frames[group[0]], search, ids, forced)
        best = [hypotheses[:nbest] for hypotheses in found]
        return [
            transcript(clip, [self.vocabulary.text(h.tokens) for h in hypotheses], hypotheses)
            for clip, hypotheses in zip(clips, best, strict=True)
        ]

    def _target(self, language: str | None) -> tuple[TokenIds, np.ndarray | None]:
        """Special tokens, and the forced language tag (1, 1), as the training data has them.

        Source: Fairseq `tasks/speech_to_text.py:build_generator` (--eos-token) and --prefix-size.
        """
        ids, text, languages = self.token_ids(), self.manifest.text, self.vocabulary.languages
        if language is None:
            needed = text.append_language_tag and text.eos_token is None
            if not (text.prepend_language_tag or needed):
                return ids, None
            raise OptionError(
                f"Transcribing failed in --language: expected one of {', '.join(sorted(languages))} "
                "(the model is multilingual), got none. Name the target language."
            )
        if language not in languages:
            raise OptionError(
                f"Transcribing failed in --language: expected one of "
                f"{', '.join(sorted(languages)) or 'none (the model has one language)'}, "
                f"got {language!r}. Choose a language of the model."
            )
        if text.append_language_tag:
            return replace(ids, eos=languages[language]), None
        return ids, np.array([[languages[language]]])


def _same_limit(frames: Sequence[int], options: SearchOptions) -> Iterator[list[int]]:
    """Indices decoded together: all, unless the output limit depends on each one's own length."""
    if options.max_len_a == 0:
        yield list(range(len(frames)))
    else:
        yield from ([i] for i in range(len(frames)))


def _rate_hz(audio: str | PathLike[str] | BinaryIO) -> int | None:
    """Rate of an audio file; None for one that cannot be read, which the reader reports."""
    try:
        if isinstance(audio, (str, PathLike)):
            return int(soundfile.info(audio).samplerate)
        start = audio.tell()
        rate_hz = int(soundfile.info(audio).samplerate)
        audio.seek(start)
    except (soundfile.LibsndfileError, OSError, RuntimeError):
        return None
    return rate_hz


def _load_cmvn(bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    config: FeatureConfig = bundle.manifest.features
    if config.global_cmvn is None:
        return np.zeros(config.bins, np.float32), np.ones(config.bins, np.float32)
    path = bundle.path(config.global_cmvn)
    with np.load(path, allow_pickle=False) as stats:
        return stats["mean"], stats["std"]
