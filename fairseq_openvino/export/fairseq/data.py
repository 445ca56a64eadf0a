"""A Fairseq S2T data directory: what of it belongs into a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from fairseq_openvino.atomic import read_whole
from fairseq_openvino.bundle import ASSUMED_RATE_HZ, FeatureConfig, SpecialTokens, TextConfig
from fairseq_openvino.errors import invalid
from fairseq_openvino.export.fairseq.preprocessing import (
    Decoder,
    Transforms,
    fail,
    read_config,
    read_decoder,
    read_transforms,
)
from fairseq_openvino.s2t.vocabulary import (
    BOS,
    EOS,
    LANGUAGE_TAG,
    PAD,
    SPECIAL_SYMBOLS,
    UNK,
    load_dictionary,
    load_pieces,
    token_id,
)
from fairseq_openvino.speech.waveform import MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ

DICTIONARY = "dict.txt"
SENTENCEPIECE = "spm.model"
PIECES = "pieces.json"
GLOBAL_CMVN = "global_cmvn.npz"
MAX_MODEL_BYTES = 64 << 20
MIN_SHARED_PIECES = 0.5
"""Share of the dictionary that must be pieces of the SentencePiece model."""


@dataclass(frozen=True)
class DataDirectory:
    """The directory given to Fairseq as DATA and its --config-yaml."""

    root: Path
    config_yaml: str = "config.yaml"
    gen_subset: str | None = None
    """Whose transforms count, as --gen-subset; None: those of all evaluation splits, if they agree."""
    rate_hz: int | None = None
    """Rate of the training audio in Hz, if the YAML does not say."""

    def __post_init__(self) -> None:
        if self.rate_hz is not None and not (
            MIN_SAMPLE_RATE_HZ <= self.rate_hz <= MAX_SAMPLE_RATE_HZ
        ):
            expected = f"{MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz"
            advice = "Give the rate of the training audio"
            raise invalid("Exporting", "sample_rate", expected, self.rate_hz, advice)

    @property
    def path(self) -> Path:
        """The YAML file."""
        return self.root / self.config_yaml

    @cached_property
    def config(self) -> Any:
        """Fairseq's `S2TDataConfig`; raises ModelError as `read_config`."""
        return read_config(self.path)

    @property
    def dictionary(self) -> Path:
        """The Fairseq dictionary file."""
        return self.root / str(self.config.vocab_filename)

    @property
    def feature_bins(self) -> int:
        """F, over all input channels; 1 of waveforms."""
        if self.config.use_audio_input:
            return 1
        return int(self.config.input_feat_per_channel * self.config.input_channels)

    @property
    def sample_rate_hz(self) -> int:
        """Of the YAML, of the caller, or Fairseq's default; the rate to which it resamples waveforms.

        Raises:
            OptionError: the first two differ.
        """
        raw = self.config.use_audio_input
        stated = int(
            self.config.use_sample_rate if raw else self.config.config.get("sample_rate") or 0
        )
        if stated and self.rate_hz and stated != self.rate_hz:
            expected = f"{stated} Hz as {str(self.path)!r} says"
            raise invalid("Exporting", "sample_rate", expected, self.rate_hz, "Leave it out")
        return stated or self.rate_hz or ASSUMED_RATE_HZ

    @cached_property
    def transforms(self) -> Transforms:
        """What evaluation does to the features; raises ModelError as `read_transforms`."""
        return read_transforms(self.config, self.path, self.gen_subset, self.feature_bins)

    @cached_property
    def decoder(self) -> Decoder:
        """What evaluation does to the symbols; raises ModelError as `read_decoder`."""
        return read_decoder(self.config, self.path)

    @property
    def sentencepiece(self) -> Path | None:
        """The SentencePiece model, or None if the tokens are something else.

        Raises:
            ModelError: the file is missing.
        """
        name = self.decoder.sentencepiece
        if name is None or Path(name).is_file():
            return None if name is None else Path(name)
        raise fail(Path(name), "a SentencePiece model", "no such file")

    @property
    def pieces(self) -> Path | None:
        """Ids of the pieces of a byte-level BPE, or None if the tokens are something else."""
        return None if self.decoder.pieces is None else Path(self.decoder.pieces)

    @property
    def unsupported(self) -> tuple[str, ...]:
        """What a bundle cannot reproduce; empty if it can do without Fairseq."""
        channels, tag = self.config.input_channels, "prepend_tgt_lang_tag_as_bos"
        several = () if channels == 1 else (f"input_channels: {channels}",)
        joint = (f"{tag}: true",) if self.config.config.get(tag) else ()
        return (*several, *joint, *self.transforms.unsupported, *self.decoder.unsupported)

    def sources(self) -> list[Path]:
        """Every file whose content ends up in a bundle as it is."""
        files = [self.path, self.dictionary, self.sentencepiece, self.pieces]
        return [file for file in files if file is not None]

    def symbols(self) -> tuple[str, ...]:
        """The dictionary, checked against the SentencePiece model.

        Raises:
            ModelError: the dictionary is malformed, or the two do not belong together.
        """
        symbols = load_dictionary(self.dictionary)
        if self.sentencepiece is not None:
            check_pieces(self.sentencepiece, self.dictionary, symbols)
        return symbols

    def feature_config(self) -> FeatureConfig:
        """Features as evaluation sees them."""
        transforms = self.transforms
        return FeatureConfig(
            bins=self.feature_bins,
            sample_rate_hz=self.sample_rate_hz,
            transforms=transforms.names,
            global_cmvn=None if transforms.statistics is None else GLOBAL_CMVN,
            norm_means=transforms.norm_means,
            norm_vars=transforms.norm_vars,
            sample_rate_assumed=not (
                self.config.use_audio_input or self.config.config.get("sample_rate") or self.rate_hz
            ),
        )

    def text_config(self) -> TextConfig:
        """How text is made, with the names of the files inside a bundle."""
        return TextConfig(
            dictionary=DICTIONARY,
            bpe=self.decoder.bpe,
            bpe_separator=self.decoder.separator,
            bpe_pieces=None if self.pieces is None else PIECES,
            sentencepiece=None if self.sentencepiece is None else SENTENCEPIECE,
            prepend_language_tag=bool(self.config.prepend_tgt_lang_tag),
            append_language_tag=bool(self.config.prepend_bos_and_append_tgt_lang_tag),
            eos_token=self.config.config.get("eos_token") or None,
        )

    def described(self) -> dict[str, Any]:
        """The fields of a manifest that come from here."""
        text = self.text_config()
        eos = EOS if text.eos_token is None else token_id(self.symbols(), text.eos_token)
        return {
            "tokens": SpecialTokens(BOS, PAD, eos, UNK),
            "features": self.feature_config(),
            "text": text,
            "unsupported": "; ".join(self.unsupported),
        }

    def copy_into(self, directory: Path) -> None:
        """Write dictionary, files of subwords and CMVN statistics under their bundle names."""
        shutil.copyfile(self.dictionary, directory / DICTIONARY)
        if self.sentencepiece is not None:
            shutil.copyfile(self.sentencepiece, directory / SENTENCEPIECE)
        if self.pieces is not None:
            load_pieces(self.pieces)
            shutil.copyfile(self.pieces, directory / PIECES)
        if self.transforms.statistics is not None:
            mean, std = self.transforms.statistics
            np.savez(directory / GLOBAL_CMVN, mean=mean, std=std)


def check_pieces(model: Path, dictionary: Path, symbols: Sequence[str]) -> None:
    """Refuse a SentencePiece model that does not belong to a dictionary.

    Raises:
        ModelError: it is none, or few of the symbols are its pieces.
    """
    try:
        content = read_whole(model, MAX_MODEL_BYTES)
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        pieces = {processor.id_to_piece(i) for i in range(processor.get_piece_size())}
    except (OSError, RuntimeError, ValueError) as error:
        raise fail(model, "a SentencePiece model", str(error)) from error
    words = [s for s in symbols[len(SPECIAL_SYMBOLS) :] if not LANGUAGE_TAG.fullmatch(s)]
    shared = sum(word in pieces for word in words)
    if shared < MIN_SHARED_PIECES * len(words):
        raise fail(model, f"the pieces of {dictionary.name}", f"{shared} of {len(words)} of them")
