"""`dual_input_s2t_transformer`: its speech branch against Fairseq's own, in its own task."""

from __future__ import annotations

from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Shared, assert_identical, generate, generate_both, write_data
from fairseq.data import Dictionary
from fairseq.dataclass.utils import _set_legacy_defaults
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

from fairseq_openvino.compat.shims import apply_shims
from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.fairseq import dual_input, export_checkpoint
from fairseq_openvino.export.fairseq.checkpoint import JOINT_MODELS
from fairseq_openvino.export.fairseq.data import DataDirectory

TINY: dict[str, Any] = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "speech_encoder_layers": 2,
    "text_encoder_layers": 2,
    "decoder_layers": 2,
    "conv_channels": 32,
    "add_speech_eos": True,
}
"""Model arguments that make any member small."""
JOINT = ("--task", "speech_text_joint_to_text", "--load-speech-only", "--max-len-b", "20")


def joint_model(
    arch: str = "dualinputs2ttransformer_s", **options: Any
) -> tuple[Any, Namespace, Any]:
    """A model with random weights, its arguments and its dictionary."""
    apply_shims()
    import_module(JOINT_MODELS)
    torch.manual_seed(0)
    dictionary = Dictionary()
    for i in range(56):
        dictionary.add_symbol(f"t{i}")
    stated = {"arch": arch, "max_source_positions": 6000, "max_target_positions": 1024}
    arguments = Namespace(**stated, input_feat_per_channel=80, input_channels=1, **options)
    ARCH_CONFIG_REGISTRY[arch](arguments)
    _set_legacy_defaults(arguments, ARCH_MODEL_REGISTRY[arch])
    task = Namespace(target_dictionary=dictionary, src_dict=dictionary)
    model = ARCH_MODEL_REGISTRY[arch].build_model(arguments, task)
    for name, weights in model.state_dict().items():
        if name.endswith("output_projection.weight"):
            weights.mul_(1.5)
        if name.endswith("eos_emb"):
            weights.normal_()
    return model.eval(), arguments, dictionary


def checkpoint(directory: Path, **options: Any) -> Path:
    """A tiny random checkpoint with its data directory."""
    model, arguments, dictionary = joint_model(**(TINY | options))
    for name in ("dict.txt", "src_dict.txt"):
        dictionary.save(str(directory / name))
    (directory / "config.yaml").write_text("vocab_filename: dict.txt\n")
    arguments.task, arguments.data, arguments.config_yaml = JOINT[1], str(directory), "config.yaml"
    arguments.load_speech_only, arguments.parallel_text_data = True, ""
    history = {
        "criterion_name": "x",
        "optimizer_name": "y",
        "lr_scheduler_state": {},
        "num_updates": 1,
    }
    state = {
        "args": arguments, "model": model.state_dict(), "optimizer_history": [history],
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1}}, "last_optimizer_state": None,
    }  # fmt: skip
    torch.save(state, directory / "checkpoint.pt")
    return directory / "checkpoint.pt"


@pytest.fixture(scope="module")
def joint(shared: Shared) -> Path:
    def make(directory: Path) -> None:
        checkpoint(directory)
        write_data(directory, utterances=6, frames=(30, 140))

    return shared("joint", make)


@pytest.mark.soak
def test_hypotheses_are_fairseqs(joint: Path, cache_dir: Path) -> None:
    """In the model's own task, and the same in `speech_to_text`, where Fairseq cannot build it."""
    import_module("fairseq.examples.speech_text_joint_to_text.tasks.speech_text_joint")
    eager, engine = generate_both(joint, cache_dir, *JOINT, "--beam", "5", "--nbest", "3")
    assert_identical(eager, engine)
    flags = ("--max-len-b", "20", "--beam", "5", "--nbest", "3")
    alone = generate(joint, *flags, "--ov-engine", "--ov-cache-dir", str(cache_dir))
    assert_identical(eager, alone)


@pytest.mark.parametrize(
    "options",
    [
        {"layernorm_embedding": True, "decoder_normalize_before": False},
        *(
            pytest.param(options, marks=pytest.mark.soak)
            for options in (
                {"add_speech_eos": False, "decoder_shared_layer_level": 1},
                {
                    "encoder_shared_layers": 1,
                    "encoder_shared_layer_level": 2,
                    "decoder_shared_layer_level": 2,
                },
                {"conv_kernel_sizes": "3"},
            )
        ),
    ],
    ids=str,
)
def test_options_reproduce_fairseq(options: dict[str, Any], tmp_path: Path) -> None:
    path = checkpoint(tmp_path, **options)
    assert export_checkpoint(path, DataDirectory(tmp_path), tmp_path / "bundle")[1].passed


def test_adapter_is_refused() -> None:
    model, arguments, _ = joint_model(**TINY, speech_encoder_adapter_type="Linear")
    with pytest.raises(ArchitectureError, match="speech_encoder_adapter_type, got 'Linear'"):
        dual_input.build(model, arguments)
