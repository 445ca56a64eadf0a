"""Fairseq checkpoints with random weights, of any architecture."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from fairseq_openvino.measure.material.corpora import (
    FEATURE_BINS,
    SOURCE_LANGUAGE,
    SPECIAL_SYMBOLS,
    TARGET_LANGUAGE,
    describe,
)

SHARPNESS = 4.0
"""Untrained output layers are nearly flat, and a flat search would compare rounding errors."""
GAINS = {"s2t_berard": 4.0, "xm_transformer": 2.0}
"""Factor of matrices by model name: at Fairseq's initial scale these decoders hear all audio alike."""
WAV2VEC = "w2v"
"""Override that holds the arguments of a wav2vec 2.0 encoder."""
TASKS = {
    "transformer": "translation",
    "wav2vec_seq2seq": "audio_finetuning",
    "wav2vec_ctc": "audio_finetuning",
}
"""Fairseq's task by model name, where it is not `speech_to_text`."""
SAMPLES = 1_000_000
"""`max_source_positions` of waveforms."""
LIMITS = {"max_source_positions": 6000, "max_target_positions": 1024}


def random_model(
    arch: str,
    vocabulary: int = 60,
    seed: int = 0,
    sharpness: float = SHARPNESS,
    gain: float | None = None,
    source_vocabulary: int | None = None,
    **overrides: Any,
) -> tuple[Any, Any, Any]:
    """A model with random weights, as Fairseq builds it.

    Args:
        arch: of Fairseq's registry, as `s2t_transformer_s`.
        vocabulary: V, special symbols included.
        seed: of the weights.
        sharpness: factor of the output layer's weights.
        gain: factor of matrices outside wav2vec 2.0; None: that of `GAINS`.
        source_vocabulary: V of what a text model reads; None: as what it writes.
        overrides: model arguments; `w2v` is a dictionary of those of a wav2vec 2.0 encoder.

    Returns:
        The model in eval mode, its arguments, and its dictionary.
    """
    import torch
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY

    torch.manual_seed(seed)
    dictionary, source = Dictionary(), Dictionary()
    for each, size in ((dictionary, vocabulary), (source, source_vocabulary or vocabulary)):
        for i in range(size - SPECIAL_SYMBOLS):
            each.add_symbol(f"t{i}")
    name = ARCH_MODEL_NAME_REGISTRY[arch]
    task = TASKS.get(name, "speech_to_text")
    if task == "audio_finetuning":
        arguments: Any = _configuration(name, overrides)
    else:
        arguments = _namespace(arch, name, task, overrides)
        ARCH_CONFIG_REGISTRY[arch](arguments)
    built_by = Namespace(target_dictionary=dictionary, source_dictionary=source, multitask_tasks={})
    model = ARCH_MODEL_REGISTRY[arch].build_model(arguments, built_by)
    gain = GAINS.get(name, 1.0) if gain is None else gain
    with torch.no_grad():
        for of, parameter in model.named_parameters():
            if parameter.dim() > 1 and "w2v_encoder" not in of:
                parameter.mul_(gain)
        _output_weights(model).mul_(sharpness)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):  # untrained it does nothing
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return model.eval(), arguments, dictionary


def _namespace(arch: str, name: str, task: str, overrides: dict[str, Any]) -> Namespace:
    """Arguments of an architecture with a command line, without the defaults of the architecture."""
    if task == "translation":
        languages = {"source_lang": SOURCE_LANGUAGE, "target_lang": TARGET_LANGUAGE}
        sizes = {name: LIMITS["max_target_positions"] for name in LIMITS}
        return Namespace(arch=arch, task=task, **languages, **sizes | overrides)
    known: dict[str, Any] = {
        "input_feat_per_channel": FEATURE_BINS,
        "input_channels": 1,
        "fp16": False,
        **LIMITS,
    }
    if name == "xm_transformer":
        wav2vec = _wav2vec(overrides.get(WAV2VEC, {}))
        known |= {"w2v_path": None, "w2v_args": wav2vec, "freeze_regex": None, "normalize": True}
        known |= {"encoder_embed_dim": wav2vec.model.encoder_embed_dim, "data": ""}
        known["max_source_positions"] = SAMPLES
    own = {key: value for key, value in overrides.items() if key != WAV2VEC}
    return Namespace(arch=arch, task=task, **known | own)


def _configuration(name: str, overrides: dict[str, Any]) -> Any:
    """Arguments of a fine-tuned wav2vec 2.0, which Fairseq configures with dataclasses."""
    from fairseq.models import MODEL_DATACLASS_REGISTRY
    from omegaconf import OmegaConf

    own = {key: value for key, value in overrides.items() if key != WAV2VEC}
    task = {"normalize": True, "data": "", "autoregressive": name == "wav2vec_seq2seq"}
    groups = {
        "model": {**vars(MODEL_DATACLASS_REGISTRY[name]()), "_name": name, "w2v_path": "", **own},
        "task": task,
        "distributed_training": {"ddp_backend": "legacy_ddp"},
    }
    resolved = OmegaConf.create(OmegaConf.to_container(OmegaConf.create(groups), resolve=True))
    resolved.model.w2v_args = _wav2vec(overrides.get(WAV2VEC, {}))
    return resolved.model


def _wav2vec(overrides: dict[str, Any]) -> Any:
    """What a checkpoint says of the wav2vec 2.0 model it began with."""
    from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config
    from omegaconf import OmegaConf

    model = {**vars(Wav2Vec2Config()), "_name": "wav2vec2", **overrides}
    task = {"_name": "audio_pretraining", "data": "", "normalize": True}
    return OmegaConf.create({"model": model, "task": task, "criterion": None, "lr_scheduler": None})


def _output_weights(model: Any) -> Any:
    """Weights of the layer whose outputs are logits."""
    decoder = getattr(model, "decoder", None)
    if decoder is None:  # wav2vec_ctc
        return model.w2v_encoder.proj.weight
    if hasattr(decoder, "output_projection"):
        return decoder.output_projection.weight
    shared = decoder.share_input_output_embed
    return decoder.embed_tokens.weight if shared else decoder.embed_out  # wav2vec_seq2seq


def write_checkpoint(
    directory: Path, arch: str, name: str = "checkpoint.pt", **options: Any
) -> Path:
    """A checkpoint as fairseq-train writes it, with dictionary and, for speech, YAML.

    Args:
        directory: an existing directory.
        arch: as for `random_model`.
        name: of the file.
        options: as for `random_model`.

    Returns:
        The checkpoint's path.
    """
    import torch

    model, arguments, dictionary = random_model(arch, **options)
    task = describe(directory, arguments, dictionary, model)
    history = {"criterion_name": "x", "optimizer_name": "y", "lr_scheduler_state": {}}
    state = {
        "args": None,
        "cfg": None,
        "model": model.state_dict(),
        "optimizer_history": [history | {"num_updates": 1}],
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
    }
    if isinstance(arguments, Namespace):
        state["args"] = arguments
    else:
        from omegaconf import OmegaConf

        state["cfg"] = {"model": OmegaConf.to_container(arguments), "task": task}
    torch.save(state, directory / name)
    return directory / name
