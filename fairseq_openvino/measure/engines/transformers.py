"""A Hugging Face Whisper directory in eager PyTorch, by transformers' `generate()`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fairseq_openvino.errors import CheckpointError, MissingDependencyError
from fairseq_openvino.measure.engines import Decoded, EngineSpec, Output, Search, samples
from fairseq_openvino.model import Clip
from fairseq_openvino.speech.languages import language_code
from fairseq_openvino.whisper.options import TRANSLATE


class WhisperEngine:
    """In f32, or with weights and activations in bf16."""

    def __init__(self, spec: EngineSpec) -> None:
        try:
            import torch

            from fairseq_openvino.compat.transformers import transformers
        except ImportError as error:
            raise MissingDependencyError(
                f"Evaluating the engine {spec.name} failed: expected torch and transformers, got "
                f"{error}. Install fairseq-openvino[whisper], or leave {spec.name} out of --engines."
            ) from error
        torch.set_num_threads(spec.threads)
        library: Any = transformers
        model_class, processor_class = (
            library.WhisperForConditionalGeneration,  # imported here, as neither name is before
            library.WhisperProcessor,
        )
        self.spec, path = spec, str(spec.checkpoint)
        self.kind = torch.bfloat16 if spec.precision == "bf16" else torch.float32
        started = time.perf_counter()
        try:
            processor = processor_class.from_pretrained(path, local_files_only=True)
            self.model = model_class.from_pretrained(path, local_files_only=True, dtype=self.kind)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"Loading a checkpoint failed in {path!r}: expected a Hugging Face Whisper "
                f"directory, got {error}. Check --checkpoint."
            ) from error
        self.model.eval()
        self.extractor, self.tokenizer = processor.feature_extractor, processor.tokenizer
        self.load_seconds = time.perf_counter() - started

    def read(self, path: str) -> Clip:
        """Log-mel spectrogram, at least 30 s, (T, F); if features are timed, samples for now."""
        clip = samples(path, self.extractor.sampling_rate)
        return clip if self.spec.from_samples else self._with_features(clip)

    def generate(
        self, clips: Sequence[Clip], search: Search, language: str | None, tokens: int | None
    ) -> Decoded:
        """`model.generate` on clips of up to 30 s together; longer ones alone, with timestamps."""
        if self.spec.from_samples:
            clips = [self._with_features(clip) for clip in clips]
        named: dict[str, Any] = {"num_beams": search.beam, "length_penalty": search.lenpen}
        if tokens is not None:
            named |= {"min_new_tokens": tokens, "max_new_tokens": tokens}
        if getattr(self.model.generation_config, "is_multilingual", True):
            stated = search.language or (None if search.task == TRANSLATE else language)
            code = language_code(stated) if stated else None
            named |= {"task": search.task, "language": code}
        short = [i for i, clip in enumerate(clips) if self._is_short(clip)]
        groups = [short] if short else []
        groups += [[i] for i, clip in enumerate(clips) if not self._is_short(clip)]
        outputs: dict[int, Output] = {}
        for group in groups:
            outputs |= zip(group, self._generate([clips[i] for i in group], named), strict=True)
        return Decoded([outputs[i] for i in range(len(clips))])

    def precision(self) -> dict[str, str]:
        """Weights are converted to it while loading."""
        precision = self.spec.precision or "f32"
        return {"asked": precision, "stored": precision}

    @property
    def summary(self) -> str:
        """See `Engine`."""
        return f"weights and activations {self.spec.precision or 'f32'}"

    def _with_features(self, clip: Clip) -> Clip:
        """Samples to features by the checkpoint's feature extractor."""
        longer = len(clip.features) > self.extractor.n_samples
        found = self.extractor(
            clip.features,
            sampling_rate=self.extractor.sampling_rate,
            return_tensors="np",
            truncation=not longer,
            padding="longest" if longer else "max_length",
        )
        return Clip(clip.path, found["input_features"][0].T, clip.seconds)

    def _is_short(self, clip: Clip) -> bool:
        return len(clip.features) <= self.extractor.nb_max_frames

    def _generate(self, clips: Sequence[Clip], named: dict[str, Any]) -> list[Output]:
        import torch

        batch = torch.from_numpy(np.stack([clip.features.T for clip in clips]))  # (N, F, T)
        if not self._is_short(clips[0]):
            named = {**named, "return_timestamps": True}
        with torch.inference_mode():
            found = self.model.generate(batch.to(self.kind), do_sample=False, **named)
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        config = self.model.generation_config
        fillers = {config.pad_token_id, config.decoder_start_token_id, config.eos_token_id}
        counts = [sum(int(token) not in fillers for token in row) for row in found]
        return [Output(t.strip(), n, None) for t, n in zip(texts, counts, strict=True)]
