"""`--ov-engine` for Fairseq's `speech_to_text` and `translation`, and the former as a task of its own.

Importing this module, as `--user-dir fairseq_openvino` does, applies the compatibility shims, adds the
--ov-* flags and hooks the engine in: `HOOKS` is all that is changed in Fairseq besides the shims.
"""

from __future__ import annotations

import functools
import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.data.audio.speech_to_text_dataset import (
    SpeechToTextDataset,
    SpeechToTextDatasetCreator,
)
from fairseq.models.speech_to_text.hub_interface import S2THubInterface
from fairseq.tasks import TASK_DATACLASS_REGISTRY, register_task
from fairseq.tasks.speech_to_text import SpeechToTextTask
from fairseq.tasks.translation import TranslationTask
from hydra.core.config_store import ConfigStore

from fairseq_openvino.compat.shims import apply_shims
from fairseq_openvino.errors import FairseqOpenVINOError, OptionError, invalid
from fairseq_openvino.loading import find_bundle
from fairseq_openvino.model import Head
from fairseq_openvino.plugin import commands, data, hub, language, resume, skipping
from fairseq_openvino.plugin.flags import (
    Unstated,
    add_engine_flags,
    cache_dir,
    check_options,
    settings,
    with_engine_flags,
)
from fairseq_openvino.plugin.generator import (
    BATCH_SIZES,
    OpenVINOGenerator,
    batch_sizes,
    replaces,
)
from fairseq_openvino.plugin.loading import load_recognizer, loading_bundles
from fairseq_openvino.plugin.model import S2TOpenVINOModel
from fairseq_openvino.plugin.whisper_task import WhisperTask
from fairseq_openvino.speech.manifest import read_manifest

logger = logging.getLogger(__name__)


def building_generators(build: Callable[..., Any]) -> Callable[..., Any]:
    """Fairseq's generator, or ours where it computes the same."""

    @functools.wraps(build)
    def build_generator(
        self: Any,
        models: list[Any],
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        **others: Any,
    ) -> Any:
        ours = [model for model in models if isinstance(model, S2TOpenVINOModel)]
        if ours:
            check_options(args)
        resume.begin(self, models)
        if isinstance(self, SpeechToTextTask):
            language.apply(self, args)
        try:
            generator = build(self, models, args, seq_gen_cls, extra_gen_cls_kwargs, **others)
        except FairseqOpenVINOError:
            raise
        except (ValueError, Warning) as error:  # Fairseq's, about language tags
            raise OptionError(
                f"Building the search failed: expected options that fit the model, got: {error}"
            ) from error
        sizes = batch_sizes(self)
        if replaces(generator):
            return OpenVINOGenerator(generator, models[0], sizes)
        for model in ours:
            model.compiled.prepare(sizes, args.beam, Head())
        if ours:
            logger.info(f"search: Fairseq's {type(generator).__name__} over the OpenVINO model")
        return generator

    return build_generator


