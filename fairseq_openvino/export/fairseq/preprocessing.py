"""What Fairseq's evaluation does to features and text, read with its own classes for a bundle."""

from __future__ import annotations

import logging
import zipfile
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino.errors import MissingDependencyError, ModelError, failure
from fairseq_openvino.speech.configuration import read_yaml

fail = partial(
    failure, ModelError, "Reading the data directory",
    advice="Use the data directory the model was trained with",
)  # fmt: skip
"""The error for a file of the data directory."""

logger = logging.getLogger(__name__)

KINDS = ("feature", "waveform", "dataset")
"""Of transforms; the key `transforms` of old configurations means feature transforms."""
TABLES = ("transforms", *(f"{kind}_transforms" for kind in KINDS))
GENERIC = ("_eval", "*")
"""Entries for splits that have none of their own."""
FLAGS = ("use_audio_input", "prepend_tgt_lang_tag", "prepend_bos_and_append_tgt_lang_tag")
MAX_CHARACTERS = 255
"""Of a name; Fairseq asks whether there is a file of a longer one, which is an error of its own."""
MAX_STATISTICS_BYTES = 1 << 20
TYPES: dict[str, tuple[type, ...]] = {
    "vocab_filename": (str,),
    "eos_token": (str, type(None)),
    "input_feat_per_channel": (int,),
    "input_channels": (int,),
    "use_sample_rate": (int,),
    "pre_tokenizer": (dict,),
    "bpe_tokenizer": (dict,),
    "global_cmvn": (dict,),
    **{name: (bool, int, type(None)) for name in FLAGS},
    **{name: (dict,) for name in TABLES},
}
"""Types of the keys that Fairseq itself does not check."""
PLAIN_DECODERS = {
    None: None, "characters": "characters", "bytes": "bytes", "byte_bpe": "bytes", "bert": "bert",
}  # fmt: skip
"""BPEs whose `decode` needs no file, to decoders of `s2t.vocabulary`."""
PIECES = {"gpt2": "gpt2_encoder_json", "hf_byte_bpe": "bpe_vocab"}
"""Byte-level BPEs, and the option with the file of their pieces."""
IDENTITY_TOKENIZERS = (None, "space", "nltk")
"""Pre-tokenizers whose `decode` changes nothing (data/encoders/{space,nltk}_tokenizer.py)."""


@dataclass(frozen=True)
class Transforms:
    """Feature transforms of evaluation; of waveforms, `layer_norm` alone."""

    names: tuple[str, ...] = ()
    norm_means: bool = True
    norm_vars: bool = True
    statistics: tuple[np.ndarray, np.ndarray] | None = None
    """Mean and standard deviation of `global_cmvn`."""
    unsupported: tuple[str, ...] = ()
    """What a bundle cannot hold."""


@dataclass(frozen=True)
class Decoder:
    """From the symbols of a hypothesis to text."""

    bpe: str | None = None
    separator: str = "@@"
    sentencepiece: str | None = None
    """Path of the model."""
    pieces: str | None = None
    """Path of the ids of byte-level pieces."""
    unsupported: tuple[str, ...] = ()
    """What a bundle cannot hold."""


