"""Plain Fairseq on current Python and PyTorch: one function per repaired breakage.

Line numbers refer to fairseq-fixed 0.12.3.1. A shim that returns a string was not needed and says
why; each can be switched off with `FAIRSEQ_OPENVINO_DISABLE_SHIMS=name,name`. The shims for audio
and data configuration are in `compat_speech`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import sys
import types
from argparse import Namespace
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np

from fairseq_openvino.checkpoint import load_checkpoint
from fairseq_openvino.compat import hub, literals
from fairseq_openvino.compat import speech as compat_speech
from fairseq_openvino.errors import OptionError

logger = logging.getLogger(__name__)

DISABLE_VARIABLE = "FAIRSEQ_OPENVINO_DISABLE_SHIMS"
"""Environment variable: comma-separated names of shims that are not applied."""


@dataclass(frozen=True)
class Shim:
    """What happened to one repair."""

    name: str
    active: bool
    """Whether this process runs the repaired code."""
    reason: str
    """What is repaired, or why nothing was done."""


class _TorchProxy(types.ModuleType):
    """The name `torch` inside one Fairseq module: everything is torch's own except `load`."""

    def __init__(self, original: types.ModuleType) -> None:
        super().__init__(original.__name__)
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    @staticmethod
    def load(file: Any, map_location: Any = None, **options: Any) -> dict[str, Any]:
        """Load a checkpoint file safely; the result is always on the CPU."""
        del map_location, options
        return load_checkpoint(getattr(file, "name", file))


def checkpoint_loading() -> None:
    """Checkpoints load, without running code from them.

    torch >= 2.6 loads with `weights_only=True` and then refuses `argparse.Namespace`, which every
    S2T checkpoint holds (checkpoint_utils.py:340 and 909, xm_transformer.py:645;
    facebookresearch/fairseq#5610); older versions run whatever the pickle asks for. Both become
    `checkpoint.load_checkpoint`. `torch.load` itself stays as it is. Versions: all.
    """
    for name in ("fairseq.checkpoint_utils", "fairseq.models.speech_to_text.xm_transformer"):
        module: Any = importlib.import_module(name)
        module.torch = _TorchProxy(module.torch)


