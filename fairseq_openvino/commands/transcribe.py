r"""`fairseq-openvino transcribe`: audio files to text with a bundle of any family.

A line of `--format text` is one result: a TAB or line break in a name or text is written \t, \n or
\r. Names that are not UTF-8 are written as they are; in `jsonl` their bytes are \udc80 to \udcff, as
Python's surrogateescape has them.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fairseq_openvino.errors import EXIT_OK, EXIT_PARTIAL, OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command; those left out keep the model's own defaults."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="WAV, FLAC, OGG, MP3, AIFF, AU")
    parser.add_argument("--model", required=True, metavar="BUNDLE")
    parser.add_argument("--format", choices=("text", "jsonl"), default="text")
    parser.add_argument("--batch-size", type=int, default=8, help="files decoded together")
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--precision", help="default: the bundle's own, f32 unless quantized")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cache-dir", metavar="DIR", help="directory for compiled models")
    search = parser.add_argument_group("search")
    search.add_argument("--beam", type=int, help="default: 5")
    search.add_argument("--nbest", type=int, help="default: 1")
    search.add_argument("--lenpen", type=float, help="length penalty; default: 1")
    search.add_argument(
        "--language",
        help="S2T: target language of a multilingual model; Whisper: spoken language (default: detected)",
    )
    s2t = parser.add_argument_group("Fairseq S2T")
    s2t.add_argument("--max-len-a", type=float, help="longest output = A * frames + B; default: 0")
    s2t.add_argument("--max-len-b", type=int, help="see --max-len-a; default: 200")
    whisper = parser.add_argument_group("Whisper")
    whisper.add_argument("--task", choices=("transcribe", "translate"), help="default: transcribe")
    whisper.add_argument("--timestamps", action="store_true", default=None, help="find segments")
    whisper.add_argument("--prompt", metavar="TEXT", help="text that precedes the audio")
    whisper.add_argument("--prefix", metavar="TEXT", help="beginning of the output")
    whisper.add_argument(
        "--temperature", type=float, help="sample instead of searching; default: 0"
    )
    whisper.add_argument("--seed", type=int, help="of the sampling; default: 1")
    whisper.add_argument("--max-tokens", type=int, help="longest output; default: what fits")
    whisper.add_argument(
        "--audio-context",
        type=_audio_context,
        metavar="full|auto|FRAMES",
        help="encoder positions: the whole window (default), as the clip needs, or a number",
    )


def _audio_context(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def run(options: argparse.Namespace, _: list[str]) -> int:
    """Files that fail are reported on stderr; the others are not lost."""
    from fairseq_openvino.recognizer import load_model

    if options.batch_size < 1:
        raise OptionError(
            f"Transcribing failed in --batch-size: expected at least 1, got {options.batch_size}. "
            "Give a positive number."
        )
    model = load_model(
        options.model,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        cache_dir=options.cache_dir,
    )
    model.check_supported()
    given = _given(options, model)
    failed, damaged, size = 0, 0, options.batch_size
    for start in range(0, len(options.files), size):
        for result in model.transcribe_each(options.files[start : start + size], **given):
            if isinstance(result, Exception):
                failed += 1
                print(f"error: {result}", file=sys.stderr)
            else:
                damaged += result.damage is not None
                print(_format(result, options.format), flush=True)
    for count, what in ((failed, "failed"), (damaged, "are damaged (see above)")):
        if count:
            print(f"{count} of {len(options.files)} files {what}", file=sys.stderr)
    return EXIT_PARTIAL if failed or damaged else EXIT_OK


SEARCH_OPTIONS = (
    "beam", "nbest", "lenpen", "language", "max_len_a", "max_len_b", "task", "timestamps", "prompt",
    "prefix", "temperature", "seed", "max_tokens", "audio_context",
)  # fmt: skip


def _given(options: argparse.Namespace, model: Any) -> dict[str, Any]:
    """The search options that were on the command line."""
    given = {name: getattr(options, name) for name in SEARCH_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in model.options:
            raise OptionError(
                f"Transcribing failed in --{name.replace('_', '-')}: expected an option of the model "
                f"family {model.manifest.family!r}, got one of another family. Leave it out."
            )
    return given


ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _format(transcript: Any, kind: str) -> str:
    if kind == "text":
        path = transcript.path.translate(ESCAPES)
        if transcript.segments:
            return "\n".join(
                f"{path}\t{each.start:.2f}\t{each.end:.2f}\t{each.text.translate(ESCAPES)}"
                for each in transcript.segments
            )
        return "\n".join(f"{path}\t{text.translate(ESCAPES)}" for text, _ in transcript.hypotheses)
    content = {
        "path": transcript.path,
        "text": transcript.text,
        "score": transcript.score,
        "seconds": round(transcript.seconds, 3),
        "hypotheses": [
            {
                "text": text,
                "score": hypothesis.score,
                "average_log_probability": float(hypothesis.positional_scores.mean()),
                "tokens": hypothesis.tokens.tolist(),
                "positional_scores": [float(x) for x in hypothesis.positional_scores],
            }
            for text, hypothesis in transcript.hypotheses
        ],
    }
    if transcript.language is not None:
        content["language"] = transcript.language
    if transcript.language_probabilities:
        content["language_probabilities"] = dict(transcript.language_probabilities)
    if transcript.no_speech_probability is not None:
        content["no_speech_probability"] = transcript.no_speech_probability
    if transcript.decoded_again is not None:
        content["decoded_again"] = transcript.decoded_again
    if transcript.segments:
        content["segments"] = [vars(segment) for segment in transcript.segments]
    if transcript.damage is not None:
        content["damage"] = transcript.damage
    text = json.dumps(content, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # surrogates as JSON writes them
