"""Random models, data directories and in-process `fairseq-generate` for the tests."""

from __future__ import annotations

import io
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whisper_models import Layout, write_whisper

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fairseq_openvino"
MINI = ROOT / "examples" / "covost" / "mini"
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


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of exported bundles for this test run."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data directory with a tiny random checkpoint, `checkpoint.pt`, and 21 utterances."""
    directory = tmp_path_factory.mktemp("tiny")
    write_checkpoint(directory, "s2t_transformer_s", vocabulary=60, **TINY)
    write_data(directory, utterances=21, frames=(30, 260))
    return directory


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Whisper of 8 s as a Hugging Face directory; it writes text only."""
    directory = tmp_path_factory.mktemp("whisper")
    write_whisper(directory, Layout(positions=400, targets=64, text_only=True))
    (directory / "normalizer.json").write_text('{"colour": "color"}')
    return directory


def random_model(
    arch: str, vocabulary: int = 60, seed: int = 0, **overrides: Any
) -> tuple[Any, Namespace, Any]:
    """A Fairseq S2T model with random weights, its arguments and dictionary."""
    import torch
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    torch.manual_seed(seed)
    dictionary = Dictionary()
    for i in range(vocabulary - 4):
        dictionary.add_symbol(f"t{i}")
    arguments = Namespace(
        arch=arch, task="speech_to_text", max_source_positions=6000, max_target_positions=1024,
        input_feat_per_channel=80, input_channels=1, **overrides,
    )  # fmt: skip
    ARCH_CONFIG_REGISTRY[arch](arguments)
    task = Namespace(target_dictionary=dictionary)
    model = ARCH_MODEL_REGISTRY[arch].build_model(arguments, task)
    with torch.no_grad():  # untrained output layers are nearly flat: sharpen them
        model.decoder.output_projection.weight.mul_(4)
    return model.eval(), arguments, dictionary


def write_checkpoint(
    directory: Path, arch: str, name: str = "checkpoint.pt", **options: Any
) -> Path:
    """A checkpoint as fairseq-train writes it (legacy `args`), with dictionary and YAML."""
    import torch

    model, arguments, dictionary = random_model(arch, **options)
    dictionary.save(str(directory / "dict.txt"))
    (directory / "config.yaml").write_text(
        "vocab_filename: dict.txt\ninput_feat_per_channel: 80\ninput_channels: 1\n"
    )
    arguments.data, arguments.config_yaml = str(directory), "config.yaml"
    history = {"criterion_name": "x", "optimizer_name": "y", "lr_scheduler_state": {}}
    state = {
        "args": arguments,
        "model": model.state_dict(),
        "optimizer_history": [history | {"num_updates": 1}],
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
    }
    torch.save(state, directory / name)
    return directory / name


def write_data(
    directory: Path, utterances: int, frames: tuple[int, int], subset: str = "test", seed: int = 0
) -> None:
    """A manifest of random features with random references from the dictionary."""
    random = np.random.default_rng(seed)
    (directory / "features").mkdir(exist_ok=True)
    rows = ["id\taudio\tn_frames\ttgt_text\tspeaker"]
    for i in range(utterances):
        length = int(random.integers(frames[0], frames[1] + 1))
        path = directory / "features" / f"{subset}-{i}.npy"
        np.save(path, random.standard_normal((length, 80)).astype(np.float32))
        text = " ".join(f"t{t}" for t in random.integers(0, 40, random.integers(3, 9)))
        rows.append(f"{subset}{i}\t{path}\t{length}\t{text}\tspeaker")
    (directory / f"{subset}.tsv").write_text("\n".join(rows) + "\n")


def generate(data: Path, *flags: str, path: str | None = None, config: str = "config.yaml") -> Any:
    """Run fairseq-generate in this process; returns a `verify.Run`."""
    from fairseq import options
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
        output = io.StringIO()
        _main(convert_namespace_to_omegaconf(arguments), output)
    finally:
        sys.argv = before
    return parse_generate(output.getvalue())


def generate_both(data: Path, cache: Path, *flags: str, **options: Any) -> tuple[Any, Any]:
    """The eager run and the engine's."""
    eager = generate(data, *flags, **options)
    engine = generate(data, *flags, "--ov-engine", "--ov-cache-dir", str(cache), **options)
    return eager, engine


def child_environment(**extra: str) -> dict[str, str]:
    """Environment of a subprocess that must find the package in this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | extra
