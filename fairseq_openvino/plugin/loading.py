"""Bundles where Fairseq loads checkpoints: no torch weight is read, and a bundle unpickles nothing."""

from __future__ import annotations

import functools
import logging
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fairseq.tasks.speech_to_text import SpeechToTextTask
from fairseq.tasks.translation import TranslationTask
from fairseq.utils import split_paths

from fairseq_openvino.atomic import sha256
from fairseq_openvino.bundle import Bundle, is_bundle, open_bundle
from fairseq_openvino.errors import (
    ArchitectureError,
    ModelError,
    OptionError,
    ParityError,
    failure,
    invalid,
)
from fairseq_openvino.export.fairseq import cached_bundle, cached_decoder
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.export.fairseq.text import TextDirectory
from fairseq_openvino.plugin.flags import cache_dir, check_options, engine_options, settings
from fairseq_openvino.plugin.hub import of_model, task_of
from fairseq_openvino.plugin.model import S2TOpenVINOModel
from fairseq_openvino.plugin.parts import in_parts
from fairseq_openvino.plugin.whisper_task import WhisperTask
from fairseq_openvino.recognizer import Recognizer
from fairseq_openvino.runtime.precision import MIN_UTTERANCES_PER_STREAM
from fairseq_openvino.s2t.vocabulary import load_dictionary

logger = logging.getLogger(__name__)

ACTION = "Loading a bundle"
TASKS = (SpeechToTextTask, TranslationTask)
"""Of Fairseq, with those derived from them, whose models the engine runs."""


def loading_bundles(load: Callable[..., Any]) -> Callable[..., Any]:
    """Of Fairseq's `load_model_ensemble_and_task`: bundles where the engine runs them."""

    @functools.wraps(load)
    def load_model_ensemble_and_task(
        filenames: list[str], arg_overrides: dict[str, Any] | None = None, task: Any = None,
        *args: Any, **kwargs: Any,
    ) -> tuple[list[Any], Any, Any]:  # fmt: skip
        overrides, config = dict(arg_overrides or {}), None
        if task is None and overrides.get("ov_engine"):  # from_pretrained
            task, config = task_of(filenames[0], overrides)
        bundles = [is_bundle(name) for name in filenames]
        arguments: Any = settings(task)
        wanted = isinstance(task, TASKS) and getattr(arguments, "ov_engine", False)
        if not wanted and not any(bundles):
            return load(filenames, arg_overrides, task, *args, **kwargs)
        if not isinstance(task, TASKS):
            expected = "the task speech_to_text, speech_to_text_openvino or translation"
            got = type(task).__name__
            raise failure(OptionError, ACTION, f"--path {filenames}", expected, got, "Set --task")
        if isinstance(task, WhisperTask):  # it has its model already
            return [], Namespace(task=arguments), task
        if config is None:
            check_options(arguments)
            config = Namespace(task=arguments, model=Namespace(arch="s2t_openvino"))
        overrides, models = of_model(overrides), []
        for name, source in zip(filenames, _chosen(filenames, arguments), strict=True):
            try:
                bundle = _bundle(Path(name), Path(source), task, overrides)
            except (ArchitectureError, ParityError) as error:
                (eager,), *_ = load([name], arg_overrides, task, *args, **kwargs)
                models.append(_in_parts(eager, Path(name), error, task, overrides))
                continue
            _check_fit(bundle, task)
            recognizer = load_recognizer(bundle, arguments)
            models.append(S2TOpenVINOModel(recognizer.model, task.target_dictionary))
        return models, config, task

    return load_model_ensemble_and_task


def load_recognizer(bundle: Bundle, arguments: Namespace) -> Recognizer:
    """A bundle as the --ov-* flags say; logs what they mean on this machine."""
    options = engine_options(arguments, bundle)
    recognizer = Recognizer(bundle, options)
    plan = recognizer.model.plan(MIN_UTTERANCES_PER_STREAM)
    logger.info(
        f"OpenVINO engine: {bundle.manifest.architecture} from {bundle.directory} on {options.device}, "
        f"precision {options.precision}: encoder {plan.encoder}, decoder {plan.decoder} ({plan.reason})"
    )
    return recognizer


