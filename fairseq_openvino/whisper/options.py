"""What a Whisper transcription is asked for, and the same checked against a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite, isnan

from fairseq_openvino.bundle import WhisperConfig
from fairseq_openvino.errors import OptionError, invalid
from fairseq_openvino.flags import flag
from fairseq_openvino.speech.languages import language_code
from fairseq_openvino.whisper.tokenizer import WhisperTokenizer

TRANSCRIBE, TRANSLATE = TASKS = ("transcribe", "translate")
ENGLISH = "en"
FULL, AUTO = "full", "auto"


def audio_context(text: str) -> str | int:
    """The option as a flag has it."""
    return int(text) if text.isdecimal() else text


def threshold(text: str) -> float | None:
    """The option as a flag has it."""
    return None if text == "none" else float(text)


THRESHOLD = flag(metavar="NUMBER|none", parse=threshold)


@dataclass(frozen=True)
class WhisperOptions:
    """Options of a transcription; keywords of `Recognizer.transcribe`."""

    beam: int = 5
    """Beams (K); 1 is greedy search."""
    nbest: int = 1
    """Hypotheses to return, at most `beam`; 1 with timestamps."""
    lenpen: float = 1.0
    """Length penalty: scores are divided by length ** lenpen."""
    language: str | None = None
    """The spoken language: code, English name or tag, as en, English, en-US (default: detected for each
    clip)."""
    task: str = field(default=TRANSCRIBE, metadata=flag(choices=TASKS))
    """transcribe, or translate to English."""
    timestamps: bool = False
    """Find segments."""
    prompt: str | None = field(default=None, metadata=flag(metavar="TEXT"))
    """Text that precedes the audio: spelling and style follow it."""
    prefix: str | None = field(default=None, metadata=flag(metavar="TEXT"))
    """Beginning of the text; not part of the tokens."""
    temperature: float = 0.0
    """Above 0, tokens are drawn from the distribution (beam is ignored)."""
    seed: int = 1
    """Of the drawing."""
    min_tokens: int = 0
    """Fewest tokens of the output."""
    max_tokens: int | None = None
    """Most tokens of the output (default: what the model has positions for)."""
    no_speech_threshold: float | None = field(default=0.6, metadata=THRESHOLD)
    """Leave out a window if the probability that nobody speaks in it is above this, unless
    `logprob_threshold` keeps it; none: leave out none."""
    logprob_threshold: float | None = field(default=-1.0, metadata=THRESHOLD)
    """Keep a window if the average log-probability of its tokens is above this; none: keep none for
    that."""
    skip_silence: bool = True
    """Do not decode clips that cannot be speech: silence, steady noise, hum, tones."""
    audio_context: str | int = field(
        default=FULL, metadata=flag(metavar="full|auto|FRAMES", parse=audio_context)
    )
    """Encoder positions: full encodes the whole window, as the model was trained; auto about half of it
    for clips up to 10 s, see `whisper.context`; a number that many positions of 20 ms. Shorter is
    faster and may change the text; one that looks wrong is decoded again with full, and
    `decoded_again` says why."""

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise _invalid("beam", "at least 1", self.beam, "a positive number")
        most = 1 if self.timestamps or self.temperature > 0 else self.beam
        if not 1 <= self.nbest <= most:
            reason = "beam" if most > 1 or self.beam == 1 else "with timestamps or a temperature"
            raise _invalid("nbest", f"1 to {most} ({reason})", self.nbest, "a smaller number")
        if not 0 <= self.temperature < inf:
            raise _invalid("temperature", "0 or more", self.temperature, "0 to search")
        if not isfinite(self.lenpen):
            raise _invalid("lenpen", "a finite number", self.lenpen, "1 for none")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _invalid("max_tokens", "at least 1", self.max_tokens, "a positive number")
        if self.no_speech_threshold is not None and not 0 <= self.no_speech_threshold <= 1:
            expected = "0 to 1 or none"
            raise _invalid("no_speech_threshold", expected, self.no_speech_threshold, "one of them")
        if self.logprob_threshold is not None and isnan(self.logprob_threshold):
            raise _invalid("logprob_threshold", "a number or none", "nan", "one of them")
        if self.prefix and self.timestamps:
            raise _invalid("prefix", "no timestamps", "both", "one of them")
        if self.seed < 0:
            raise _invalid("seed", "0 or more", self.seed, "a positive number")
        if not (self.audio_context in (FULL, AUTO) or _is_positive(self.audio_context)):
            expected = "full, auto or a number of positions"
            raise _invalid("audio_context", expected, repr(self.audio_context), "full")


@dataclass(frozen=True)
class Request:
    """Options in terms of one model."""

    options: WhisperOptions
    language: str | None
    """Code, or None if it is to be detected."""
    previous: tuple[int, ...]
    """<|startofprev|> and the prompt, or nothing."""
    prefix: tuple[int, ...]
    max_tokens: int
    """Of the output: as asked for, else what there is room for."""

    @classmethod
    def of(
        cls,
        options: WhisperOptions,
        config: WhisperConfig,
        positions: int,
        tokenizer: WhisperTokenizer,
    ) -> Request:
        """For a model with this many decoder positions.

        Raises:
            OptionError: the options do not fit the model.
        """
        _check_task(config, options.task)
        previous: tuple[int, ...] = ()
        if options.prompt:
            previous = (_previous_token(config), *tokenizer.tokens(options.prompt))
            if len(previous) > positions // 2 - 1:
                room = f"at most {positions // 2 - 2} tokens (half of the {positions} positions)"
                raise _invalid("prompt", room, len(previous) - 1, "a shorter text")
        prefix = tokenizer.tokens(options.prefix) if options.prefix else ()
        language = _language(config, options.language)
        start = len(previous) + 1 + len(_after_start(options, config, language, prefix))
        return cls(options, language, previous, prefix, _limit(options, config, positions, start))

    def after_start(self, language: str | None, config: WhisperConfig) -> tuple[int, ...]:
        """Tokens between <|startoftranscript|> and the first one generated.

        While the language is None the model's first one stands for it: their number is the same.
        """
        return _after_start(self.options, config, language, self.prefix)


def start_sequence(config: WhisperConfig, language: str | None, task: str) -> tuple[int, ...]:
    """<|startoftranscript|> and, where the model has them, language (None: its first) and task.

    Source: openai-whisper `tokenizer.py:sot_sequence`.
    """
    tokens: tuple[int, ...] = (config.start,)
    if config.languages:
        tokens = (*tokens, config.languages[language or next(iter(config.languages))])
    return (*tokens, config.tasks[task]) if config.tasks else tokens


def _after_start(
    options: WhisperOptions, config: WhisperConfig, language: str | None, prefix: tuple[int, ...]
) -> tuple[int, ...]:
    _, *tokens = start_sequence(config, language, options.task)
    if not options.timestamps:
        tokens.append(config.no_timestamps)
    return (*tokens, *prefix)


def _limit(options: WhisperOptions, config: WhisperConfig, positions: int, start: int) -> int:
    """Tokens there is room for behind `start` others."""
    room = positions - start
    if room < 1 or (options.max_tokens or 0) > room:
        expected = (
            f"at most {room} ({positions} positions less {start} of prompt and special tokens)"
        )
        got, advice = options.max_tokens or 1, "fewer tokens or a shorter prompt"
        raise _invalid("max_tokens", expected, got, advice)
    allowed = options.max_tokens or min(config.max_tokens + start, positions) - start
    if options.min_tokens > allowed:
        raise _invalid("min_tokens", f"at most max_tokens, {allowed}", options.min_tokens, "fewer")
    return allowed


def _invalid(field: str, expected: str, got: object, advice: str) -> OptionError:
    return invalid("Transcribing", field, expected, got, f"Give {advice}")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _previous_token(config: WhisperConfig) -> int:
    if config.previous is None:
        raise _invalid("prompt", "a model with <|startofprev|>", "one without", "no prompt")
    return config.previous


def _language(config: WhisperConfig, language: str | None) -> str | None:
    code = None if language is None else language_code(language)
    if not config.languages:
        if code not in (None, ENGLISH):
            expected = "en (the model is English-only)"
            raise _invalid("language", expected, repr(language), "en or none")
        return ENGLISH
    if code is not None and code not in config.languages:
        known = f"one of {', '.join(config.languages)}"
        raise _invalid("language", known, repr(language), "a code of these or its English name")
    return code


def _check_task(config: WhisperConfig, task: str) -> None:
    known = tuple(config.tasks) or (TRANSCRIBE,)
    if task not in known:
        reason = "" if config.tasks else " (the model is English-only)"
        raise _invalid("task", f"{' or '.join(known)}{reason}", repr(task), "another task")