class _ExamplesFinder(MetaPathFinder, Loader):
    """Resolves `examples...` to `fairseq.examples...` where no other finder knows the name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Spec of an alias, or None."""
        if fullname.partition(".")[0] != "examples":
            return None
        parent = sys.modules.get(fullname.rpartition(".")[0])
        if parent is None or not parent.__name__.startswith("fairseq.examples"):
            others = (finder for finder in sys.meta_path if finder is not self)
            if any(finder.find_spec(fullname, path, target) for finder in others):
                return None
        try:
            spec = importlib.util.find_spec(f"fairseq.{fullname}")
        except ModuleNotFoundError:
            return None
        if spec is None:
            return None
        return ModuleSpec(fullname, self, is_package=spec.submodule_search_locations is not None)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """The module of Fairseq itself, so that its registrations happen only once."""
        module = importlib.import_module(f"fairseq.{spec.name}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run; undo the import system's new spec for the shared module."""
        module.__spec__ = module.__spec__.loader_state if module.__spec__ else None


def examples_alias() -> str | None:
    """`import examples.…` finds the examples shipped inside Fairseq.

    Fairseq's modules import them under a top-level name that only exists in its source checkout
    (tasks/speech_to_text.py:178 and 346, criterions/ctc.py:97). A directory `examples` of the
    user keeps precedence: only names it does not hold become aliases, and nothing is imported
    before it is asked for. Versions: all installed from PyPI.
    """
    if importlib.util.find_spec("fairseq.examples") is None:
        return "this Fairseq is installed without its examples"
    sys.meta_path.insert(0, _ExamplesFinder())
    return None


def freeze_regex() -> str | None:
    """XM Transformer and wav2vec checkpoints without the option `freeze_regex` load.

    models/wav2vec/wav2vec2_asr.py:499 reads it unconditionally, but a legacy Namespace has it only
    if the checkpoint is younger than the option. Versions: after 0.12.2.
    """
    from fairseq.models.wav2vec import wav2vec2_asr

    encoder: Any = wav2vec2_asr.Wav2VecEncoder
    original = encoder.__init__
    if "cfg.freeze_regex" not in inspect.getsource(original):
        return "this Fairseq does not know the option"

    def __init__(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if isinstance(cfg, Namespace) and not hasattr(cfg, "freeze_regex"):
            cfg.freeze_regex = None
        original(self, cfg, *args, **kwargs)

    encoder.__init__ = __init__
    return None


def conv_version() -> str | None:
    """Joint models of speech and text build, with the one front end that they know.

    models/speech_to_text/s2t_transformer.py:313 reads the option `conv_version` unconditionally, which
    examples/speech_text_joint_to_text/models/s2t_dualinputtransformer.py:186 leaves out of the
    arguments it makes. Versions: after 0.12.2.
    """
    from fairseq.models.speech_to_text import s2t_transformer

    encoder: Any = s2t_transformer.S2TTransformerEncoder
    original = encoder.__init__
    if "args.conv_version" not in inspect.getsource(original):
        return "this Fairseq does not know the option"

    def __init__(self: Any, args: Any) -> None:  # noqa: N807
        if not hasattr(args, "conv_version"):
            args = Namespace(**args._asdict(), conv_version="s2t_transformer")
        original(self, args)

    encoder.__init__ = __init__
    return None


def last_batch() -> str | None:
    """The last batch of an evaluation split is kept.

    data/data_utils.py:357 drops it if its size is no multiple of `--required-batch-size-multiple`
    (8 unless given): up to 7 hypotheses are missing, or all (facebookresearch/fairseq#5036,
    #5351). The other batches stay exactly Fairseq's. Only datasets that say `is_train_split` is
    False are concerned; training keeps Fairseq's behaviour. Versions: after 0.12.2.
    """
    from fairseq.data import FairseqDataset, data_utils

    sizes = np.ones(3, dtype=np.int64)
    indices = np.arange(3)
    batches = data_utils.batch_by_size(indices, sizes.item, sizes, 8, None, 2)
    if sum(len(batch) for batch in batches) == len(indices):
        return "this Fairseq keeps it"
    original = FairseqDataset.batch_by_size

    def batch_by_size(self: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
        batches = original(self, indices, *args, **kwargs)
        kept = sum(len(batch) for batch in batches)
        if kept == len(indices) or not _is_evaluation(self):
            return batches
        logger.warning(
            "Fairseq would have dropped the last batch with %d of %d utterances "
            "(--required-batch-size-multiple); it is kept",
            len(indices) - kept,
            len(indices),
        )
        return [*batches, np.asarray(indices[kept:], dtype=np.int64)]

    FairseqDataset.batch_by_size = batch_by_size
    return None


def _is_evaluation(dataset: Any) -> bool:
    parts = getattr(dataset, "datasets", None)
    if parts:
        return all(_is_evaluation(part) for part in parts)
    return getattr(dataset, "is_train_split", True) is False


def wer_scorer() -> str | None:
    """`--scoring wer` works without the package editdistance.

    scoring/wer.py:35 and criterions/ctc.py:189 import it; it has no wheels for current Pythons. A
    module of that name with the one function used is provided. Versions: all.
    """
    if importlib.util.find_spec("editdistance") is not None:
        return "editdistance is installed"
    module: Any = types.ModuleType("editdistance", "Stand-in provided by fairseq_openvino.")
    module.eval = module.distance = _edit_distance()
    module.__spec__ = ModuleSpec("editdistance", loader=None)
    sys.modules["editdistance"] = module
    return None


def _edit_distance() -> Callable[[Iterable[Hashable], Iterable[Hashable]], int]:
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        return levenshtein
    return lambda left, right: Levenshtein.distance(list(left), list(right))


def levenshtein(left: Iterable[Hashable], right: Iterable[Hashable]) -> int:
    """Least number of insertions, deletions and substitutions between two item sequences."""
    columns = list(right)
    previous = list(range(len(columns) + 1))
    for row, item in enumerate(left, start=1):
        current = [row]
        for column, other in enumerate(columns, start=1):
            substituted = previous[column - 1] + (item != other)
            current.append(min(previous[column] + 1, current[-1] + 1, substituted))
        previous = current
    return previous[-1]


SHIMS: tuple[Callable[[], str | None], ...] = (
    checkpoint_loading,
    literals.literal_options,
    compat_speech.audio_reading,
    compat_speech.audio_root,
    compat_speech.sample_rate_guard,
    compat_speech.feature_shape_guard,
    hub.hub_interface,
    examples_alias,
    freeze_regex,
    conv_version,
    last_batch,
    wer_scorer,
)
_applied: tuple[Shim, ...] | None = None


def apply_shims() -> tuple[Shim, ...]:
    """Repair the Fairseq of this process; further calls only return the first call's result.

    Raises:
        OptionError: `FAIRSEQ_OPENVINO_DISABLE_SHIMS` names a shim that does not exist.
    """
    global _applied  # noqa: PLW0603 - Fairseq is process-wide, so is its repair.
    if _applied is None:
        disabled = _disabled_names()
        _applied = tuple(_apply(shim, disabled) for shim in SHIMS)
    return _applied


def _disabled_names() -> set[str]:
    names = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")} - {""}
    known = [shim.__name__ for shim in SHIMS]
    if not names.issubset(known):
        raise OptionError(
            f"Reading the environment failed in {DISABLE_VARIABLE}: expected names out of "
            f"{', '.join(known)}, got {sorted(names.difference(known))}. Correct the variable."
        )
    return names


def _apply(shim: Callable[[], str | None], disabled: set[str]) -> Shim:
    if shim.__name__ in disabled:
        return Shim(shim.__name__, False, f"switched off by {DISABLE_VARIABLE}")
    not_needed = shim()
    if not_needed is not None:
        return Shim(shim.__name__, False, f"not needed: {not_needed}")
    return Shim(shim.__name__, True, (shim.__doc__ or "").splitlines()[0])
