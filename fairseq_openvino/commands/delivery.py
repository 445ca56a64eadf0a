"""What becomes of the news of recordings: outputs are written, and what went wrong is said on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fairseq_openvino.commands.outputs import Output, Printed
from fairseq_openvino.commands.progress import clock
from fairseq_openvino.errors import (
    EXIT_ENVIRONMENT,
    EXIT_OK,
    EXIT_PARTIAL,
    FairseqOpenVINOError,
    StorageError,
)
from fairseq_openvino.model import News, Segment, Transcript
from fairseq_openvino.speech.writers import ESCAPES

MOST_STRETCHES = 5
"""Of speech without text that are named."""


class Delivery:
    """The recordings of one run; those that fail do not stop the others."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = outputs
        self._total, self._failed, self._damaged = 0, 0, 0
        self._unwritten = False
        self._open: dict[str, tuple[News, list[Segment]]] = {}
        """Of each recording that is not finished: the last news and all segments."""

    def take(self, news: News) -> None:
        """Write what is new.

        Raises:
            StorageError: standard output cannot be written.
        """
        _, segments = self._open.get(news.path, (news, []))
        segments += news.segments
        self._open[news.path] = news, segments
        errors = []
        for output in self._outputs:
            try:
                output.take(news)
            except StorageError as error:
                if isinstance(output, Printed):
                    raise
                errors.append(error)
        if news.result is None:
            return
        del self._open[news.path]
        if isinstance(news.result, Transcript):
            self._damaged += news.result.damage is not None
            _report_uncovered(news.result)
            self.ended(errors)
        else:
            self.ended([news.result])

    def ended(self, errors: Sequence[FairseqOpenVINOError]) -> None:
        """Count a recording, and say what went wrong with it."""
        self._total += 1
        self._failed += bool(errors)
        for error in errors:
            self._unwritten |= isinstance(error, StorageError)
            print(f"error: {error}", file=sys.stderr)

    def stop(self) -> None:
        """Keep what there is of unfinished recordings, and say where they stopped."""
        for news, segments in self._open.values():
            for output in self._outputs if segments else ():
                try:
                    output.stop(_unfinished(news, segments))
                except StorageError as error:
                    print(f"error: {error}", file=sys.stderr)
            path = news.path.translate(ESCAPES)
            print(f"stopped at {clock(news.seconds)} of {path}", file=sys.stderr)

    def exit_code(self) -> int:
        """Of the run, whose failures are summed up on stderr."""
        counts = ((self._failed, "failed"), (self._damaged, "are damaged (see above)"))
        for count, what in counts:
            if count:
                print(f"{count} of {self._total} files {what}", file=sys.stderr)
        if self._unwritten:
            return EXIT_ENVIRONMENT
        return EXIT_PARTIAL if self._failed or self._damaged else EXIT_OK


def _unfinished(news: News, segments: Sequence[Segment]) -> Transcript:
    """Of what is done of a recording."""
    score = sum(each.avg_logprob or 0.0 for each in segments) / len(segments)
    text = " ".join(each.text.strip() for each in segments)
    stop = f"stopped at {clock(news.seconds)} of {clock(news.duration)}"
    return Transcript(
        news.path, text, score, news.duration, (), segments=tuple(segments), damage=stop
    )


def _report_uncovered(transcript: Transcript) -> None:
    """A note: it may be speech that nobody could understand."""
    found = transcript.uncovered
    if found:
        stretches = [f"{clock(start)} - {clock(end)}" for start, end in found[:MOST_STRETCHES]]
        more = f" and {len(found) - MOST_STRETCHES} more" if len(found) > MOST_STRETCHES else ""
        path = transcript.path.translate(ESCAPES)
        where = ", ".join(stretches)
        print(f"note: speech without text in {path}: {where}{more}", file=sys.stderr)
