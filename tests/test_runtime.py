"""Compiled models: sessions, their requests, precisions and parallel parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from conftest import MINI, child_environment

from fairseq_openvino import load_model, machine
from fairseq_openvino.model import Ask, Head, Memory, Session
from fairseq_openvino.runtime.engine import Variant, compile_properties
from fairseq_openvino.runtime.voice import MODEL
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.s2t.search import TokenIds, decode_batch

CLIPS = sorted((MINI / "clips").glob("*.mp3"))


def encoded(recognizer: Any, clip: Path) -> Memory:
    """One clip, alone."""
    features = recognizer.read(clip).features
    memory: Memory = recognizer.model.encode(features[None], np.array([len(features)]))
    return memory


def log_probs(session: Session, tokens: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """Of one call of a session without candidates, (R, l, V)."""
    order = np.arange(len(tokens)) if order is None else order
    return session.step(Ask(tokens, order)).scores.copy()


def test_repeated_and_interleaved_sessions_are_independent(recognizer: Any) -> None:
    memory = [encoded(recognizer, clip) for clip in CLIPS[:2]]
    tokens = np.full((2, 1), 2)

    def alone(i: int) -> list[np.ndarray]:
        with recognizer.model.open(memory[i], 2, Head()) as session:
            return [log_probs(session, tokens + step) for step in range(5)]

    expected = [alone(0), alone(1)]
    with (
        recognizer.model.open(memory[0], 2, Head()) as a,
        recognizer.model.open(memory[1], 2, Head()) as b,
    ):
        for step in range(5):
            for i, session in enumerate((a, b)):
                np.testing.assert_array_equal(log_probs(session, tokens + step), expected[i][step])


@pytest.mark.parametrize("precision", ["bf16", "int8", "fast"])
def test_low_precision_keeps_the_translations(
    recognizer: Any, mini_bundle: Path, precision: str
) -> None:
    low = load_model(mini_bundle, precision=precision)
    expected = [t.text for t in recognizer.transcribe_batch(CLIPS[:20])]
    found = [t.text for t in low.transcribe_batch(CLIPS[:20])]
    assert sum(a == b for a, b in zip(expected, found, strict=True)) >= 18


def test_parallel_parts_give_the_result_of_one_request(recognizer: Any) -> None:
    """The whole batch keeps its padding, so splitting it changes no hypothesis."""
    features = [recognizer.read(clip).features for clip in CLIPS[:24]]
    lengths = np.array([len(x) for x in features])
    batch = np.zeros((len(features), max(lengths), 80), np.float32)
    for row, x in zip(batch, features, strict=True):
        row[: len(x)] = x
    tokens = recognizer.manifest.tokens
    ids = TokenIds(tokens.pad, tokens.eos, tokens.unk)
    split, single = (load_model(recognizer.bundle, streams=streams).model for streams in (3, 1))
    assert (split.streams(24), single.streams(24)) == (3, 1)
    whole, parts = (
        decode_batch(each, batch, lengths, S2TOptions(), ids) for each in (single, split)
    )
    for a, b in zip(whole, parts, strict=True):
        assert [h.tokens.tolist() for h in a] == [h.tokens.tolist() for h in b]
        assert max(abs(x.score - y.score) for x, y in zip(a, b, strict=True)) < 1e-4


def test_a_session_that_raised_is_not_reused(recognizer: Any) -> None:
    compiled, memory = recognizer.model, encoded(recognizer, CLIPS[0])
    start = np.full((2, 1), 2)
    with compiled.open(memory, 2, Head()) as session:
        expected = log_probs(session, start)
    variant = Variant("decoder", "f32", 1)
    before = compiled.engine.idle(variant)
    with pytest.raises(RuntimeError), compiled.open(memory, 2, Head()) as session:
        session.step(Ask(np.full((3, 1), 2), np.arange(3)))  # 3 rows are not 1 utterance of 2
        session.step(Ask(np.full((3, 1), 2), np.arange(5)))
    assert compiled.engine.idle(variant) == before - 1
    with compiled.open(memory, 2, Head()) as session:
        np.testing.assert_array_equal(log_probs(session, start), expected)


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 2e-5), ("bf16", 0.2), ("int8", 0.2)])
def test_keeping_utterances_continues_their_rows(
    mini_bundle: Path, precision: str, tolerance: float
) -> None:
    recognizer = load_model(mini_bundle, precision=precision)
    memory = Memory.join(
        [encoded(recognizer, clip) for clip in CLIPS[:3]], recognizer.manifest.memory
    )
    tokens = np.random.default_rng(0).integers(4, 100, (3, 6))
    with recognizer.model.open(memory, 1, Head()) as session:
        full = [log_probs(session, tokens[:, i : i + 1]) for i in range(6)]
    with recognizer.model.open(memory, 1, Head()) as session:
        for i in range(3):
            log_probs(session, tokens[:, i : i + 1])
        session.keep(np.array([0, 2]))
        rest = tokens[[0, 2]]
        found = [log_probs(session, rest[:, 3:4], np.array([0, 2]))]
        found += [log_probs(session, rest[:, i : i + 1]) for i in (4, 5)]
    for step, scores in enumerate(found, 3):
        np.testing.assert_allclose(scores, full[step][[0, 2]], atol=tolerance)
        assert np.abs(scores - full[step][[0, 1]]).max() > 2 * tolerance  # not another utterance


def test_several_tokens_in_one_call_equal_single_steps(recognizer: Any) -> None:
    memory = encoded(recognizer, CLIPS[0])
    tokens = np.random.default_rng(0).integers(4, 100, (2, 7))
    with recognizer.model.open(memory, 2, Head()) as session:
        steps = [log_probs(session, tokens[:, i : i + 1]) for i in range(7)]
    with recognizer.model.open(memory, 2, Head()) as session:
        found = np.concatenate(
            [log_probs(session, part) for part in (tokens[:, :4], tokens[:, 4:])], 1
        )
    np.testing.assert_allclose(found, np.concatenate(steps, 1), atol=2e-5)


def test_what_was_encoded_outlives_the_first_inference(mini_bundle: Path) -> None:
    """Behind it, memory that only it needed is released."""
    fresh = load_model(mini_bundle)
    first, second = encoded(fresh, CLIPS[0]), encoded(fresh, CLIPS[0])
    encoded(fresh, CLIPS[1])
    for name, tensor in first.tensors.items():
        np.testing.assert_array_equal(tensor, second.tensors[name])


RESIDENT = """
import sys
from pathlib import Path
from fairseq_openvino import load_model
from fairseq_openvino.machine import let_go