def read_config(path: Path) -> Any:
    """A YAML file as Fairseq's `S2TDataConfig`.

    Raises:
        ModelError: it cannot be read, or a key is of a type that Fairseq would trip over later.
        MissingDependencyError: there is no Fairseq.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        there = ", ".join(sorted(each.name for each in path.parent.glob("*.y*ml")))
        raise fail(path, f"a YAML file (there: {there or 'none'})", "no such file") from error
    except (OSError, ValueError) as error:
        raise fail(path, "a readable YAML file", str(error)) from error
    if not isinstance(content, dict):
        raise fail(path, "a mapping", type(content).__name__)
    _check_types(path, content)
    try:
        from fairseq.data.audio.data_cfg import S2TDataConfig

        from fairseq_openvino.compat.shims import apply_shims
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading the data directory failed: expected torch and fairseq, got {error}. "
            "Install them as the README says (pip install 'fairseq-openvino[fairseq]')."
        ) from error
    apply_shims()
    return S2TDataConfig(path)


def _check_types(path: Path, content: dict[str, Any]) -> None:
    for key in TYPES.keys() & content.keys():
        kinds, value = TYPES[key], content[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(
                "null" if kind is type(None) else kind.__name__ for kind in kinds
            )
            raise fail(path, f"{key}: {expected}", f"{type(value).__name__} ({value!r})")
        texts = value.values() if isinstance(value, dict) else (value,)
        if any(isinstance(text, str) and len(text) > MAX_CHARACTERS for text in texts):
            raise fail(path, f"at most {MAX_CHARACTERS} characters in {key}", "more")
        if kinds == (int,) and content[key] < 1:
            raise fail(path, f"{key}: a positive number", repr(value))
    rate = content.get("sample_rate")
    if rate is not None and not (str(rate).isdecimal() and int(rate) > 0):
        raise fail(path, "sample_rate: a whole number of Hz", repr(rate))
    for table in TABLES:
        for split, names in content.get(table, {}).items():
            listed = names is None or isinstance(names, list)
            if not listed or not all(isinstance(name, str) for name in names or ()):
                raise fail(path, f"{table}: a list of names for {split!r}", repr(names))
    if content.get("prepend_tgt_lang_tag") and content.get("prepend_bos_and_append_tgt_lang_tag"):
        got = "prepend_tgt_lang_tag and prepend_bos_and_append_tgt_lang_tag"
        raise fail(path, "one place for the language tag", got)


def read_transforms(config: Any, path: Path, gen_subset: str | None, bins: int) -> Transforms:
    """The transforms that Fairseq applies to a subset.

    Args:
        config: a `S2TDataConfig`.
        path: its file.
        gen_subset: as in --gen-subset; None: every evaluation split, which then have to agree.
        bins: F.

    Raises:
        ModelError: Fairseq cannot build them, or their data is unusable.
    """
    splits = gen_subset.split(",") if gen_subset is not None else _evaluation_splits(config, path)
    different: dict[str, str] = {}
    for split in splits:
        names = {kind: found for kind, found in _listed(config, split).items() if found}
        different.setdefault(str(names), split)
    if len(different) > 1:
        got = "; ".join(f"{split}: {names}" for names, split in different.items())
        return Transforms(unsupported=(f"transforms that depend on --gen-subset ({got})",))
    return _built(config, path, splits[0], bins)


def _evaluation_splits(config: Any, path: Path) -> list[str]:
    """Those with entries of their own, and one that stands for all others."""
    tables = [config.config.get(table, {}) for table in TABLES]
    keys = {str(key) for table in tables for key, names in table.items() if names is not None}
    named = sorted(key for key in keys - {"_train", *GENERIC} if not key.startswith("train"))
    if keys & set(GENERIC) or not named:
        return [GENERIC[0], *named]
    logger.warning(
        f"{str(path)!r} has transforms for {', '.join(named)} only: they are used for all"
    )
    return named


def _listed(config: Any, split: str) -> dict[str, list[str]]:
    """Names of each kind of transforms; training splits are named as in tasks/speech_to_text.py."""
    training = split.startswith("train")
    return {
        kind: getattr(config, f"get_{kind}_transforms")(split, training)[f"{kind}_transforms"] or []
        for kind in KINDS
    }


def _built(config: Any, path: Path, split: str, bins: int) -> Transforms:
    from fairseq.data.audio.dataset_transforms import CompositeAudioDatasetTransform
    from fairseq.data.audio.dataset_transforms.concataugment import ConcatAugment
    from fairseq.data.audio.dataset_transforms.noisyoverlapaugment import NoisyOverlapAugment
    from fairseq.data.audio.feature_transforms import CompositeAudioFeatureTransform
    from fairseq.data.audio.waveform_transforms import CompositeAudioWaveformTransform

    classes = (
        CompositeAudioFeatureTransform,
        CompositeAudioWaveformTransform,
        CompositeAudioDatasetTransform,
    )
    listed, built = _listed(config, split), {}
    _check_statistics(config, path)
    for kind, composite in zip(KINDS, classes, strict=True):
        options = getattr(config, f"get_{kind}_transforms")(split, split.startswith("train"))
        try:
            built[kind] = composite.from_config_dict(options)
        except Exception as error:  # a transform may trip over its options anywhere
            got = {name: config.config.get(name) for name in listed[kind]}
            reason = f"{type(error).__name__}: {error}"
            raise fail(
                path, f"{kind} transforms that Fairseq can build", f"{got}: {reason}"
            ) from error
    unsupported = [f"waveform_transforms: {name}" for name in listed["waveform"]]
    if built["dataset"].has_transform(ConcatAugment):  # the only one applied to filter banks
        unsupported.append("dataset_transforms: concataugment")
    if config.use_audio_input:
        if built["dataset"].has_transform(NoisyOverlapAugment):
            unsupported.append("dataset_transforms: noisyoverlapaugment")
        return Transforms(("layer_norm",), unsupported=tuple(unsupported))
    features = getattr(built["feature"], "transforms", [])
    return _storable(listed["feature"], features, unsupported, bins)


def _check_statistics(config: Any, path: Path) -> None:
    """Refuse statistics that unpack to more than any can be; Fairseq reads them as they come."""
    name = config.config.get("global_cmvn", {}).get("stats_npz_path")
    if not isinstance(name, str) or not zipfile.is_zipfile(name):
        return  # which Fairseq says
    try:
        with zipfile.ZipFile(name) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # a damaged archive makes it raise anything
        raise fail(Path(name), "an archive of statistics", error) from error
    if size > MAX_STATISTICS_BYTES:
        raise fail(Path(name), f"at most {MAX_STATISTICS_BYTES} bytes of statistics", size)


def _storable(
    names: list[str], transforms: list[Any], unsupported: list[str], bins: int
) -> Transforms:
    from fairseq.data.audio.feature_transforms.global_cmvn import GlobalCMVN
    from fairseq.data.audio.feature_transforms.specaugment import SpecAugmentTransform
    from fairseq.data.audio.feature_transforms.utterance_cmvn import UtteranceCMVN

    kept: list[str] = []
    options: dict[str, Any] = {}
    for name, transform in zip(names, transforms, strict=True):
        if type(transform) is UtteranceCMVN:
            options["norm_means"] = bool(transform.norm_means)
            options["norm_vars"] = bool(transform.norm_vars)
        elif type(transform) is GlobalCMVN:
            options["statistics"] = _checked_statistics(transform, bins)
        elif type(transform) is SpecAugmentTransform:
            if transform.time_warp_w or transform.freq_mask_n or transform.time_mask_n:
                unsupported.append(f"feature_transforms: {name}")
            continue  # without masks it does nothing
        else:
            unsupported.append(f"feature_transforms: {name}")
        kept.append(name)
    return Transforms(tuple(kept), **options, unsupported=tuple(unsupported))


def _checked_statistics(transform: Any, bins: int) -> tuple[np.ndarray, np.ndarray]:
    path = Path(transform.stats_npz_path)
    for name, values in (("mean", transform.mean), ("std", transform.std)):
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise fail(path, f"finite numbers in {name!r}", f"{values.dtype} {values.shape}")
        if values.shape not in ((), (1,), (bins,), (1, 1), (1, bins)):
            raise fail(path, f"{bins} numbers in {name!r}", f"the shape {values.shape}")
    if not np.all(transform.std):
        raise fail(path, "no zero in 'std'", f"zero for {int(np.sum(transform.std == 0))} bins")
    return transform.mean, transform.std


def read_decoder(config: Any, path: Path) -> Decoder:
    """How Fairseq's evaluation makes text of symbols: `bpe_tokenizer`, then `pre_tokenizer`.

    Raises:
        ModelError: Fairseq knows no tokenizer of this name.
    """
    from fairseq.data.encoders import BPE_REGISTRY, TOKENIZER_REGISTRY
    from fairseq.data.encoders.subword_nmt_bpe import SubwordNMTBPEConfig

    bpe, tokenizer = config.bpe_tokenizer.get("bpe"), config.pre_tokenizer.get("tokenizer")
    for key, name, known in (
        ("bpe_tokenizer", bpe, BPE_REGISTRY),
        ("pre_tokenizer", tokenizer, TOKENIZER_REGISTRY),
    ):
        if name is not None and not (isinstance(name, str) and name in known):
            raise fail(path, f"{key}: one of {', '.join(sorted(known))}", repr(name))
    unsupported = () if tokenizer in IDENTITY_TOKENIZERS else (f"pre_tokenizer: {tokenizer}",)
    if bpe == "sentencepiece":
        model = config.bpe_tokenizer.get("sentencepiece_model")
        return Decoder(bpe, sentencepiece=str(model), unsupported=unsupported)
    if bpe == "subword_nmt":
        options = SubwordNMTBPEConfig.from_namespace(Namespace(**config.bpe_tokenizer))
        return Decoder(bpe, str(options.bpe_separator), unsupported=unsupported)
    if bpe == "fastbpe":  # decodes as subword_nmt with its default separator
        return Decoder("subword_nmt", unsupported=unsupported)
    if bpe in PLAIN_DECODERS:
        return Decoder(PLAIN_DECODERS[bpe], unsupported=unsupported)
    pieces = str(config.bpe_tokenizer.get(PIECES[bpe])) if bpe in PIECES else ""
    if Path(pieces).is_file():  # else Fairseq downloads it
        return Decoder("byte_pieces", pieces=pieces, unsupported=unsupported)
    return Decoder(unsupported=(*unsupported, f"bpe_tokenizer: {bpe}"))
