"""`--ov-engine` for Fairseq's `speech_to_text`, and the same as a task of its own.

Importing this module, as `--user-dir fairseq_openvino` does, applies the compatibility shims and
adds the --ov-* flags. Checkpoints are replaced where Fairseq loads them: with a bundle at hand no
torch weight is read, and a bundle as --path unpickles nothing.
"""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDatasetCreator
from fairseq.tasks import register_task
from fairseq.tasks.speech_to_text import SpeechToTextTask

from fairseq_openvino.atomic import sha256
from fairseq_openvino.bundle import Bundle, is_bundle, open_bundle
from fairseq_openvino.compat.shims import apply_shims
from fairseq_openvino.errors import ModelError, OptionError
from fairseq_openvino.export.cache import cached_bundle, default_cache_dir
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.plugin.commands import (
    guard_commands,
    skip_bad_inputs,
    skip_unreadable_audio,
    skip_what_cannot_be_decoded,
)
from fairseq_openvino.plugin.generator import BATCH_SIZES, OpenVINOGenerator, batch_sizes, replaces
from fairseq_openvino.plugin.model import S2TOpenVINOModel
from fairseq_openvino.recognizer import load_model
from fairseq_openvino.runtime.engine import PRECISIONS
from fairseq_openvino.runtime.precision import MIN_UTTERANCES_PER_STREAM
from fairseq_openvino.speech.manifest import read_manifest

logger = logging.getLogger(__name__)

REFUSED = {
    "retain_dropout": "dropout is not part of an exported graph",
    "print_alignment": "Fairseq's S2T decoders return no attention",
    "fp16": "precision is set by --ov-precision",
    "iter_decode_with_beam": "iterative refinement is not autoregressive",
}
"""Options that cannot work with --ov-engine, and why."""


def add_engine_arguments(parser: ArgumentParser) -> None:
    """The --ov-* flags."""
    group = parser.add_argument_group("OpenVINO")
    group.add_argument("--ov-engine", action="store_true", help="generate with OpenVINO")
    group.add_argument(
        "--ov-model", metavar="BUNDLE", help="exported bundle to run (default: export and cache)"
    )
    group.add_argument("--ov-device", default="CPU", help="OpenVINO device: CPU, GPU, NPU, AUTO")
    group.add_argument(
        "--ov-precision",
        choices=PRECISIONS,
        help="inference precision (default: the bundle's own, f32 unless quantized for another)",
    )
    group.add_argument("--ov-threads", type=int, metavar="N", help="CPU threads (default: all)")
    group.add_argument("--ov-streams", type=int, metavar="N", help="parallel requests (default: 1)")
    group.add_argument(
        "--ov-cache-dir", metavar="DIR", help="exported bundles and compiled models are kept here"
    )


def check_options(arguments: Namespace) -> None:
    """Refuse, before any work, what the engine cannot do.

    Raises:
        OptionError: naming the flag and the reason.
    """
    for name, reason in REFUSED.items():
        value = getattr(arguments, name, None)
        if value and not (name == "iter_decode_with_beam" and value == 1):
            flag = "--" + name.replace("_", "-")
            raise OptionError(
                f"Generating with --ov-engine failed in {flag}: expected it unset, got {value!r}; "
                f"{reason}. Leave out {flag} or --ov-engine."
            )


_fairseq_load = checkpoint_utils.load_model_ensemble_and_task
_fairseq_build_generator = SpeechToTextTask.build_generator
_fairseq_get_batch_iterator = SpeechToTextTask.get_batch_iterator
_fairseq_add_args = SpeechToTextTask.add_args.__func__


def load_model_ensemble_and_task(
    filenames: list[str], arg_overrides: dict[str, Any] | None = None, task: Any = None,
    *args: Any, **kwargs: Any,
) -> tuple[list[Any], Any, Any]:  # fmt: skip
    """Fairseq's loader, with bundles in place of checkpoints where the engine runs them."""
    bundles = [is_bundle(name) for name in filenames]
    arguments: Any = getattr(task, "args", None)
    wanted = isinstance(task, SpeechToTextTask) and getattr(arguments, "ov_engine", False)
    if not wanted and not any(bundles):
        return _fairseq_load(filenames, arg_overrides, task, *args, **kwargs)
    if not isinstance(task, SpeechToTextTask):
        raise OptionError(
            f"Loading a bundle failed in --path {filenames}: expected the task speech_to_text or "
            f"speech_to_text_openvino, got {type(task).__name__}. Set --task."
        )
    if hasattr(task, "model"):  # a WhisperTask has loaded its bundle already
        from fairseq_openvino.plugin.whisper_model import WhisperOpenVINOModel

        return [WhisperOpenVINOModel(task.model)], Namespace(task=arguments), task
    check_options(arguments)
    chosen = _choose(filenames, arguments)
    overrides = dict(arg_overrides or {})
    models = []
    for name, source in zip(filenames, chosen, strict=True):
        bundle = _bundle(Path(name), Path(source), arguments, overrides)
        _check_fit(bundle, task)
        models.append(S2TOpenVINOModel(_load(bundle, arguments), task.target_dictionary))
    return models, Namespace(task=arguments, model=Namespace(arch="s2t_openvino")), task


def _choose(filenames: list[str], arguments: Namespace) -> list[str]:
    given = getattr(arguments, "ov_model", None)
    if given is None:
        return filenames
    chosen: list[str] = given.split(":")
    if len(chosen) != len(filenames):
        raise OptionError(
            f"Loading bundles failed in --ov-model: expected one for each --path ({len(filenames)}), "
            f"got {len(chosen)}. Separate bundles with ':'."
        )
    return chosen


