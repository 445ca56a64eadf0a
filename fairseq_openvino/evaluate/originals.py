"""The models as they were trained, in PyTorch: Fairseq's generator, or transformers' generate()."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np

from fairseq_openvino.errors import (
    CheckpointError,
    MissingDependencyError,
    OptionError,
    UtteranceTooLongError,
)
from fairseq_openvino.evaluate.engines import Output, stored_for_whisper, whisper_language
from fairseq_openvino.evaluate.options import Options
from fairseq_openvino.model import Clip
from fairseq_openvino.speech.stored import frames, waveform

PRECISION = {"asked": "f32", "stored": "f32"}
SUBSET = "test"
"""Split whose transforms of the data configuration apply."""


class FairseqEngine:
    """A Fairseq S2T checkpoint in eager PyTorch, by Fairseq's task and SequenceGenerator."""

    def __init__(self, options: Options) -> None:
        try:
            import torch
            from fairseq.data.audio.feature_transforms import CompositeAudioFeatureTransform
            from fairseq.models import MODEL_REGISTRY
            from fairseq.tasks.speech_to_text import SpeechToTextTask

            from fairseq_openvino.export.fairseq.checkpoint import load
            from fairseq_openvino.export.fairseq.data import DataDirectory
        except ImportError as error:
            raise MissingDependencyError(
                f"Evaluating the engine pytorch failed: expected torch and fairseq, got {error}. "
                "Install fairseq-openvino[fairseq], or leave pytorch out of --engines."
            ) from error
        assert options.checkpoint is not None and options.data is not None  # checked by Options
        torch.set_num_threads(options.threads)
        started = time.perf_counter()
        data = DataDirectory(options.data, options.config_yaml)
        loaded = load(options.checkpoint, data, {}, tuple(MODEL_REGISTRY))
        positions = getattr(loaded.arguments, "max_source_positions", 6000)
        self.task: Any = SpeechToTextTask.setup_task(
            Namespace(
                data=str(options.data),
                config_yaml=options.config_yaml,
                max_source_positions=positions,
                max_target_positions=getattr(loaded.arguments, "max_target_positions", 1024),
            )
        )
        self.model, self.search, self.max_frames = loaded.model, options.search, int(positions)
        self.rate_hz, self.bins = data.sample_rate_hz, data.feature_bins
        config = self.task.data_cfg
        self.transforms = CompositeAudioFeatureTransform.from_config_dict(
            config.get_feature_transforms(SUBSET, False)
        )
        generation = Namespace(
            beam=self.search.beam,
            lenpen=self.search.lenpen,
            max_len_a=self.search.max_len_a,
            max_len_b=self.search.max_len_b,
            prefix_size=int(config.prepend_tgt_lang_tag),
        )
        self.model.prepare_for_inference_(Namespace(generation=generation))
        self.generator = self.task.build_generator([self.model], generation)
        self.bpe, self.tokenizer = self.task.build_bpe(None), self.task.build_tokenizer(None)
        self.load_seconds = time.perf_counter() - started

    def read(self, path: str) -> Clip:
        """As Fairseq's dataset: filter banks, then the transforms of the data configuration."""
        found = frames(path, self.rate_hz, self.bins)
        if len(found.values) > self.max_frames:
            raise UtteranceTooLongError(
                f"Reading speech failed in {path!r}: expected at most {self.max_frames} frames "
                f"(max_source_positions), got {len(found.values)}. Split the audio."
            )
        values = found.values if self.transforms is None else self.transforms(found.values)
        return Clip(path, np.asarray(values, np.float32), found.seconds)

    def generate(self, clips: Sequence[Clip], language: str | None) -> list[Output]:
        """`task.inference_step` on a padded batch, longest first as Fairseq's collater sorts it."""
        import torch

        order = sorted(range(len(clips)), key=lambda i: -len(clips[i].features))
        lengths = [len(clips[i].features) for i in order]
        batch = torch.zeros(len(order), lengths[0], self.bins)
        for row, i in enumerate(order):
            batch[row, : lengths[row]] = torch.from_numpy(clips[i].features)
        sample = {"net_input": {"src_tokens": batch, "src_lengths": torch.tensor(lengths)}}
        prefix = self._prefix(len(order), language)
        found = self.task.inference_step(self.generator, [self.model], sample, prefix)
        outputs = dict(zip(order, (self._output(each[0]) for each in found), strict=True))
        return [outputs[i] for i in range(len(clips))]

    def precision(self) -> dict[str, str]:
        """As every Fairseq checkpoint on a CPU."""
        return PRECISION

    def _prefix(self, utterances: int, language: str | None) -> Any:
        """Ids of the language tag, shape (N, 1); None for a model of one language."""
        import torch

        if not self.task.data_cfg.prepend_tgt_lang_tag:
            return None
        chosen = self.search.language or language
        tag = f"<lang:{chosen}>"
        if tag not in self.task.target_dictionary:
            raise OptionError(
                f"Evaluating failed in --language: expected a target language of the model, got "
                f"{chosen!r}. Name one, or give a corpus that does (tgt_lang)."
            )
        return torch.full((utterances, 1), self.task.target_dictionary.index(tag))

    def _output(self, hypothesis: dict[str, Any]) -> Output:
        """As `fairseq-generate` prints it in a D- line."""
        text = self.task.target_dictionary.string(
            hypothesis["tokens"].int(),
            extra_symbols_to_ignore=self.generator.symbols_to_strip_from_output,
        )
        for decoder in (self.bpe, self.tokenizer):
            if decoder is not None:
                text = decoder.decode(text)
        return Output(text, len(hypothesis["tokens"]) - 1, float(hypothesis["score"]))


