"""Text translation: Fairseq's `transformer` from the checkpoint to the commands."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PACKAGE, Shared, assert_identical

from fairseq_openvino.export.fairseq import export_checkpoint
from fairseq_openvino.export.fairseq.text import TextDirectory

SENTENCES = 21
SHARPNESS = 4.0
TINY = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
}
ODD: tuple[dict[str, Any], ...] = (
    {"encoder_normalize_before": True, "decoder_normalize_before": True, "activation_fn": "gelu"},
    {"encoder_learned_pos": True, "decoder_learned_pos": True, "layernorm_embedding": True},
    {"share_all_embeddings": True, "no_scale_embedding": True},
    {"share_decoder_input_output_embed": True, "no_token_positional_embeddings": True},
    {"decoder_embed_dim": 48, "decoder_attention_heads": 3, "decoder_ffn_embed_dim": 40},
    {"decoder_input_dim": 24, "decoder_output_dim": 40, "max_source_positions": 140},
    {"encoder_layerdrop": 0.3, "decoder_layerdrop": 0.3, "encoder_ffn_embed_dim": 40},
)


def checkpoint(
    directory: Path,
    arch: str = "transformer",
    vocabulary: tuple[int, int] = (50, 60),
    **options: Any,
) -> Path:
    """A random model with binarized data of `SENTENCES` random sentences; its path."""
    from fairseq.data import Dictionary, indexed_dataset
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    torch.manual_seed(0)
    if options.get("share_all_embeddings"):
        vocabulary = vocabulary[1], vocabulary[1]
    random, dictionaries = np.random.default_rng(0), []
    for language, size in zip(("en", "de"), vocabulary, strict=True):
        dictionary = Dictionary()
        for i in range(size - 4):
            dictionary.add_symbol(f"t{i}")
        dictionary.save(str(directory / f"dict.{language}.txt"))
        dictionaries.append(dictionary)
        builder = indexed_dataset.make_builder(
            str(directory / f"test.en-de.{language}.bin"), impl="mmap", vocab_size=size
        )
        for length in random.integers(1, 30, SENTENCES):
            builder.add_item(torch.tensor([*random.integers(4, size, length), 2]))
        builder.finalize(str(directory / f"test.en-de.{language}.idx"))
    arguments = Namespace(
        arch=arch, task="translation", source_lang="en", target_lang="de", data=str(directory),
        **{"max_source_positions": 1024, "max_target_positions": 1024} | options,
    )  # fmt: skip
    ARCH_CONFIG_REGISTRY[arch](arguments)
    task = Namespace(source_dictionary=dictionaries[0], target_dictionary=dictionaries[1])
    model = ARCH_MODEL_REGISTRY[arch].build_model(arguments, task)
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(SHARPNESS)
    history = {"criterion_name": "x", "optimizer_name": "y", "lr_scheduler_state": {}}
    state = {
        "args": arguments,
        "model": model.state_dict(),
        "optimizer_history": [history | {"num_updates": 1}],
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
    }
    torch.save(state, directory / "checkpoint.pt")
    return directory / "checkpoint.pt"


@pytest.fixture(scope="session")
def tiny_text(shared: Shared) -> Path:
    """Data directory with a tiny random checkpoint."""
    return shared("tiny-text", lambda directory: checkpoint(directory, **TINY))


@pytest.mark.parametrize(
    "options", [{}, *(pytest.param(each, marks=pytest.mark.soak) for each in ODD)], ids=",".join
)
def test_options_reproduce_fairseq(options: dict[str, Any], tmp_path: Path) -> None:
    path = checkpoint(tmp_path, **(TINY | options))
    bundle, report = export_checkpoint(path, TextDirectory(tmp_path), tmp_path / "bundle")
    assert report.passed
    assert bundle.manifest.source["target_lang"] == "de"


def run(data: Path, *flags: str, typed: str | None = None) -> Any:
    """`fairseq-generate`, or `fairseq-interactive` of what is typed, in this process: a `verify.Run`."""
    import fairseq_cli.generate
    import fairseq_cli.interactive
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    import fairseq_openvino.tasks.speech_to_text_openvino  # noqa: F401  --user-dir does this
    from fairseq_openvino.commands.verify import parse_generate

    words = [
        str(data), "--task", "translation", "--path", str(data / "checkpoint.pt"),
        "--user-dir", str(PACKAGE), "--num-workers", "0", "--no-progress-bar",
        "--max-len-b", "20", *flags,
    ]  # fmt: skip
    output, interactive = io.StringIO(), typed is not None
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.setattr(sys, "argv", ["fairseq-generate", *words])
        patch.setattr(sys, "stdin", io.StringIO(typed))
        if interactive:
            parser = options.get_interactive_generation_parser()
        else:
            parser = options.get_generation_parser()
            words += ["--scoring", "sacrebleu", "--required-batch-size-multiple", "1"]
        parser.add_argument("--arch", default="wav2vec2")
        arguments = options.parse_args_and_arch(parser, input_args=words)
        configuration = convert_namespace_to_omegaconf(arguments)
        if interactive:
            fairseq_cli.interactive.main(configuration)
        else:
            fairseq_cli.generate._main(configuration, output)
    return parse_generate(output.getvalue())


@pytest.mark.parametrize(
    "flags",
    [
        ("--beam", "5", "--nbest", "5", "--batch-size", "8"),
        *(
            pytest.param(("--beam", beam, "--batch-size", size), marks=pytest.mark.soak)
            for beam in ("1", "5")
            for size in ("1", "3", "8", "32")
        ),
        pytest.param(
            ("--prefix-size", "2", "--max-len-a", "1.5", "--max-len-b", "3"), marks=pytest.mark.soak
        ),
        pytest.param(("--temperature", "1.3", "--remove-bpe"), marks=pytest.mark.soak),
        pytest.param(("--sampling", "--nbest", "5", "--seed", "1"), marks=pytest.mark.soak),
        pytest.param(("--score-reference",), marks=pytest.mark.soak),
    ],
    ids=" ".join,
)
def test_generate_is_identical(
    tiny_text: Path,
    cache_dir: Path,
    flags: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    eager = run(tiny_text, *flags)
    with caplog.at_level("INFO", "fairseq_openvino"):
        engine = run(tiny_text, *flags, "--ov-engine", "--ov-cache-dir", str(cache_dir))
    assert "OpenVINO engine: transformer" in caplog.text
    assert_identical(eager, engine)


def test_interactive_is_identical(tiny_text: Path, cache_dir: Path) -> None:
    typed = "t1 t2 t3\nt4 <pad> unknown t5\n\nt6\n"
    flags = "--beam", "3", "--buffer-size", "4", "--batch-size", "4"
    engine = run(tiny_text, *flags, "--ov-engine", "--ov-cache-dir", str(cache_dir), typed=typed)
    assert_identical(run(tiny_text, *flags, typed=typed), engine)