def _chosen(filenames: list[str], arguments: Namespace) -> list[str]:
    given = getattr(arguments, "ov_model", None)
    if given is None:
        return filenames
    chosen: list[str] = given.split(":")
    if len(chosen) != len(filenames):
        expected = f"one for each --path ({len(filenames)})"
        advice = "Separate bundles with ':'"
        raise invalid("Loading bundles", "--ov-model", expected, len(chosen), advice)
    return chosen


def _bundle(checkpoint: Path, source: Path, task: Any, overrides: dict[str, Any]) -> Bundle:
    if source != checkpoint or is_bundle(source):
        bundle = open_bundle(source)
        stated = bundle.manifest.source.get("sha256")
        if checkpoint.is_file() and stated != sha256(checkpoint):
            logger.warning(f"--ov-model {source} was not exported from --path {checkpoint}")
        if overrides and bundle.manifest.source.get("overrides") != {
            key: repr(value) for key, value in overrides.items()
        }:
            logger.warning(f"--model-overrides have no effect on the exported bundle {source}")
        return bundle
    arguments = settings(task)
    return cached_bundle(checkpoint, _data(task, arguments), overrides, cache_dir(arguments))


def _data(task: Any, arguments: Namespace) -> DataDirectory | TextDirectory:
    """What the task was given."""
    if isinstance(task, TranslationTask):
        root, *_ = split_paths(arguments.data)
        return TextDirectory(Path(root), arguments.source_lang, arguments.target_lang)
    interactive = hasattr(arguments, "buffer_size")
    subset = "interactive" if interactive else getattr(arguments, "gen_subset", None)
    return DataDirectory(Path(arguments.data), arguments.config_yaml, subset)


def _in_parts(
    eager: Any, checkpoint: Path, refusal: Exception, task: Any, overrides: dict[str, Any]
) -> Any:
    """See `plugin.parts`."""
    arguments = settings(task)

    def decoder() -> Bundle:
        return cached_decoder(checkpoint, _data(task, arguments), overrides, cache_dir(arguments))

    bins = 0 if isinstance(task, TranslationTask) else _bins(task.data_cfg)
    return in_parts(eager, refusal, decoder, partial(engine_options, arguments), bins)


def _bins(config: Any) -> int:
    """F of a data configuration."""
    return 1 if config.use_audio_input else config.input_feat_per_channel * config.input_channels


def _check_fit(bundle: Bundle, task: Any) -> None:
    """The data directory's dictionaries and features must be the bundle's."""
    manifest, advice = bundle.manifest, "Use the configuration the model was trained with"
    if manifest.family != "s2t":
        got, use = repr(manifest.family), "Run it by fairseq-openvino transcribe"
        if manifest.family == "whisper":
            use = "Set --task speech_to_text_openvino"
        raise failure(OptionError, ACTION, bundle.directory, "the family s2t", got, use)
    dictionaries = {manifest.text.dictionary: task.target_dictionary}
    if isinstance(task, TranslationTask):
        dictionaries[manifest.text.source_dictionary] = task.source_dictionary
    for name, dictionary in dictionaries.items():
        symbols = load_dictionary(bundle.path(name))
        if tuple(dictionary.symbols) != symbols:
            expected = f"the dictionary of the data directory ({len(dictionary)} symbols)"
            got = f"another one ({len(symbols)} symbols)"
            raise failure(ModelError, ACTION, bundle.directory, expected, got, advice)
    if isinstance(task, TranslationTask):
        return
    bins = _bins(task.data_cfg)
    if bins != manifest.dimensions.feature_bins:
        expected = f"{bins} feature bins as in the data configuration"
        got = manifest.dimensions.feature_bins
        raise failure(ModelError, ACTION, bundle.directory, expected, got, advice)
