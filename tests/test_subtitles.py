"""Formats of transcripts, against openai-whisper's writers and read back by pysubs2."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pysubs2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from whisper.utils import get_writer

from fairseq_openvino.errors import OptionError
from fairseq_openvino.model import Hypothesis, Segment, Transcript, Word
from fairseq_openvino.speech.options import SubtitleOptions
from fairseq_openvino.speech.subtitles import Cues
from fairseq_openvino.speech.writers import FORMATS, TIMED, document, openai_result

PLAIN = SubtitleOptions()
TEXTS = st.lists(
    st.sampled_from(["", "a", "-->", "&", "<b>", "\t", "\n", " ", "größer", "字", "don't."]),
    max_size=6,
).map("".join)
WORDS = st.sampled_from([" a", " b,", "-->", " &", " <b>", "\t", "\n", " größer", "字", "", " "])
GAPS = st.sampled_from([0.0, 0.001, 0.2, 2.999, 3.0, 3.4, 70.0])
LENGTHS = st.sampled_from([0.001, 0.02, 0.3, 2.5])
STARTS = st.sampled_from([0.0, 0.5, 59.9996, 3599.9, 359_999.98])
LAYOUTS = st.one_of(
    st.builds(
        SubtitleOptions,
        max_line_width=st.none() | st.integers(1, 30),
        max_words_per_line=st.none() | st.integers(1, 5),
        highlight_words=st.booleans(),
    ),
    st.builds(
        SubtitleOptions, st.integers(1, 30), st.integers(1, 3), highlight_words=st.booleans()
    ),
)


def segment(start: float, end: float, text: str, words: tuple[Word, ...] | None = None) -> Segment:
    return Segment(start, end, text, 0.2, -0.31, 1.4, 0.05, 300, (50364, 11, 50464), words)


def transcript(*segments: Segment, **fields: Any) -> Transcript:
    best = Hypothesis(np.array([11, 2]), -0.3, np.array([-0.1, -0.5], np.float32))
    text = " ".join(each.text for each in segments)
    return Transcript(
        "a\tb.wav", text, -0.3, 12.5, ((text, best),), "de", segments=segments, **fields
    )


@st.composite
def recordings(draw: st.DrawFn, timed: bool, lengths: Any = LENGTHS) -> Transcript:
    """Segments, or their words, one behind the other."""
    now, segments = draw(STARTS), []
    for _ in range(draw(st.integers(0, 5))):
        now += draw(GAPS)
        start, words = now, []
        for word in draw(st.lists(WORDS, max_size=7)) if timed else ():
            end = max(0.0, now + draw(lengths))
            words.append(Word(now, end, word, 0.5))
            now = end + draw(GAPS)
        now = words[-1].end if words else max(0.0, now + draw(lengths))
        text = "".join(word.word for word in words) if timed else draw(TEXTS)
        segments.append(segment(start, now, text, tuple(words) if timed else None))
    return transcript(*segments)


def by_openai(name: str, found: Transcript, layout: SubtitleOptions = PLAIN) -> str:
    file = io.StringIO()
    writer: Any = get_writer(name, "")
    writer.write_result(openai_result(found), file, dict(vars(layout)))
    return file.getvalue()


@given(recordings(timed=False))
def test_formats_equal_openai_whispers(found: Transcript) -> None:
    for name in TIMED:
        assert document(name, found) == by_openai(name, found)


@given(recordings(timed=True), LAYOUTS)
def test_layouts_of_words_equal_openai_whispers(found: Transcript, layout: SubtitleOptions) -> None:
    for name in TIMED:
        assert document(name, found, layout) == by_openai(name, found, layout)


TIMES = re.compile(r"^(\d+):(\d\d):(\d\d),(\d{3}) --> (\d+):(\d\d):(\d\d),(\d{3})$", re.M)


def times(srt: str) -> tuple[list[int], list[int]]:
    """Starts and ends of its cues in milliseconds."""
    rows = [[int(number) for number in match.groups()] for match in TIMES.finditer(srt)]
    units = (3_600_000, 60_000, 1000, 1)
    starts, ends = ([int(np.dot(units, row[i : i + 4])) for row in rows] for i in (0, 4))
    return starts, ends


@given(recordings(timed=True, lengths=st.sampled_from([-0.5, 0.0, 0.0001, 0.3])), LAYOUTS)
def test_cues_have_a_duration_and_are_in_order(found: Transcript, layout: SubtitleOptions) -> None:
    """Which openai-whisper's do not where words have none; all else is the same."""
    ours, theirs = document("srt", found, layout), by_openai("srt", found, layout)
    assert TIMES.sub("", ours) == TIMES.sub("", theirs)
    starts, ends = times(ours)
    assert starts == sorted(starts)
    assert all(start < end for start, end in zip(starts, ends, strict=True))


@given(recordings(timed=True, lengths=st.sampled_from([0.0, 0.0001, 0.3])), LAYOUTS)
def test_cues_that_were_given_a_duration_do_not_overlap(
    found: Transcript, layout: SubtitleOptions
) -> None:
    starts, ends = times(document("srt", found, layout))
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_the_longest_segment_equals_openai_whispers() -> None:
    words = tuple(Word(i / 10, (i + 1) / 10, " a", 0.5) for i in range(1001))
    found = transcript(segment(0.0, 100.1, " a" * 1001, words))
    assert document("srt", found) == by_openai("srt", found)


