"""The Whisper family: log-mel windows, special-token prompts, timestamps, language detection.

Tokens equal transformers' `generate`. What follows the last complete segment of a window is decoded
again, up to the end of the audio, as openai-whisper does it; but not silence. Sources: transformers
`models/whisper/generation_whisper.py`, openai-whisper `transcribe.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from fairseq_openvino.bundle import Bundle, WhisperConfig
from fairseq_openvino.errors import (
    AudioError,
    BundleError,
    ModelError,
    OptionError,
    UtteranceTooLongError,
)
from fairseq_openvino.model import Clip, EncoderOutput, Segment, Transcript
from fairseq_openvino.recognizer import Transcriber, transcript
from fairseq_openvino.runtime.engine import EngineOptions, Variant
from fairseq_openvino.runtime.precision import Plan, plan_batch
from fairseq_openvino.runtime.session import Session, concatenate, encode
from fairseq_openvino.speech import features as feature_functions
from fairseq_openvino.whisper import context
from fairseq_openvino.whisper.context import FRAMES_PER_POSITION
from fairseq_openvino.whisper.request import Request
from fairseq_openvino.whisper.search import Rules, beam_search, greedy, sample
from fairseq_openvino.whisper.tokenizer import WhisperTokenizer
from fairseq_openvino.whisper.windows import FRAMES_PER_SECOND, Progress


class WhisperModel(Transcriber):
    """A `SpeechModel` over a Whisper bundle."""

    options = (
        "beam", "nbest", "lenpen", "language", "task", "timestamps", "prompt", "prefix",
        "temperature", "seed", "min_tokens", "max_tokens", "audio_context",
    )  # fmt: skip

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        super().__init__(bundle, options)
        if self.manifest.whisper is None:
            raise BundleError(
                f"Opening a bundle failed in {str(bundle.directory)!r}: expected the section "
                "'whisper' in the manifest, got none. Export the bundle again."
            )
        self.config: WhisperConfig = self.manifest.whisper
        eos = self.manifest.tokens.eos
        self.vocabulary = WhisperTokenizer(bundle.path(self.manifest.text.tokenizer), eos)
        self.rules = Rules(self.config, eos, self.manifest.dimensions.vocabulary_size)
        self._probed = (self.config.no_speech, *self.config.languages.values())

    def features(self, waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Waveform (samples,) in [-1, 1] at 16 kHz to the log-mel frames (T, F) of one window.

        Raises:
            AudioError: the waveform is empty, not finite, or of another rate.
            UtteranceTooLongError: it is longer than the window.
        """
        expected = self.manifest.features.sample_rate_hz
        seconds, window = len(waveform) / sample_rate_hz, self.manifest.limits.max_source_frames
        if sample_rate_hz != expected or not len(waveform) or not np.isfinite(waveform).all():
            raise AudioError(
                f"Computing features failed: expected finite samples at {expected} Hz, got "
                f"{len(waveform)} at {sample_rate_hz} Hz. Repair or drop the file."
            )
        if seconds * FRAMES_PER_SECOND > window:
            raise UtteranceTooLongError(
                f"Computing features failed: expected at most {window / FRAMES_PER_SECOND:g} s of "
                f"audio (one window), got {seconds:.2f} s. Split the audio."
            )
        return feature_functions.log_mel(waveform, self.manifest.features.bins, window)

    def plan(self, utterances: int) -> Plan:
        """Precisions for a batch of N; always one stream."""
        return replace(plan_batch(self.engine.options, utterances), streams=1)

    def streams(self, utterances: int) -> int:
        """1: two streams would both read all decoder weights at each step, which is what costs."""
        return 1

    def encode(self, features: np.ndarray, lengths: np.ndarray, streams: int = 1) -> EncoderOutput:
        """Windows (N, T, F) and their lengths (N,) to cross-attention tensors; T even."""
        bins, window = self.manifest.dimensions.feature_bins, self.manifest.limits.max_source_frames
        if features.shape[2:] != (bins,) or features.shape[1] > window or features.shape[1] % 2:
            raise ModelError(
                f"Encoding failed in {str(self.bundle.directory)!r}: expected features (N, T, {bins})"
                f" with an even T up to {window}, got {features.shape}. Use the model's features."
            )
        variant = Variant("encoder", self.plan(len(features)).encoder, 1)
        return encode(self.engine, variant, features, lengths)

    def open(
        self, encoded: EncoderOutput, beam: int, candidates: int = 0, timestamps: bool = False
    ) -> Session:
        """A decoder session with `beam` rows an utterance; see `model.SpeechModel.open`."""
        variant = self._decoder(encoded.utterances, beam, candidates, timestamps)
        return Session(self.engine, variant, encoded)

    def prepare(self, beam: int, candidates: int = 0, utterances: Collection[int] = (1,)) -> None:
        """Compile what batches of these sizes need, without timestamps."""
        for count in utterances:
            self.engine.lease(Variant("encoder", self.plan(count).encoder, 1)).release()
            self.engine.lease(self._decoder(count, beam, candidates, timestamps=False)).release()

    def _decoder(self, utterances: int, beam: int, candidates: int, timestamps: bool) -> Variant:
        precision = self.plan(utterances).decoder
        static = beam if candidates and utterances == 1 and self.engine.on_cpu else 0
        first = self.config.first_timestamp if timestamps else 0
        probed = self._probed if candidates else ()
        return Variant("decoder", precision, 1, candidates, static, first, probed)

    def transcribe_clips(
        self,
        clips: Sequence[Clip],
        *,
        beam: int = 5,
        nbest: int = 1,
        lenpen: float = 1.0,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        prompt: str | None = None,
        prefix: str | None = None,
        temperature: float = 0.0,
        seed: int = 1,
        min_tokens: int = 0,
        max_tokens: int | None = None,
        audio_context: str | int = "full",
    ) -> list[Transcript]:
        """Clips that were read before, decoded together, in the order given.

        Args:
            clips: results of `read` or `clip`.
            beam: beams (K); 1 is greedy search.
            nbest: hypotheses to return, at most `beam`; 1 with timestamps.
            lenpen: length penalty: scores are divided by length ** lenpen.
            language: code of the spoken language; detected for each clip if left out.
            task: transcribe, or translate to English.
            timestamps: find segments.
            prompt: text that precedes the audio: spelling and style follow it.
            prefix: beginning of the text; not part of the tokens.
            temperature: above 0, tokens are drawn from the distribution (beam is ignored).
            seed: of the drawing.
            min_tokens: fewest tokens of the output.
            max_tokens: most tokens of the output; default: what the model has positions for.
            audio_context: `full` encodes the whole window, as the model was trained; `auto` about
                half of it for clips up to 10 s, see `whisper.context`; a number that many positions
                of 20 ms. Shorter is faster and may change the text; one that looks wrong is decoded
                again with `full`, and `decoded_again` says why.

        Raises:
            OptionError: the options contradict each other or the model.
        """
        request = Request.checked(
            self.config, self.manifest.limits.max_target_tokens, self.vocabulary, beam=beam,
            nbest=nbest, lenpen=lenpen, language=language, task=task, timestamps=timestamps,
            prompt=prompt, prefix=prefix, temperature=temperature, seed=seed,
            min_tokens=min_tokens, max_tokens=max_tokens, audio_context=audio_context,
        )  # fmt: skip
        frames = [self._encoded_frames(clip, request) for clip in clips]
        found = self._decode_clips(clips, frames, request)
        window, eos = self.manifest.limits.max_source_frames, self.manifest.tokens.eos
        for i, each in enumerate(found):
            if frames[i] < window and (reason := context.doubt(each, eos, max_tokens)):
                (again,) = self._decode_clips([clips[i]], [window], request)
                found[i] = replace(again, decoded_again=reason)
        return found

    def _encoded_frames(self, clip: Clip, request: Request) -> int:
        """T that is encoded of a clip."""
        window = self.manifest.limits.max_source_frames
        if request.audio_context == "full":
            return window
        if request.audio_context == "auto":
            return FRAMES_PER_POSITION * context.auto_positions(clip, window // FRAMES_PER_POSITION)
        frames, needed = FRAMES_PER_POSITION * int(request.audio_context), context.positions(clip)
        if frames > window:
            raise OptionError(
                f"Transcribing failed in --audio-context: expected at most "
                f"{window // FRAMES_PER_POSITION} positions, got {request.audio_context}. Use full."
            )
        if frames < FRAMES_PER_POSITION * needed:
            raise UtteranceTooLongError(
                f"Transcribing failed in {clip.path}: expected at most {request.audio_context} "
                f"positions of 20 ms (audio_context), got {needed}. Use full or auto."
            )
        return frames

    def _decode_clips(
        self, clips: Sequence[Clip], frames: Sequence[int], request: Request
    ) -> list[Transcript]:
        """Clips of which `frames` (T) each are encoded, decoded to their ends."""
        window, most = self.manifest.limits.max_source_frames, request.search.max_tokens
        progress = [Progress(context.frames(c), request.language, request.seed) for c in clips]
        limits = np.array(
            [
                most if encoded == window else min(most, context.token_limit(clip.seconds))
                for clip, encoded in zip(clips, frames, strict=True)
            ]
        )
        while active := [i for i, each in enumerate(progress) if not is_done(clips[i], each)]:
            active.sort(key=lambda i: frames[i])  # windows of one length are encoded together
            windows = [_window(clips[i].features[: frames[i]], progress[i].seek) for i in active]
            self._decode(windows, [progress[i] for i in active], limits[active], request)
        pairs = zip(clips, progress, strict=True)
        return [self._transcript(clip, each, request.prefix) for clip, each in pairs]

    def _decode(
        self,
        windows: list[np.ndarray],
        progress: list[Progress],
        limits: np.ndarray,
        request: Request,
    ) -> None:
        """One window (T, F) of each clip, ordered by length, decoded as one batch."""
        encoded = self._encode_windows(windows)
        search, sampling = request.search, request.search.temperature > 0
        beam = 1 if sampling else search.beam
        count = 0 if sampling else candidate_count(beam)
        start = np.full((encoded.utterances, 1), self.config.start)
        apart = bool(sampling or request.previous or not request.after_start(None, self.config))
        first = any(each.no_speech_probability is None for each in progress)
        if apart and first:  # detection sees <|startoftranscript|> alone
            with self.open(encoded, 1, 1) as session:
                self._detect(session, start, progress)
        with self.open(encoded, beam, count, search.timestamps) as session:
            if not apart:
                self._detect(session, start, progress, beam)
            prompts = np.array(
                [
                    (
                        *((*request.previous, self.config.start) if apart else ()),
                        *request.after_start(each.language, self.config),
                    )
                    for each in progress
                ]
            )
            if sampling:
                randoms = [each.random for each in progress]
                found = sample(session, prompts, self.rules, search, limits, randoms)
            else:
                run = greedy if beam == 1 else beam_search
                found = run(session, prompts, self.rules, search, limits)
        for each, hypotheses in zip(progress, found, strict=True):
            each.add(hypotheses[: request.nbest], self.rules, timestamps=search.timestamps)

    def _encode_windows(self, windows: list[np.ndarray]) -> EncoderOutput:
        """Windows of one length are encoded together, so no result depends on other lengths."""
        outputs = []
        for _, group in groupby(windows, key=len):
            batch = np.stack(list(group))
            outputs.append(self.encode(batch, np.full(len(batch), batch.shape[1])))
        return concatenate(outputs)

    def _detect(
        self, session: Session, start: np.ndarray, progress: list[Progress], beam: int = 1
    ) -> None:
        """Feed <|startoftranscript|> (N, 1); fill in language and no-speech probability.

        Source: openai-whisper `decoding.py:detect_language`.
        """
        tokens = np.repeat(start, beam, axis=0)
        order = np.arange(len(tokens), dtype=np.int32)
        bounds = self.rules.bounds(tokens[:, :0]) if session.has_bounds else None
        probed = session.candidates(tokens, order, self.rules.later, bounds).probed
        assert probed is not None
        for each, log_probs in zip(progress, probed[::beam], strict=True):
            each.detected(float(np.exp(log_probs[0])), log_probs[1:], list(self.config.languages))

    def _transcript(self, clip: Clip, progress: Progress, prefix: tuple[int, ...]) -> Transcript:
        found = progress.hypotheses(self.manifest.tokens.eos)
        texts = [self.vocabulary.text((*prefix, *hypothesis.tokens)) for hypothesis in found]
        return replace(
            transcript(clip, texts, found),
            language=progress.language,
            language_probabilities=progress.language_probabilities,
            no_speech_probability=progress.no_speech_probability,
            segments=tuple(
                Segment(each.start, each.end, self.vocabulary.text(each.tokens))
                for each in progress.segments
            ),
        )


def is_done(clip: Clip, progress: Progress) -> bool:
    """Whether what follows the windows decoded so far, if there are any, is not worth another."""
    return progress.done or (progress.seek > 0 and context.is_silent(clip, progress.seek))


def candidate_count(beam: int) -> int:
    """Candidates (C) the search needs of each row."""
    return 1 if beam == 1 else 2 * beam


def _window(features: np.ndarray, seek: int) -> np.ndarray:
    """Frames (T, F) from `seek` on, moved to the front and zero-padded."""
    window = np.zeros_like(features)
    window[: len(features) - seek] = features[seek:]
    return window
