"""Random models, their data, and in-process `fairseq-generate` for the tests."""

from __future__ import annotations

import copy
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from whisper_models import LAYOUTS, Pair, write_pair

from fairseq_openvino.atomic import locked
from fairseq_openvino.measure.material.corpora import write_data
from fairseq_openvino.measure.material.s2t import (
    random_model,  # noqa: F401  for the tests, from here
    write_checkpoint,
)
from fairseq_openvino.measure.material.whisper import Layout, write_whisper

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fairseq_openvino"
MINI = ROOT / "examples" / "covost" / "mini"
MICRO_WHISPER = MINI.parent / "whisper" / "mini"
TINY = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "conv_channels": 32,
}
"""Model arguments that make any s2t_transformer small."""


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    """Each test starts from the same random state."""
    np.random.seed(0)


Shared = Callable[[str, Callable[[Path], object]], Path]
"""`shared(name, make)`: a directory that is made once in a test run, by whoever wants it first."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Between all processes of pytest-xdist; what is in it is not written to."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"

    def get(name: str, make: Callable[[Path], object]) -> Path:
        directory, made = root / name, root / f"{name}.made"
        with locked(root / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
                make(directory)
                made.touch()
        return directory

    return get


@pytest.fixture(scope="session")
def cache_dir(shared: Shared) -> Path:
    """A cache of exported bundles for this test run; it locks itself."""
    return shared("cache", lambda _: None)


@pytest.fixture(scope="session")
def tiny(shared: Shared) -> Path:
    """Data directory with a tiny random checkpoint, `checkpoint.pt`, and 21 utterances."""

    def make(directory: Path) -> None:
        write_checkpoint(directory, "s2t_transformer_s", vocabulary=60, **TINY)
        write_data(directory, utterances=21, frames=(30, 260))

    return shared("tiny", make)


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Path, cache_dir: Path) -> Path:
    """Its bundle, exported as --ov-engine does on first use."""
    from fairseq_openvino.export.fairseq import cached_bundle
    from fairseq_openvino.export.fairseq.data import DataDirectory

    return cached_bundle(tiny / "checkpoint.pt", DataDirectory(tiny), {}, cache_dir).directory


@pytest.fixture(scope="session")
def mini_bundle(shared: Shared) -> Path:
    """The shipped checkpoint as a bundle, with its ONNX graphs."""

    def make(directory: Path) -> None:
        from fairseq_openvino.export.fairseq import export_checkpoint
        from fairseq_openvino.export.fairseq.data import DataDirectory
        from fairseq_openvino.export.options import ExportOptions

        data, options = DataDirectory(MINI, "config_st_en_de.yaml"), ExportOptions(keep_onnx=True)
        export_checkpoint(MINI / "checkpoint.pt", data, directory / "bundle", options)

    return shared("mini", make) / "bundle"


@pytest.fixture(scope="session")
def recognizer(mini_bundle: Path) -> Any:
    """The shipped model, loaded."""
    from fairseq_openvino import load_model

    return load_model(mini_bundle)


@pytest.fixture(scope="session")
def whisper(shared: Shared) -> Path:
    """A random Whisper of 8 s as a Hugging Face directory; it writes text only."""

    def make(directory: Path) -> None:
        write_whisper(directory, Layout(positions=400, targets=64, text_only=True))
        (directory / "normalizer.json").write_text('{"colour": "color"}')

    return shared("whisper", make)


@pytest.fixture(scope="session")
def whisper_bundle(whisper: Path, shared: Shared) -> Path:
    """Its bundle."""

    def make(directory: Path) -> None:
        from fairseq_openvino.export.whisper import export_whisper

        export_whisper(whisper, directory / "bundle")

    return shared("whisper-bundle", make) / "bundle"


@pytest.fixture(scope="session")
def micro_whisper(shared: Shared) -> Path:
    """The shipped micro-Whisper as a bundle."""

    def make(directory: Path) -> None:
        from fairseq_openvino.export.whisper import export_whisper

        export_whisper(MICRO_WHISPER, directory / "bundle")

    return shared("whisper-mini", make) / "bundle"


@pytest.fixture(scope="session")
def ctc_head(shared: Shared) -> Path:
    """A tiny random model with a CTC head, its data and, as `bundle`, its head alone."""

    def make(directory: Path) -> None:
        from test_ctc import export_head, head_checkpoint

        path = head_checkpoint(directory, **TINY)
        write_data(directory, utterances=9, frames=(8, 260))
        export_head(path, directory / "bundle")

    return shared("ctc-head", make)


@pytest.fixture(scope="session")
def pairs(shared: Shared) -> Callable[[str], Pair]:
    """Random Whispers and their bundles, by the name of their layout; made when first asked for."""

    @cache
    def pair(name: str) -> Pair:
        layout = LAYOUTS[name]
        return Pair(shared(f"whisper-{name}", lambda at: write_pair(at, layout)), layout)

    return pair


@pytest.fixture(scope="session")
def multilingual(pairs: Callable[[str], Pair]) -> Pair:
    """For what does not differ between layouts."""
    return pairs("multilingual")


def mini_data(directory: Path, clips: Sequence[Path]) -> Path:
    """A data directory of the shipped model with some of its clips as the subset `test`."""
    for path in MINI.iterdir():
        name = "config.yaml" if path.suffix == ".yaml" else path.name
        if path.is_file():
            (directory / name).symlink_to(path)
    rows = (f"{clip.stem}\t{clip}\t300\tein Satz\n" for clip in clips)
    (directory / "test.tsv").write_text("id\taudio\tn_frames\ttgt_text\n" + "".join(rows))
    return directory


def write_table(path: Path, *rows: tuple[str, ...]) -> Path:
    """A TSV file."""
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tone(path: Path, seconds: float = 0.5) -> Path:
    """An audio file at 16 kHz; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.sin(np.arange(int(16000 * seconds)) / 20)
    soundfile.write(path, wave, 16000)
    return path


