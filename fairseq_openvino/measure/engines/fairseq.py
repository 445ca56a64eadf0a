"""A Fairseq S2T checkpoint as `fairseq-generate` runs it: Fairseq's task, batches and generator."""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_openvino.errors import (
    MissingDependencyError,
    OptionError,
    UtteranceTooLongError,
)
from fairseq_openvino.measure.engines import Decoded, EngineSpec, Output, Search, samples
from fairseq_openvino.measure.engines.ours import READ_BACK
from fairseq_openvino.model import Clip
from fairseq_openvino.speech.stored import frames

PACKAGE = Path(__file__).parents[2]
SUBSET = "test"
"""Split whose transforms of the data configuration apply."""
MAX_SOURCE_POSITIONS = 6000
"""Fairseq's default."""


class Stopwatch:
    """Adds up the time during which a function runs, in however many threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._running, self._started, self._lock = 0, 0.0, threading.Lock()

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                if not self._running:
                    self._started = time.perf_counter()
                self._running += 1
            try:
                return function(*arguments, **named)
            finally:
                with self._lock:
                    self._running -= 1
                    if not self._running:
                        self.seconds += time.perf_counter() - self._started

        return timed


class FairseqEngine:
    """PyTorch: eager in f32, or what CHANGES makes of it."""

    def __init__(self, spec: EngineSpec) -> None:
        try:
            import torch
            from fairseq import tasks
            from fairseq.data.audio.feature_transforms import CompositeAudioFeatureTransform

            from fairseq_openvino.export.fairseq.data import DataDirectory
            from fairseq_openvino.plugin.generator import BATCH_SIZES
        except ImportError as error:
            raise MissingDependencyError(
                f"Evaluating the engine {spec.name} failed: expected torch and fairseq, got {error}. "
                f"Install fairseq-openvino[fairseq], or leave {spec.name} out of --engines."
            ) from error
        torch.set_num_threads(spec.threads)
        self.spec = spec
        self.config = configuration(spec, self.flags())
        self.task: Any = tasks.setup_task(self.config.task)
        setattr(self.task, BATCH_SIZES, set(spec.batch_sizes))  # as its iterator does
        transforms = self.task.data_cfg.get_feature_transforms(SUBSET, False)
        self.transforms = CompositeAudioFeatureTransform.from_config_dict(transforms)
        data = DataDirectory(Path(str(spec.data)), spec.config_yaml)
        self.rate_hz, self.bins = data.sample_rate_hz, data.feature_bins
        self.config.generation.prefix_size = int(self.task.data_cfg.prepend_tgt_lang_tag)
        self.bpe, self.tokenizer = self.task.build_bpe(None), self.task.build_tokenizer(None)
        self.context: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.encoding = Stopwatch()
        self._generators: dict[tuple[Search, int | None, str | None], Any] = {}
        started = time.perf_counter()
        self.model, self.max_frames = self.load()
        self.model.prepare_for_inference_(self.config)
        if spec.kind == "fairseq" and spec.precision is not None:
            CHANGES[spec.precision](self)
        self.load_seconds = time.perf_counter() - started
        self._watch_encoder()

    def flags(self) -> list[str]:
        """Of `fairseq-generate`, besides the model's."""
        return []

    def load(self) -> tuple[Any, int]:
        """A model behind Fairseq's interface, and the frames it takes."""
        from fairseq import checkpoint_utils

        models, config, _ = checkpoint_utils.load_model_ensemble_and_task(
            [str(self.spec.checkpoint)], task=self.task
        )
        limit = getattr(getattr(config, "model", None), "max_source_positions", None)
        return models[0], int(limit or MAX_SOURCE_POSITIONS)

    def read(self, path: str) -> Clip:
        """As Fairseq's dataset: filter banks, then the transforms of the data configuration.

        A model of waveforms gets a normalised one, (samples,).
        """
        if self.task.data_cfg.use_audio_input:
            return self._waveform(path)
        found = frames(path, self.rate_hz, self.bins)
        if len(found.values) > self.max_frames:
            raise UtteranceTooLongError(
                f"Reading speech failed in {path!r}: expected at most {self.max_frames} frames "
                f"(max_source_positions), got {len(found.values)}. Split the audio."
            )
        values = found.values if self.transforms is None else self.transforms(found.values)
        return Clip(path, np.asarray(values, np.float32), found.seconds)

    def _waveform(self, path: str) -> Clip:
        """Fairseq normalises every waveform, see its `speech_to_text_dataset.py`."""
        import torch

        clip = samples(path, self.rate_hz)
        audio = torch.from_numpy(clip.features)
        normalised = torch.nn.functional.layer_norm(audio, audio.shape)
        return Clip(path, normalised.numpy(), clip.seconds)

    def generate(
        self, clips: Sequence[Clip], search: Search, language: str | None, tokens: int | None
    ) -> Decoded:
        """A padded batch, longest first as Fairseq's collater sorts it.

        The figures are `generation_seconds`, which `fairseq-generate` reports: encoder, search and
        decoder without collating and text; `encode_seconds` of them; and `steps` of the decoder.
        """
        import torch

        order = sorted(range(len(clips)), key=lambda i: -len(clips[i].features))
        lengths = [len(clips[i].features) for i in order]
        batch = torch.zeros(len(order), lengths[0], *clips[0].features.shape[1:])
        for row, i in enumerate(order):
            batch[row, : lengths[row]] = torch.from_numpy(clips[i].features)
        sample = {
            "id": torch.arange(len(order)),
            "net_input": {"src_tokens": batch, "src_lengths": torch.tensor(lengths)},
        }
        prefix = self._prefix(len(order), search.language or language)
        generator = self._generator(search, tokens, search.language or language)
        self.encoding.seconds = 0.0
        with self.context(), torch.no_grad():
            started = time.perf_counter()
            found = generator.generate([self.model], sample, prefix_tokens=prefix)
            seconds = time.perf_counter() - started
        best = dict(zip(order, (each[0] for each in found), strict=True))
        ordered = [best[i] for i in range(len(clips))]
        figures = {
            "generation_seconds": seconds,
            "encode_seconds": self.encoding.seconds,
            "steps": max(len(hypothesis["tokens"]) for each in found for hypothesis in each),
        }
        return Decoded([self._output(hypothesis, generator) for hypothesis in ordered], figures)

    def precision(self) -> dict[str, str]:
        """As every Fairseq checkpoint on a CPU."""
        return {"asked": "f32", "stored": "f32"}

    @property
    def summary(self) -> str:
        """See `Engine`."""
        return self.spec.precision or "f32"

    def _generator(self, search: Search, tokens: int | None, language: str | None) -> Any:
        """Fairseq's generator, or that of `--ov-engine`; made once for the same options."""
        appended = language is not None and self.task.data_cfg.prepend_bos_and_append_tgt_lang_tag
        eos = f"<lang:{language}>" if appended else None
        if (search, tokens, eos) not in self._generators:
            options = copy.deepcopy(self.config.generation)
            options.beam, options.lenpen = search.beam, search.lenpen
            options.max_len_a, options.max_len_b = search.max_len_a, search.max_len_b
            if tokens is not None:
                options.min_len, options.max_len_a, options.max_len_b = tokens, 0, tokens
            options.eos_token = eos
            made = self.task.build_generator([self.model], options)
            self._generators[search, tokens, eos] = made
        return self._generators[search, tokens, eos]

    def _prefix(self, utterances: int, language: str | None) -> Any:
        """Ids of the language tag, shape (N, 1); None for a model of one language."""
        import torch

        if not self.task.data_cfg.prepend_tgt_lang_tag:
            return None
        tag = f"<lang:{language}>"
        if tag not in self.task.target_dictionary:
            raise OptionError(
                f"Evaluating failed in --language: expected a target language of the model, got "
                f"{language!r}. Name one, or give a corpus that does (tgt_lang)."
            )
        return torch.full((utterances, 1), self.task.target_dictionary.index(tag))

    def _output(self, hypothesis: dict[str, Any], generator: Any) -> Output:
        """As `fairseq-generate` prints it in a D- line."""
        text = self.task.target_dictionary.string(
            hypothesis["tokens"].int(),
            extra_symbols_to_ignore=generator.symbols_to_strip_from_output,
        )
        for decoder in (self.bpe, self.tokenizer):
            if decoder is not None:
                text = decoder.decode(text)
        return Output(text, len(hypothesis["tokens"]) - 1, float(hypothesis["score"]))

    def _watch_encoder(self) -> None:
        """Time the encoder within `generate`: the rest of it are decoder steps."""
        ours = getattr(self.model, "compiled", None)
        owner, name = (self.model.encoder, "forward") if ours is None else (ours, "encode")
        setattr(owner, name, self.encoding.watch(getattr(owner, name)))


