"""`--ov-tgt-lang`: the target language of a multilingual model, in place of what a manifest says or does not.

Each of the last functions makes the replacement of a method of Fairseq from the method itself, see
`plugin.task`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDataset

from fairseq_openvino.errors import OptionError, invalid
from fairseq_openvino.s2t.vocabulary import LANGUAGE_TAG
from fairseq_openvino.speech.stored import frames

ACTION = "Choosing the target language"
TARGET_LANGUAGE = "ov_tgt_lang"
"""Attribute of a task's arguments, and of a data configuration whose datasets it applies to."""


def chosen(task: Any) -> str | None:
    """What --ov-tgt-lang says."""
    return getattr(getattr(task, "args", None), TARGET_LANGUAGE, None)


def is_multilingual(config: Any) -> bool:
    """Whether a model is told the language; a `S2TDataConfig`."""
    return bool(config.prepend_tgt_lang_tag or config.prepend_bos_and_append_tgt_lang_tag)


def tag_of(task: Any, language: str) -> int:
    """The token of a language.

    Raises:
        OptionError: the model knows no languages, or not this one.
    """
    known = {
        match[1]: index
        for symbol, index in task.target_dictionary.indices.items()
        if (match := LANGUAGE_TAG.fullmatch(symbol))
    }
    if not is_multilingual(task.data_cfg):
        expected = "a data configuration with prepend_tgt_lang_tag"
        raise invalid(ACTION, "tgt_lang", expected, "one without", "Leave it out")
    if language not in known:
        raise invalid(ACTION, "tgt_lang", f"one of {', '.join(sorted(known))}", repr(language))
    return known[language]


def apply(task: Any, generation: Any) -> None:
    """Set Fairseq's options of a search, a `GenerationConfig`, as the chosen language asks for.

    Raises:
        OptionError: as `tag_of`.
    """
    language = chosen(task)
    if language is None:
        return
    tag_of(task, language)
    if task.data_cfg.prepend_tgt_lang_tag:
        generation.prefix_size = max(generation.prefix_size, 1)
    else:
        generation.eos_token = SpeechToTextDataset.LANG_TAG_TEMPLATE.format(language)


def prefix(task: Any, utterances: int) -> torch.Tensor | None:
    """Forced first tokens (N, 1), where the model is told the language by one."""
    language = chosen(task)
    if language is None or not task.data_cfg.prepend_tgt_lang_tag:
        return None
    return torch.full((utterances, 1), tag_of(task, language))


def prefixing(step: Callable[..., Any]) -> Callable[..., Any]:
    """`fairseq-interactive` gives no first tokens."""

    @functools.wraps(step)
    def inference_step(
        self: Any, generator: Any, models: Any, sample: dict[str, Any], prefix_tokens: Any = None,
        constraints: Any = None,
    ) -> Any:  # fmt: skip
        if prefix_tokens is None:
            prefix_tokens = prefix(self, len(sample["net_input"]["src_lengths"]))
        return step(self, generator, models, sample, prefix_tokens, constraints)

    return inference_step


def stating(load: Callable[..., Any]) -> Callable[..., Any]:
    """Datasets learn the language from their configuration."""

    @functools.wraps(load)
    def load_dataset(self: Any, *args: Any, **kwargs: Any) -> Any:
        language = chosen(self)
        if language is not None:
            tag_of(self, language)
        setattr(self.data_cfg, TARGET_LANGUAGE, language)
        return load(self, *args, **kwargs)

    return load_dataset


def checking(check: Callable[..., Any]) -> Callable[..., Any]:
    """The language of all utterances, and a name for one that the model does not know."""

    @functools.wraps(check)
    def check_tgt_lang_tag(self: Any) -> None:
        language = getattr(self.cfg, TARGET_LANGUAGE, None)
        if language is not None and not self.is_train_split:
            self.tgt_langs = [language] * self.n_samples
        try:
            check(self)
        except AssertionError as error:
            stated = sorted({*map(str, self.tgt_langs or ())})
            raise OptionError(
                f"{ACTION} failed in {self.split}: expected a column tgt_lang with languages that the "
                f"dictionary has a tag for, got {', '.join(map(repr, stated)) or 'none'}. Correct it, or "
                "set --ov-tgt-lang.",
            ) from error

    return check_tgt_lang_tag


def typing(_: Callable[..., Any]) -> Callable[..., Any]:
    """What is typed into `fairseq-interactive`: audio of any rate and format, in the chosen language.

    Raises:
        OptionError: the model has to be told a language, and none is chosen.
    """

    def build_dataset_for_inference(
        self: Any, paths: list[str], lengths: list[int], **_: Any
    ) -> SpeechToTextDataset:
        texts: dict[str, Any] = {}
        if is_multilingual(self.data_cfg):
            language = chosen(self)
            if language is None:
                expected, advice = "the language to write", "Set it"
                raise invalid(ACTION, "tgt_lang", expected, "none", advice)
            tag_of(self, language)
            count = len(paths)
            texts = {"tgt_langs": [language] * count, "tgt_texts": [""] * count}
            texts["tgt_dict"] = self.target_dictionary
        dataset = SpeechToTextDataset("interactive", False, self.data_cfg, paths, lengths, **texts)
        if not self.data_cfg.use_audio_input and dataset.waveform_transforms is None:
            dataset._get_source_audio = functools.partial(_filter_banks, dataset)
        return dataset

    return build_dataset_for_inference


def _filter_banks(dataset: Any, index: int) -> torch.Tensor:
    """(T, F) of any audio, at the rate that the data configuration says."""
    config = dataset.cfg
    bins = config.input_feat_per_channel * config.input_channels
    found = frames(dataset.audio_paths[index], config.config.get("sample_rate"), bins).values
    if dataset.feature_transforms is not None:
        found = dataset.feature_transforms(found)
    return torch.from_numpy(found).float()
