r"""Transcripts as text.

`text` is one line a hypothesis, `<path>\t<text>`, or with timestamps a segment,
`<path>\t<start s>\t<end s>\t<text>`; tabs and line ends within a path or text are written \t, \n
and \r. `jsonl` is an object a file. Paths that are no UTF-8 keep their bytes in text; in JSONL such
bytes are \udc80 to \udcff, as Python's surrogateescape has them.
"""

from __future__ import annotations

import json
from typing import Any

from fairseq_openvino.model import Hypothesis, Transcript

ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


def text(transcript: Transcript) -> str:
    """Lines without the last line end."""
    path = transcript.path.translate(ESCAPES)
    if transcript.segments:
        return "\n".join(
            f"{path}\t{each.start:.2f}\t{each.end:.2f}\t{each.text.translate(ESCAPES)}"
            for each in transcript.segments
        )
    return "\n".join(f"{path}\t{line.translate(ESCAPES)}" for line, _ in transcript.hypotheses)


def jsonl(transcript: Transcript) -> str:
    """One line; what a family does not know is left out."""
    segments = [vars(segment) for segment in transcript.segments]
    content = {
        "path": transcript.path,
        "text": transcript.text,
        "score": transcript.score,
        "seconds": round(transcript.seconds, 3),
        "hypotheses": [_hypothesis(*pair) for pair in transcript.hypotheses],
        "language": transcript.language,
        "language_probabilities": dict(transcript.language_probabilities) or None,
        "no_speech_probability": transcript.no_speech_probability,
        "skipped": transcript.skipped,
        "decoded_again": transcript.decoded_again,
        "segments": segments if segments or transcript.skipped else None,
        "damage": transcript.damage,
    }
    known = {name: value for name, value in content.items() if value is not None}
    line = json.dumps(known, ensure_ascii=False)
    return line.encode("utf-8", "backslashreplace").decode()  # surrogates as JSON writes them


FORMATS = {"text": text, "jsonl": jsonl}
"""Name to a function of a transcript."""


def _hypothesis(line: str, hypothesis: Hypothesis) -> dict[str, Any]:
    return {
        "text": line,
        "score": hypothesis.score,
        "average_log_probability": hypothesis.average_log_probability,
        "tokens": hypothesis.tokens.tolist(),
        "positional_scores": [float(x) for x in hypothesis.positional_scores],
    }