class PluginEngine(FairseqEngine):
    """`fairseq-generate --ov-engine`: the checkpoint is exported into the cache, or a bundle given."""

    def flags(self) -> list[str]:
        """Precision, threads, cache; the bundle, if there is one."""
        spec = self.spec
        return [
            "--ov-engine", "--ov-precision", str(spec.precision), "--ov-threads", str(spec.threads),
            "--ov-cache-dir", str(spec.cache_dir),
            *([] if spec.bundle is None else ["--ov-model", spec.bundle]),
        ]  # fmt: skip

    def load(self) -> tuple[Any, int]:
        """The bundle says what it takes."""
        model, _ = super().load()
        return model, model.compiled.manifest.limits.max_source_frames

    def precision(self) -> dict[str, str]:
        """What the compiled decoder says about itself."""
        found: dict[str, str] = self.model.compiled.properties(READ_BACK)
        return found


def configuration(spec: EngineSpec, flags: list[str]) -> Any:
    """Fairseq's configuration for the flags a user would give."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    import fairseq_openvino.plugin.task  # noqa: F401  --user-dir does this

    words = [
        str(spec.data), "--config-yaml", spec.config_yaml, "--task", "speech_to_text",
        "--path", str(spec.checkpoint), "--user-dir", str(PACKAGE), *flags,
    ]  # fmt: skip
    sys.argv = ["fairseq-generate", *words]  # Fairseq looks for --user-dir there
    parser = options.get_generation_parser()
    parser.add_argument("--arch", default="wav2vec2")  # as fairseq_cli.generate.cli_main does
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=words))


def _autocast(engine: FairseqEngine) -> None:
    import torch

    engine.context = lambda: torch.autocast("cpu", torch.bfloat16)


def _quantize(engine: FairseqEngine) -> None:
    """Dynamic int8 of all linear layers."""
    import torch
    from torch.ao.quantization import quantize_dynamic

    for module in engine.model.modules():
        if hasattr(module, "skip_embed_dim_check"):
            # torch's fused attention reads float weights: take Fairseq's own path, with layers
            module.skip_embed_dim_check = True
    quantize_dynamic(engine.model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


def _compile(engine: FairseqEngine) -> None:
    import torch

    for part in (engine.model.encoder, engine.model.decoder):
        part.forward = torch.compile(part.forward, dynamic=True)


CHANGES: dict[str, Callable[[FairseqEngine], None]] = {
    "bf16": _autocast,
    "int8": _quantize,
    "compiled": _compile,
}
"""What makes an alternative out of the eager model, by `EngineSpec.precision`."""
