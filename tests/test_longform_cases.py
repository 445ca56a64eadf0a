"""The driver of a recording in single cases, and its options."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_longform import EOS, FIRST, FULL, LADDER, RULES, heard, request_of

from fairseq_openvino.errors import OptionError
from fairseq_openvino.flags import add_flags, given
from fairseq_openvino.model import Hypothesis
from fairseq_openvino.whisper.longform import Longform
from fairseq_openvino.whisper.options import WhisperOptions
from fairseq_openvino.whisper.questions import Alignment, Heard, Timing, Window
from fairseq_openvino.whisper.windows import Outcome


def plain(found: Any) -> str:
    """One letter a token."""
    return "".join("x" for token in found if token < EOS)


def ask(
    driver: Longform, *answers: tuple[list[int], Outcome] | None, most: int = 100
) -> list[Window]:
    """The windows asked for; the last answer is given again and again."""
    questions, asked, answer = driver.run(), [], None
    for i in range(most):
        question = next_question(questions, answer)
        if question is None:
            return asked
        assert isinstance(question, Window)
        asked.append(question)
        found = answers[min(i, len(answers) - 1)]
        answer = None if found is None else heard(driver, *found)
    raise AssertionError(f"still going on after {most} windows")


def recording(frames: int, one_window: bool = False, **options: Any) -> Longform:
    request = request_of(WhisperOptions(timestamps=True, **options))
    return Longform(frames, FULL, RULES, request, plain, one_window)


def next_question(questions: Any, answer: Any) -> Window | Alignment | None:
    """None: there are no more."""
    try:
        found: Window | Alignment = questions.send(answer)
    except StopIteration:
        return None
    return found


GOOD = Outcome(0.0, -0.3, 1.5, 0.1)
CLOSED = [FIRST, 1000, FIRST + 1500]


@pytest.mark.parametrize("found", [[FIRST, FIRST], [FIRST, 1000, FIRST, FIRST]], ids=str)
def test_a_window_always_advances(found: list[int]) -> None:
    driver = recording(10_000)
    assert [each.seek for each in ask(driver, (found, GOOD))] == [0, 3000, 6000, 9000]
    assert driver.stuck == 4 and driver.seek == 10_000
    assert driver.segments == [] and len(driver.outcomes) == 4


def test_clips_end_with_the_recording() -> None:
    """One sample behind it is one frame behind it after rounding, and openai-whisper goes on for ever."""
    driver = recording(5_000, clip_timestamps=(10.0, 20.0, 40.0, 50.0 + 1 / 160))
    asked = ask(driver, (CLOSED, GOOD))
    assert [(each.seek, each.frames) for each in asked] == [(1000, 1000), (4000, 1000)]
    assert [(each.start, each.end) for each in driver.segments] == [(10.0, 40.0), (40.0, 50.0)]
    assert ask(recording(5_000, clip_timestamps=(60.0, 70.0)), None) == []
    (rest,) = ask(recording(5_000, clip_timestamps=(45.0,)), (CLOSED, GOOD))
    assert (rest.seek, rest.frames) == (4500, 500)


def test_repeats_climb_the_ladder_and_are_not_passed_on() -> None:
    """The attempt with the best log-probability counts, though no one succeeded."""
    loop = [
        (
            [FIRST, *[1000 + i] * 9, FIRST + 1500],
            Outcome(LADDER[i], -0.5 + 0.1 * (i == 2), 9.0, 0.1),
        )
        for i in range(6)
    ]
    driver = recording(6_000)
    asked = ask(driver, *loop, (CLOSED, GOOD))
    assert [each.temperature for each in asked] == [*LADDER, 0.0]
    assert [each.attempt for each in asked] == [*range(6), 0]
    assert [each.temperature for each in driver.segments] == [0.4, 0.0]
    assert driver.segments[0].tokens[1] == 1002 and asked[-1].previous == ()
    fitting = [
        (found, replace(each, compression_ratio=9.0 - (i == 4)))
        for i, (found, each) in enumerate(loop)
    ]
    driver = recording(6_000, compression_ratio_threshold=8.5, logprob_threshold=-0.1)
    ask(driver, *fitting, (CLOSED, replace(GOOD, avg_logprob=0.0)))
    assert driver.segments[0].temperature == 0.8


def test_text_so_far_precedes_windows_until_it_is_forgotten() -> None:
    hot = replace(GOOD, temperature=0.8)
    bad = replace(GOOD, avg_logprob=-2.0)
    answers = [(CLOSED, GOOD)] * 2 + [(CLOSED, bad)] * 4 + [(CLOSED, hot), (CLOSED, GOOD)]
    previous = [each.previous for each in ask(recording(15_000), *answers) if each.attempt == 0]
    assert previous == [(), (*CLOSED,), (*CLOSED * 2,), (), (*CLOSED,)]
    unconditioned = recording(9_000, condition_on_previous_text=False)
    assert {each.previous for each in ask(unconditioned, (CLOSED, GOOD))} == {()}


@pytest.mark.parametrize("carried", [False, True])
def test_hotwords_precede_every_window_and_leave_room_for_the_rest(carried: bool) -> None:
    hotwords, prompt = tuple(range(1, 101)), tuple(range(101, 151))
    options = WhisperOptions(timestamps=True, prompt="a", carry_initial_prompt=carried)
    driver = Longform(60_000, FULL, RULES, request_of(options, prompt, 223, hotwords), plain)
    long = [FIRST, *range(1000, 1060), FIRST + 1500]
    previous = [each.previous for each in ask(driver, (long, GOOD))]
    assert previous[0] == (*hotwords, *prompt)
    assert {len(each) for each in previous[3:]} == {223}
    assert all(each[:100] == hotwords for each in previous)
    assert all((each[100:150] == prompt) == carried for each in previous[3:])
    assert all(each[-62:] == (*long,) for each in previous[1:])


def test_windows_in_which_nobody_can_speak() -> None:
    driver = recording(7_000)
    assert [each.frames for each in ask(driver, None)] == [3000, 3000, 1000]
    assert driver.skipped and driver.outcomes == [] and driver.segments == []
    assert driver.hypotheses()[0].tokens.tolist() == [EOS]
    quiet = ([], Outcome(0.0, -2.0, 0.0, 0.9))
    driver = recording(7_000)
    assert len(ask(driver, quiet)) == 3 and driver.skipped and len(driver.outcomes) == 3


def test_nothing_is_invented_behind_the_audio() -> None:
    """10 s of audio, then what the padding seemed to say; and speech before the end only."""
    driver = recording(1_000)
    ask(driver, ([FIRST, 1000, FIRST + 400, FIRST + 600, 1001, FIRST + 700], GOOD))
    assert [(each.start, each.end) for each in driver.segments] == [(0.0, 8.0)]
    assert driver.hypotheses()[0].tokens.tolist() == [FIRST, 1000, FIRST + 400]


def test_a_piece_is_one_window() -> None:
    """What follows its last complete segment is kept."""
    open_end = [FIRST, 1000, FIRST + 400, FIRST + 420, 1001, 1002]
    driver = recording(2_000, one_window=True)
    assert len(ask(driver, (open_end, GOOD))) == 1
    assert [(each.start, each.end, each.text) for each in driver.segments] == [
        (0.0, 8.0, "x"), (8.4, 20.0, "xx"),
    ]  # fmt: skip
    assert driver.hypotheses()[0].tokens.tolist() == [*open_end, EOS]
    assert len(ask(recording(2_000), (open_end, GOOD), (CLOSED, GOOD))) == 2


def test_the_n_best_of_a_single_window_are_those_of_the_recording() -> None:
    driver = Longform(500, FULL, RULES, request_of(WhisperOptions(beam=3, nbest=2)), plain)
    found = tuple(
        Hypothesis(np.array([1000 + i, EOS]), -i, np.zeros(2), np.zeros(2)) for i in range(3)
    )
    questions = driver.run()
    next(questions)
    with pytest.raises(StopIteration):
        questions.send(Heard(found, "x", GOOD))
    assert driver.hypotheses() == [*found[:2]]


BAD_OPTIONS: list[dict[str, Any]] = [
    {"temperature": (0.2, 0.2)}, {"temperature": ()}, {"temperature": (0.0, np.nan)}, {"best_of": 0},
    {"compression_ratio_threshold": np.nan}, {"carry_initial_prompt": True},
    {"clip_timestamps": (5.0, 3.0)}, {"clip_timestamps": (5.0, 5.0)}, {"clip_timestamps": (-1.0,)},
    {"clip_timestamps": (0.0, 5.0, 4.0, 6.0)}, {"clip_timestamps": (np.nan,)},
    {"hallucination_silence_threshold": 2.0},
    {"hallucination_silence_threshold": -2.0, "word_timestamps": True},
    {"language_windows": 0}, {"language_windows": 2, "language": "en"},
    {"multilingual": True, "language": "en"}, {"condition_on_previous_text": True, "chunked": True},
    {"clip_timestamps": (1.0,), "chunked": True}, {"nbest": 2, "word_timestamps": True},
    {"prefix": "a", "word_timestamps": True},
    {"hallucination_silence_threshold": 0.0, "word_timestamps": True, "chunked": True},
]  # fmt: skip


@pytest.mark.parametrize(
    ("frames", "first", "second", "probability", "seeks", "texts"),
    [(4_000, 0.5, 25.0, 0.01, [0, 2500], ["x"]), (2_900, 0.5, 28.5, 0.01, [0], ["x"]),
     (4_000, 0.5, 25.0, 0.9, [0, 3000], ["x", "x"]), (4_000, None, 25.0, 0.01, [0, 2500], [])],
    ids=["heard again from there", "the recording ends soon", "probable", "nothing before it"],
)  # fmt: skip
def test_words_made_up_in_silence_are_left_out(
    frames: int, first: float | None, second: float, probability: float,
    seeks: list[int], texts: list[str],
) -> None:  # fmt: skip
    """A short and improbable word, far from others."""
    driver = recording(frames, word_timestamps=True, hallucination_silence_threshold=2.0)
    duration = 0.05 if probability < 0.5 else 0.4
    tokens = [FIRST + int(50 * second), 1001, FIRST + 1480]
    timings = [Timing(" hm", (1001,), second, second + duration, probability)]
    if first is not None:
        tokens = [FIRST, 1000, FIRST + 100, *tokens]
        timings.insert(0, Timing(" so", (1000,), first, first + 0.4, 0.9))
    questions, asked, answer = driver.run(), [], None
    while (question := next_question(questions, answer)) is not None:
        if isinstance(question, Window):
            asked.append(question.seek)
            answer = heard(driver, tokens, GOOD) if question.seek == 0 else None
        else:
            assert question.tokens == tuple(token for token in tokens if token < EOS)
            answer = timings
    assert asked == seeks and driver.seek == frames
    assert [each.text for each in driver.segments] == texts


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_options_that_contradict_each_other(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=" failed in .*: expected .*, got ") as raised:
        WhisperOptions(**options)
    assert raised.value.field == next(iter(options))


def test_what_options_stand_for() -> None:
    assert WhisperOptions().temperatures == LADDER and WhisperOptions().conditioned
    assert WhisperOptions(temperature=0.5).temperatures == (0.5,)
    assert not WhisperOptions(chunked=True).conditioned
    assert not WhisperOptions(condition_on_previous_text=False).conditioned
    assert WhisperOptions(word_timestamps=True).timed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--temperature 0,0.2,1", {"temperature": (0.0, 0.2, 1.0)}),
        ("--temperature 0.5", {"temperature": 0.5}),
        ("--no-condition-on-previous-text", {"condition_on_previous_text": False}),
        ("--condition-on-previous-text", {"condition_on_previous_text": True}),
        ("--clip-timestamps 0,2.5,7", {"clip_timestamps": (0.0, 2.5, 7.0)}),
        ("--compression-ratio-threshold none", {"compression_ratio_threshold": None}),
        ("--hallucination-silence-threshold 2", {"hallucination_silence_threshold": 2.0}),
    ],
)
def test_flags_of_recordings(words: str, expected: dict[str, Any]) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, WhisperOptions)
    assert given(parser.parse_args(words.split()), WhisperOptions) == expected
    assert parser.format_help().isascii()  # it can be printed in any locale
