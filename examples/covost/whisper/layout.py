"""Token layout and configuration of the micro-Whisper: that of multilingual Whisper, small."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import transformers.utils
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

try:
    import torchaudio  # noqa: F401
except (ImportError, OSError):
    # transformers.audio_utils imports it whenever it is installed, even for another build of torch.
    transformers.utils.is_torchaudio_available = lambda: False

from transformers import (
    AddedToken,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from fairseq_openvino.errors import OptionError

SAMPLE_RATE_HZ = 16_000
WINDOW_SECONDS = 8
FRAMES_PER_SECOND = 100
POSITION_SECONDS = 0.02
"""One encoder position, and one step of the timestamp tokens."""
HEADS = 4
MAX_TARGET_POSITIONS = 128
TIMESTAMPS = 1501
"""`<|0.00|>` to `<|30.00|>`: the window is shorter, the vocabulary is not."""
MAX_INITIAL_SECONDS = 1.0
LANGUAGE_CODES = tuple(code for code in LANGUAGES if code != "yue")
"""The 99 languages of Whisper up to large-v2, in its order; large-v3 added the 100th."""
TASKS = ("translate", "transcribe")
NEVER_WRITTEN = '"#()*+/:;<=>@[\\]^_`{|}~'
"""Characters that no text of the corpus contains; generation suppresses them."""


def existing(path: Path, maker: str) -> Path:
    """`path`, which must exist; `maker` is the script that makes it."""
    if not path.exists():
        raise OptionError(
            f"Reading input failed in {path.parent}: expected {path.name}, got no such file. "
            f"Run {maker} first."
        )
    return path


def train_tokenizer(texts: Iterable[str], size: int) -> WhisperTokenizer:
    """Byte-level BPE with `size` tokens (256 are bytes), then Whisper's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((f" {text}" for text in texts), trainer)
    model = json.loads(bpe.to_str())["model"]
    special = [
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in LANGUAGE_CODES),
        *(f"<|{task}|>" for task in TASKS),
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    tokenizer = WhisperTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        pad_token="<|endoftext|>",
        extra_special_tokens=special,
        model_max_length=MAX_TARGET_POSITIONS,
    )
    times = (f"<|{step * POSITION_SECONDS:.2f}|>" for step in range(TIMESTAMPS))
    tokenizer.add_tokens([AddedToken(time, normalized=False, special=False) for time in times])
    return tokenizer


def feature_extractor() -> WhisperFeatureExtractor:
    """Log-mel features [80, 100 per second] of a window."""
    return WhisperFeatureExtractor(
        feature_size=80, sampling_rate=SAMPLE_RATE_HZ, chunk_length=WINDOW_SECONDS
    )


def model_config(
    tokenizer: WhisperTokenizer, width: int, encoder_layers: int, decoder_layers: int
) -> WhisperConfig:
    """Whisper with a short window, its feed-forward layers four times as wide as the model."""
    end, start = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>"])
    return WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=width,
        encoder_layers=encoder_layers,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * width,
        decoder_layers=decoder_layers,
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=4 * width,
        max_source_positions=round(WINDOW_SECONDS / POSITION_SECONDS),
        max_target_positions=MAX_TARGET_POSITIONS,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def generation_config(tokenizer: WhisperTokenizer, decoder_layers: int) -> GenerationConfig:
    """What OpenAI's multilingual checkpoints carry, with this vocabulary's ids.

    `alignment_heads` names all heads of the upper half of the decoder, which is what OpenAI's code
    takes for checkpoints without a measured list.
    """
    ids = tokenizer.convert_tokens_to_ids
    end = ids("<|endoftext|>")
    control = ["startoftranscript", *TASKS, "startoflm", "startofprev", "nospeech"]
    suppressed = sorted(ids(list(NEVER_WRITTEN))) + ids([f"<|{name}|>" for name in control])
    config = GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids("<|startoftranscript|>"),
        max_length=MAX_TARGET_POSITIONS,
        suppress_tokens=suppressed,
        begin_suppress_tokens=[ids("Ġ"), end],
    )
    config.is_multilingual = True
    config.return_timestamps = False
    config.lang_to_id = {f"<|{code}|>": ids(f"<|{code}|>") for code in sorted(LANGUAGE_CODES)}
    config.task_to_id = {task: ids(f"<|{task}|>") for task in reversed(TASKS)}
    config.no_timestamps_token_id = ids("<|notimestamps|>")
    config.prev_sot_token_id = ids("<|startofprev|>")
    config.max_initial_timestamp_index = round(MAX_INITIAL_SECONDS / POSITION_SECONDS)
    upper = range(decoder_layers // 2, decoder_layers)
    config.alignment_heads = [[layer, head] for layer in upper for head in range(HEADS)]
    return config