model = load_model(sys.argv[1])
model.prepare([1])  # compiled here, used first there
before = model.transcribe(sys.argv[2]).score

def mapped():
    kilobytes, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = sys.argv[1] in line
        elif inside and line.startswith("Rss"):
            kilobytes += int(line.split()[1])
    return kilobytes

held = mapped()
let_go(Path(sys.argv[1]))
print(held, mapped(), model.transcribe(sys.argv[2]).score == before)
"""


def test_files_of_a_bundle_do_not_stay_in_memory(mini_bundle: Path) -> None:
    command = [sys.executable, "-c", RESIDENT, str(mini_bundle.resolve()), str(CLIPS[0])]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    assert done.returncode == 0, done.stderr
    held, after, same = done.stdout.split()
    stored = sum(path.stat().st_size for path in mini_bundle.glob("*.bin")) // 1024
    assert int(held) < 0.5 * stored and int(after) == 0 and same == "True"


FIRST = """
import os, sys, threading, time
import fairseq_openvino.runtime.engine
import openvino as ov

for _ in range(3):
    if (child := os.fork()) == 0:
        compiled = ov.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_NUM_THREADS": "1"})
        tensors = [compiled.create_infer_request().get_input_tensor(0) for _ in range(24)]
        begun = []

        def read(tensor):
            while not begun:
                pass
            tensor.data

        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=read, args=(tensor,)) for tensor in tensors]
        for thread in threads:
            thread.start()
        begun.append(True)
        for thread in threads:
            thread.join()
        os._exit(0)
    until = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, 9)
            sys.exit("they wait for each other")
        time.sleep(0.01)
"""


def test_threads_that_come_first_do_not_wait_for_each_other() -> None:
    """Without the line in `engine` 4 of 5 such processes hang."""
    command = [sys.executable, "-c", FIRST, str(MODEL)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(machine.threads() < 2, reason="one core")
def test_a_part_of_the_cores_is_not_the_first_ones() -> None:
    """All processes that share a machine would be pinned to the same."""
    for threads, is_pinned in ((1, False), (machine.threads(), True)):
        compiled = ov.Core().compile_model(MODEL, "CPU", compile_properties("f32", "CPU", threads))
        assert compiled.get_property("ENABLE_CPU_PINNING") == is_pinned