def generate(data: Path, *flags: str, path: str | None = None, config: str = "config.yaml") -> Any:
    """Run fairseq-generate in this process; returns a `verify.Run`."""
    from fairseq import checkpoint_utils, options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli.generate import _main

    import fairseq_openvino.tasks.speech_to_text_openvino  # noqa: F401  --user-dir does this
    from fairseq_openvino.commands.verify import parse_generate

    words = [
        str(data), "--config-yaml", config, "--gen-subset", "test", "--task", "speech_to_text",
        "--path", path or str(data / "checkpoint.pt"), "--scoring", "sacrebleu",
        "--user-dir", str(PACKAGE), "--num-workers", "0", "--no-progress-bar", *flags,
    ]  # fmt: skip
    if "--batch-size" not in flags and "--max-tokens" not in flags:
        words += ["--max-tokens", "50000"]
    before = sys.argv
    sys.argv = ["fairseq-generate", *words]  # Fairseq looks for --user-dir there
    try:
        parser = options.get_generation_parser()
        parser.add_argument("--arch", default="wav2vec2")  # as fairseq_cli.generate.cli_main does
        arguments = options.parse_args_and_arch(parser, input_args=words)
        composed, output = convert_namespace_to_omegaconf(arguments), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint_utils, "convert_namespace_to_omegaconf", _converted)
            _main(composed, output)
    finally:
        sys.argv = before
    return parse_generate(output.getvalue())


_CONVERTED: dict[str, Any] = {}


def _converted(arguments: Any) -> Any:
    """Fairseq's configuration of a checkpoint's arguments; composing it takes longer than decoding."""
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    key = repr(arguments)
    if key not in _CONVERTED:
        _CONVERTED[key] = convert_namespace_to_omegaconf(arguments)
    return copy.deepcopy(_CONVERTED[key])


def generate_both(data: Path, cache: Path, *flags: str, **options: Any) -> tuple[Any, Any]:
    """The eager run and the engine's."""
    eager = generate(data, *flags, **options)
    engine = generate(data, *flags, "--ov-engine", "--ov-cache-dir", str(cache), **options)
    return eager, engine


def assert_identical(eager: Any, engine: Any) -> None:
    """The same hypotheses in the same order, with scores within the tolerance of `verify`."""
    from fairseq_openvino.commands.verify import compare

    comparison = compare(eager, engine)
    assert comparison.passed, comparison


def child_environment(**extra: str) -> dict[str, str]:
    """Environment of a subprocess that must find the package in this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | extra


STAGE = """
import os, signal, sys
from pathlib import Path
from fairseq_openvino.atomic import staged_directory

target, moment = Path(sys.argv[1]), sys.argv[2]
rename, renames = os.rename, []

def killed_at(source, destination):
    if moment == f"rename {len(renames)}":
        os.kill(os.getpid(), signal.SIGKILL)
    renames.append(rename(source, destination))

os.rename = killed_at
with staged_directory(target, overwrite=True) as stage:
    (stage / "a").write_text("new")
    print("staged", flush=True)
    if moment == "wait":
        sys.stdin.readline()
"""


def staging(target: Path, moment: str) -> subprocess.Popen[str]:
    """A process that publishes `target`, killed at some moment; it has written its file."""
    command = [sys.executable, "-c", STAGE, str(target), moment]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment()
    )
    assert process.stdout is not None and process.stdout.readline() == "staged\n"
    return process


def killed_while_staging(target: Path, moment: str) -> None:
    """What such a process leaves behind."""
    process = staging(target, moment)
    if moment == "wait":
        process.kill()
    assert process.wait(20) == -signal.SIGKILL
    process.communicate()
