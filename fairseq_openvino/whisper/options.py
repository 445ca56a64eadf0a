"""What a Whisper transcription is asked for, and the same checked against a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
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


def temperatures(text: str) -> float | tuple[float, ...]:
    """The option as a flag has it."""
    ladder = tuple(map(float, text.split(",")))
    return ladder if len(ladder) > 1 else ladder[0]


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
    carry_initial_prompt: bool = False
    """Give `prompt` to every window of a recording, not only to the first."""
    hotwords: str | None = field(default=None, metadata=flag(metavar="TEXT"))
    """Words to expect; they precede every window, in front of the prompt."""
    prefix: str | None = field(default=None, metadata=flag(metavar="TEXT"))
    """Beginning of the text; not part of the tokens."""
    temperature: float | tuple[float, ...] = field(
        default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        metadata=flag(metavar="NUMBER,...", parse=temperatures),
    )
    """Above 0, tokens are drawn from the distribution (beam is ignored). The first is for every
    window, the next ones for windows that failed at those before; a single number: no second try."""
    best_of: int = 5
    """Samples of a window at temperatures above 0; the most probable counts."""
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
    """Keep a window if the average log-probability of its tokens is above this, and try again at the
    next temperature if it is below; none: neither."""
    compression_ratio_threshold: float | None = field(default=2.4, metadata=THRESHOLD)
    """Try a window again at the next temperature if its text repeats itself: compresses by more than
    this; none: never for that."""
    condition_on_previous_text: bool | None = None
    """Let the text of a recording so far precede each window; it is forgotten after a window that was
    decoded at a temperature above 0.5 (default: unless chunked)."""
    clip_timestamps: tuple[float, ...] = field(default=(), metadata=flag(metavar="START,END,..."))
    """Transcribe these parts of a recording only, in seconds; the last end may be left out."""
    word_timestamps: bool = False
    """Find when each word is said; includes `timestamps`."""
    hallucination_silence_threshold: float | None = field(
        default=None, metadata=flag(metavar="SECONDS")
    )
    """Leave out text of improbable words within silence longer than this; needs `word_timestamps`
    (default: leave out none)."""
    prepend_punctuations: str = "\"'“¿([{-"
    """Punctuation that is part of the word behind it (default: as openai-whisper)."""
    append_punctuations: str = "\"'.。,，!！?？:：”)]}、"
    """Punctuation that is part of the word before it (default: as openai-whisper)."""
    language_windows: int = 1
    """Windows with speech that vote on the language of a recording."""
    multilingual: bool = False
    """Detect the language of each window anew; nothing to an English-only model."""
    chunked: bool = False
    """Cut recordings at silences into pieces that are decoded together, none with the text before
    it: faster, slightly less accurate."""
    skip_silence: bool = True
    """Do not decode clips that cannot be speech: silence, steady noise, hum, tones."""
    audio_context: str | int = field(
        default=FULL, metadata=flag(metavar="full|auto|FRAMES", parse=audio_context)
    )
    """Encoder positions: full encodes the whole window, as the model was trained; auto about half of it
    for clips up to 10 s, see `whisper.context`; a number that many positions of 20 ms. Shorter is
    faster and may change the text; one that looks wrong is decoded again with full, and
    `decoded_again` says why."""

    @property
    def temperatures(self) -> tuple[float, ...]:
        """To be tried one after another."""
        given = self.temperature
        return given if isinstance(given, tuple) else (given,)

    @property
    def timed(self) -> bool:
        """Whether segments are to be found."""
        return self.timestamps or self.word_timestamps

    @property
    def conditioned(self) -> bool:
        """Whether the text so far precedes each window."""
        return not self.chunked and self.condition_on_previous_text is not False

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise _invalid("beam", "at least 1", self.beam, "a positive number")
        self._check_temperatures()
        most = 1 if self.timed or self.temperatures[0] > 0 else self.beam
        if not 1 <= self.nbest <= most:
            reason = "beam" if most > 1 or self.beam == 1 else "with timestamps or a temperature"
            raise _invalid("nbest", f"1 to {most} ({reason})", self.nbest, "a smaller number")
        if not isfinite(self.lenpen):
            raise _invalid("lenpen", "a finite number", self.lenpen, "1 for none")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _invalid("max_tokens", "at least 1", self.max_tokens, "a positive number")
        if self.prefix and self.timed:
            raise _invalid("prefix", "no timestamps", "both", "one of them")
        if self.seed < 0:
            raise _invalid("seed", "0 or more", self.seed, "a positive number")
        if not (self.audio_context in (FULL, AUTO) or _is_positive(self.audio_context)):
            expected = "full, auto or a number of positions"
            raise _invalid("audio_context", expected, repr(self.audio_context), "full")
        self._check_thresholds()
        self._check_recording()

    def _check_temperatures(self) -> None:
        ladder = self.temperatures
        if not ladder or not all(0 <= each < inf for each in ladder):
            raise _invalid("temperature", "0 or more", self.temperature, "0 to search")
        if any(after <= before for before, after in pairwise(ladder)):
            raise _invalid("temperature", "rising numbers", self.temperature, "them in order")
        if self.best_of < 1:
            raise _invalid("best_of", "at least 1", self.best_of, "a positive number")

    def _check_thresholds(self) -> None:
        if self.no_speech_threshold is not None and not 0 <= self.no_speech_threshold <= 1:
            expected = "0 to 1 or none"
            raise _invalid("no_speech_threshold", expected, self.no_speech_threshold, "one of them")
        for name in ("logprob_threshold", "compression_ratio_threshold"):
            value = getattr(self, name)
            if value is not None and isnan(value):
                raise _invalid(name, "a number or none", "nan", "one of them")
        silence = self.hallucination_silence_threshold
        if silence is not None and not 0 <= silence < inf:
            name = "hallucination_silence_threshold"
            raise _invalid(name, "0 or more seconds", silence, "a positive number")

    def _check_recording(self) -> None:
        """What concerns recordings of several windows."""
        silence, clips = self.hallucination_silence_threshold, self.clip_timestamps
        if silence is not None and not self.word_timestamps:
            expected = "word_timestamps, from which silence is told"
            raise _invalid("hallucination_silence_threshold", expected, "none", "both or neither")
        if self.carry_initial_prompt and not self.prompt:
            raise _invalid("carry_initial_prompt", "a prompt", "none", "both or neither")
        if not all(0 <= each < inf for each in clips):
            raise _invalid("clip_timestamps", "seconds from the start", clips, "0 or more each")
        reversed_pair = any(
            end <= start for start, end in zip(clips[::2], clips[1::2], strict=False)
        )
        if reversed_pair or list(clips) != sorted(clips):
            expected = "START,END,... in order, each end behind its start"
            raise _invalid("clip_timestamps", expected, clips, "them in order")
        if self.language_windows < 1:
            raise _invalid(
                "language_windows", "at least 1", self.language_windows, "a positive number"
            )
        self._check_modes()

    def _check_modes(self) -> None:
        """What excludes each other; defaults exclude nothing."""
        if self.language:
            detected = {
                "multilingual": self.multilingual,
                "language_windows": self.language_windows > 1,
            }
            for name, is_given in detected.items():
                if is_given:
                    raise _invalid(
                        name, "a language to be detected", repr(self.language), "one of them"
                    )
        if self.chunked:
            sequential = {
                "condition_on_previous_text": bool(self.condition_on_previous_text),
                "clip_timestamps": bool(self.clip_timestamps),
                "hallucination_silence_threshold": self.hallucination_silence_threshold is not None,
            }
            for name, is_given in sequential.items():
                if is_given:
                    raise _invalid(name, "recordings that are not chunked", "both", "one of them")


@dataclass(frozen=True)
class Request:
    """Options in terms of one model."""

    options: WhisperOptions
    language: str | None
    """Code, or None if it is to be detected."""
    prompt: tuple[int, ...]
    """Its tokens; `hotwords`, `prefix` likewise."""
    hotwords: tuple[int, ...]
    previous: tuple[int, ...]
    """<|startofprev|>, hotwords and prompt, or nothing."""
    room: int
    """Most tokens behind <|startofprev|>."""
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
        prompt, hotwords, prefix = (
            tokenizer.tokens(text) if text else ()
            for text in (options.prompt, options.hotwords, options.prefix)
        )
        previous = _previous(config, prompt, hotwords, positions)
        language = _language(config, options.language)
        start = len(previous) + 1 + len(_after_start(options, config, language, prefix))
        limit = _limit(options, config, positions, start)
        room = positions // 2 - 1
        return cls(options, language, prompt, hotwords, previous, room, prefix, limit)

    def after_start(
        self, language: str | None, config: WhisperConfig, with_prefix: bool = True
    ) -> tuple[int, ...]:
        """Tokens between <|startoftranscript|> and the first one generated.

        While the language is None the model's first one stands for it: their number is the same.
        """
        prefix = self.prefix if with_prefix else ()
        return _after_start(self.options, config, language, prefix)


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
    if not options.timed:
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


def _previous(
    config: WhisperConfig, prompt: tuple[int, ...], hotwords: tuple[int, ...], positions: int
) -> tuple[int, ...]:
    """What precedes <|startoftranscript|> in a first window."""
    tokens, name = (*hotwords, *prompt), "hotwords" if hotwords else "prompt"
    if not tokens:
        return ()
    if config.previous is None:
        raise _invalid(name, "a model with <|startofprev|>", "one without", f"no {name}")
    if len(tokens) > positions // 2 - 2:
        both = " with the prompt" if hotwords and prompt else ""
        room = f"at most {positions // 2 - 2} tokens{both} (half of the {positions} positions)"
        raise _invalid(name, room, len(tokens), "a shorter text")
    return (config.previous, *tokens)


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
