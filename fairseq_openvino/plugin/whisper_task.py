"""`fairseq-generate` over a manifest of audio files with a Whisper bundle as --path.

Search, prompts and language detection are the Whisper family's own; Fairseq reads the manifest,
makes the batches, and prints and scores the texts.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.data.audio.data_cfg import S2TDataConfig
from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDatasetCreator
from fairseq.tasks import LegacyFairseqTask
from fairseq.tasks.speech_to_text import SpeechToTextTask

from fairseq_openvino.errors import AudioError, failure, invalid
from fairseq_openvino.model import Clip, Hypothesis
from fairseq_openvino.plugin import language, resume
from fairseq_openvino.plugin.flags import Unstated, check_whisper_options
from fairseq_openvino.plugin.generator import as_fairseq, batch_sizes
from fairseq_openvino.recognizer import Recognizer
from fairseq_openvino.speech import stored
from fairseq_openvino.speech.features import (
    FFT_SAMPLES,
    HOP_SAMPLES,
    WHISPER_RATE_HZ,
    heard_frames,
    padded_log_mel,
)
from fairseq_openvino.speech.frontend import FrontEnd, heard
from fairseq_openvino.speech.languages import language_code
from fairseq_openvino.speech.manifest import read_manifest
from fairseq_openvino.whisper.tokenizer import WhisperTokenizer

ENGLISH = "en"


class WhisperDictionary(Dictionary):  # type: ignore[misc]
    """A Fairseq dictionary whose indices are Whisper's tokens."""

    def __init__(self, model: Recognizer) -> None:
        super().__init__(add_special_symbols=False)
        size = model.manifest.dimensions.vocabulary_size
        self.symbols = [model.family.vocabulary.token(i) for i in range(size)]
        self.count = [1] * size
        self.indices = {symbol: i for i, symbol in enumerate(self.symbols)}
        ids = model.manifest.tokens
        self.bos_index, self.pad_index, self.eos_index = ids.bos, ids.pad, ids.eos
        self.unk_index, self.nspecial = size, 0  # no token stands for "unknown"


class WhisperSubwords:
    """`--bpe` of the task: symbols of tokens, separated by blanks, to text and back."""

    def __init__(self, tokenizer: WhisperTokenizer, dictionary: WhisperDictionary) -> None:
        self.tokenizer, self.dictionary = tokenizer, dictionary

    def encode(self, text: str) -> str:
        """Text to symbols."""
        return " ".join(self.dictionary.symbols[i] for i in self.tokenizer.tokens(text))

    def decode(self, symbols: str) -> str:
        """Symbols to text."""
        known = (self.dictionary.indices.get(symbol) for symbol in symbols.split())
        return self.tokenizer.text(token for token in known if token is not None)


class WhisperTask(SpeechToTextTask):  # type: ignore[misc]
    """Audio files of a manifest; its `src_lang` and `tgt_lang` columns choose language and task."""

    def __init__(self, args: Namespace, model: Recognizer) -> None:
        LegacyFairseqTask.__init__(self, args)  # the parent requires a dictionary file
        self.model, self.tgt_dict = model, WhisperDictionary(model)
        self.data_cfg = _data_config(Path(args.data), args.config_yaml)
        self.speaker_to_id: None = None
        self.multitask_tasks: dict[str, Any] = {}
        self.tgt_dict_mt = self.eos_token_mt = None
        self.languages: dict[int, tuple[str, str]] = {}

    def load_dataset(self, split: str, *_: Any, **__: Any) -> None:
        """As the parent, with log-mel windows as the source."""
        dataset = self.datasets[split] = _Manifest.from_tsv(
            root=self.args.data, cfg=self.data_cfg, splits=split, tgt_dict=self.tgt_dict,
            pre_tokenizer=None, bpe_tokenizer=self.build_bpe(self.args), is_train_split=False,
            epoch=1, seed=self.args.seed,
        )  # fmt: skip
        for part in getattr(dataset, "datasets", [dataset]):
            part._get_source_audio = _Reader(self.model.family.front_end, part.audio_paths)
            if not any(part.tgt_texts):
                part.tgt_texts = None  # nothing to score
        if hasattr(dataset, "src_langs"):
            pairs = zip(dataset.src_langs, dataset.tgt_langs, strict=True)
            self.languages = dict(enumerate(pairs))

    def build_dataset_for_inference(self, *args: Any, **kwargs: Any) -> Any:
        """What `fairseq-interactive` reads."""
        dataset = super().build_dataset_for_inference(*args, **kwargs)
        dataset._get_source_audio = _Reader(self.model.family.front_end, dataset.audio_paths)
        return dataset

    def build_tokenizer(self, args: Any) -> None:
        """None: the tokenizer is part of the subwords."""

    def build_bpe(self, args: Any) -> WhisperSubwords:
        """See `WhisperSubwords`."""
        return WhisperSubwords(self.model.family.vocabulary, self.tgt_dict)

    def build_generator(self, models: Any, args: Any, *_: Any, **__: Any) -> WhisperGenerator:
        """Whisper's own search.

        Raises:
            OptionError: an option belongs to Fairseq's search.
        """
        check_whisper_options(args)
        resume.begin(self, models)
        if language.chosen(self) is not None:
            expected = "a S2T model; the column tgt_lang is Whisper's"
            raise invalid(language.ACTION, "tgt_lang", expected, "a Whisper model", "Leave it out")
        return WhisperGenerator(self, args)


