"""What a Whisper transcription was asked for, checked against the model before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

from fairseq_openvino.bundle import WhisperConfig
from fairseq_openvino.errors import OptionError
from fairseq_openvino.whisper.search import WhisperOptions
from fairseq_openvino.whisper.tokenizer import WhisperTokenizer

TASKS = ("transcribe", "translate")
ENGLISH = "en"


@dataclass(frozen=True)
class Request:
    """Options that go together; see `whisper.model.WhisperModel.transcribe_clips`."""

    search: WhisperOptions
    nbest: int
    language: str | None
    """Code, or None if it is to be detected."""
    task: str
    previous: tuple[int, ...]
    """<|startofprev|> and the prompt, or nothing."""
    prefix: tuple[int, ...]
    seed: int
    audio_context: str | int

    @classmethod
    def checked(
        cls,
        config: WhisperConfig,
        positions: int,
        tokenizer: WhisperTokenizer,
        *,
        nbest: int,
        language: str | None,
        task: str,
        prompt: str | None,
        prefix: str | None,
        seed: int,
        audio_context: str | int,
        max_tokens: int | None,
        **search: Any,
    ) -> Request:
        """Options of `transcribe_clips` for a model with this many decoder positions.

        Raises:
            OptionError: the options contradict each other or the model.
        """
        options = WhisperOptions(max_tokens=max_tokens or 0, **search)
        _check_search(options, nbest, max_tokens, prefix)
        if not (audio_context in ("full", "auto") or _is_positive(audio_context)):
            raise _fail(
                "audio-context", "full, auto or a number of positions", repr(audio_context), "full"
            )
        if seed < 0:
            raise _fail("seed", "0 or more", str(seed), "a positive number")
        previous: tuple[int, ...] = ()
        if prompt:
            previous = (_previous_token(config), *tokenizer.tokens(prompt))
            if len(previous) > positions // 2 - 1:
                raise _fail(
                    "prompt",
                    f"at most {positions // 2 - 2} tokens (half of the {positions} positions)",
                    str(len(previous) - 1),
                    "a shorter text",
                )
        request = cls(
            options,
            nbest,
            _language(config, language),
            _task(config, task),
            previous,
            tokenizer.tokens(prefix) if prefix else (),
            seed,
            audio_context,
        )
        return request._with_limit(config, positions, max_tokens)

    def after_start(self, language: str | None, config: WhisperConfig) -> tuple[int, ...]:
        """Tokens between <|startoftranscript|> and the first one generated.

        While the language is None the model's first one stands for it: their number is the same.
        """
        tokens: tuple[int, ...] = ()
        if config.languages:
            tokens = (config.languages[language or next(iter(config.languages))],)
        if config.tasks:
            tokens = (*tokens, config.tasks[self.task])
        if not self.search.timestamps:
            tokens = (*tokens, config.no_timestamps)
        return (*tokens, *self.prefix)

    def _with_limit(self, config: WhisperConfig, positions: int, max_tokens: int | None) -> Request:
        """With the number of tokens there is room for."""
        length = len(self.previous) + 1 + len(self.after_start(self.language, config))
        room = positions - length
        if room < 1 or (max_tokens or 0) > room:
            raise _fail(
                "max-tokens",
                f"at most {room} ({positions} positions less {length} of prompt and special tokens)",
                str(max_tokens or 1),
                "fewer tokens or a shorter prompt",
            )
        allowed = max_tokens or min(config.max_tokens + length, positions) - length
        if self.search.min_tokens > allowed:
            raise _fail(
                "min-tokens",
                f"at most --max-tokens {allowed}",
                str(self.search.min_tokens),
                "fewer",
            )
        return replace(self, search=replace(self.search, max_tokens=allowed))


def _fail(flag: str, expected: str, got: str, advice: str) -> OptionError:
    return OptionError(
        f"Transcribing failed in --{flag}: expected {expected}, got {got}. Give {advice}."
    )


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_search(
    options: WhisperOptions, nbest: int, max_tokens: int | None, prefix: str | None
) -> None:
    if options.beam < 1:
        raise _fail("beam", "at least 1", str(options.beam), "a positive number")
    most = 1 if options.timestamps or options.temperature > 0 else options.beam
    if not 1 <= nbest <= most:
        reason = "--beam" if most > 1 or options.beam == 1 else "with timestamps or a temperature"
        raise _fail("nbest", f"1 to {most} ({reason})", str(nbest), "a smaller number")
    if not 0 <= options.temperature < inf:
        raise _fail("temperature", "0 or more", str(options.temperature), "0 to search")
    if not isfinite(options.lenpen):
        raise _fail("lenpen", "a finite number", str(options.lenpen), "1 for none")
    if max_tokens is not None and max_tokens < 1:
        raise _fail("max-tokens", "at least 1", str(max_tokens), "a positive number")
    if prefix and options.timestamps:
        raise _fail("prefix", "no --timestamps", "both", "one of them")


def _previous_token(config: WhisperConfig) -> int:
    if config.previous is None:
        raise _fail("prompt", "a model with <|startofprev|>", "one without", "no prompt")
    return config.previous


def _language(config: WhisperConfig, language: str | None) -> str | None:
    if not config.languages:
        if language not in (None, ENGLISH):
            raise _fail("language", "en (the model is English-only)", repr(language), "en or none")
        return ENGLISH
    if language is not None and language not in config.languages:
        raise _fail(
            "language", f"one of {', '.join(config.languages)}", repr(language), "a code of these"
        )
    return language


def _task(config: WhisperConfig, task: str) -> str:
    known = tuple(config.tasks) or TASKS[:1]
    if task not in known:
        reason = "" if config.tasks else " (the model is English-only)"
        raise _fail("task", f"{' or '.join(known)}{reason}", repr(task), "another task")
    return task
