"""Where models come from, and how each form is told; loads neither torch nor transformers.

| what is given                                                          | form           |
|------------------------------------------------------------------------|----------------|
| directory with `adapter_config.json`, its base model named in it       | `ADAPTER`      |
| directory with `model.bin`                                             | `CTRANSLATE2`  |
| directory with `config.json` or weights; one of its weight files       | `HUGGING_FACE` |
| the same, of the model type `speech_to_text`                           | `SPEECH2TEXT`  |
| any other file                                                         | `OPENAI`       |
| a name: `base`, `turbo`, `distil-large-v3`, `owner/repository`         | as downloaded  |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from fairseq_openvino.atomic import read_whole
from fairseq_openvino.errors import CheckpointError, MissingDependencyError, failure

T = TypeVar("T")
_fail = partial(failure, CheckpointError, "Loading a model")

ADAPTER, CTRANSLATE2 = "PEFT adapter", "CTranslate2 directory"
HUGGING_FACE, OPENAI = "Hugging Face directory", "OpenAI checkpoint"
SPEECH2TEXT, SPEECH2TEXT_TYPE = "Speech2Text directory", "speech_to_text"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CTRANSLATE2_WEIGHTS = "model.bin"
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
MARKS = (
    (ADAPTER, (ADAPTER_CONFIG,)),
    (CTRANSLATE2, (CTRANSLATE2_WEIGHTS,)),
    (HUGGING_FACE, ("config.json", *SAFETENSORS, *PICKLES)),
)
"""Form of a directory that holds one of these files; the first row that fits."""
FOREIGN = (
    ("openvino_*_model.xml", "an OpenVINO export of optimum-intel"),
    ("*_model.onnx", "an ONNX export of optimum"),
    ("flax_model.msgpack", "Flax weights"),
    ("tf_model.h5", "TensorFlow weights"),
    ("*.gguf", "GGUF weights"),
    ("ggml-*.bin", "weights of whisper.cpp"),
)
"""Forms that nothing reads, and what they are: the model they were made from is to be passed."""
WEIGHTS_OF_A_DIRECTORY = (".safetensors", ".bin")
TOKENIZERS = ("tokenizer.json", "*.tiktoken", "vocab.json", "merges.txt", "added_tokens.json")
DESCRIPTIONS = ("config.json", "*_config.json", "*.model", *TOKENIZERS)
WEIGHTS = {
    ADAPTER: (ADAPTER_WEIGHTS,),
    CTRANSLATE2: (CTRANSLATE2_WEIGHTS,),
    HUGGING_FACE: (
        "model.safetensors",
        "model-*-of-*.safetensors",
        "pytorch_model.bin",
        "pytorch_model-*-of-*.bin",
    ),
}
"""File patterns by form; the first of which there is a file holds the weights, as of transformers."""

WEIGHTS[SPEECH2TEXT] = WEIGHTS[HUGGING_FACE]

HUB_NAMES = {
    **{
        name: f"openai/whisper-{name}"
        for size in ("tiny", "base", "small", "medium")
        for name in (size, f"{size}.en")
    },
    **{name: f"openai/whisper-{name}" for name in ("large-v2", "large-v3", "large-v3-turbo")},
    "large-v1": "openai/whisper-large",
    "large": "openai/whisper-large-v3",
    "turbo": "openai/whisper-large-v3-turbo",
    **{
        f"distil-{name}": f"distil-whisper/distil-{name}"
        for name in ("small.en", "medium.en", "large-v2", "large-v3", "large-v3.5")
    },
}
"""Short names of openai-whisper and faster-whisper, to hub repositories."""
MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True)
class Place:
    """A model as it lies on disk."""

    form: str
    path: Path
    """A directory, or the file of an OpenAI checkpoint."""
    name: str
    """What the user called it."""
    origin: dict[str, str]
    """For the manifest of a bundle."""
    base: Place | None = None
    """Of an adapter."""

    @property
    def weights(self) -> tuple[Path, ...]:
        """Files with parameters, in order; none if they are missing."""
        return (self.path,) if self.path.is_file() else weight_files(self.path, self.form)

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that shapes a bundle."""
        single = self.path.is_file()
        directory = self.path.parent if single else self.path
        patterns = TOKENIZERS if single else DESCRIPTIONS
        described = {path for pattern in patterns for path in directory.glob(pattern)}
        base = () if self.base is None else self.base.files
        return (*self.weights, *sorted(described), *base)


def weight_files(directory: Path, form: str) -> tuple[Path, ...]:
    """The files with parameters in a directory of a form, in order; none if they are missing."""
    for pattern in WEIGHTS[form]:
        if found := sorted(path for path in directory.glob(pattern) if path.is_file()):
            return tuple(found)
    return ()


def joined(shards: Iterable[tuple[Path, Mapping[str, T]]]) -> dict[str, T]:
    """The parameters of all files, by name.

    Raises:
        CheckpointError: two files have one of the same name.
    """
    found: dict[str, T] = {}
    for path, parameters in shards:
        twice = sorted(found.keys() & parameters.keys())
        if twice:
            advice = "Remove the files of another model"
            raise _fail(path, "each tensor in one file", f"{twice[0]!r} in two", advice)
        found |= parameters
    return found


