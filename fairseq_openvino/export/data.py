"""A Fairseq S2T data directory: what of it belongs into a bundle."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece
import yaml

from fairseq_openvino.bundle import FeatureConfig, TextConfig
from fairseq_openvino.errors import ModelError
from fairseq_openvino.vocabulary import LANGUAGE_TAG, SPECIAL_SYMBOLS, load_dictionary

DICTIONARY = "dict.txt"
SENTENCEPIECE = "spm.model"
GLOBAL_CMVN = "global_cmvn.npz"
MIN_SHARED_PIECES = 0.5
"""Share of the dictionary that must be pieces of the SentencePiece model."""


@dataclass(frozen=True)
class DataDirectory:
    """The directory given to Fairseq as DATA and its --config-yaml."""

    root: Path
    config_yaml: str = "config.yaml"

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of the YAML file.

        Raises:
            ModelError: it is missing or not a mapping.
        """
        path = self.root / self.config_yaml
        try:
            content = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise _fail(path, "a readable YAML file", str(error)) from error
        if not isinstance(content, dict):
            raise _fail(path, "a mapping", type(content).__name__)
        return content

    @property
    def dictionary(self) -> Path:
        """The Fairseq dictionary file."""
        return self.root / str(self.config.get("vocab_filename", "dict.txt"))

    @property
    def feature_bins(self) -> int:
        """F, over all input channels."""
        bins = self.config.get("input_feat_per_channel", 80)
        return int(bins) * int(self.config.get("input_channels", 1))

    @property
    def sentencepiece(self) -> Path | None:
        """The SentencePiece model, or None if the tokens are words.

        Raises:
            ModelError: another tokenizer is configured, or the file is missing.
        """
        tokenizer = self.config.get("bpe_tokenizer") or {"bpe": None}
        if tokenizer.get("bpe") is None:
            return None
        if tokenizer["bpe"] != "sentencepiece":
            raise _fail(
                self.root / self.config_yaml, "bpe: sentencepiece or none", repr(tokenizer["bpe"])
            )
        return self._file(str(tokenizer.get("sentencepiece_model")), "a SentencePiece model")

    def sources(self) -> list[Path]:
        """Every file whose content ends up in a bundle."""
        files = [self.root / self.config_yaml, self.dictionary, self.sentencepiece, self._cmvn]
        return [file for file in files if file is not None]

    def symbols(self) -> tuple[str, ...]:
        """The dictionary, checked against the SentencePiece model.

        Raises:
            ModelError: the dictionary is malformed, or the two do not belong together.
        """
        symbols = load_dictionary(self.dictionary)
        model = self.sentencepiece
        if model is None:
            return symbols
        try:
            processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (OSError, RuntimeError) as error:
            raise _fail(model, "a SentencePiece model", str(error)) from error
        pieces = {processor.id_to_piece(i) for i in range(processor.get_piece_size())}
        words = [s for s in symbols[len(SPECIAL_SYMBOLS) :] if not LANGUAGE_TAG.fullmatch(s)]
        shared = sum(word in pieces for word in words)
        if shared < MIN_SHARED_PIECES * len(words):
            raise _fail(
                model, f"the pieces of {self.dictionary.name}", f"{shared} of {len(words)} of them"
            )
        return symbols

    def feature_config(self) -> FeatureConfig:
        """Features as the evaluation splits see them (Fairseq `data_cfg.py:get_transforms`)."""
        rate = self.config.get("sample_rate")
        return FeatureConfig(
            bins=self.feature_bins,
            sample_rate_hz=None if rate is None else int(rate),
            transforms=tuple(self._transforms("") + self._transforms("feature_")),
            global_cmvn=None if self._cmvn is None else GLOBAL_CMVN,
        )

    def text_config(self) -> TextConfig:
        """Names of the text files inside a bundle."""
        model = self.sentencepiece
        return TextConfig(
            dictionary=DICTIONARY,
            bpe=None if model is None else "sentencepiece",
            sentencepiece=None if model is None else SENTENCEPIECE,
            prepend_language_tag=bool(self.config.get("prepend_tgt_lang_tag", False)),
        )

    def copy_into(self, directory: Path) -> tuple[TextConfig, FeatureConfig]:
        """Copy dictionary, SentencePiece model and CMVN statistics under their bundle names."""
        shutil.copyfile(self.dictionary, directory / DICTIONARY)
        if self.sentencepiece is not None:
            shutil.copyfile(self.sentencepiece, directory / SENTENCEPIECE)
        if self._cmvn is not None:
            shutil.copyfile(self._cmvn, directory / GLOBAL_CMVN)
        return self.text_config(), self.feature_config()

    @property
    def _cmvn(self) -> Path | None:
        if "global_cmvn" not in self._transforms("") + self._transforms("feature_"):
            return None
        path = (self.config.get("global_cmvn") or {}).get("stats_npz_path")
        return self._file(str(path), "global CMVN statistics")

    def _transforms(self, kind: str) -> list[str]:
        by_split = self.config.get(f"{kind}transforms") or {}
        return list(by_split.get("_eval", by_split.get("*")) or [])

    def _file(self, name: str, expected: str) -> Path:
        """As written, or beside the YAML: by the whole relative path, then by its last part."""
        for path in (Path(name), self.root / name, self.root / Path(name).name):
            if path.is_file():
                return path
        raise _fail(self.root / name, expected, "no such file")


def _fail(path: Path, expected: str, got: str) -> ModelError:
    return ModelError(
        f"Reading the data directory failed in {str(path)!r}: expected {expected}, got {got}. "
        "Use the data directory the model was trained with."
    )