def making_batches(iterate: Callable[..., Any]) -> Callable[..., Any]:
    """Batches of one shard; how large they are is kept for `build_generator`.

    Too long an utterance is an OptionError. Fairseq itself (fairseq_cli/generate.py:151) shards by its
    distributed options only: with --num-shards every process would do all the work.
    """

    @functools.wraps(iterate)
    def get_batch_iterator(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = settings(self)
        shards = getattr(arguments, "num_shards", 1) if kwargs.get("num_shards") == 1 else 1
        if shards != 1:
            kwargs |= {"num_shards": shards, "shard_id": arguments.shard_id}
        try:
            found = iterate(self, *args, **kwargs)
        except Exception as error:  # Fairseq's are of no type of their own
            if "max_tokens" not in str(error) and "Size of sample" not in str(error):
                raise
            raise OptionError(
                f"Making batches failed: expected every utterance to fit, got: {error}. Raise "
                "--max-tokens or --max-source-positions (both count samples of waveforms), or set "
                "--skip-invalid-size-inputs-valid-test."
            ) from error
        if shards != 1:
            _check_shard(arguments, len(found.frozen_batches))
        if getattr(arguments, "ov_engine", False):
            setattr(self, BATCH_SIZES, {len(batch) for batch in found.frozen_batches} - {0})
        return found

    return get_batch_iterator


def _check_shard(arguments: Any, batches: int) -> None:
    """Every shard has work to do."""
    shards, chosen = arguments.num_shards, arguments.shard_id
    if not 1 <= shards <= batches:
        advice = "Lower it, or --max-tokens for more batches"
        raise invalid("Making batches", "--num-shards", f"1 to {batches} (batches)", shards, advice)
    if not 0 <= chosen < shards:
        raise invalid("Making batches", "--shard-id", f"0 to {shards - 1}", chosen)


def adding_flags(add: Callable[..., Any]) -> Any:
    """Fairseq's arguments of the task, then ours."""

    def add_args(cls: type[SpeechToTextTask], parser: ArgumentParser) -> None:
        add.__func__(cls, parser)  # type: ignore[attr-defined]
        add_engine_flags(parser)
        limit = parser.get_default("max_len_b")
        if limit is not None:
            parser.set_defaults(max_len_b=Unstated(limit))

    return classmethod(add_args)


def adding_text_flags(add: Callable[..., Any]) -> Any:
    """The same where a task has a dataclass; those derived from it have their own, without our fields."""

    def add_args(cls: type[TranslationTask], parser: ArgumentParser) -> None:
        add.__func__(cls, parser)  # type: ignore[attr-defined]
        if cls is TranslationTask:
            add_engine_flags(parser)

    return classmethod(add_args)


def _carry_flags(task: str) -> None:
    """Let the configuration of a task with a dataclass hold our flags, from the command line to the task."""
    config = TASK_DATACLASS_REGISTRY[task] = with_engine_flags(TASK_DATACLASS_REGISTRY[task])
    node = config()
    node._name = task
    ConfigStore.instance().store(name=task, group="task", node=node, provider="fairseq")


HOOKS: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = (
    (checkpoint_utils, "load_model_ensemble_and_task", loading_bundles),
    (SpeechToTextDatasetCreator, "_load_samples_from_tsv", lambda _: staticmethod(read_manifest)),
    (SpeechToTextTask, "add_args", adding_flags),
    (SpeechToTextTask, "get_batch_iterator", making_batches),
    (SpeechToTextTask, "build_generator", building_generators),
    (SpeechToTextTask, "build_tokenizer", data.building),
    (SpeechToTextTask, "build_bpe", data.building),
    (SpeechToTextTask, "load_dataset", data.completing),
    (SpeechToTextTask, "load_dataset", language.stating),
    (SpeechToTextTask, "build_dataset_for_inference", language.typing),
    (SpeechToTextTask, "inference_step", skipping.decoding),
    (SpeechToTextTask, "inference_step", data.unscored),
    (SpeechToTextTask, "inference_step", language.prefixing),
    (SpeechToTextTask, "get_interactive_tokens_and_lengths", skipping.measuring),
    (TranslationTask, "add_args", adding_text_flags),
    (TranslationTask, "get_batch_iterator", making_batches),
    (TranslationTask, "build_generator", building_generators),
    (TranslationTask, "inference_step", resume.keeping),
    (SpeechToTextDataset, "check_tgt_lang_tag", language.checking),
    (SpeechToTextDataset, "ordered_indices", skipping.ordering),
    (SpeechToTextDataset, "__getitem__", skipping.reading),
    (SpeechToTextDataset, "collater", skipping.collating),
    (S2THubInterface, "__init__", hub.opening),
    (S2THubInterface, "predict", hub.predicting),
)
"""Owner, attribute, and what makes its replacement from Fairseq's own or the one before."""


apply_shims()
for owner, name, replacement in HOOKS:
    setattr(owner, name, replacement(getattr(owner, name)))
_carry_flags("translation")
commands.guard()


@register_task("speech_to_text_openvino")
class SpeechToTextOpenVINOTask(SpeechToTextTask):  # type: ignore[misc]
    """`speech_to_text` that always generates with OpenVINO, with Whisper too."""

    @classmethod
    def setup_task(cls, args: Namespace, **kwargs: Any) -> SpeechToTextTask:
        """As the parent, with --ov-engine on; for a directory with a Whisper model, its own task."""
        args.ov_engine = True
        path = getattr(args, "ov_model", None) or getattr(args, "path", None) or ""
        if path and Path(path).is_dir():
            bundle = find_bundle(path, cache_dir=cache_dir(args))
            if bundle.manifest.family == "whisper":
                check_options(args)
                return WhisperTask(args, load_recognizer(bundle, args))
        return super().setup_task(args, **kwargs)
