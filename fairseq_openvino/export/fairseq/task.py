"""Fairseq's tasks as an export knows them: the data directory of each, and what builds its models."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fairseq_openvino.errors import ModelError, failure
from fairseq_openvino.export.fairseq.audio_data import AudioDirectory
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.export.fairseq.text import TextDirectory

SPEECH_TO_TEXT, AUDIO_FINETUNING = "speech_to_text", "audio_finetuning"
TRANSLATION, SPEECH_TEXT_JOINT = "translation", "speech_text_joint_to_text"
Data = DataDirectory | AudioDirectory | TextDirectory
DIRECTORIES: dict[str, tuple[type[Any], str]] = {
    SPEECH_TO_TEXT: (DataDirectory, "a YAML"),
    SPEECH_TEXT_JOINT: (DataDirectory, "a YAML"),
    AUDIO_FINETUNING: (AudioDirectory, "one dict.<labels>.txt and no YAML"),
    TRANSLATION: (TextDirectory, "a dict.<language>.txt for each side and no YAML"),
}
"""By task: the kind of directory, and how it is told."""


def data_directory(
    root: Path,
    config_yaml: str | None,
    gen_subset: str | None = None,
    rate_hz: int | None = None,
) -> Data:
    """What Fairseq is given as DATA, of the task that its files tell.

    Args:
        root: the directory.
        config_yaml: name of the YAML of a task that has one; None: there is none.
        gen_subset: as `DataDirectory` has it.
        rate_hz: rate of the training audio in Hz, if nothing else says it.
    """
    if config_yaml is not None and (root / config_yaml).is_file():
        return DataDirectory(root, config_yaml, gen_subset, rate_hz)
    dictionaries = sorted(root.glob("dict.*.txt"))
    if not dictionaries or any(root.glob("*.yaml")):
        return DataDirectory(root, config_yaml or DataDirectory.config_yaml, gen_subset, rate_hz)
    if len(dictionaries) == 1:
        return AudioDirectory(root, dictionaries[0], gen_subset, rate_hz)
    return TextDirectory(root)


def data_of(task: str, data: Data, arguments: Any) -> Data:
    """A data directory with what the arguments of a model say of its data.

    Raises:
        ModelError: it is of another task.
    """
    kind, told = DIRECTORIES[task]
    if not isinstance(data, kind):
        got = next(told for other, told in DIRECTORIES.values() if isinstance(data, other))
        raise failure(
            ModelError, "Loading a checkpoint", data.root, f"{told}, as of {task}", got,
            "Give the data directory the model was trained with",
        )  # fmt: skip
    if isinstance(data, TextDirectory):
        return data.of(arguments)
    if isinstance(data, AudioDirectory):
        return replace(data, normalize=bool(arguments.normalize))
    return data


def _speech_to_text(data: DataDirectory, arguments: Namespace) -> Any:
    """Source: Fairseq `tasks/speech_to_text.py`."""
    from fairseq.dataclass.utils import _set_legacy_defaults
    from fairseq.tasks.speech_to_text import SpeechToTextTask

    _set_legacy_defaults(arguments, SpeechToTextTask)
    wanted = Namespace(
        data=str(data.root),
        config_yaml=data.config_yaml,
        max_source_positions=arguments.max_source_positions,
        max_target_positions=arguments.max_target_positions,
    )
    return SpeechToTextTask.setup_task(wanted)


def _speech_text_joint(data: DataDirectory, arguments: Namespace) -> Any:
    """Source: Fairseq `examples/speech_text_joint_to_text/tasks/speech_text_joint.py`.

    Of that task a model asks for no more than the dictionary of the texts it was trained to read.
    """
    from fairseq.data import Dictionary
    from fairseq.data.audio.speech_to_text_joint_dataset import S2TJointDataConfig

    task = _speech_to_text(data, arguments)
    task.src_dict = Dictionary.load(
        str(data.root / S2TJointDataConfig(data.path).src_vocab_filename)
    )
    return task


def _audio_finetuning(data: AudioDirectory, arguments: Any) -> Any:
    """Source: Fairseq `tasks/audio_finetuning.py`."""
    from fairseq.tasks.audio_finetuning import AudioFinetuningConfig, AudioFinetuningTask

    wanted = AudioFinetuningConfig(
        data=str(data.root), labels=data.labels, normalize=arguments.normalize
    )
    return AudioFinetuningTask(wanted)


def _translation(data: TextDirectory, arguments: Namespace) -> Any:
    """Source: Fairseq `tasks/translation.py`."""
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    _ = arguments
    wanted = TranslationConfig(
        data=str(data.root), source_lang=data.source_lang, target_lang=data.target_lang
    )
    return TranslationTask.setup_task(wanted)


TASKS: dict[str, Callable[[Any, Any], Any]] = {
    SPEECH_TO_TEXT: _speech_to_text,
    SPEECH_TEXT_JOINT: _speech_text_joint,
    AUDIO_FINETUNING: _audio_finetuning,
    TRANSLATION: _translation,
}
"""What sets up each task, of its data directory and the model arguments, which are completed with the
task's defaults."""
