"""How each engine turns a checkpoint into a model behind Fairseq's task (in a child)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq_openvino.benchmark.material import Source
from fairseq_openvino.benchmark.plan import NNCF, OURS, Case, Options
from fairseq_openvino.benchmark.workload import (
    Loaded,
    configuration,
    first_tokens,
    load_batches,
)

Change = Callable[[Loaded], None]
"""What makes an alternative out of the eager model."""


def load(engine: str, source: Source, case: Case, options: Options, cache: Path) -> Loaded:
    """Load a checkpoint for an engine, up to its first two tokens.

    `first_seconds` of the result is the time that took, without importing packages and without
    reading the batches.
    """
    import torch
    from fairseq import tasks

    torch.set_num_threads(options.threads)
    config = configuration(source, case, options, _flags(engine, source, options, cache))
    task = tasks.setup_task(config.task)
    started = time.perf_counter()
    models = _models(engine, source, config, task, options)
    seconds = time.perf_counter() - started
    task.load_dataset(config.dataset.gen_subset)
    loaded = Loaded(task, models, load_batches(task, config, models), None)
    if case.vocabulary is None:
        loaded.bpe = task.build_bpe(config.bpe)
    started = time.perf_counter()
    for model in models:
        model.prepare_for_inference_(config)
    if engine in CHANGES:
        CHANGES[engine](loaded)
    loaded.generator = task.build_generator(models, config.generation)
    first_tokens(loaded, config)
    loaded.first_seconds = seconds + time.perf_counter() - started
    _watch_encoder(loaded)
    return loaded


def precision_in_use(loaded: Loaded, engine: str) -> dict[str, str]:
    """What the compiled decoder says about itself; empty for engines other than ours."""
    if not engine.startswith(OURS):
        return {}
    compiled = next(
        (
            compiled
            for variant, compiled in loaded.models[0].speech_model.engine.compiled.items()
            if variant.graph == "decoder"
        ),
        None,
    )
    if compiled is None:
        return {}
    known = set(compiled.get_property("SUPPORTED_PROPERTIES"))
    return {name: _spelled(compiled.get_property(name)) for name in READ_BACK if name in known}


READ_BACK = (
    "INFERENCE_PRECISION_HINT",
    "KV_CACHE_PRECISION",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "INFERENCE_NUM_THREADS",
)


def _spelled(value: object) -> str:
    return str(value.get_type_name() if hasattr(value, "get_type_name") else value)


def _flags(engine: str, source: Source, options: Options, cache: Path) -> list[str]:
    if not engine.startswith(OURS):
        return []
    quantized = ["--ov-model", str(source.quantized_bundle), "--ov-precision", "fast"]
    return [
        "--ov-engine",
        *(quantized if engine == NNCF else ["--ov-precision", engine.removeprefix(OURS)]),
        "--ov-threads", str(options.threads), "--ov-cache-dir", str(cache),
    ]  # fmt: skip


def _models(engine: str, source: Source, config: Any, task: Any, options: Options) -> list[Any]:
    if engine in ("onnxruntime", "openvino-stateless"):
        from fairseq_openvino.benchmark import graphs
        from fairseq_openvino.bundle import open_bundle
        from fairseq_openvino.plugin.model import S2TOpenVINOModel

        build = graphs.onnxruntime_model if engine == "onnxruntime" else graphs.stateless_model
        model = build(open_bundle(source.onnx_bundle), options.threads)
        return [S2TOpenVINOModel(model, task.target_dictionary)]
    from fairseq import checkpoint_utils

    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(source.checkpoint)], task=task
    )
    return list(models)


def _autocast(loaded: Loaded) -> None:
    import torch

    loaded.context = lambda: torch.autocast("cpu", torch.bfloat16)


def _quantize(loaded: Loaded) -> None:
    """Dynamic int8 of all linear layers."""
    import torch
    from torch.ao.quantization import quantize_dynamic

    for model in loaded.models:
        for module in model.modules():
            if hasattr(module, "skip_embed_dim_check"):
                # torch's fused attention reads float weights: take Fairseq's own path, with layers
                module.skip_embed_dim_check = True
        quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


def _compile(loaded: Loaded) -> None:
    import torch

    for model in loaded.models:
        model.encoder.forward = torch.compile(model.encoder.forward, dynamic=True)
        model.decoder.forward = torch.compile(model.decoder.forward, dynamic=True)


CHANGES: dict[str, Change] = {
    "eager-bf16": _autocast,
    "torch-int8": _quantize,
    "torch-compile": _compile,
}


def _watch_encoder(loaded: Loaded) -> None:
    """Time the encoder within a round: the rest of the round are decoder steps."""
    for model in loaded.models:
        if hasattr(model, "speech_model"):
            owner, name = model.speech_model, "encode"
        else:
            owner, name = model.encoder, "forward"
        setattr(owner, name, loaded.encoding.watch(getattr(owner, name)))
