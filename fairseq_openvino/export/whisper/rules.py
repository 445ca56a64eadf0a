"""Special tokens and suppression: as a checkpoint states them, else as its tokenizer implies them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
from tokenizers import Tokenizer

from fairseq_openvino.bundle import WhisperConfig
from fairseq_openvino.errors import ModelError
from fairseq_openvino.export.whisper.checkpoint import fail
from fairseq_openvino.speech.languages import LANGUAGES
from fairseq_openvino.whisper.options import TASKS

START, END = "<|startoftranscript|>", "<|endoftext|>"
ENGLISH_START = 50_257
"""<|startoftranscript|> of OpenAI's English-only models; their tokenizers have languages too."""
MAX_INITIAL_TIMESTAMP = 50
"""One second."""
SYMBOLS = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("', "((", "))", "(((", ")))"),
    *("[[", "]]", "{{", "}}", "♪♪", "♪♪♪"),
)
MUSIC = set("♩♪♫♬♭♮♯")
Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class Stated(TypedDict, total=False):
    """Types of the keys that are looked at."""

    decoder_start_token_id: Token | None
    eos_token_id: Token | list[Token] | None
    pad_token_id: int | None
    no_timestamps_token_id: Token | None
    prev_sot_token_id: Token | None
    is_multilingual: bool | None
    lang_to_id: dict[str, Token] | None
    task_to_id: dict[str, Token | None] | None
    suppress_tokens: list[int] | None
    begin_suppress_tokens: list[int] | None
    max_initial_timestamp_index: Token | None
    max_length: Token | None
    alignment_heads: list[tuple[int, int]] | None


def rules(
    stated: Mapping[str, Any], tokenizer: Tokenizer, config: Any, path: Path
) -> WhisperConfig:
    """The rules of a checkpoint.

    Args:
        stated: keys of a `generation_config.json`, as many as are known; for those left out
            openai-whisper's rules hold.
        tokenizer: of the checkpoint.
        config: its `WhisperConfig`.
        path: where it is, for messages.

    Raises:
        CheckpointError: a special token is neither stated nor in the tokenizer.
        ModelError: tokenizer and statements contradict each other.
    """

    def token(key: str, symbol: str) -> int:
        found = stated.get(key)
        found = found if isinstance(found, int) else tokenizer.token_to_id(symbol)
        if found is None:
            raise fail(
                path, f"{key} in generation_config.json or {symbol} in the tokenizer", "neither",
                "Take both files of the checkpoint this one was trained from",
            )  # fmt: skip
        return found

    _check_types(stated, path)
    start = token("decoder_start_token_id", START)
    no_timestamps = token("no_timestamps_token_id", "<|notimestamps|>")
    _check_fit(tokenizer, start, config, path)
    languages, tasks = _languages_and_tasks(stated, tokenizer, start)
    implied = {
        "suppress_tokens": openai_suppressed(tokenizer, start, no_timestamps),
        "begin_suppress_tokens": [
            *tokenizer.encode(" ", add_special_tokens=False).ids[:1],
            start - 1,
        ],
    }

    def suppressed(key: str) -> tuple[int, ...]:
        return tuple(i for i in stated.get(key, implied[key]) or () if 0 <= i < config.vocab_size)

    positions = config.max_target_positions
    return WhisperConfig(
        start=start,
        previous=stated.get("prev_sot_token_id") or no_timestamps - 2,
        no_speech=no_timestamps - 1,
        no_timestamps=no_timestamps,
        languages=languages,
        tasks=tasks,
        suppressed=suppressed("suppress_tokens"),
        suppressed_at_start=suppressed("begin_suppress_tokens"),
        max_initial_timestamp=stated.get("max_initial_timestamp_index", MAX_INITIAL_TIMESTAMP),
        max_tokens=min(stated.get("max_length") or positions, positions),
        alignment_heads=_alignment_heads(stated, config),
        translates=2 * config.decoder_layers > config.encoder_layers,
    )


def _check_types(stated: Mapping[str, Any], path: Path) -> None:
    try:
        msgspec.convert({**stated}, Stated)
    except msgspec.ValidationError as error:
        advice = "Take generation_config.json from where the model was trained"
        raise fail(path, "a generation configuration of Whisper", error, advice) from error


def eos(stated: Mapping[str, Any], start: int) -> int:
    """<|endoftext|>, which a configuration may leave out or list several of."""
    found = stated.get("eos_token_id")
    return found if isinstance(found, int) else start - 1


def openai_suppressed(tokenizer: Tokenizer, start: int, no_timestamps: int) -> list[int]:
    """What openai-whisper never generates: `non_speech_tokens` and special tokens."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    found = {tokens[0] for text in (" -", " '") if (tokens := encode(text))}
    for symbol in [*SYMBOLS, *MUSIC]:
        for tokens in (encode(symbol), encode(f" {symbol}")):
            if len(tokens) == 1 or (symbol in MUSIC and tokens):
                found.add(tokens[0])
    translate = no_timestamps - 5
    return sorted(found | {start, *range(translate, no_timestamps)})


def _check_fit(tokenizer: Tokenizer, start: int, config: Any, path: Path) -> None:
    found, size = tokenizer.token_to_id(START), tokenizer.get_vocab_size()
    if found != start or size > config.vocab_size:
        raise ModelError(
            f"Loading a Whisper tokenizer failed in {str(path)!r}: expected {START} to be "
            f"token {start} of at most {config.vocab_size}, got {found} of {size}. "
            "Use the tokenizer the model was trained with."
        )


def _languages_and_tasks(
    stated: Mapping[str, Any], tokenizer: Tokenizer, start: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Tokens by code and by task; empty for an English-only model."""
    languages, tasks = stated.get("lang_to_id"), stated.get("task_to_id")
    if stated.get("is_multilingual", start != ENGLISH_START):
        symbols = [f"<|{code}|>" for code in LANGUAGES]
        languages = languages or {s: i for s in symbols if (i := tokenizer.token_to_id(s))}
        tasks = tasks or {task: tokenizer.token_to_id(f"<|{task}|>") for task in TASKS}
    return (
        {name.strip("<|>"): int(token) for name, token in (languages or {}).items()},
        {name: int(token) for name, token in (tasks or {}).items() if token is not None},
    )


def _alignment_heads(stated: Mapping[str, Any], config: Any) -> tuple[tuple[int, int], ...]:
    """As the checkpoint has them; none of them if one does not exist in this model."""
    heads = tuple((int(layer), int(head)) for layer, head in stated.get("alignment_heads") or ())
    layers, width = config.decoder_layers, config.decoder_attention_heads
    return heads if all(0 <= a < layers and 0 <= b < width for a, b in heads) else ()
