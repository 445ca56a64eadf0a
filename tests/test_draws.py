"""Samples are drawn by what a file holds: not by its name, its batch, its thread or its process."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from test_whisper_mini import MINI, rows

from fairseq_openvino import load_model
from fairseq_openvino.model import Transcript
from fairseq_openvino.speech.audio import read_audio
from fairseq_openvino.speech.options import AudioOptions
from fairseq_openvino.speech.recordings import recordings

RATE_HZ = 16_000
DRAWN: dict[str, Any] = {"temperature": 1.0, "language": "en", "best_of": 1}


@pytest.fixture(scope="module")
def model(micro_whisper: Path) -> Any:
    return load_model(micro_whisper)


def wav(samples: np.ndarray, title: str = "") -> bytes:
    """A file with a comment, which is no sound."""
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", RATE_HZ, 1, "PCM_16", format="WAV") as file:
        if title:
            file.title = title
        file.write(samples)
    return content.getvalue()


@pytest.fixture(scope="module")
def clips() -> list[bytes]:
    """The same sound in four files of other bytes, as loud as to be unsure of."""
    noise = 0.3 * np.random.default_rng(1).standard_normal(3 * RATE_HZ)
    sound = (read_audio(MINI / rows("en")[0]["path"], RATE_HZ)[0][: len(noise)]).copy()
    sound = sound + noise[: len(sound)].astype(np.float32)
    return [wav(sound, title) for title in ("", "a", "b", "c")]


def texts(model: Any, audios: list[Any], **options: Any) -> list[tuple[str, float]]:
    found = model.transcribe_each(audios, **{**DRAWN, "skip_silence": False, **options})
    assert all(isinstance(each, Transcript) for each in found), found
    return [(each.text, each.score) for each in found]


def test_draws_depend_on_the_content_alone(model: Any, clips: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(clips[0])
    (tmp_path / "other name.wav").write_bytes(clips[0])
    wanted = texts(model, list(clips))
    assert len(set(wanted)) == len(clips), "files of other content are drawn alike"
    paths = [tmp_path / "a.wav", tmp_path / "other name.wav"]
    found = texts(model, [*clips[1:], *paths])
    assert [text for text, _ in found] == [text for text, _ in [*wanted[1:], wanted[0], wanted[0]]]
    alone = texts(model, [paths[1]])
    assert alone == texts(model, paths[:1]) == texts(model, [clips[0]], isolate_audio=True)
    assert alone[0][0] == wanted[0][0] != texts(model, paths[:1], seed=2)[0][0]
    with ThreadPoolExecutor(2) as threads:
        assert [*threads.map(lambda path: texts(model, [path]), paths)] == [alone, alone]


def test_digests_tell_channels_and_slices_apart(tmp_path: Path) -> None:
    sound = 0.1 * np.random.default_rng(0).standard_normal((RATE_HZ, 2))
    path, renamed = tmp_path / "a.wav", tmp_path / "b.wav"
    for each in (path, renamed):
        soundfile.write(each, sound, RATE_HZ)

    def digests(source: Any, **reading: Any) -> list[int]:
        options = AudioOptions(**reading)
        return [each.digest for each in recordings(source, RATE_HZ, options)]

    (mixed,), split = digests(path), digests(path, channel="split")
    assert len({mixed, *split}) == 3
    assert (digests(renamed), digests(renamed, channel="split")) == ([mixed], split)
    assert digests(path.read_bytes()) == digests(path, isolate_audio=True) == [mixed]
    assert digests(path, channel="split", isolate_audio=True) == split
    (half,) = digests(f"{path}:0:8000")
    assert half not in (mixed, *digests(f"{path}:8000:8000")) and [half] == digests(
        f"{renamed}:0:8000"
    )
    mono = sound[:, 0].astype(np.float32)
    assert digests(mono) == digests(mono.copy()) != digests(mono[1:])
    path.unlink()
    assert digests(renamed) == [mixed]
