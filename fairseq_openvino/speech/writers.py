r"""Transcripts as text.

`text` is one line a hypothesis, `<path>\t<text>`, or with timestamps a segment,
`<path>\t<start s>\t<end s>\t<text>`; tabs and line ends within a path or text are written \t, \n
and \r. `jsonl` is an object a file. Paths that are no UTF-8 keep their bytes in text; in JSONL such
bytes are \udc80 to \udcff, as Python's surrogateescape has them. `json` is openai-whisper's result;
`srt`, `vtt` and `tsv` are in `speech.subtitles`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

from fairseq_openvino.model import Hypothesis, Segment, Transcript
from fairseq_openvino.speech.options import SubtitleOptions
from fairseq_openvino.speech.subtitles import Srt, Tsv, Vtt

ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})

OPENAI_FIELDS = (
    "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio",
    "no_speech_prob", "words",
)  # fmt: skip
"""Of a segment behind its `id`, in openai-whisper's order."""


class Writer(Protocol):
    """A format of one recording: what is returned, one behind the other, is the document."""

    extension: ClassVar[str]
    """Of its files."""

    def __init__(self, path: str, layout: SubtitleOptions) -> None: ...

    def add(self, segment: Segment) -> str:
        """What can be written once this segment is known, the next one."""
        ...

    def end(self, transcript: Transcript) -> str:
        """The rest of the document, once all segments of the transcript were added."""
        ...


class Text:
    """Lines of segments, or else of hypotheses."""

    extension: ClassVar[str] = "txt"

    def __init__(self, path: str, _: SubtitleOptions) -> None:
        self._path = path.translate(ESCAPES)

    def add(self, segment: Segment) -> str:
        """Its line."""
        text = segment.text.translate(ESCAPES)
        return f"{self._path}\t{segment.start:.2f}\t{segment.end:.2f}\t{text}\n"

    def end(self, transcript: Transcript) -> str:
        """Nothing, where there are segments."""
        lines = () if transcript.segments else transcript.hypotheses
        return "".join(f"{self._path}\t{line.translate(ESCAPES)}\n" for line, _ in lines)


class Whole:
    """A format that is written once all is known."""

    def __init__(self, _: str, __: SubtitleOptions) -> None: ...

    def add(self, _: Segment) -> str:
        """Nothing yet."""
        return ""


class JsonLines(Whole):
    """One line; what a family does not know is left out."""

    extension: ClassVar[str] = "jsonl"

    def end(self, transcript: Transcript) -> str:
        """All of it."""
        segments = [_segment(segment) for segment in transcript.segments]
        content = {
            "path": transcript.path,
            "text": transcript.text,
            "score": transcript.score,
            "seconds": round(transcript.seconds, 3),
            "hypotheses": [described(*pair) for pair in transcript.hypotheses],
            "language": transcript.language,
            "language_probabilities": dict(transcript.language_probabilities) or None,
            "no_speech_probability": transcript.no_speech_probability,
            "skipped": transcript.skipped,
            "decoded_again": transcript.decoded_again,
            "segments": segments if segments or transcript.skipped else None,
            "damage": transcript.damage,
            "uncovered": transcript.uncovered or None,
        }
        known = {name: value for name, value in content.items() if value is not None}
        line = json.dumps(known, ensure_ascii=False)
        return line.encode("utf-8", "backslashreplace").decode() + "\n"  # surrogates as in JSON


class Json(Whole):
    """The result of openai-whisper, as its command writes it: ASCII, without a line end."""

    extension: ClassVar[str] = "json"

    def end(self, transcript: Transcript) -> str:
        """All of it."""
        return json.dumps(openai_result(transcript))


JSONL = "jsonl"
FORMATS: dict[str, type[Writer]] = {
    "text": Text, JSONL: JsonLines, "json": Json, "srt": Srt, "vtt": Vtt, "tsv": Tsv,
}  # fmt: skip
TIMED = ("json", "srt", "vtt", "tsv")
"""Formats that are made of segments."""


def document(name: str, transcript: Transcript, layout: SubtitleOptions | None = None) -> str:
    """A transcript in one of `FORMATS`.

    Raises:
        OptionError: the layout needs times of words, which the transcript does not have.
    """
    writer = FORMATS[name](transcript.path, layout or SubtitleOptions())
    return "".join(map(writer.add, transcript.segments)) + writer.end(transcript)


def openai_result(transcript: Transcript) -> dict[str, Any]:
    """The transcript as openai-whisper's `transcribe` returns it."""
    segments = [
        {"id": i} | {name: content[name] for name in OPENAI_FIELDS if name in content}
        for i, content in enumerate(map(_segment, transcript.parts))
    ]
    return {"text": transcript.text, "segments": segments, "language": transcript.language}


def _segment(segment: Segment) -> dict[str, Any]:
    """Words only where there are any."""
    content = asdict(segment)
    if segment.words is None:
        del content["words"]
    return content


def described(line: str, hypothesis: Hypothesis) -> dict[str, Any]:
    """A hypothesis and its text in JSONL."""
    return {
        "text": line,
        "score": hypothesis.score,
        "average_log_probability": hypothesis.average_log_probability,
        "tokens": hypothesis.tokens.tolist(),
        "positional_scores": [float(x) for x in hypothesis.positional_scores],
    }
