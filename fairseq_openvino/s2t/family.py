"""The Fairseq S2T family (source to target): eos as the first token, `<lang:xx>` tags, one beam search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fairseq_openvino.bundle import Bundle
from fairseq_openvino.decoding import attempt_each
from fairseq_openvino.errors import FairseqOpenVINOError, UtteranceTooLongError, invalid, named
from fairseq_openvino.model import Clip, Head, Hypothesis, Ledger, Memory, Model, News, Transcript
from fairseq_openvino.runtime.voice import load_voice
from fairseq_openvino.s2t import generation, longform
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.s2t.search import TokenIds, candidate_count, generate
from fairseq_openvino.s2t.sentences import Sentences
from fairseq_openvino.s2t.vocabulary import Vocabulary
from fairseq_openvino.speech.frontend import speech_to_text
from fairseq_openvino.speech.recordings import Recording


class S2T:
    """A `families.Family`."""

    options = S2TOptions
    splits = True

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        self.vocabulary = Vocabulary.of(bundle)
        self.front_end = speech_to_text(bundle)
        text = bundle.manifest.text
        self.sentences = None if text.source_dictionary is None else Sentences.of(bundle)
        """In its place where the model reads text."""

    def head(self, options: S2TOptions) -> Head:
        """What a session reports in a search."""
        if self.manifest.generation is not None:
            return generation.head(options)
        return Head(candidate_count(options.beam, self.manifest.dimensions.vocabulary_size))

    def language(self, stated: str | None, options: S2TOptions) -> str | None:
        """See `families.Family`."""
        text = self.manifest.text
        told = text.prepend_language_tag or (text.append_language_tag and text.eos_token is None)
        return options.language or (stated if told else None)

    def decode(self, model: Model, clips: Sequence[Clip], options: S2TOptions) -> list[Transcript]:
        """Clips decoded together; each is encoded alone, so its result does not depend on the others.

        Sentences are encoded together: their padding is masked everywhere.

        Raises:
            OptionError: the options do not fit the model.
        """
        ids, prefix = self._target(options.language)
        frames = [len(clip.features) for clip in clips]
        alone = self.sentences is None or options.max_len_a
        together = [[clip] for clip in clips] if alone else [clips]
        memory = [model.encode(*_padded(some, self.manifest.tokens.pad)) for some in together]
        if self.manifest.generation is not None:
            batch = Memory.join(memory, self.manifest.memory)
            language = None if prefix is None else int(prefix[0, 0])
            found = generation.generate(model, batch, frames, options, language)
            return self._transcripts(clips, found, options)
        found = []
        for group in _same_limit(frames, options):
            chosen = [memory[i] for i in group] if len(memory) == len(clips) else memory
            batch = Memory.join(chosen, self.manifest.memory)
            forced = None if prefix is None else np.repeat(prefix, len(group), axis=0)
            found += generate(model, batch, frames[group[0]], options, ids, forced)
        return self._transcripts(clips, found, options)

    def translate(
        self, model: Model, texts: Sequence[str], options: S2TOptions, width: int
    ) -> list[Transcript | FairseqOpenVINOError]:
        """Sentences, `width` of similar length at a time: the result of each, or its error.

        A blank one has no hypotheses.

        Raises:
            OptionError: the options do not fit the model.
        """
        assert self.sentences is not None
        found: dict[int, Transcript | FairseqOpenVINOError] = {}
        clips: dict[int, Clip] = {}
        for i, text in enumerate(texts):
            try:
                if text.strip():
                    clips[i] = Clip(text, self.sentences(text), seconds=0.0)
                else:
                    found[i] = Transcript(text, "", 0.0, 0.0, ())
            except UtteranceTooLongError as error:
                found[i] = error
        order = sorted(clips, key=lambda i: len(clips[i].features))
        for start in range(0, len(order), width):
            some = order[start : start + width]
            results = attempt_each(
                some, lambda s: self.decode(model, [clips[i] for i in s], options)
            )
            found |= {
                i: named(each, texts[i]) if isinstance(each, Exception) else each
                for i, each in zip(some, results, strict=True)
            }
        return [found[i] for i in range(len(texts))]

    def follow(
        self,
        model: Model,
        recordings: Iterable[Recording | Clip | News],
        options: S2TOptions,
        width: int,
        ledger: Ledger | None = None,
    ) -> Iterator[News]:
        """See `families.Family`; longer ones are cut where nobody speaks, see `s2t.longform`."""
        decode = longform.each_alone(lambda clips: self.decode(model, clips, options), ledger)
        eos = self.manifest.tokens.eos
        yield from longform.follow(recordings, self.front_end, eos, load_voice(), decode, width)

    def _transcripts(
        self, clips: Sequence[Clip], found: list[list[Hypothesis]], options: S2TOptions
    ) -> list[Transcript]:
        best = [hypotheses[: options.nbest] for hypotheses in found]
        return [
            Transcript.of(clip, [self.vocabulary.text(h.tokens) for h in hypotheses], hypotheses)
            for clip, hypotheses in zip(clips, best, strict=True)
        ]

    def _target(self, language: str | None) -> tuple[TokenIds, np.ndarray | None]:
        """Special tokens, and the forced language tag (1, 1), as the training data has them.

        Source: Fairseq `tasks/speech_to_text.py:build_generator` (--eos-token) and --prefix-size.
        """
        tokens, text, languages = (
            self.manifest.tokens,
            self.manifest.text,
            self.vocabulary.languages,
        )
        ids = TokenIds(pad=tokens.pad, eos=tokens.eos, unk=tokens.unk)
        known = ", ".join(sorted(languages))
        if language is None:
            stated = self.manifest.generation and self.manifest.generation.first_token is not None
            needed = text.append_language_tag and text.eos_token is None
            if stated or not (text.prepend_language_tag or needed):
                return ids, None
            expected = f"one of {known} (the model is multilingual)"
            raise invalid("Transcribing", "language", expected, "none", "Name the target language")
        if language not in languages:
            expected = f"one of {known or 'none (the model has one language)'}"
            advice = "Choose a language of the model"
            raise invalid("Transcribing", "language", expected, repr(language), advice)
        if text.append_language_tag:
            return replace(ids, eos=languages[language]), None
        return ids, np.array([[languages[language]]])


def _padded(clips: Sequence[Clip], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """What the encoder is given; only token ids are padded."""
    lengths = np.array([len(clip.features) for clip in clips])
    if len(clips) == 1:
        return clips[0].features[None], lengths
    ids = np.full((len(clips), lengths.max()), pad)
    for row, clip in zip(ids, clips, strict=True):
        row[: len(clip.features)] = clip.features
    return ids, lengths


def _same_limit(frames: Sequence[int], options: S2TOptions) -> Iterator[list[int]]:
    """Indices decoded together: all, unless the output limit depends on each one's own length."""
    if options.max_len_a == 0:
        yield list(range(len(frames)))
    else:
        yield from ([i] for i in range(len(frames)))
