"""`scripts/longform.py`: what it joins, how it counts, and a run of it."""

from __future__ import annotations

import json
import sys
import wave
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
from conftest import ROOT, write_table
from test_whisper_mini import MINI
from test_whisper_mini import rows as mini_rows

sys.path.insert(0, str(ROOT / "scripts"))
import longform  # noqa: E402
from longform_report import align, divide, first_words, timed_words  # noqa: E402
from recordings import RATE_HZ, join, join_all, onset, read_clips  # noqa: E402

HEADER = ("path", "seconds", "language", "transcript")


def clips(directory: Path, names: tuple[str, ...], seconds: float = 40.0) -> Path:
    """A table of noise with half a second of silence in front."""
    random, rows = np.random.default_rng(0), []
    for name in names:
        samples = 0.3 * random.standard_normal(int(seconds * RATE_HZ))
        samples[: RATE_HZ // 2] = 0
        soundfile.write(directory / name, samples.clip(-1, 1), RATE_HZ)
        rows.append((name, str(seconds), "en", f"this is {name[:4]}"))
    return write_table(directory / "clips.tsv", HEADER, *rows)


def test_clips_lie_where_the_recording_says(tmp_path: Path) -> None:
    found = read_clips(clips(tmp_path, ("11-2-3.wav", "11-2-4.wav", "LJ01-1.wav")))
    assert [*found] == ["11"]  # the other one says too little
    recording = join(found["11"], tmp_path / "out" / "joined.wav", seed=1)
    with wave.open(recording.path) as file:
        joined = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        assert file.getframerate() == RATE_HZ
    assert recording.seconds == pytest.approx(len(joined) / RATE_HZ)
    for part in recording.parts:
        source, _ = soundfile.read(tmp_path / part.clip)
        begin = round(part.start * RATE_HZ)
        assert np.allclose(joined[begin : begin + len(source)], source, atol=1e-4)
        assert part.onset - part.start == pytest.approx(0.5, abs=0.021)
    pause = recording.parts[1].start - recording.parts[0].end
    assert 0.3 <= pause <= 1.7
    assert json.loads(Path(recording.path).with_suffix(".json").read_text())["seconds"] > 80


def test_recordings_repeat_clips_in_other_orders_until_there_is_enough(tmp_path: Path) -> None:
    table = clips(tmp_path, ("11-2-3.wav", "11-2-4.wav", "5-1-1.wav", "5-1-2.wav"), 32.0)
    first, second = join_all(read_clips(table), tmp_path / "out", minutes=3.0, seed=3)
    orders = [[part.clip for part in each.parts] for each in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) and first.speakers == 2
    for order in orders:  # speaker after speaker
        assert len({name.split("-")[0] for name in order[:2]}) == 1
    assert onset(np.zeros(RATE_HZ, np.float32)) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_errors_of_clips_add_up_to_those_of_the_recording(seed: int) -> None:
    random = np.random.default_rng(seed)
    references = [list(random.choice([*"abcde"], random.integers(1, 9))) for _ in range(6)]
    spoken = [word for reference in references for word in reference]
    heard = [str(random.choice([*"abcde"])) if random.random() < 0.2 else w for w in spoken]
    heard = [word for word in heard if random.random() < 0.8] + [*"ab"]
    parts = divide(references, heard)
    assert " ".join(filter(None, parts)).split() == heard
    together = jiwer.process_words(" ".join(spoken), " ".join(heard))
    each = [
        jiwer.process_words(" ".join(reference), part)
        for reference, part in zip(references, parts, strict=True)
    ]
    errors = [one.substitutions + one.deletions + one.insertions for one in (together, *each)]
    assert errors[0] == sum(errors[1:])
    assert align(spoken, []) == [] and divide([["a"], ["b"]], []) == ["", ""]


def test_first_words_are_found_by_their_text() -> None:
    references = ["It is late.", "Well, nobody came", "good night"]
    worded = [
        {"words": [(1.0, " It"), (1.2, " is"), (1.4, " late."), (1.9, " -"), (4.0, " Well"), (4.2, ",")]},
        {"words": [(4.5, " nobody"), (5.0, " came"), (9.0, " night")]},
    ]  # fmt: skip
    assert first_words(references, timed_words(worded)) == [1.0, 4.0, None]
    plain = [
        {"start": 0.9, "text": " It is late. Well, nobody", "words": None},
        {"start": 4.9, "text": " came", "words": None},
        {"start": 8.0, "text": " Good night", "words": None},
    ]
    assert first_words(references, timed_words(plain)) == [0.9, None, 8.0]


@pytest.mark.soak
def test_a_run_is_measured_once_and_counted_from_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(str(MINI / row["path"]), "3", "en", row["text"]) for row in mini_rows("en")[:24]]
    corpus = write_table(tmp_path / "clips.tsv", HEADER, *rows)
    monkeypatch.setattr(
        sys, "argv",
        ["longform.py", f"mini={MINI}", "--corpus", str(corpus), "--minutes", "1", "--rounds", "2",
         "--engines", "ours,ours-chunked", "--beams", "1", "--output", str(tmp_path / "out")],
    )  # fmt: skip
    assert longform.main() == 0
    records = (tmp_path / "out" / "mini.jsonl").read_text()
    assert sum(json.loads(line)["kind"] == "heard" for line in records.splitlines()) == 2 * 2 + 2
    content = json.loads((tmp_path / "out" / "mini.json").read_text())
    for row in content["rows"]:
        assert len(row["speeds"]) == 2 and min(row["speeds"]) > 1 and row["wer"] < 25
        assert row["joins"]["clips"] > 12 and row["joins"]["median"] < 0.3
    assert longform.main() == 0
    assert (tmp_path / "out" / "mini.jsonl").read_text() == records
    assert "| ours-chunked | 1 |" in capsys.readouterr().out
