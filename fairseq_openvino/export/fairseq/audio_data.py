"""A data directory of Fairseq's audio fine-tuning: waveforms, labels and their dictionary, no YAML."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_openvino.bundle import ASSUMED_RATE_HZ, FeatureConfig, SpecialTokens, TextConfig
from fairseq_openvino.export.fairseq.data import DICTIONARY
from fairseq_openvino.export.fairseq.preprocessing import Transforms
from fairseq_openvino.s2t.decoders import WORD_BOUNDARY
from fairseq_openvino.s2t.vocabulary import BOS, EOS, PAD, UNK, load_dictionary

LETTERS_END = "|"
"""Symbol between words of letters."""


@dataclass(frozen=True)
class AudioDirectory:
    """The directory given to Fairseq as DATA of the task `audio_finetuning`.

    It has the members of `DataDirectory` that an export looks at.
    """

    root: Path
    dictionary: Path
    """`dict.<labels>.txt`."""
    gen_subset: str | None = None
    rate_hz: int | None = None
    """Rate of the training audio in Hz; default: 16000, as of Fairseq's task."""
    normalize: bool = False
    """Whether the model hears samples with mean 0 and variance 1; its checkpoint says so."""
    unsupported: tuple[str, ...] = ()
    feature_bins = 1

    @property
    def path(self) -> Path:
        """What errors name."""
        return self.root

    @property
    def labels(self) -> str:
        """Extension of the files of labels, as `ltr`."""
        return self.dictionary.name.removeprefix("dict.").removesuffix(".txt")

    @property
    def transforms(self) -> Transforms:
        """What Fairseq does to the samples (`data/audio/raw_audio_dataset.py:postprocess`)."""
        return Transforms(("layer_norm",) if self.normalize else ())

    def sources(self) -> list[Path]:
        """See `DataDirectory.sources`."""
        return [self.dictionary]

    def symbols(self) -> tuple[str, ...]:
        """See `DataDirectory.symbols`."""
        return load_dictionary(self.dictionary)

    def feature_config(self) -> FeatureConfig:
        """See `DataDirectory.feature_config`."""
        rate_hz = self.rate_hz or ASSUMED_RATE_HZ
        return FeatureConfig(self.feature_bins, rate_hz, self.transforms.names)

    def text_config(self) -> TextConfig:
        """As the symbols say: letters with `|` between words, pieces of SentencePiece, or words.

        Source: Fairseq `data/data_utils.py:post_process`, of which a checkpoint need not name the kind.
        """
        symbols, bpe = self.symbols(), None
        if LETTERS_END in symbols:
            bpe = "letter"
        elif any(symbol.startswith(WORD_BOUNDARY) for symbol in symbols):
            bpe = "sentencepiece"
        return TextConfig(dictionary=DICTIONARY, bpe=bpe)

    def described(self) -> dict[str, Any]:
        """See `DataDirectory.described`."""
        return {
            "tokens": SpecialTokens(BOS, PAD, EOS, UNK),
            "features": self.feature_config(),
            "text": self.text_config(),
        }

    def copy_into(self, directory: Path) -> None:
        """See `DataDirectory.copy_into`."""
        shutil.copyfile(self.dictionary, directory / DICTIONARY)
