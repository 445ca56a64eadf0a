"""`--ov-engine` for Fairseq's `speech_to_text`, and the same as a task of its own.

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
from fairseq.tasks import register_task
from fairseq.tasks.speech_to_text import SpeechToTextTask

from fairseq_openvino.compat.shims import apply_shims
from fairseq_openvino.errors import OptionError
from fairseq_openvino.loading import find_bundle
from fairseq_openvino.model import Head
from fairseq_openvino.plugin import commands, skipping
from fairseq_openvino.plugin.flags import add_engine_flags, cache_dir, check_options
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
    ) -> Any:
        generator = build(self, models, args, seq_gen_cls, extra_gen_cls_kwargs)
        sizes = batch_sizes(self)
        if replaces(generator):
            return OpenVINOGenerator(generator, models[0], sizes)
        ours = [model for model in models if isinstance(model, S2TOpenVINOModel)]
        for model in ours:
            model.compiled.prepare(sizes, args.beam, Head())
        if ours:
            logger.info(f"search: Fairseq's {type(generator).__name__} over the OpenVINO model")
        return generator

    return build_generator


def making_batches(iterate: Callable[..., Any]) -> Callable[..., Any]:
    """How large the batches are is kept for `build_generator`; too long an utterance is an OptionError."""

    @functools.wraps(iterate)
    def get_batch_iterator(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            found = iterate(self, *args, **kwargs)
        except Exception as error:  # Fairseq's are of no type of their own
            if "max_tokens" not in str(error) and "Size of sample" not in str(error):
                raise
            raise OptionError(
                f"Making batches failed: expected every utterance to fit, got: {error}. Raise "
                "--max-tokens, or set --skip-invalid-size-inputs-valid-test."
            ) from error
        if getattr(self.args, "ov_engine", False):
            setattr(self, BATCH_SIZES, {len(batch) for batch in found.frozen_batches} - {0})
        return found

    return get_batch_iterator


def adding_flags(add: Callable[..., Any]) -> Any:
    """Fairseq's arguments of the task, then ours."""

    def add_args(cls: type[SpeechToTextTask], parser: ArgumentParser) -> None:
        add.__func__(cls, parser)  # type: ignore[attr-defined]
        add_engine_flags(parser)

    return classmethod(add_args)


HOOKS: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = (
    (checkpoint_utils, "load_model_ensemble_and_task", loading_bundles),
    (SpeechToTextDatasetCreator, "_load_samples_from_tsv", lambda _: staticmethod(read_manifest)),
    (SpeechToTextTask, "add_args", adding_flags),
    (SpeechToTextTask, "get_batch_iterator", making_batches),
    (SpeechToTextTask, "build_generator", building_generators),
    (SpeechToTextTask, "inference_step", skipping.decoding),
    (SpeechToTextTask, "get_interactive_tokens_and_lengths", skipping.measuring),
    (SpeechToTextDataset, "ordered_indices", skipping.ordering),
    (SpeechToTextDataset, "__getitem__", skipping.reading),
    (SpeechToTextDataset, "collater", skipping.collating),
)
"""Owner, attribute, and what makes its replacement from Fairseq's own."""


apply_shims()
for owner, name, replacement in HOOKS:
    setattr(owner, name, replacement(getattr(owner, name)))
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