class _Manifest(SpeechToTextDatasetCreator):  # type: ignore[misc]
    """Manifests that need the columns `id` and `audio` only: every clip is one window."""

    @classmethod
    def _load_samples_from_tsv(cls, root: str, split: str) -> list[dict[str, str]]:
        return read_manifest(root, split, unknown_frames="3000")


class _Reader:
    """Source of a dataset item; importable, so that data-loading workers can have it.

    The padding of the window is left out: the number of frames is the only place for the duration.
    """

    def __init__(self, front_end: FrontEnd, paths: list[str]) -> None:
        self.front_end, self.paths = front_end, paths

    def __call__(self, index: int) -> torch.Tensor:
        path = self.paths[index]
        audio = stored.waveform(path, self.front_end.rate_hz)
        if audio is None:
            raise failure(
                AudioError,
                "Computing features",
                path,
                "audio",
                "stored features",
                "Give audio files",
            )
        waveform, rate_hz = audio
        frames = heard(self.front_end, path, waveform, rate_hz)
        return torch.from_numpy(frames[: heard_frames(len(waveform), len(frames))])


class WhisperGenerator:
    """`transcribe_clips` behind the interface of Fairseq's `SequenceGenerator`."""

    def __init__(self, task: WhisperTask, args: Any) -> None:
        self.task, self.model = task, task.model
        self.symbols_to_strip_from_output = {self.model.manifest.tokens.eos}
        assert self.model.manifest.whisper is not None
        self.languages = self.model.manifest.whisper.languages
        self.options = {
            "beam": args.beam,
            "nbest": min(args.nbest, args.beam),
            "lenpen": args.lenpen,
            "min_tokens": args.min_len if args.min_len > 1 else 0,
            "max_tokens": self._limit(args.max_len_b),
        }
        self.model.prepare(batch_sizes(task), **self.options)

    def _limit(self, stated: int) -> int | None:
        """Longest output: --max-len-b as far as there is room, else None, the model's own."""
        if isinstance(getattr(self.task.args, "max_len_b", None), Unstated):
            return None
        special = len(("start", "language", "task", "no timestamps"))
        return min(stated, self.model.manifest.limits.max_target_tokens - special)

    def generate(self, models: Any, sample: dict[str, Any], **_: Any) -> list[list[dict[str, Any]]]:
        """A collated batch to n-best lists of dictionaries."""
        features = sample["net_input"]["src_tokens"].numpy()
        lengths = sample["net_input"]["src_lengths"].tolist()
        window = self.model.manifest.limits.max_source_frames
        ids = sample["id"].tolist() if "id" in sample else list(range(len(features)))
        wanted = [self._language_and_task(i) for i in ids]
        found: dict[int, list[Hypothesis]] = {}
        for pair in sorted(set(wanted), key=str):
            members = [i for i, each in enumerate(wanted) if each == pair]
            clips = [
                _clip(f"utterance {ids[i]}", features[i, : lengths[i]], window) for i in members
            ]
            language, task = pair
            transcripts = self.model.transcribe_clips(
                clips, language=language, task=task, **self.options
            )
            for i, transcript in zip(members, transcripts, strict=True):
                found[i] = [hypothesis for _, hypothesis in transcript.hypotheses]
        return [[as_fairseq(hypothesis) for hypothesis in found[i]] for i in range(len(ids))]

    def _language_and_task(self, index: int) -> tuple[str | None, str]:
        """From the manifest; the language is detected where the manifest names none it knows."""
        source, target = self.task.languages.get(index, ("", ""))
        spoken, wanted = language_code(source), language_code(target)
        language = spoken if spoken in self.languages else None
        translate = wanted == ENGLISH and spoken not in ("", ENGLISH)
        return language, "translate" if translate else "transcribe"


def _clip(name: str, frames: np.ndarray, window: int) -> Clip:
    """Of the frames a `_Reader` left; its duration is right to 10 ms."""
    samples = len(frames) * HOP_SAMPLES - FFT_SAMPLES // 2
    return Clip(name, padded_log_mel(frames, window), max(samples, 0) / WHISPER_RATE_HZ)


def _data_config(root: Path, name: str) -> S2TDataConfig:
    """The YAML file if there is one; nothing in it is needed but `audio_root`."""
    if (root / name).is_file():
        return S2TDataConfig(root / name)
    config = S2TDataConfig.__new__(S2TDataConfig)
    config.config, config.root = {}, root
    return config