def locate(source: str | Path) -> Place:
    """Find a model of transformers, OpenAI or CTranslate2.

    Args:
        source: a path, or a name on the hub, long or short; see the table above.

    Raises:
        CheckpointError: there is no such model, or it has a form that is not read.
        MissingDependencyError: the hub's library is not installed.
    """
    path, name = Path(source), str(source)
    if path.is_file():
        _refuse_foreign([path], name)
        if path.suffix not in WEIGHTS_OF_A_DIRECTORY:
            return Place(OPENAI, path, name, {"file": path.name})
        path = path.parent
    if path.is_dir():
        return _directory(path, name, {"directory": path.absolute().name})
    if name not in HUB_NAMES and (
        path.suffix in (".pt", ".pth", *WEIGHTS_OF_A_DIRECTORY)
        or path.is_absolute()
        or name.startswith(".")
        or name.count("/") != 1
    ):
        raise _fail(
            repr(name), "a bundle, a model or a hub name", "no such file",
            f"Check the path; short names are {', '.join(HUB_NAMES)}",
        )  # fmt: skip
    repository = HUB_NAMES.get(name, name)
    return _directory(_downloaded(repository), name, {"hub": repository})


def _directory(path: Path, name: str, origin: dict[str, str]) -> Place:
    forms = (form for form, marks in MARKS if any((path / mark).is_file() for mark in marks))
    form = next(forms, None)
    if form is None:
        _refuse_foreign(path.iterdir(), name)
        raise _lacking("manifest.json of a bundle or config.json of a model", path, name)
    config = path / "config.json"
    if form == HUGGING_FACE and config.is_file():
        is_speech2text = read_json(config, name).get("model_type") == SPEECH2TEXT_TYPE
        form = SPEECH2TEXT if is_speech2text else form
    place = Place(form, path, name, origin, _base(path, name) if form == ADAPTER else None)
    if not place.weights:
        _refuse_foreign(path.iterdir(), name)
        raise _lacking(WEIGHTS[form][0], path, name)
    return place


def _base(adapter: Path, name: str) -> Place:
    """The model that an adapter was trained on, as a path, also from the adapter, or a hub name."""
    stated = read_json(adapter / ADAPTER_CONFIG, name).get("base_model_name_or_path")
    if not isinstance(stated, str) or not stated:
        raise _fail(
            repr(name), f"base_model_name_or_path in {ADAPTER_CONFIG}", repr(stated),
            "Write the path or hub name of the base model there",
        )  # fmt: skip
    beside = adapter / stated
    path = beside if beside.exists() else Path(stated)
    if (path / ADAPTER_CONFIG).is_file():
        raise _fail(
            repr(name), "an adapter of a model", "one of another adapter", "Merge that first"
        )
    return locate(beside if beside.exists() else stated)


def read_json(path: Path, name: str) -> dict[str, object]:
    """A JSON object of a model; `name` is what messages call the model.

    Raises:
        CheckpointError: the file is missing, large or something else.
    """
    advice = "Take it from where the model was trained or downloaded"
    try:
        content = json.loads(read_whole(path, MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _fail(repr(name), f"a readable {path.name}", reason, advice) from error
    if isinstance(content, dict):
        return content
    raise _fail(repr(name), f"a JSON object in {path.name}", type(content).__name__, advice)


def _refuse_foreign(paths: Iterable[Path], name: str) -> None:
    """Raise the error of a form that is known and not read."""
    found = list(paths)
    for pattern, what in FOREIGN:
        if any(path.match(pattern) for path in found):
            raise _fail(
                repr(name), "a bundle or a Whisper model in its original form", what,
                "Pass the model it was made from: a Hugging Face directory, an OpenAI .pt file, a "
                "CTranslate2 directory or a name such as base",
            )  # fmt: skip


def _lacking(wanted: str, path: Path, name: str) -> CheckpointError:
    found = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(found[:10]) + (" ..." if found[10:] else "") or "an empty directory"
    advice = (
        "Pass a bundle, a Hugging Face or CTranslate2 directory, an OpenAI .pt file or a hub name"
    )
    return _fail(repr(name), wanted, shown, advice)


HUB_FILES = (
    "*.json", "*.model", "merges.txt", "vocabulary.txt", "model.safetensors", "model-*-of-*.safetensors",
    ADAPTER_WEIGHTS,
)  # fmt: skip
HUB_PICKLES = (CTRANSLATE2_WEIGHTS, "pytorch_model.bin", "pytorch_model-*-of-*.bin")
"""Asked for where there is nothing of the first kind."""


def _downloaded(name: str) -> Path:
    """A snapshot of a hub repository, through the hub's own library and cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise failure(
            MissingDependencyError, "Downloading a model", repr(name), "the package huggingface_hub",
            error, "Install fairseq-openvino[whisper-export], or pass a path",
        ) from error  # fmt: skip
    try:
        path = Path(snapshot_download(name, allow_patterns=[*HUB_FILES]))
        if not any(path.glob("*.safetensors")):
            path = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, *HUB_PICKLES]))
        return path
    except Exception as error:  # the hub's library raises many kinds, and the network more
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"Downloading a Whisper checkpoint failed for {name!r}: expected a hub repository that "
            f"can be reached, got {reason!r}. Download it where there is network "
            f"(hf download {name} --local-dir DIR) and pass DIR."
        ) from error