SPOKEN = (
    segment(0.0, 2.5, "Der Schlüssel & die <b>Tür</b>."),
    segment(2.5, 3.25, "Nein."),
    segment(359_990.0, 359_991.5, "Hundert Stunden."),
)


def test_players_read_what_was_said_and_when() -> None:
    for name in ("srt", "vtt"):
        read = pysubs2.SSAFile.from_string(
            document(name, transcript(*SPOKEN)), name, keep_html_tags=True
        )
        assert [(cue.start, cue.end, cue.text) for cue in read] == [
            (round(1000 * each.start), round(1000 * each.end), each.text) for each in SPOKEN
        ]
    read = pysubs2.load_from_whisper(json.loads(document("json", transcript(*SPOKEN))))
    assert [cue.text for cue in read] == [each.text for each in SPOKEN]


@given(recordings(timed=True), LAYOUTS)
def test_cues_come_with_the_segment_that_ends_them(
    found: Transcript, layout: SubtitleOptions
) -> None:
    """Where segments are kept, none waits for the next one."""
    cues = Cues(layout)
    for each in found.segments:
        last = [cue.text for cue in cues.add(each)]
        if layout.max_line_count is None:
            assert bool(last) == bool(each.words) and not list(cues.end())


def test_words_without_times_lose_no_text() -> None:
    word = (Word(0.0, 0.4, " Eins", 0.9),)
    found = transcript(
        segment(0, 1, "Eins", word), segment(1, 2, "Zwei", ()), segment(2, 3, "", ())
    )
    for layout in (PLAIN, SubtitleOptions(20, 2)):
        assert [cue.split("\n")[2] for cue in document("srt", found, layout).split("\n\n")[:-1]] == [
            "Eins", "Zwei",
        ]  # fmt: skip


@pytest.mark.parametrize("option", ["max_line_width", "max_words_per_line", "highlight_words"])
def test_a_layout_needs_times_of_words(option: str) -> None:
    layout = SubtitleOptions(**{option: True if option == "highlight_words" else 3})
    with pytest.raises(OptionError, match=f"in {option}: expected the times of words"):
        document("vtt", transcript(*SPOKEN), layout)
    assert document("tsv", transcript(*SPOKEN), layout) == by_openai("tsv", transcript(*SPOKEN))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_line_width": 0}, "max_line_width: expected at least 1"),
        ({"max_line_count": 2}, "max_line_count: expected max_line_width too"),
        (
            {"max_line_width": 40, "max_line_count": 2, "max_words_per_line": 3},
            "words_per_line: exp",
        ),
    ],
)
def test_layouts_that_have_no_effect_are_refused(options: dict[str, int], named: str) -> None:
    with pytest.raises(OptionError, match=f"in .*{named}"):
        SubtitleOptions(**options)


def test_a_transcript_without_segments_is_one() -> None:
    """As that of an S2T model."""
    found = replace(transcript(SPOKEN[1]), segments=())
    assert document("srt", found) == "1\n00:00:00,000 --> 00:00:12,500\nNein.\n\n"
    assert document("tsv", found) == "start\tend\ttext\n0\t12500\tNein.\n"
    (only,) = json.loads(document("json", found))["segments"]
    assert (only["id"], only["end"], only["tokens"]) == (0, 12.5, [11, 2])
    assert only["avg_logprob"] == pytest.approx(-0.3) and 0 < only["compression_ratio"] < 2
    silent = replace(found, text="")
    empty = {name: document(name, silent) for name in ("srt", "vtt", "tsv")}
    assert empty == {"srt": "", "vtt": "WEBVTT\n\n", "tsv": "start\tend\ttext\n"}


def test_text_and_json_lines_are_as_before() -> None:
    word = Word(0.0, 0.4, " Eins", 0.9)
    found = transcript(segment(0, 1.25, "Eins\t", (word,)), uncovered=((3.0, 5.5),))
    assert document("text", found) == "a\\tb.wav\t0.00\t1.25\tEins\\t\n"
    assert document("text", replace(found, segments=())) == "a\\tb.wav\tEins\\t\n"
    line = document("jsonl", found)
    content = json.loads(line)
    assert line.endswith("}\n") and content["uncovered"] == [[3.0, 5.5]]
    assert content["segments"] == [
        {"start": 0, "end": 1.25, "text": "Eins\t", "temperature": 0.2, "avg_logprob": -0.31,
         "compression_ratio": 1.4, "no_speech_prob": 0.05, "seek": 300, "tokens": [50364, 11, 50464],
         "words": [{"start": 0.0, "end": 0.4, "word": " Eins", "probability": 0.9}]}
    ]  # fmt: skip
    content = json.loads(document("jsonl", transcript(*SPOKEN)))
    assert "words" not in content["segments"][0] and "uncovered" not in content
    assert set(FORMATS) == {"text", "jsonl", *TIMED}
