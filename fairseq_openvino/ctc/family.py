"""The CTC family: the encoder's log-probabilities (N, S, V) are the result, and the best path is the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.ctc.options import CTCOptions
from fairseq_openvino.ctc.path import Path
from fairseq_openvino.errors import NumericsError
from fairseq_openvino.model import LOG_PROBS, Clip, Head, Ledger, Model, News, Segment, Transcript
from fairseq_openvino.runtime.voice import load_voice
from fairseq_openvino.s2t import longform
from fairseq_openvino.s2t.vocabulary import Vocabulary
from fairseq_openvino.speech.features import FRAMES_PER_SECOND
from fairseq_openvino.speech.frontend import Waveform, speech_to_text
from fairseq_openvino.speech.recordings import Recording


class CTC:
    """A `families.Family`."""

    options = CTCOptions
    splits = True

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        self.vocabulary = Vocabulary.of(bundle)
        self.front_end = speech_to_text(bundle)
        is_raw = isinstance(self.front_end, Waveform)
        rate_hz = self.front_end.rate_hz if is_raw else FRAMES_PER_SECOND
        self.frame_seconds = self.manifest.dimensions.subsampling / rate_hz
        """From one encoder frame to the next."""

    def head(self, options: CTCOptions) -> Head:
        """See `families.Family`; there is no session."""
        return Head()

    def language(self, stated: str | None, options: CTCOptions) -> str | None:
        """See `families.Family`; the model is told none."""
        return None

    def decode(self, model: Model, clips: Sequence[Clip], options: CTCOptions) -> list[Transcript]:
        """Each clip alone, so its result does not depend on the others.

        Raises:
            NumericsError: a log-probability is not a number.
        """
        return [self._transcript(clip, self._path(model, clip), options) for clip in clips]

    def follow(
        self,
        model: Model,
        recordings: Iterable[Recording | Clip | News],
        options: CTCOptions,
        width: int,
        ledger: Ledger | None = None,
    ) -> Iterator[News]:
        """See `families.Family`; longer ones are cut where nobody speaks, see `s2t.longform`."""
        decode = longform.each_alone(lambda clips: self.decode(model, clips, options), ledger)
        eos = self.manifest.tokens.eos
        yield from longform.follow(recordings, self.front_end, eos, load_voice(), decode, width)

    def _path(self, model: Model, clip: Clip) -> Path:
        """The blank is bos, of both kinds of models.

        Source: Fairseq `tasks/audio_finetuning.py` (`blank_symbol`), and the default of
        `torch.nn.functional.ctc_loss` in `criterions/label_smoothed_cross_entropy_with_ctc.py`.
        """
        memory = model.encode(clip.features[None], np.array([len(clip.features)]))
        log_probs = memory.tensors[LOG_PROBS][0, : memory.lengths[0]]
        if np.isnan(log_probs).any():
            raise NumericsError(
                f"Decoding failed in {clip.path!r}: expected log-probabilities, got NaN. Check the "
                "features and weights; f32 is the most robust precision."
            )
        return Path.of(log_probs, self.manifest.tokens.bos)

    def _transcript(self, clip: Clip, path: Path, options: CTCOptions) -> Transcript:
        best = path.hypothesis(self.manifest.tokens.eos)
        text = self.vocabulary.text(best.tokens)
        segments: tuple[Segment, ...] = ()
        if options.timed and text.strip():
            words = tuple(path.words(self.vocabulary.text, self.frame_seconds, clip.seconds))
            segment = Segment(
                words[0].start, words[-1].end, text, avg_logprob=best.average_log_probability,
                tokens=tuple(best.tokens.tolist()), words=words if options.word_timestamps else None,
            )  # fmt: skip
            segments = (segment,)
        return Transcript(
            clip.path, text, best.score, clip.seconds, ((text, best),), segments=segments,
            damage=clip.damage,
        )  # fmt: skip