class WhisperEngine:
    """A Hugging Face Whisper directory in eager PyTorch, by transformers' generate()."""

    def __init__(self, options: Options) -> None:
        try:
            import torch

            from fairseq_openvino.compat.transformers import transformers
        except ImportError as error:
            raise MissingDependencyError(
                "Evaluating the engine pytorch failed: expected torch and transformers, got "
                f"{error}. Install fairseq-openvino[whisper], or leave pytorch out of --engines."
            ) from error
        torch.set_num_threads(options.threads)
        library: Any = transformers
        model_class, processor_class = (
            library.WhisperForConditionalGeneration,  # imported here, as neither name is before
            library.WhisperProcessor,
        )
        started = time.perf_counter()
        path = str(options.checkpoint)
        try:
            processor = processor_class.from_pretrained(path, local_files_only=True)
            self.model = model_class.from_pretrained(
                path, local_files_only=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"Loading a checkpoint failed in {path!r}: expected a Hugging Face Whisper "
                f"directory, got {error}. Check --checkpoint."
            ) from error
        self.model.eval()
        self.extractor, self.tokenizer = processor.feature_extractor, processor.tokenizer
        self.search = options.search
        self.load_seconds = time.perf_counter() - started

    def read(self, path: str) -> Clip:
        """Log-mel spectrogram by the checkpoint's feature extractor, at least 30 s; (T, F)."""
        audio = waveform(path, self.extractor.sampling_rate)
        if audio is None:
            raise stored_for_whisper(path)
        samples, rate_hz = audio
        longer = len(samples) > self.extractor.n_samples
        found = self.extractor(
            samples,
            sampling_rate=rate_hz,
            return_tensors="np",
            truncation=not longer,
            padding="longest" if longer else "max_length",
        )
        return Clip(path, found["input_features"][0].T, len(samples) / rate_hz)

    def generate(self, clips: Sequence[Clip], language: str | None) -> list[Output]:
        """`model.generate` on clips of up to 30 s together; longer ones alone, with timestamps."""
        short = [i for i, clip in enumerate(clips) if self._is_short(clip)]
        groups = [short] if short else []
        groups += [[i] for i, clip in enumerate(clips) if not self._is_short(clip)]
        outputs: dict[int, Output] = {}
        for group in groups:
            outputs |= zip(group, self._generate([clips[i] for i in group], language), strict=True)
        return [outputs[i] for i in range(len(clips))]

    def precision(self) -> dict[str, str]:
        """Weights are converted to it while loading."""
        return PRECISION

    def _is_short(self, clip: Clip) -> bool:
        return len(clip.features) <= self.extractor.nb_max_frames

    def _generate(self, clips: Sequence[Clip], language: str | None) -> list[Output]:
        import torch

        batch = torch.from_numpy(np.stack([clip.features.T for clip in clips]))  # (N, F, T)
        named: dict[str, Any] = {
            "num_beams": self.search.beam,
            "length_penalty": self.search.lenpen,
        }
        if getattr(self.model.generation_config, "is_multilingual", True):
            chosen = self.search.language or whisper_language(self.search.task, language)
            named |= {"task": self.search.task, "language": chosen}
        if not self._is_short(clips[0]):
            named["return_timestamps"] = True
        with torch.inference_mode():
            found = self.model.generate(batch, do_sample=False, **named)
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        config = self.model.generation_config
        fillers = {config.pad_token_id, config.decoder_start_token_id, config.eos_token_id}
        counts = [sum(int(token) not in fillers for token in row) for row in found]
        return [Output(t.strip(), n, None) for t, n in zip(texts, counts, strict=True)]