def _bundle(
    checkpoint: Path, source: Path, arguments: Namespace, overrides: dict[str, Any]
) -> Bundle:
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
    interactive = hasattr(arguments, "buffer_size")
    subset = "interactive" if interactive else getattr(arguments, "gen_subset", None)
    data = DataDirectory(Path(arguments.data), arguments.config_yaml, subset)
    return cached_bundle(checkpoint, data, overrides, _cache_dir(arguments))


def _cache_dir(arguments: Namespace) -> Path:
    given = getattr(arguments, "ov_cache_dir", None)
    return default_cache_dir() if given is None else Path(given)


def _check_fit(bundle: Bundle, task: Any) -> None:
    """The data directory's dictionary and features must be the bundle's."""
    from fairseq_openvino.s2t.vocabulary import load_dictionary

    if bundle.manifest.family != "s2t":
        raise OptionError(
            f"Loading a bundle failed in {str(bundle.directory)!r}: expected the family s2t, got "
            f"{bundle.manifest.family!r}. Set --task speech_to_text_openvino."
        )
    symbols = load_dictionary(bundle.path(bundle.manifest.text.dictionary))
    if tuple(task.target_dictionary.symbols) != symbols:
        raise ModelError(
            f"Loading a bundle failed in {str(bundle.directory)!r}: expected the dictionary of the "
            f"data directory ({len(task.target_dictionary)} symbols), got another one "
            f"({len(symbols)} symbols). Use the data directory the model was trained with."
        )
    bins = task.data_cfg.input_feat_per_channel * task.data_cfg.input_channels
    if bins != bundle.manifest.dimensions.feature_bins:
        raise ModelError(
            f"Loading a bundle failed in {str(bundle.directory)!r}: expected {bins} feature bins as "
            f"in the data configuration, got {bundle.manifest.dimensions.feature_bins}. Use the "
            "configuration the model was trained with."
        )


def _load(bundle: Bundle, arguments: Namespace) -> Any:
    def option(name: str, default: Any) -> Any:
        return getattr(arguments, name, default)

    precision = option("ov_precision", None) or bundle.manifest.runtime.inference
    device = option("ov_device", "CPU")
    speech_model: Any = load_model(
        bundle,
        device=device,
        precision=precision,
        threads=option("ov_threads", None),
        streams=option("ov_streams", None),
        cache_dir=_cache_dir(arguments) / "compiled",
    )
    plan = speech_model.plan(MIN_UTTERANCES_PER_STREAM)
    logger.info(
        f"OpenVINO engine: {bundle.manifest.architecture} from {bundle.directory} on {device}, "
        f"precision {precision}: encoder {plan.encoder}, decoder {plan.decoder} ({plan.reason})"
    )
    return speech_model


def build_generator(
    self: Any,
    models: list[Any],
    args: Any,
    seq_gen_cls: Any = None,
    extra_gen_cls_kwargs: dict[str, Any] | None = None,
) -> Any:
    """Fairseq's generator, or ours where it computes the same."""
    generator = _fairseq_build_generator(self, models, args, seq_gen_cls, extra_gen_cls_kwargs)
    sizes = batch_sizes(self)
    if replaces(generator):
        return OpenVINOGenerator(generator, models[0], sizes)
    ours = [model for model in models if isinstance(model, S2TOpenVINOModel)]
    for model in ours:
        model.speech_model.prepare(args.beam, utterances=sizes)
    if ours:
        logger.info(f"search: Fairseq's {type(generator).__name__} over the OpenVINO model")
    return generator


def get_batch_iterator(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Fairseq's iterator; how large its batches are is kept for `build_generator`.

    Raises:
        OptionError: an utterance exceeds --max-tokens or the model's positions.
    """
    try:
        found = _fairseq_get_batch_iterator(self, *args, **kwargs)
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


def add_args(cls: type[SpeechToTextTask], parser: ArgumentParser) -> None:
    """Fairseq's arguments of the task, then ours."""
    _fairseq_add_args(cls, parser)
    add_engine_arguments(parser)


apply_shims()
skip_unreadable_audio()
skip_what_cannot_be_decoded()
skip_bad_inputs()
guard_commands()
checkpoint_utils.load_model_ensemble_and_task = load_model_ensemble_and_task
SpeechToTextDatasetCreator._load_samples_from_tsv = staticmethod(read_manifest)
SpeechToTextTask.build_generator = build_generator
SpeechToTextTask.get_batch_iterator = get_batch_iterator
SpeechToTextTask.add_args = classmethod(add_args)


@register_task("speech_to_text_openvino")
class SpeechToTextOpenVINOTask(SpeechToTextTask):  # type: ignore[misc]
    """`speech_to_text` that always generates with OpenVINO, with Whisper bundles too."""

    @classmethod
    def setup_task(cls, args: Namespace, **kwargs: Any) -> SpeechToTextTask:
        """As the parent, with --ov-engine on; for a Whisper bundle as --path, its own task."""
        args.ov_engine = True
        path = getattr(args, "ov_model", None) or getattr(args, "path", None) or ""
        if is_bundle(path):
            bundle = open_bundle(path)
            if bundle.manifest.family == "whisper":
                from fairseq_openvino.plugin.whisper_task import WhisperTask

                check_options(args)
                return WhisperTask(args, _load(bundle, args))
        return super().setup_task(args, **kwargs)
