"""`from_pretrained(..., user_dir="fairseq_openvino", ov_engine=True).predict("a.wav", tgt_lang="de")`.

Each of the last functions makes the replacement of a method of Fairseq from the method itself, see
`plugin.task`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fairseq import checkpoint_utils, tasks
from fairseq_cli.generate import get_symbols_to_strip_from_output

from fairseq_openvino.plugin import language

ENGINE = "ov_"
"""How overrides begin that are flags of ours."""
OF_THE_HUB = {
    "data", "config_yaml", "user_dir", "generation_args", "bpe_codes", "sentencepiece_model",
    "bpe_merges", "bpe_vocab",
}  # fmt: skip
"""What `hub_utils.from_pretrained` passes as overrides and is no argument of a model."""


def task_of(checkpoint: str, overrides: dict[str, Any]) -> tuple[Any, Any]:
    """The task of a checkpoint with the --ov-* flags among the overrides, and its configuration."""
    config = checkpoint_utils.load_checkpoint_to_cpu(checkpoint, overrides)["cfg"]
    task = tasks.setup_task(config.task, from_checkpoint=True)
    for name, value in overrides.items():
        if name.startswith(ENGINE):
            setattr(task.args, name, value)
    return task, config


def of_model(overrides: dict[str, Any]) -> dict[str, Any]:
    """Those that are arguments of the model."""
    return {
        name: value
        for name, value in overrides.items()
        if name not in OF_THE_HUB and not name.startswith(ENGINE)
    }


def opening(init: Callable[..., None]) -> Callable[..., None]:
    """A multilingual model needs `prefix_size` 1 (Fairseq `tasks/speech_to_text.py:build_generator`)."""

    @functools.wraps(init)
    def __init__(self: Any, cfg: Any, task: Any, model: Any) -> None:  # noqa: N807
        if task.data_cfg.prepend_tgt_lang_tag:
            cfg.generation.prefix_size = 1
        elif task.data_cfg.prepend_bos_and_append_tgt_lang_tag and not language.chosen(task):
            setattr(task.args, language.TARGET_LANGUAGE, task.data_cfg.hub.get("tgt_lang"))
        init(self, cfg, task, model)

    return __init__


def predicting(predict: Callable[..., Any]) -> Callable[..., Any]:
    """The text that `fairseq-generate` prints: without language tags, and detokenised.

    Raises:
        OptionError: the model does not know the language, or needs one and is told none.
        AudioError: the audio cannot be used.
    """

    @functools.wraps(predict)
    def predict_text(
        self: Any, audio: Any, tgt_lang: str | None = None, synthesize_speech: bool = False
    ) -> Any:
        if synthesize_speech:
            return predict(self, audio, tgt_lang, synthesize_speech)
        task = self.task
        stated = tgt_lang or language.chosen(task) or task.data_cfg.hub.get("tgt_lang")
        if language.is_multilingual(task.data_cfg) or tgt_lang is not None:
            language.tag_of(task, str(stated or ""))
        if stated != language.chosen(task):
            setattr(task.args, language.TARGET_LANGUAGE, stated)
            self.generator = task.build_generator([self.model], self.cfg.generation)
        sample = self.get_model_input(task, audio)
        found = self.generator.generate(
            [self.model], sample, prefix_tokens=language.prefix(task, utterances=1)
        )
        ignored = get_symbols_to_strip_from_output(self.generator)
        text = task.target_dictionary.string(found[0][0]["tokens"], extra_symbols_to_ignore=ignored)
        for coder in (task.build_bpe(None), task.build_tokenizer(None)):
            text = text if coder is None else coder.decode(text)
        return text

    return predict_text
